"""Stand-ins for the models that the examples name: the same architectures, a thousand times smaller.

The configs of the examples name real models, which a machine without a network cannot load. With
`--models tiny` each of them is replaced by a stand-in, made here from nothing but a seed and the texts of the
example. Stand-ins show that every step works; what they find, and any figure they get, says nothing about the
real models.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from writers import save_llama, save_t5

from searchfit.toml import read_toml, toml_value

SEED = 13
KINDS = ("tiny", "builtin", "real")
"""Whose models are used: stand-ins; what comes with searchfit (minilm, phrases); those in the config."""

_TOKEN = re.compile(r"\w+|[^\w\s]")
LETTERS = "".join(char for char in map(chr, range(33, 127)) if not char.isupper())
_LABEL = """# A stand-in for {name}

Made by examples/models.py from a seed and the texts of an example: the architecture of {name}, and a
thousandth of its size. It shows that the steps of the example work. What it finds says nothing about the real
model.
"""


def chosen(name: str, kind: str, folder: Path, texts: Sequence[str]) -> str:
    """The model to use for a real one: its name itself (kind "real"), "minilm" or, for a model that writes
    queries, "phrases" (kind "builtin"), or the folder of a stand-in (kind "tiny")."""
    if kind == "tiny":
        return str(stand_in(name, folder, texts))
    if kind == "builtin":
        return "phrases" if _maker(name) in (save_t5, save_llama) else "minilm"
    return name


def swaps(config: Path, kind: str, folder: Path, texts: Sequence[str]) -> list[str]:
    """The `--set section.key=value` words that put other models of a kind in place of the real ones that a
    config names; none for kind "real"."""
    found: dict[str, Any] = {}
    for section, values in read_toml(config).items():
        for key, value in values.items() if isinstance(values, dict) and kind != "real" else ():
            put = [
                _swapped(one, kind, folder, texts) for one in (value if isinstance(value, list) else [value])
            ]
            if put != (value if isinstance(value, list) else [value]):
                found[f"{section}.{key}"] = put if isinstance(value, list) else put[0]
    if kind == "tiny" and "train.learning_rate" not in found:
        found["train.learning_rate"] = 1e-3  # models this small learn nothing at 2e-5
    return [word for key, value in found.items() for word in ("--set", f"{key}={toml_value(value)}")]


def _swapped(value: Any, kind: str, folder: Path, texts: Sequence[str]) -> Any:
    match = _NAMES.search(value) if isinstance(value, str) else None
    if match is None:
        return value
    other = chosen(match[0].partition("@")[0], kind, folder, texts)
    return other if other == "phrases" else value.replace(match[0], other)


def stand_in(name: str, folder: Path, texts: Sequence[str], seed: int = SEED) -> Path:
    """The folder of a stand-in for a real model, below `folder`; made unless it is there. The same name,
    texts and seed always give the same files."""
    place = folder / name.replace("/", "--")
    if not place.is_dir():
        print(
            f"making {place}, a tiny stand-in for {name}: its figures say nothing about the real model",
            flush=True,
        )
        beside = folder / f".{place.name}.{os.getpid()}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        _maker(name)(name, texts, beside, seed)
        (beside / "README.md").write_text(_LABEL.format(name=name), encoding="utf-8")
        beside.rename(place)
    return place


def _maker(name: str) -> _Maker:
    if name not in STAND_INS:
        raise SystemExit(f"there is no stand-in for {name}; there is: {', '.join(STAND_INS)}")
    return STAND_INS[name]


# Encoders


def _save_encoder(name: str, texts: Sequence[str], folder: Path, seed: int, head: str = "Model") -> None:
    """A raw BERT or MPNet of two layers and 64 dimensions, with the commonest words of the texts as its word
    pieces, and letters for all others."""
    import torch
    import transformers

    mpnet = "mpnet" in name
    pieces = _save_word_pieces(texts, folder, mpnet)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2} if mpnet else {"pad_token_id": 0}
    config = getattr(transformers, "MPNetConfig" if mpnet else "BertConfig")(
        **sizes,
        **special,
        vocab_size=pieces,
        max_position_embeddings=260,
        # Wider than usual: the usual one makes the vectors of an untrained model all alike.
        initializer_range=0.2,
        num_labels=1,
    )
    torch.manual_seed(seed)
    getattr(transformers, f"{'MPNet' if mpnet else 'Bert'}{head}")(config).save_pretrained(folder)


def _save_sentence_encoder(name: str, texts: Sequence[str], folder: Path, seed: int) -> None:
    """An encoder with mean pooling that ends in unit vectors, in the layout of sentence-transformers."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    raw = folder / "raw"
    _save_encoder(name, texts, raw, seed)
    transformer = Transformer(str(raw), max_seq_length=256)
    modules = [transformer, Pooling(transformer.get_embedding_dimension()), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder), create_model_card=False)
    shutil.rmtree(raw)


def _save_cross_encoder(name: str, texts: Sequence[str], folder: Path, seed: int) -> None:
    """A BERT with one output, of random weights."""
    _save_encoder(name, texts, folder, seed, "ForSequenceClassification")


def _save_word_pieces(texts: Sequence[str], folder: Path, mpnet: bool) -> int:
    """Save a WordPiece tokenizer; the number of its pieces."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece
    from transformers import PreTrainedTokenizerFast

    special = (
        ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
        if mpnet
        else ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    )
    begin, pad, end, unknown, mask = (
        special if mpnet else (special[2], special[0], special[3], special[1], special[4])
    )
    pieces = [*special, *LETTERS, *(f"##{c}" for c in LETTERS), *common(texts, 4000)]
    numbers = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(WordPiece(numbers, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    make: Any = processors.RobertaProcessing if mpnet else processors.BertProcessing
    tokenizer.post_processor = make((end, numbers[end]), (begin, numbers[begin]))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=256,
        pad_token=pad,
        unk_token=unknown,
        cls_token=begin,
        sep_token=end,
        mask_token=mask,
    ).save_pretrained(folder)
    return len(numbers)


def common(texts: Sequence[str], many: int) -> list[str]:
    """The commonest words and signs of the texts, in lower case."""
    counts = Counter(token for text in texts for token in _TOKEN.findall(text.lower()) if len(token) < 30)
    return sorted(counts, key=lambda token: (-counts[token], token))[:many]


_Maker = Callable[[str, Sequence[str], Path, int], None]

STAND_INS: dict[str, _Maker] = {
    "bert-base-uncased": _save_encoder,
    "ProsusAI/finbert": _save_encoder,
    "microsoft/mpnet-base": _save_encoder,
    "sentence-transformers/all-mpnet-base-v2": _save_sentence_encoder,
    "sentence-transformers/all-MiniLM-L6-v2": _save_sentence_encoder,
    "sentence-transformers/multi-qa-mpnet-base-dot-v1": _save_sentence_encoder,
    "cross-encoder/ms-marco-MiniLM-L6-v2": _save_cross_encoder,
    "BeIR/query-gen-msmarco-t5-base-v1": save_t5,
    "meta-llama/Meta-Llama-3-8B-Instruct": save_llama,
}
"""What makes the stand-in of each real model that the examples name."""

_NAMES = re.compile("(?:" + "|".join(map(re.escape, STAND_INS)) + r")(?:@[\w./-]+)?")
