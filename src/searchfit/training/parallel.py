"""Several processes that train one model: the little that the loop asks of torch.distributed.

Everything here does nothing in a process of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def processes() -> int:
    """How many processes train together."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    import torch.distributed as dist

    return dist.get_rank() if processes() > 1 else 0


def is_first() -> bool:
    """Whether this process is the one that measures, writes and reports."""
    return rank() == 0


def seed(base: int, step: int) -> int:
    """The seed of torch's generator for a step: each process drops out other units."""
    import numpy as np

    return int(np.random.SeedSequence((base, step, rank())).generate_state(1)[0])


def average_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Make every gradient the mean over the processes, in one exchange; an absent one counts as zero."""
    import torch
    import torch.distributed as dist

    if processes() == 1:
        return
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(flat)
    flat /= processes()
    pieces = torch.split(flat, [parameter.numel() for parameter in parameters])
    for parameter, piece in zip(parameters, pieces, strict=True):
        parameter.grad = piece.view_as(parameter)


def mean(value: float) -> float:
    """The mean of a number over the processes."""
    import torch
    import torch.distributed as dist

    if processes() == 1:
        return value
    total = torch.tensor([value], dtype=torch.float64)
    if dist.get_backend() == "nccl":
        total = total.cuda()
    dist.all_reduce(total)
    return float(total) / processes()


def first(value: T) -> T:
    """What the first process holds, in every process."""
    import torch.distributed as dist

    if processes() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
