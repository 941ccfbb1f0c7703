"""Bi-encoders on sentence-transformers: fast encoding on CPU and GPU, one or two towers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from searchfit.config import ModelSettings
from searchfit.encoders.build import (
    assemble,
    build,
    pooling_of,
    remarks,
    same,
    towers_of,
    transformer_folder,
    window,
)
from searchfit.encoders.device import autocast, has_fast_bf16, loading, model_errors, on_device, quiet
from searchfit.encoders.threads import one_thread
from searchfit.encoders.words import word_borders, word_vectors
from searchfit.fusion import Floats, Vectors
from searchfit.interaction import NO_TOKENS, Bits, PassageWords, Tokens, joined_words, pack

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

# Padded tokens in one forward pass. On a CPU a batch whose activations stay in cache is the fastest.
_BATCH_TOKENS = {"cpu": 2_600, "gpu": 65_536}
_SHORT = 200  # characters of a text that one thread reads as fast as several

# Names under which sentence-transformers models keep the text to put before a document.
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
_WITH_OFFSETS = {"text": {"return_offsets_mapping": True}}

Span = tuple[int, int]
Weights = Mapping[str, "torch.Tensor"]


class WindowTokenizer:
    """Counts tokens with the model's own tokenizer."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self.max_tokens = max_tokens

    @classmethod
    def load(cls, folder: Path) -> WindowTokenizer:
        """Read tokenizer and window from a model folder, without its weights."""
        inner = transformer_folder(folder)
        with model_errors(folder):
            if (inner / "tokenizer.json").exists():
                from tokenizers import Tokenizer

                tokenizer = Tokenizer.from_file(str(inner / "tokenizer.json"))
            else:
                from transformers import AutoTokenizer

                quiet()
                slow = AutoTokenizer.from_pretrained(inner, trust_remote_code=False)
                tokenizer = slow.backend_tokenizer
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return cls(tokenizer, window(inner))

    def count(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Tokens of each text, special tokens included, not truncated."""
        return np.array([len(row.ids) for row in self._tokenizer.encode_batch_fast(list(texts))], np.int64)


class SentenceEncoder:
    """A sentence-transformers model with a query tower and a document tower (the same one when untuned).

    Vectors are float32 and compared by their dot product. `similarity` is "cosine", for which they are of
    unit length, or "dot", for which they are as the model gives them. `remarks` are for the report.
    """

    def __init__(
        self, model: SentenceTransformer, settings: ModelSettings, remarks: tuple[str, ...] = ()
    ) -> None:
        self.model = model
        self.settings = settings
        self.remarks = remarks
        own = settings.similarity if settings.similarity != "auto" else model.similarity_fn_name
        self.similarity: Literal["cosine", "dot"] = "dot" if own == "dot" else "cosine"
        model.similarity_fn_name = self.similarity
        self.dimension = int(model.get_embedding_dimension() or 0)
        self.bf16 = settings.precision == "bf16" or (
            settings.precision == "auto" and has_fast_bf16(model.device)
        )

    @classmethod
    def load(cls, folder: Path, settings: ModelSettings) -> SentenceEncoder:
        """Load a folder and shape it as the settings say. Raises ModelError when it cannot be loaded safely,
        SettingsError when its modules do not allow what the settings ask for."""
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Transformer

        with loading(folder, settings.device) as device:
            model = SentenceTransformer(
                str(folder),
                device=device,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
            # Some tokenizers do not know their model's window, and a token beyond it is an index error.
            for module in model.modules():
                if isinstance(module, Transformer) and module.max_seq_length:
                    module.max_seq_length = min(module.max_seq_length, window(transformer_folder(folder)))
        model = build(model, settings)
        own = {"query": settings.query_prompt, "document": settings.document_prompt}
        model.prompts = {**model.prompts, **{task: prompt for task, prompt in own.items() if prompt}}
        model.eval()
        return cls(model, settings, remarks(folder, model, settings))

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """(len(texts), dimension) float32, of unit length for cosine, by the query tower."""
        return self._encode(texts, "query")

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """(len(texts), dimension) float32, of unit length for cosine, by the document tower."""
        return self._encode(texts, "document")

    def encode_questions(self, texts: Sequence[str]) -> tuple[Vectors, list[Tokens]]:
        """What `encode_queries` gives, and each question's tokens as the document tower reads them, with
        which words of passages are compared. Without `late_pooling` there are no tokens."""
        if not self.late_pooling:
            return self.encode_queries(texts), [NO_TOKENS] * len(texts)
        one = same(*towers_of(self.model).values())
        vectors = np.empty((len(texts), self.dimension), np.float32) if one else self.encode_queries(texts)
        every: list[Tokens] = [NO_TOKENS] * len(texts)
        for group in self._by_length(texts):
            with one_thread() if self._alone([texts[i] for i in group]) else contextlib.nullcontext():
                found, tokens, spans = self._tokens([texts[i] for i in group], "query")
            if one:
                vectors[group] = found
            for place, i in enumerate(group):
                real = spans[place, :, 1] > spans[place, :, 0]
                every[i] = tokens[place][real], spans[place][real]
        return vectors, every

    def encode_passages(
        self, texts: Sequence[str], spans: Sequence[Sequence[Span]], centre: Floats | None = None
    ) -> tuple[Vectors, Vectors, PassageWords | None]:
        """Vectors of passages (n, dimension) and of all their spans, one after another (m, dimension), and
        with the corpus's centre (see `token_centre`) the words of the passages.

        A mean-pooled model reads each passage once: a span's vector is the mean of its tokens' vectors in
        the passage, through the model's head (Guenther et al. 2024, "Late chunking"), at half the cost of
        reading spans again and level in quality (docs/lab.md). Other models read every span alone, and
        have no words.
        """
        if not self.late_pooling:
            alone = [text[a:b] for text, own in zip(texts, spans, strict=True) for a, b in own]
            return self.encode_documents(texts), self.encode_documents(alone), None
        vectors = np.empty((len(texts), self.dimension), np.float32)
        words: list[Bits] = [np.empty((0, 0), np.uint8)] * len(texts)
        starts = np.concatenate([[0], np.cumsum([len(own) for own in spans])]).astype(np.int64)
        inner = np.empty((int(starts[-1]), self.dimension), np.float32)
        for group in self._by_length(texts):
            passages, tokens, offsets = self._tokens([texts[i] for i in group])
            vectors[group] = passages
            for place, i in enumerate(group):
                means, found = _means(tokens[place], offsets[place], spans[i])
                own = inner[starts[i] : starts[i + 1]]
                own[:] = passages[place]
                own[found] = self._headed(means[found])
                if centre is not None:
                    words[i] = pack(word_vectors(tokens[place], offsets[place], texts[i], centre))
        if centre is None:
            return vectors, inner, None
        return vectors, inner, joined_words(words)

    def token_centre(self, texts: Sequence[str]) -> Floats | None:
        """(token dimension) the mean of the unit token vectors of some passages; None without
        `late_pooling`."""
        if not self.late_pooling:
            return None
        total, count = np.zeros(0), 0
        for group in self._by_length(texts):
            _, tokens, spans = self._tokens([texts[i] for i in group])
            real = tokens[spans[..., 1] > spans[..., 0]].astype(np.float64)
            lengths = np.linalg.norm(real, axis=1, keepdims=True)
            total, count = np.resize(total, real.shape[1]) + (real / lengths).sum(axis=0), count + len(real)
        return np.asarray(total / max(1, count), np.float32)

    def count(self, texts: Sequence[str]) -> int:
        """Tokens of the texts together, special tokens included, not truncated."""
        rows = self.model.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return sum(map(len, rows))

    def pieces(self, texts: Sequence[str]) -> float:
        """Tokens for each word of some texts, one that the tokenizer does not know counted as four: 1.1 to
        1.4 where the model has read such texts, 1.6 and more in a language that it has not. 1.0 where a
        tokenizer does not tell."""
        tokenizer = self.model.tokenizer
        if not getattr(tokenizer, "is_fast", False):
            return 1.0
        rows = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        tokens = words = 0
        for text, ids, spans in zip(texts, rows["input_ids"], rows["offset_mapping"], strict=True):
            begins, told = word_borders(np.array(spans, np.int64).reshape(-1, 2), text)
            unknown = np.array(ids, np.int64) == tokenizer.unk_token_id
            tokens += int(told.sum()) + 3 * int((told & unknown).sum())
            words += int((begins & told).sum())
        return tokens / max(1, words)

    @cached_property
    def late_pooling(self) -> bool:
        """Whether the document tower is a transformer, a mean over tokens, and at most a head."""
        modules = towers_of(self.model)["document"]
        names = [type(module).__name__ for module in modules]
        mean = names[:2] == ["Transformer", "Pooling"] and pooling_of(modules) == "mean"
        fast = bool(getattr(self.model.tokenizer, "is_fast", False))
        whole = self.model.truncate_dim is None
        return mean and fast and whole and {*names[2:]} <= {"Dropout", "Dense", "Normalize"}

    @cached_property
    def _document_tower(self) -> SentenceTransformer:
        return _tower(self.model, "document")

    def _headed(self, means: Floats) -> Vectors:
        """What follows the pooling in the document tower, over (n, token dimension) means."""
        import torch

        features = {"sentence_embedding": torch.from_numpy(means).to(self.model.device)}
        with torch.inference_mode():
            for module in towers_of(self.model)["document"][2:]:
                features = module(features)
        return self._final(features["sentence_embedding"])

    def _final(self, vectors: torch.Tensor) -> Vectors:
        import torch

        vectors = vectors.float()
        if self.similarity == "cosine":
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        return np.asarray(vectors.cpu().numpy(), np.float32)

    def _tokens(
        self, texts: list[str], task: Literal["query", "document"] = "document"
    ) -> tuple[Vectors, Floats, npt.NDArray[np.int64]]:
        """By the document tower: vectors of texts (n, d), token vectors (n, t, d), and each token's (start,
        end) in its text (n, t, 2), (0, 0) for special tokens, the prompt of the task and padding."""
        import torch

        # The first that is there counts, an empty one too, as in encode_document and encode_query.
        prompts, names = self.model.prompts, _DOCUMENT_PROMPTS if task == "document" else ("query",)
        prompt = next((prompts[name] for name in names if name in prompts), None) or ""
        tower = self._document_tower
        features = tower.preprocess([prompt + t for t in texts], processing_kwargs=_WITH_OFFSETS)
        offsets = features.pop("offset_mapping").numpy() - len(prompt)
        features = {key: on_device(value, self.model.device) for key, value in features.items()}
        with torch.inference_mode(), self.autocast():
            out = tower(features)
        offsets[(offsets[..., 0] < 0) | (out["attention_mask"].cpu().numpy() == 0)] = 0
        return self._final(out["sentence_embedding"]), out["token_embeddings"].float().cpu().numpy(), offsets

    def _encode(self, texts: Sequence[str], task: Literal["query", "document"]) -> Vectors:
        vectors = np.empty((len(texts), self.dimension), np.float32)
        for group in self._by_length(texts):
            vectors[group] = self._forward([texts[i] for i in group], task)
        return vectors

    def _by_length(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """The texts' numbers in groups of like length, within the token budget of a forward pass."""
        budget = _BATCH_TOKENS["cpu" if self.model.device.type == "cpu" else "gpu"]
        lengths = [min(len(text) // 3 + 4, self.model.max_seq_length or 512) for text in texts]
        order = sorted(range(len(texts)), key=lambda i: (-lengths[i], i))
        start = 0
        while start < len(order):
            n = max(1, budget // lengths[order[start]])
            yield order[start : start + n]
            start += n

    def _forward(self, texts: list[str], task: Literal["query", "document"]) -> Vectors:
        encode = self.model.encode_query if task == "query" else self.model.encode_document
        with self.autocast(), one_thread() if self._alone(texts) else contextlib.nullcontext():
            vectors: Any = encode(
                texts,
                batch_size=len(texts),
                show_progress_bar=False,
                convert_to_numpy=True,
                normalize_embeddings=self.similarity == "cosine",
            )
        return np.asarray(vectors, np.float32)

    def _alone(self, texts: list[str]) -> bool:
        """Whether it is one question, too little work to share: threads that wait for one another cost more
        than they save."""
        return len(texts) == 1 and len(texts[0]) < _SHORT and self.model.device.type == "cpu"

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 arithmetic where the hardware is fast at it."""
        return autocast(self.model.device, self.bf16)

    def tower(self, task: Literal["query", "document"]) -> SentenceTransformer:
        """A copy of one tower, to be trained; this encoder stays as it is."""
        import copy

        return copy.deepcopy(_tower(self.model, task))

    def query_modules(self) -> SentenceTransformer:
        """A copy of the query tower, to be trained."""
        return self.tower("query")

    def with_query_weights(self, weights: Weights, share: float) -> SentenceEncoder:
        """`with_towers` for a query tower that was tuned to documents as they are here."""
        return self.with_towers(weights, None, share)

    def with_towers(self, query: Weights | None, document: Weights | None, share: float) -> SentenceEncoder:
        """An encoder whose towers are (1 - share) of these and `share` of the weights given for each (None:
        the tower stays), parameter by parameter (Wortsman et al. 2022, "Robust fine-tuning of zero-shot
        models"). Names are those of `tower(task).state_dict()`; what is not named stays.

        The same mapping given for both sides of a plain model gives a plain model again.
        """
        own = towers_of(self.model)
        towers = {
            "query": _merged(own["query"], query, share),
            "document": _merged(own["document"], document, share),
        }
        if query is document and same(*own.values()):
            towers["document"] = towers["query"]
        return SentenceEncoder(assemble(towers, self.model).eval(), self.settings)

    def save(self, folder: Path) -> None:
        """Save so that `SentenceTransformer(folder)` opens it and encode_query / encode_document route."""
        self.model.save_pretrained(str(folder), create_model_card=False)


def _tower(model: SentenceTransformer, task: str) -> SentenceTransformer:
    """One side as a model of its own; the model itself where both sides are one."""
    towers = towers_of(model)
    if same(*towers.values()):
        return model
    return assemble(dict.fromkeys(towers, towers[task]), model)


def _merged(modules: list[Any], weights: Weights | None, share: float) -> list[Any]:
    """The modules of a tower, or copies that hold the merged weights."""
    import copy

    import torch

    if weights is None:
        return modules
    merged = copy.deepcopy(modules)
    own = torch.nn.Sequential(*merged).state_dict()
    with torch.no_grad():
        for name, value in weights.items():
            target = own[name]
            if target.is_floating_point():
                target.copy_(torch.lerp(target, value.to(target), share))
    return merged


def _means(
    tokens: Floats, offsets: npt.NDArray[np.int64], spans: Sequence[Span]
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """(len(spans), d) means of the tokens that begin in each span, and which spans have any."""
    real = np.flatnonzero(offsets[:, 1] > offsets[:, 0])
    begins = offsets[real, 0]
    means = np.zeros((len(spans), tokens.shape[1]), np.float32)
    found = np.zeros(len(spans), np.bool_)
    for row, (a, b) in enumerate(spans):
        inside = real[np.searchsorted(begins, a) : np.searchsorted(begins, b)]
        if len(inside):
            means[row], found[row] = tokens[inside].mean(axis=0), True
    return means, found
