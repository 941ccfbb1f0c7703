"""Cross-encoders: models that read a query and a text together and say how well one answers the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from searchfit.encoders import locate
from searchfit.encoders.sentence import model_errors, quiet, tune_process
from searchfit.errors import ModelError
from searchfit.fusion import Floats

if TYPE_CHECKING:
    import sentence_transformers

# Padded tokens in one forward pass, as of the bi-encoders.
_BATCH_TOKENS = {"cpu": 2_600, "gpu": 65_536}


class CrossEncoder:
    """A cross-encoder in sentence-transformers' layout, with one output."""

    def __init__(self, model: sentence_transformers.CrossEncoder) -> None:
        self.model = model

    @classmethod
    def load(cls, name: str, device: str = "auto") -> CrossEncoder:
        """Load a folder or a hub id. Raises ModelError when it is absent, damaged, pickled, needs code of its
        own, or gives more than one score for a pair."""
        import torch
        from sentence_transformers import CrossEncoder as Model

        folder = locate(name)
        quiet()
        tune_process()
        wanted = None if device == "auto" else device
        if wanted is None and not torch.cuda.is_available() and not torch.backends.mps.is_available():
            wanted = "cpu"
        _check_scores(folder)
        with model_errors(folder):
            model = Model(
                str(folder), device=wanted, trust_remote_code=False, model_kwargs={"use_safetensors": True}
            )
        model.eval()
        return cls(model)

    def score(self, queries: Sequence[str], texts: Sequence[str]) -> Floats:
        """(n) float32 in 0..1: the sigmoid of the model's output for each query with its text."""
        import torch

        scores = np.empty(len(queries), np.float32)
        lengths = [min((len(q) + len(t)) // 3 + 6, self._window) for q, t in zip(queries, texts, strict=True)]
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        budget = _BATCH_TOKENS["cpu" if self.model.device.type == "cpu" else "gpu"]
        start = 0
        while start < len(order):
            group = order[start : start + max(1, budget // lengths[order[start]])]
            pairs: Any = [(queries[i], texts[i]) for i in group]
            # The raw output: some models carry the sigmoid in their configuration, some do not.
            raw = self.model.predict(
                pairs,
                batch_size=len(group),
                show_progress_bar=False,
                activation_fn=torch.nn.Identity(),
                convert_to_numpy=True,
            )
            scores[group] = 1.0 / (1.0 + np.exp(-np.asarray(raw, np.float64).reshape(len(group))))
            start += len(group)
        return scores

    @property
    def _window(self) -> int:
        return int(self.model.max_seq_length or 512)


def _check_scores(folder: Path) -> None:
    """Raise ModelError for a model that is no scorer; loaded all the same, it would get a random head."""
    import json

    with model_errors(folder):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kinds, labels = config.get("architectures") or [], config.get("id2label") or {}
    scores = any("SequenceClassification" in kind for kind in kinds) and len(labels) == 1
    if not scores:
        raise ModelError(
            f"the model in {folder} is no re-ranker: {', '.join(kinds) or 'no architecture'} with "
            f"{len(labels)} outputs.",
            "A cross-encoder for sequence classification with one output is expected.",
        )
