"""Bi-encoders on sentence-transformers: fast encoding on CPU and GPU, one or two towers."""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from searchfit.config import ModelSettings
from searchfit.errors import ModelError
from searchfit.fusion import Floats, Vectors

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

# Padded tokens in one forward pass. On a CPU a batch whose activations stay in cache is the fastest.
_BATCH_TOKENS = {"cpu": 2_600, "gpu": 65_536}

# Where sentence-transformers keeps the transformer when it is not at the top, by layout.
_TRANSFORMER_FOLDERS = ("document_0_Transformer", "0_Transformer")

# Names under which sentence-transformers models keep the text to put before a document.
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
_WITH_OFFSETS = {"text": {"return_offsets_mapping": True}}

Span = tuple[int, int]


class WindowTokenizer:
    """Counts tokens with the model's own tokenizer."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self.max_tokens = max_tokens

    @classmethod
    def load(cls, folder: Path) -> WindowTokenizer:
        """Read tokenizer and window from a model folder, without its weights."""
        inner = next((folder / sub for sub in _TRANSFORMER_FOLDERS if (folder / sub).is_dir()), folder)
        with _model_errors(folder):
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
            return cls(tokenizer, _window(inner))

    def count(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Tokens of each text, special tokens included, not truncated."""
        return np.array([len(row.ids) for row in self._tokenizer.encode_batch_fast(list(texts))], np.int64)


def _window(folder: Path) -> int:
    limits = []
    for file, keys in (
        ("tokenizer_config.json", ("model_max_length",)),
        ("sentence_bert_config.json", ("max_seq_length",)),
        ("config.json", ("max_position_embeddings", "n_positions")),
    ):
        if (folder / file).exists():
            config = json.loads((folder / file).read_text(encoding="utf-8"))
            limits += [config[key] for key in keys if config.get(key)]
    limit = min(limits, default=512)
    # RoBERTa's position table holds two more rows than it has places.
    return int(limit - 2 if limit in (514, 4098) else limit)


