"""Contrastive losses over labelled pairs: 1 draws query and text together, 0 pushes them a margin apart.

Source: Hadsell, Chopra and LeCun 2006, "Dimensionality Reduction by Learning an Invariant Mapping".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from searchfit.objectives import above_zero, one_of

if TYPE_CHECKING:
    import torch

_DISTANCES = {"cosine": "COSINE_DISTANCE", "euclidean": "EUCLIDEAN"}


def contrastive(module: Any, margin: float = 0.5, distance: str = "cosine") -> torch.nn.Module:
    """Mean over all pairs; `distance` is "cosine" (1 - cosine) or "euclidean"."""
    from sentence_transformers.sentence_transformer.losses import ContrastiveLoss

    loss: torch.nn.Module = ContrastiveLoss(module, **_common(margin, distance))
    return loss


def online(module: Any, margin: float = 0.5, distance: str = "cosine") -> torch.nn.Module:
    """Sum over the hard pairs of the batch only: negatives nearer than the farthest positive and positives
    farther than the nearest negative."""
    from sentence_transformers.sentence_transformer.losses import OnlineContrastiveLoss

    loss: torch.nn.Module = OnlineContrastiveLoss(module, **_common(margin, distance))
    return loss


def _common(margin: float, distance: str) -> dict[str, Any]:
    from sentence_transformers.sentence_transformer.losses import SiameseDistanceMetric

    name = _DISTANCES[one_of("distance", distance, tuple(_DISTANCES))]
    return {"margin": above_zero("margin", margin), "distance_metric": getattr(SiameseDistanceMetric, name)}
