"""Listwise distillation: the student's ranking distribution is drawn to the teacher's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from searchfit.objectives import above_zero
from searchfit.objectives import similarity as similarity_function

if TYPE_CHECKING:
    import torch


def listwise_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean over the queries of KL(softmax(teacher / t) || softmax(student / t)).

    `student` and `teacher` are (queries, candidates) scores; -inf in `teacher` takes a candidate out of both.
    Source: Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network"; over ranked lists,
    Cao et al. 2007, "Learning to rank: from pairwise approach to listwise approach".
    """
    import torch

    absent = torch.isinf(teacher)
    target = torch.log_softmax(teacher / temperature, dim=-1)
    own = torch.log_softmax(student.masked_fill(absent, -torch.inf) / temperature, dim=-1)
    terms = target.exp() * (target.masked_fill(absent, 0) - own.masked_fill(absent, 0))
    return terms.sum(dim=-1).mean()


def distill(
    module: Any, similarity: str = "cosine", temperature: float = 0.1, scale: float = 1.0
) -> torch.nn.Module:
    """`listwise_kl` over each query's own texts; labels (b, 1 + k) are the teacher's scores of them, -inf
    for a text that does not count. `scale` brings the similarity to the teacher's scale."""
    import torch
    from sentence_transformers.base.losses.merged_forward import embed_columns

    above_zero("temperature", temperature)
    above_zero("scale", scale)
    score = similarity_function(similarity, pairwise=True)

    class Distill(torch.nn.Module):
        """The loss as sentence-transformers' wrappers expect one."""

        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, features: list[dict[str, Any]], labels: torch.Tensor) -> torch.Tensor:
            query, *texts = embed_columns(self.model, features)
            student = torch.stack([score(query, text) for text in texts], dim=1)
            return listwise_kl(scale * student, labels, temperature)

    return Distill()
