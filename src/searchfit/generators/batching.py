"""Batches for local models: tasks sorted by length, cut by token budget, halved when memory ends."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from searchfit.generators import Task, Written
from searchfit.records import Passage

WINDOW = 1024
"""Tasks that are sorted by length together: enough for little padding, few enough to be lost by a kill."""

_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")

Tokenize = Callable[[Sequence[Passage]], Sequence[Sequence[int]]]


@dataclass(frozen=True, slots=True)
class Item:
    """A passage to write for, and the tokens that the model reads for it."""

    passage: Passage
    tokens: Sequence[int]


def task_batches(
    tasks: Iterable[Task], tokenize: Tokenize, budget: int, reserve: int = 0, window: int = WINDOW
) -> Iterator[list[Item]]:
    """Batches of the tasks that are not known, longest first within each window of `window` tasks.

    The longest row's tokens, and `reserve` more for what it will write, times the rows are at most `budget`;
    a longer row goes alone. Known tasks take their places but are left out, so that the others stand in the
    batches in which they stood before the run was interrupted. `tokenize` gets a window of passages and
    returns the token numbers of each.
    """
    source = iter(tasks)
    while chunk := list(islice(source, window)):
        if all(task.known for task in chunk):
            continue
        rows = tokenize([task.passage for task in chunk])
        lengths = [len(row) + reserve for row in rows]
        order = sorted(range(len(chunk)), key=lambda i: (-lengths[i], i))
        start = 0
        while start < len(order):
            end = start + max(1, budget // max(1, lengths[order[start]]))
            batch = [Item(chunk[i].passage, rows[i]) for i in order[start:end] if not chunk[i].known]
            start = end
            if batch:
                yield batch


def halving(batch: Sequence[Item], run: Callable[[Sequence[Item]], Sequence[Written]]) -> list[Written]:
    """What `run` makes of the batch, or of its halves, and theirs, where the memory does not suffice.

    A passage that does not fit alone comes back with a fault. Other errors are raised.
    """
    try:
        return list(run(batch))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    # Outside of the handler, where the traceback no longer holds what the failed run had allocated.
    _free_device_memory()
    if len(batch) == 1:
        return [Written(batch[0].passage, fault="too long for the memory of the device, even alone")]
    middle = len(batch) // 2
    return [*halving(batch[:middle], run), *halving(batch[middle:], run)]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, CTranslate2 or Python says that memory could not be had."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


def seed_of(seed: int, *parts: Sequence[int] | str) -> int:
    """A number from 0 to 2**32 - 1 that follows from the seed and from what it is for."""
    total = hashlib.blake2b(repr((seed, *(p if isinstance(p, str) else list(p) for p in parts))).encode())
    return int.from_bytes(total.digest()[:4], "little")


def _free_device_memory() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
