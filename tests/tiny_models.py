"""Tiny encoders of several architectures, made on the spot and saved in the layout of the hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

WORDS = tuple(
    re.findall(
        r"\w+",
        """anchor harbour mast keel tide rudder oven dough saffron skillet garlic pastry violin sonata tempo
        chord cello melody glacier summit ridge hut trail valley the old a near and for is not of with
        every""",
    )
)
TEXTS = tuple(
    f"the {WORDS[i % 30]} near the {WORDS[(7 * i + 3) % 30]} is not for the {WORDS[(11 * i + 5) % 30]} of "
    f"every {WORDS[(13 * i + 1) % 30]} with a {WORDS[(3 * i + 2) % 30]}" + " and the old tide" * (i % 4)
    for i in range(48)
)
KINDS = ("bert", "mpnet", "roberta", "distilbert")
_SPECIAL = {
    "bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "roberta": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def save_encoder(kind: str, folder: Path, task: str = "Model", window: int | None = 64) -> Path:
    """Save a raw encoder: `kind` as in KINDS, `task` the ending of its class in transformers (Model,
    ForMaskedLM, ForSequenceClassification). `window` None leaves the tokenizer's limit unsaid."""
    import torch
    import transformers

    roberta = kind in ("roberta", "mpnet")
    pieces = list(_SPECIAL["roberta" if roberta else "bert"])
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces += [*letters, *(f"##{letter}" for letter in letters), *sorted({*WORDS} - {*letters})]
    _tokenizer(pieces, roberta, window).save_pretrained(folder)
    sizes: dict[str, Any] = {**SIZES, "vocab_size": len(pieces), "initializer_range": 0.3}
    sizes |= {"max_position_embeddings": 130, "pad_token_id": 1 if roberta else 0}
    if roberta:
        sizes |= {"bos_token_id": 0, "eos_token_id": 2}
    if kind == "distilbert":
        sizes |= {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
        sizes = {key: value for key, value in sizes.items() if key not in SIZES}
    name = {"bert": "Bert", "mpnet": "MPNet", "roberta": "Roberta", "distilbert": "DistilBert"}[kind]
    torch.manual_seed(len(kind))
    config = getattr(transformers, f"{name}Config")(**sizes)
    getattr(transformers, f"{name}{task}")(config).save_pretrained(folder)
    return folder


def _tokenizer(pieces: Sequence[str], roberta: bool, window: int | None) -> Any:
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece
    from transformers import PreTrainedTokenizerFast

    numbers = {piece: number for number, piece in enumerate(pieces)}
    begin, end, pad, unknown, mask = (
        ("<s>", "</s>", "<pad>", "<unk>", "<mask>")
        if roberta
        else ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]")
    )
    tokenizer = Tokenizer(WordPiece(numbers, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    make: Callable[..., Any] = processors.RobertaProcessing if roberta else processors.BertProcessing
    tokenizer.post_processor = make((end, numbers[end]), (begin, numbers[begin]))
    limit = {} if window is None else {"model_max_length": window}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token=unknown,
        cls_token=begin,
        sep_token=end,
        mask_token=mask,
        **limit,
    )
