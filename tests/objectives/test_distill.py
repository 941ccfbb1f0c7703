from __future__ import annotations

import pytest
import torch
from torch.nn.functional import kl_div

from searchfit.objectives.distill import listwise_kl


def scores(seed: int, queries: int = 4, candidates: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.rand(2, queries, candidates, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher


@pytest.mark.parametrize("temperature", [0.02, 0.05, 1.0, 3.0])
def test_it_is_the_divergence_of_the_softmaxes(temperature: float) -> None:
    student, teacher = scores(1)
    expected = kl_div(
        torch.log_softmax(student / temperature, -1),
        torch.softmax(teacher / temperature, -1),
        reduction="batchmean",
    )
    torch.testing.assert_close(listwise_kl(student, teacher, temperature), expected)


def test_its_gradient_is_the_difference_of_the_distributions() -> None:
    student, teacher = scores(2)
    listwise_kl(student, teacher, 0.5).backward()  # type: ignore[no-untyped-call]
    expected = (torch.softmax(student / 0.5, -1) - torch.softmax(teacher / 0.5, -1)) / 0.5 / len(teacher)
    torch.testing.assert_close(student.grad, expected.detach())
    assert torch.autograd.gradcheck(lambda s: listwise_kl(s, teacher, 0.5), student)


def test_at_equality_loss_and_gradient_are_zero() -> None:
    student, _ = scores(3)
    loss = listwise_kl(student, student.detach() + 0.7, 0.05)  # a softmax knows no offset
    loss.backward()  # type: ignore[no-untyped-call]
    assert abs(loss.item()) < 1e-12
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


def test_absent_candidates_count_for_nothing() -> None:
    student, teacher = scores(4)
    masked = teacher.clone()
    masked[0, 2] = masked[1, 0] = masked[1, 6] = -torch.inf
    rows = [
        listwise_kl(student[i][masked[i].isfinite()][None], masked[i][masked[i].isfinite()][None], 0.05)
        for i in range(4)
    ]
    loss = listwise_kl(student, masked, 0.05)
    torch.testing.assert_close(loss, torch.stack(rows).mean())
    loss.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert (student.grad[masked.isinf()] == 0).all()
    assert (student.grad[masked.isfinite()] != 0).any()


def test_far_apart_scores_stay_finite() -> None:
    student = torch.tensor([[1.0, -1.0, -1.0]], requires_grad=True)
    teacher = torch.tensor([[-1.0, 1.0, -torch.inf]])
    loss = listwise_kl(student, teacher, 0.01)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(200, rel=1e-4)
    assert student.grad is not None
    assert student.grad.isfinite().all()
