"""Executors: where batches are worked on, in this process or on the machines of a Ray cluster.

A stage hands over work and batches and takes the results, in order. It does not know where they were made,
and what it writes does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Generic, Protocol, TypeVar

from searchfit.config import ExecutorSettings

B = TypeVar("B")
R = TypeVar("R")
T = TypeVar("T")

Work = Callable[[Iterable[B]], Iterable[R]]
"""A result for each batch, in their order. It travels to other machines: pickled it is small, and it loads
its model there, with the first batch (see `Portable`). The result of a batch follows from that batch."""


class Executor(Protocol):
    """Does work on batches, for one caller at a time."""

    def map_batches(self, work: Work[B, R], batches: Iterable[B]) -> Iterator[R]:
        """The result of each batch, in order, each once. `batches` is read lazily, only so far ahead as keeps
        the workers busy; where there are none, nothing is loaded.

        Raises what `work` raises, and SearchfitError where the workers cannot be had or do not survive.
        """

    def release(self) -> None:
        """Let go of the workers and their models; the next `map_batches` makes others."""

    def close(self) -> None:
        """Let go of everything; it is not used again."""


class LocalExecutor:
    """Batches in this process; work that has several under way at once has so here too."""

    def map_batches(self, work: Work[B, R], batches: Iterable[B]) -> Iterator[R]:
        """See `Executor.map_batches`."""
        yield from work(batches)

    def release(self) -> None:
        """There is nothing to let go of: models belong to the work."""

    def close(self) -> None:
        """As `release`."""


LOCAL = LocalExecutor()


class Portable(Generic[T]):
    """A model that is loaded where it is first used, and pickled as the way to load it."""

    def __init__(self, load: Callable[[], T]) -> None:
        """`load` can be pickled."""
        self._load = load

    def __reduce__(self) -> tuple[type[Portable[T]], tuple[Callable[[], T]]]:
        return Portable, (self._load,)

    @cached_property
    def model(self) -> T:
        """The loaded model."""
        return self._load()


def load_executor(settings: ExecutorSettings) -> Executor:
    """The executor that the settings name. Raises MissingExtraError without ray, SearchfitError where there
    is no cluster at the address."""
    if settings.name == "local":
        return LOCAL
    from searchfit.executors.ray import RayExecutor

    return RayExecutor(settings)