class SentenceEncoder:
    """A sentence-transformers model with a query tower and a document tower (the same one when untuned).

    Vectors are float32 of unit length, so that a dot product is the cosine.
    """

    def __init__(self, model: SentenceTransformer, settings: ModelSettings) -> None:
        self.model = model
        self.settings = settings
        self.dimension = int(model.get_embedding_dimension() or 0)
        self.bf16 = settings.precision == "bf16" or (
            settings.precision == "auto" and has_fast_bf16(model.device)
        )

    @classmethod
    def load(cls, folder: Path, settings: ModelSettings) -> SentenceEncoder:
        """Load a folder. Raises ModelError when it cannot be loaded safely."""
        import torch
        from sentence_transformers import SentenceTransformer

        quiet()
        tune_process()
        device = None if settings.device == "auto" else settings.device
        if device is None and not torch.cuda.is_available() and not torch.backends.mps.is_available():
            device = "cpu"
        with _model_errors(folder):
            model = SentenceTransformer(
                str(folder),
                device=device,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
        own = {"query": settings.query_prompt, "document": settings.document_prompt}
        model.prompts = {**model.prompts, **{task: prompt for task, prompt in own.items() if prompt}}
        model.eval()
        return cls(model, settings)

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """(len(texts), dimension) float32 of unit length, by the query tower."""
        return self._encode(texts, "query")

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """(len(texts), dimension) float32 of unit length, by the document tower."""
        return self._encode(texts, "document")

    def encode_passages(
        self, texts: Sequence[str], spans: Sequence[Sequence[Span]]
    ) -> tuple[Vectors, Vectors]:
        """Vectors of passages (n, dimension) and of all their spans, one after another (m, dimension).

        A mean-pooled model reads each passage once: a span's vector is the mean of its tokens' vectors in
        the passage (Guenther et al. 2024, "Late chunking"), at half the cost of reading spans again and
        level in quality (docs/lab.md). Other models read every span alone.
        """
        if not self.late_pooling:
            alone = [text[a:b] for text, own in zip(texts, spans, strict=True) for a, b in own]
            return self.encode_documents(texts), self.encode_documents(alone)
        vectors = np.empty((len(texts), self.dimension), np.float32)
        starts = np.concatenate([[0], np.cumsum([len(own) for own in spans])]).astype(np.int64)
        inner = np.empty((int(starts[-1]), self.dimension), np.float32)
        for group in self._by_length(texts):
            passages, tokens, offsets = self._tokens([texts[i] for i in group])
            vectors[group] = passages
            for place, i in enumerate(group):
                inner[starts[i] : starts[i + 1]] = _pool(
                    tokens[place], offsets[place], spans[i], passages[place]
                )
        return vectors, inner

    @cached_property
    def late_pooling(self) -> bool:
        """Whether the document tower is a transformer, a mean over tokens, and at most a normalisation."""
        modules = list(_tower(self.model, "document"))
        names = [type(module).__name__ for module in modules]
        mean = len(modules) > 1 and getattr(modules[1], "pooling_mode", "") == "mean"
        fast = bool(getattr(self.model.tokenizer, "is_fast", False))
        return mean and fast and names[0] == "Transformer" and names[2:] in ([], ["Normalize"])

    def _tokens(self, texts: list[str]) -> tuple[Vectors, Floats, npt.NDArray[np.int64]]:
        """Passage vectors (n, d), token vectors (n, t, d), and each token's (start, end) in its text
        (n, t, 2), (0, 0) for special tokens, the prompt and padding."""
        import torch

        prompt = next(
            (self.model.prompts[name] for name in _DOCUMENT_PROMPTS if self.model.prompts.get(name)), ""
        )
        tower = _tower(self.model, "document")
        features = tower.preprocess([prompt + t for t in texts], processing_kwargs=_WITH_OFFSETS)
        offsets = features.pop("offset_mapping").numpy() - len(prompt)
        features = {key: on_device(value, self.model.device) for key, value in features.items()}
        with torch.inference_mode(), self.autocast():
            out = tower(features)
        passages = torch.nn.functional.normalize(out["sentence_embedding"].float(), dim=-1)
        offsets[(offsets[..., 0] < 0) | (out["attention_mask"].cpu().numpy() == 0)] = 0
        return passages.cpu().numpy(), out["token_embeddings"].float().cpu().numpy(), offsets

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
        with self.autocast():
            vectors: Any = encode(
                texts,
                batch_size=len(texts),
                show_progress_bar=False,
                convert_to_numpy=True,
                normalize_embeddings=True,
            )
        return np.asarray(vectors, np.float32)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 arithmetic where the hardware is fast at it."""
        import torch

        if not self.bf16:
            return contextlib.nullcontext()
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16)

    def query_modules(self) -> SentenceTransformer:
        """A copy of the query tower, to be trained; this encoder stays as it is."""
        import copy

        return copy.deepcopy(_tower(self.model, "query"))

    def with_query_weights(self, weights: Mapping[str, torch.Tensor], share: float) -> SentenceEncoder:
        """An encoder whose query tower is (1 - share) of this one's and `share` of `weights`, parameter by
        parameter (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models"); documents as here."""
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Router

        query = self.query_modules()
        own = query.state_dict()
        with torch.no_grad():
            for name, value in weights.items():
                target = own[name]
                target.copy_(
                    torch.lerp(target, value.to(target), share) if target.is_floating_point() else target
                )
        router = Router.for_query_document(
            query_modules=list(query), document_modules=list(_tower(self.model, "document"))
        )
        model = SentenceTransformer(
            modules=[router],
            device=str(self.model.device),
            prompts=self.model.prompts,
            similarity_fn_name=self.model.similarity_fn_name,
        )
        model.eval()
        return SentenceEncoder(model, self.settings)

    def save(self, folder: Path) -> None:
        """Save so that `SentenceTransformer(folder)` opens it and encode_query / encode_document route."""
        self.model.save_pretrained(str(folder), create_model_card=False)


def _tower(model: SentenceTransformer, task: str) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Router

    first = model[0]
    if isinstance(first, Router):
        modules = list(first.sub_modules[task])
        return SentenceTransformer(modules=modules, device=str(model.device), prompts=model.prompts)
    return model


def _pool(tokens: Floats, offsets: npt.NDArray[np.int64], spans: Sequence[Span], passage: Floats) -> Vectors:
    """(len(spans), d) unit vectors: the mean of the tokens that begin in each span, else the passage's."""
    real = np.flatnonzero(offsets[:, 1] > offsets[:, 0])
    begins = offsets[real, 0]
    pooled = np.empty((len(spans), len(passage)), np.float32)
    for row, (a, b) in enumerate(spans):
        inside = real[np.searchsorted(begins, a) : np.searchsorted(begins, b)]
        mean = tokens[inside].mean(axis=0) if len(inside) else passage
        pooled[row] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return pooled


def on_device(value: Any, device: torch.device) -> Any:
    """A feature on a device; what is not a tensor stays as it is."""
    return value.to(device) if hasattr(value, "to") else value


@contextlib.contextmanager
def _model_errors(folder: Path) -> Iterator[None]:
    """What the libraries raise for a damaged folder, as one error for the user."""
    try:
        yield
    except Exception as error:  # of any class: damaged weights and tokenizers have errors of their own
        raise ModelError(
            f"the model in {folder} cannot be loaded: {error}.",
            "A folder with config.json, a tokenizer and safetensors weights is expected; "
            "models that need code of their own are refused.",
        ) from error


def quiet() -> None:
    """Keep the libraries' progress bars and advice out of the user's terminal."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="torch")


@lru_cache(maxsize=1)
def tune_process() -> None:
    """Settings that pay on a CPU: glibc keeps freed memory (no page faults by batch: 15% faster), and torch
    uses the cores that this process may use, not those of the machine."""
    import torch

    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, value in ((-4, 0), (-2, 64 << 20), (-1, 512 << 20)):  # MMAP_MAX, TOP_PAD, TRIM_THRESHOLD
            mallopt(option, value)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(usable_cores())


def usable_cores() -> int:
    """Cores that this process may use, by affinity and container quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()[:2]
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def has_fast_bf16(device: Any) -> bool:
    """Whether bf16 arithmetic is faster than fp32 on a torch device."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )
