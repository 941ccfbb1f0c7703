"""Cross-encoders: models that read a query and a text together and say how well one answers the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from searchfit.encoders import locate
from searchfit.encoders.build import positions, transformer_folder
from searchfit.encoders.device import autocast, has_fast_bf16, loading, model_errors
from searchfit.errors import ModelError
from searchfit.executors import Portable
from searchfit.fusion import Floats

if TYPE_CHECKING:
    import sentence_transformers

Precision = Literal["auto", "fp32", "bf16"]

# Of a query with a passage, for a re-ranker made from an encoder.
_MOST_TOKENS = 512

# Padded tokens in one forward pass, as of the bi-encoders.
_BATCH_TOKENS = {"cpu": 2_600, "gpu": 65_536}


class CrossEncoder:
    """A cross-encoder in sentence-transformers' layout, with one output."""

    def __init__(self, model: sentence_transformers.CrossEncoder, bf16: bool = False) -> None:
        self.model, self.bf16 = model, bf16

    @classmethod
    def load(cls, name: str, device: str = "auto", precision: Precision = "fp32") -> CrossEncoder:
        """Load a folder or a hub id; precision "auto" is bf16 where that is fast.

        Raises ModelError when it is absent, damaged, pickled, needs code of its own, or gives more than one
        score for a pair.
        """
        folder = locate(name)
        _check_scores(folder)
        model = _load(folder, device)
        return cls(model, precision == "bf16" or (precision == "auto" and has_fast_bf16(model.device)))

    @classmethod
    def start(cls, name: str, device: str = "auto") -> CrossEncoder:
        """A re-ranker to be trained: one as it is, or an encoder ("minilm", a folder, a hub id) with a new
        head, the same each time. Raises ModelError where there is no model that can be loaded safely."""
        folder = locate(name)
        inner = transformer_folder(folder)
        if inner == folder and _scores(folder):
            return cls.load(name, device)
        # An embedding model may read less than it could; a query and a passage together need it all.
        with model_errors(folder):
            window = min(_MOST_TOKENS, *positions(inner))
        return cls(_load(inner, device, num_labels=1, max_length=window))

    def score(self, queries: Sequence[str], texts: Sequence[str]) -> Floats:
        """(n) float32 in 0..1: the sigmoid of the model's output for each query with its text."""
        return sigmoid(self.raw(queries, texts))

    def raw(self, queries: Sequence[str], texts: Sequence[str]) -> Floats:
        """(n) float32: the model's output for each query with its text, before any activation."""
        scores = np.empty(len(queries), np.float32)
        lengths = [min((len(q) + len(t)) // 3 + 6, self._window) for q, t in zip(queries, texts, strict=True)]
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        budget = _BATCH_TOKENS["cpu" if self.model.device.type == "cpu" else "gpu"]
        start = 0
        while start < len(order):
            group = order[start : start + max(1, budget // lengths[order[start]])]
            scores[group] = self._forward([(queries[i], texts[i]) for i in group])
            start += len(group)
        return scores

    def save(self, folder: Path) -> None:
        """Save so that sentence-transformers' `CrossEncoder(folder)` opens it and gives scores in 0..1."""
        self.model.save_pretrained(str(folder), create_model_card=False)

    def _forward(self, pairs: Any) -> Floats:
        import torch

        with autocast(self.model.device, self.bf16):
            # The raw output: some models carry the sigmoid in their configuration, some do not.
            raw = self.model.predict(
                pairs,
                batch_size=len(pairs),
                show_progress_bar=False,
                activation_fn=torch.nn.Identity(),
                convert_to_numpy=True,
            )
        return np.asarray(raw, np.float32).reshape(len(pairs))

    @property
    def _window(self) -> int:
        return int(self.model.max_seq_length or 512)


def score_pairs(
    encoder: Portable[CrossEncoder], batches: Iterable[tuple[Sequence[str], Sequence[str]]]
) -> Iterator[Floats]:
    """Work of an executor: `CrossEncoder.score` of queries with their texts."""
    for queries, texts in batches:
        yield encoder.model.score(queries, texts)


def sigmoid(raw: Floats) -> Floats:
    """Raw scores as values in 0..1."""
    # By the tangent, which cannot overflow.
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * raw.astype(np.float64)), np.float32)


def _load(folder: Path, device: str, **options: Any) -> sentence_transformers.CrossEncoder:
    from sentence_transformers import CrossEncoder as Model

    with loading(folder, device) as usable:
        model = Model(
            str(folder),
            device=usable,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
            **options,
        )
    return model.eval()


def _scores(folder: Path) -> bool:
    """Whether a folder's model gives one score for a pair."""
    kinds, labels = _kinds(folder)
    return any("SequenceClassification" in kind for kind in kinds) and labels == 1


def _kinds(folder: Path) -> tuple[list[str], int]:
    """The architectures that a folder names, and its number of outputs."""
    import json

    with model_errors(folder):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config.get("architectures") or [], len(config.get("id2label") or {})


def _check_scores(folder: Path) -> None:
    """Raise ModelError for a model that is no scorer; loaded all the same, it would get a random head."""
    if not _scores(folder):
        kinds, labels = _kinds(folder)
        raise ModelError(
            f"the model in {folder} is no re-ranker: {', '.join(kinds) or 'no architecture'} with "
            f"{labels} outputs.",
            "A cross-encoder for sequence classification with one output is expected.",
        )
