"""Listwise distillation: the student's ranking distribution is drawn to the teacher's."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
