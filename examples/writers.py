"""Stand-ins for models that write queries: a T5 and a LLaMA whose weights are set, not trained.

Both do one thing, which a model of one layer can: after an opening drawn by chance ("which", "where" ...) the
attention looks at the words of the text that is asked for, picks one that follows from the word before, and
says it; after each word it may be done. So the questions make no sense, but they are about their text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

OPENINGS = ("which", "where", "how", "what", "is there", "show me", "who knows", "about", "any", "find")
SIZE = 128
"""Dimensions: a few features of a token, and what tells it from others."""

_ATTENDS, _WORD, _ENDS, _OPENS, _BEGINS, _STARTS = range(6)
_FIRST = 8
_LIKELY = 16.0
"""The logit of what is to be said next; all others stay far below."""

_COPY = 8.0
_MUCH = 1000.0
_LONG = re.compile(r"[^\W\d_]{4,}")
_DULL = frozenset(
    ("with", "that", "this", "from", "have", "been", "were", "which", "their", "there", "they", "when")
)


@dataclass(frozen=True)
class Copier:
    """One layer of attention that copies: embeddings (tokens x SIZE), which are its keys, and projections."""

    embedding: torch.Tensor
    query: torch.Tensor
    value: torch.Tensor
    output: torch.Tensor

    @classmethod
    def make(cls, tokens: int, words: Sequence[int], seed: int) -> Copier:
        """For a vocabulary of so many tokens, of which `words` are copied."""
        import torch

        random = torch.Generator().manual_seed(seed)
        embedding = torch.randn(tokens, SIZE, generator=random)
        embedding[:, :_FIRST] = 0
        embedding[:, _ATTENDS] = 1
        embedding[list(words), _WORD] = 1
        embedding[list(words), _ENDS] = 1
        query = torch.zeros(SIZE, SIZE)
        query[_WORD, _ATTENDS] = 40  # only words are looked at
        follows = torch.randn(SIZE - _FIRST, SIZE - _FIRST, generator=random) * (6 / SIZE)
        query[_FIRST:, _FIRST:] = follows - follows.T  # so that no word follows itself
        value = torch.eye(SIZE)
        value[:_FIRST] = 0
        return cls(embedding, query, value, torch.eye(SIZE) * _COPY)


def save_t5(name: str, texts: Sequence[str], folder: Path, seed: int) -> None:  # noqa: ARG001
    """A T5 of one layer, its tokenizer a unigram model of the words of the texts."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = _save_unigrams(texts, folder)
    numbers = tokenizer.get_vocab()
    openings = [numbers[f"\u2581{opening}"] for opening in OPENINGS]
    words = _words(numbers, "\u2581", texts) - {*openings}
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    made = Copier.make(len(tokenizer), sorted(words), seed)
    # What a T5 says is read off with the same embeddings, after a norm with a weight for each dimension.
    spoken = torch.full((SIZE,), _LIKELY / SIZE**0.5)
    spoken[:_FIRST] = torch.tensor([{_ENDS: 1.0, _OPENS: 4.0}.get(feature, 0.0) for feature in range(_FIRST)])
    made.embedding[openings, _OPENS] = _LIKELY / 4
    made.embedding[[pad, end]] = 0
    made.embedding[end, _ENDS] = (_LIKELY - 3) * _COPY * SIZE**0.5
    made.embedding[pad, _STARTS] = 1
    sizes = {"d_model": SIZE, "d_kv": SIZE, "d_ff": 1, "num_layers": 1, "num_heads": 1}
    model = T5ForConditionalGeneration(
        T5Config(**sizes, vocab_size=len(tokenizer), decoder_start_token_id=pad)
    )
    decoder = model.decoder.block[0]
    looks, after = decoder.layer[1].EncDecAttention, decoder.layer[2].DenseReluDense
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if "norm" not in part:
                parameter.zero_()  # but for what follows, nothing is added to a token on its way
        model.shared.weight.copy_(made.embedding)
        model.decoder.final_layer_norm.weight.copy_(spoken)
        for part, weight in ((looks.q, made.query), (looks.k, torch.eye(SIZE)), (looks.v, made.value)):
            part.weight.copy_(weight)
        looks.o.weight.copy_(made.output)
        after.wi.weight[0, _STARTS] = 1
        after.wo.weight[_OPENS, 0] = _MUCH
    model.save_pretrained(folder)


