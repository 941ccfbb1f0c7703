"""Margin-MSE: the student's margins between the answer and the negatives equal the teacher's.

Source: Hofstaetter et al. 2020, "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge
Distillation"; for labels made without people, Wang et al. 2022, "GPL".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from searchfit.objectives import above_zero
from searchfit.objectives import similarity as similarity_function

if TYPE_CHECKING:
    import torch


def margin_mse(module: Any, similarity: str = "dot", scale: float = 1.0) -> torch.nn.Module:
    """Mean squared difference of margins over queries and negatives; labels (b, 1 + k) are the teacher's
    scores, `scale` brings the similarity to theirs. Teachers whose scores exceed 1 need "dot" and vectors
    that are not of unit length."""
    from sentence_transformers.sentence_transformer.losses import MarginMSELoss

    above_zero("scale", scale)
    score = similarity_function(similarity, pairwise=True)
    loss: torch.nn.Module = MarginMSELoss(module, lambda query, text: scale * score(query, text))
    return loss
