"""Cosine regression: the cosine of query and text equals the label.

Source: Reimers and Gurevych 2019, "Sentence-BERT", the regression objective.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def cosine(module: Any) -> torch.nn.Module:
    """Mean squared difference of the cosine and labels (b) from 0 to 1."""
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

    loss: torch.nn.Module = CosineSimilarityLoss(module)
    return loss