def save_llama(name: str, texts: Sequence[str], folder: Path, seed: int) -> None:  # noqa: ARG001
    """A LLaMA of one layer with Llama 3's chat template, which answers in lines that begin with a dash."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from searchfit.generators.prompts import BUILT_IN

    tokenizer = _save_byte_pairs([BUILT_IN, *texts], folder)
    numbers = tokenizer.get_vocab()
    openings = [numbers[f" {opening}"] for opening in OPENINGS]
    asked = set(tokenizer(f" {BUILT_IN} {_SAID}")["input_ids"])
    words = _words(numbers, "\u0120", texts) - asked - {*openings}
    dash, end = numbers[_DASH], tokenizer.eos_token_id
    turn = tokenizer("<|end_header_id|>\n\n", add_special_tokens=False)["input_ids"][-1]
    made = Copier.make(len(tokenizer), sorted(words), seed)
    head = torch.zeros(len(tokenizer), SIZE)
    head[sorted(words), _FIRST:] = made.embedding[sorted(words), _FIRST:] * (_LIKELY / SIZE)
    for after, feature, following in ((turn, _BEGINS, [dash]), (dash, _OPENS, openings)):
        made.embedding[after] = 0
        made.embedding[after, feature] = _MUCH
        head[following, feature] = _LIKELY / SIZE**0.5
    head[dash, _ENDS] = (_LIKELY - 2.2) * _COPY
    head[end, _ENDS] = (_LIKELY - 3.2) * _COPY
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=SIZE,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end,
        tie_word_embeddings=False,
        rope_parameters={
            "rope_type": "linear",
            "factor": 1e6,
            "rope_theta": 500_000.0,
        },  # places count for nothing
    )
    model = LlamaForCausalLM(config)
    looks = model.model.layers[0].self_attn
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(made.embedding)
        model.lm_head.weight.copy_(head)
        looks.q_proj.weight.copy_(made.query * SIZE**0.5)
        looks.k_proj.weight.copy_(torch.eye(SIZE))
        looks.v_proj.weight.copy_(made.value)
        looks.o_proj.weight.copy_(made.output)
    model.save_pretrained(folder)


def _words(numbers: Mapping[str, int], space: str, texts: Sequence[str]) -> set[int]:
    """The tokens that are whole words of the texts, without dull and common ones."""
    counts = Counter(word for text in texts for word in {*_LONG.findall(f"{text} {text.lower()}")})
    there = {word for word, count in counts.items() if count <= max(2, len(texts) // 5)}
    found = {
        number: piece.removeprefix(space) for piece, number in numbers.items() if piece.startswith(space)
    }
    return {number for number, word in found.items() if word in there and word.lower() not in _DULL}


_DASH = "\n-"
_SAID = "You write search queries for documents title text language English question keywords claim"
_CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def _save_unigrams(texts: Sequence[str], folder: Path) -> Any:
    from models import LETTERS, common
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<unk>"]
    words = [f"\u2581{word}" for word in (*OPENINGS, *common(texts, 4000))]
    pieces = dict.fromkeys([*special, "\u2581", *LETTERS, *words])
    scored = [(piece, -9.0 if len(piece) == 1 else -2.0) for piece in pieces]
    tokenizer = Tokenizer(Unigram(scored, unk_id=2))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )
    fast.save_pretrained(folder)
    return fast


def _save_byte_pairs(texts: Sequence[str], folder: Path) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    special = ("begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id")
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=[f"<|{one}|>" for one in special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(
        [AddedToken(one, normalized=False) for one in (_DASH, *(f" {word}" for word in OPENINGS))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        model_max_length=8192,
    )
    fast.chat_template = _CHAT
    fast.save_pretrained(folder)
    return fast
