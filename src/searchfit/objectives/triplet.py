"""Triplet loss: the answer is nearer to the query than each negative, by a margin.

Source: Hermans, Beyer and Leibe 2017, "In Defense of the Triplet Loss for Person Re-Identification".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from searchfit.objectives import above_zero, one_of

if TYPE_CHECKING:
    import torch


def triplet(module: Any, margin: float = 0.5, distance: str = "cosine") -> torch.nn.Module:
    """Mean over queries and negatives of max(0, d(query, answer) - d(query, negative) + margin); `distance`
    is "cosine" (1 - cosine) or "euclidean"."""
    from sentence_transformers.base.losses.merged_forward import embed_columns
    from sentence_transformers.sentence_transformer.losses import TripletDistanceMetric, TripletLoss

    class Triplets(TripletLoss):  # type: ignore[misc]
        """The library's loss takes one negative; this takes them all, each text read once."""

        def forward(self, sentence_features: list[dict[str, Any]], labels: torch.Tensor | None) -> Any:
            query, answer, *negatives = embed_columns(self.model, sentence_features)
            each = [self.compute_loss_from_embeddings([query, answer, one], labels) for one in negatives]
            return sum(each) / len(each)

    name = one_of("distance", distance, ("cosine", "euclidean")).upper()
    metric = getattr(TripletDistanceMetric, name)
    loss: torch.nn.Module = Triplets(module, metric, above_zero("margin", margin))
    return loss
