"""The processes that torchrun started: the first runs the recipe, the others help it with what trains.

`torchrun --nproc-per-node 2 -m searchfit fit ...` starts the same command twice. The first process runs it as
ever. The others wait to be called to a stage that trains, and take their share of its batches; what they
write goes to a scratch folder. All of them must see the workspace under the same path.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from searchfit.errors import SearchfitError
from searchfit.training import parallel

if TYPE_CHECKING:
    from searchfit.config import Settings

_TIMEOUT = timedelta(days=7)
"""The others wait as long as the first encodes or generates. One that ends is noticed at once."""

_FAILURES = "searchfit/failures"


@dataclass(frozen=True, slots=True)
class Task:
    """A stage that trains, by name, with all settings and the artefacts that it reads."""

    stage: str
    settings: Settings
    inputs: Mapping[str, Path]


@contextlib.contextmanager
def crew() -> Iterator[bool]:
    """Join the processes that were started together, if any were; whether this one is the first of them, or
    alone. In the end the first one sends the others home."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        yield True
        return
    import torch.distributed as dist

    dist.init_process_group(_backend(), timeout=_TIMEOUT)
    try:
        yield parallel.is_first()
    finally:
        if parallel.processes() > 1 and parallel.is_first():
            with contextlib.suppress(RuntimeError):  # the others may have been interrupted too
                parallel.first(None)
        if dist.is_initialized():
            dist.destroy_process_group()


def tasks() -> Iterator[Task]:
    """What the first process calls this one to, until it is sent home or the first process ends."""
    while True:
        try:
            task: Task | None = parallel.first(None)
        except RuntimeError as error:
            raise SystemExit(1) from error  # the first process has ended, and said why
        if task is None:
            return
        yield task


@contextlib.contextmanager
def together(task: Task) -> Iterator[None]:
    """Run a stage in all processes; the first one calls the others to it.

    When one fails, all end: the first to fail raises its error, the others raise SystemExit. Raises
    SearchfitError when another process was killed.
    """
    if parallel.processes() == 1:
        yield
        return
    import torch.distributed as dist

    if parallel.is_first():
        parallel.first(task)
    try:
        yield
    except Exception as error:
        told = _failed_before()
        # The others are in the midst of an exchange: a closed connection is the one way to reach them.
        dist.destroy_process_group()
        if told:
            raise SystemExit(1) from error
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            raise SearchfitError(
                f"A process that trains with this one has ended: {error}", "The same command carries on."
            ) from error
        raise


def _failed_before() -> bool:
    """Whether another process has failed, and tells of it; notes that this one has."""
    from torch.distributed.distributed_c10d import _get_default_store

    try:
        return bool(_get_default_store().add(_FAILURES, 1) > 1)
    except RuntimeError:
        return True  # the store ended with the first process


def _backend() -> str:
    """Exchanges on CPUs by gloo, and on GPUs by NCCL, where each process has one of its own."""
    import torch

    if (
        torch.cuda.device_count() < int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        or not torch.cuda.is_available()
    ):
        return "gloo"
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return "cpu:gloo,cuda:nccl"
