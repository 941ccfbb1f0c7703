"""In what order a training set is learnt from: batches, epochs, several sets mixed."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from searchfit.errors import SettingsError
from searchfit.fusion import Rows
from searchfit.training.data import ABSENT, TrainingSet

# Batches are cut from windows of this many batches' rows, sorted by length within.
_WINDOW = 32
# Batches that wait for rows without a conflict; beyond that the oldest is given out as it is.
_OPEN = 64


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """`size` queries a batch over all processes together. `distinct`: within a batch no two queries and no
    two texts are the same, and no text is known to answer another query of the batch, so that all of them
    can stand as each other's negatives. `multiple`: batches are cut to a multiple of it, the number of
    processes that share one.

    Raises SettingsError where no batch could be made.
    """

    size: int
    seed: int = 0
    distinct: bool = True
    multiple: int = 1

    def __post_init__(self) -> None:
        """Refuse batches that are smaller than the number of processes."""
        if self.size < 1 or self.size < self.multiple:
            raise SettingsError(
                f"The batch size is {self.size}; at least {max(1, self.multiple)} is needed, "
                "one query for each process."
            )


@dataclass(slots=True)
class _Open:
    """A batch that is being filled."""

    rows: list[int] = field(default_factory=list)
    queries: set[int] = field(default_factory=set)
    texts: set[int] = field(default_factory=set)
    answers: set[int] = field(default_factory=set)


class Batches:
    """The batches of one training set, epoch by epoch: like lengths together, in random order.

    Every row comes once an epoch (but for those that `multiple` cuts off), the rows of a batch have equally
    many texts, and all follows from seed and epoch. `lengths` (n) are numbers to sort by, see `Feed.lengths`.
    """

    def __init__(self, data: TrainingSet, lengths: npt.NDArray[np.int64], options: BatchOptions) -> None:
        self.data, self.lengths, self.options = data, lengths, options
        self.epoch = lru_cache(maxsize=2)(self._epoch)

    def _epoch(self, number: int) -> list[Rows]:
        """The batches of an epoch, each the rows of its queries."""
        random = np.random.default_rng((self.options.seed, number))
        found: list[list[int]] = []
        for width in np.unique(self.data.widths):
            order = random.permutation(np.flatnonzero(self.data.widths == width))
            found += self._fill(self._near(order))
        least, step = self.options.multiple, self.options.multiple
        whole = [np.array(rows[: len(rows) // step * step]) for rows in found if len(rows) >= least]
        return [whole[i] for i in random.permutation(len(whole))]

    def _near(self, order: Rows) -> list[int]:
        """The same rows: sorted by length within each window."""
        window = _WINDOW * self.options.size
        parts = [order[begin : begin + window] for begin in range(0, len(order), window)]
        near = [part[np.argsort(self.lengths[part], kind="stable")] for part in parts]
        return [int(row) for part in near for row in part]

    def _fill(self, rows: list[int]) -> list[list[int]]:
        """Batches of these rows in turn; a row with a conflict waits in the next batch that has none."""
        size = self.options.size
        if not self.options.distinct:
            return [rows[begin : begin + size] for begin in range(0, len(rows), size)]
        data, keys, done = self.data, self.data.text_keys, []
        waiting: list[_Open] = []
        for row in rows:
            query = int(data.query_keys[row])
            own = data.rows[row]
            texts = set(keys[own[own != ABSENT]].tolist())
            answers = data.positives[query]
            batch = next((one for one in waiting if _fits(one, query, texts, answers)), None)
            if batch is None:
                if len(waiting) == _OPEN:
                    done.append(waiting.pop(0).rows)
                batch = _Open()
                waiting.append(batch)
            batch.rows.append(row)
            batch.queries.add(query)
            batch.texts |= texts
            batch.answers |= answers
            if len(batch.rows) == size:
                waiting.remove(batch)
                done.append(batch.rows)
        return done + [batch.rows for batch in waiting]


def _fits(batch: _Open, query: int, texts: set[int], answers: frozenset[int]) -> bool:
    return (
        query not in batch.queries
        and batch.texts.isdisjoint(texts)
        and batch.texts.isdisjoint(answers)
        and batch.answers.isdisjoint(texts)
    )


class Mixture:
    """Batches of several training sets in one course, each batch from one of them.

    Without weights an epoch takes each set once; with weights it has as many batches as the sets have
    together, shared out in proportion, and a set that is used up begins its own next epoch.
    Raises SettingsError for weights that do not fit the sets, or where no set has a batch.
    """

    def __init__(self, sets: Sequence[Batches], weights: Sequence[float] = (), seed: int = 0) -> None:
        if weights and (len(weights) != len(sets) or min(weights) <= 0):
            raise SettingsError(f"The weights are {list(weights)}; a positive one for each of {len(sets)}.")
        self.sets, self.seed = sets, seed
        self.sizes = [len(one.epoch(0)) for one in sets]
        if not sum(self.sizes):
            raise SettingsError(
                "There is no batch to learn from.", "Give more pairs or a smaller batch size."
            )
        self.quotas = _shares(sum(self.sizes), weights) if weights else None
        self.epoch = lru_cache(maxsize=2)(self._epoch)
        self._starts = [0]

    def _epoch(self, number: int) -> list[tuple[int, Rows]]:
        """The epoch's batches: the number of the set, and rows of it."""
        if self.quotas is None:
            found = [(place, rows) for place, one in enumerate(self.sets) for rows in one.epoch(number)]
        else:
            found = [
                (place, rows)
                for place, quota in enumerate(self.quotas)
                for rows in self._stretch(place, number * quota, quota)
            ]
        order = np.random.default_rng((self.seed, number)).permutation(len(found))
        return [found[i] for i in order]

    def _stretch(self, place: int, begin: int, count: int) -> list[Rows]:
        """`count` batches of one set, from the `begin`-th of its epochs laid end to end."""
        found: list[Rows] = []
        epoch = 0
        while len(found) < count:
            batches = self.sets[place].epoch(epoch)
            if begin < len(batches):
                found += batches[begin : begin + count - len(found)]
            begin, epoch = max(0, begin - len(batches)), epoch + 1
        return found

    def steps(self, epochs: int, accumulate: int = 1) -> int:
        """Steps of `accumulate` batches each that take `epochs` epochs, rounded up."""
        while len(self._starts) <= epochs:
            self._starts.append(self._starts[-1] + len(self.epoch(len(self._starts) - 1)))
        return -(-self._starts[epochs] // accumulate)

    def batch(self, number: int) -> tuple[int, Rows]:
        """The `number`-th batch of the endless course: the number of the set, and rows of it."""
        while number >= self._starts[-1]:
            self._starts.append(self._starts[-1] + len(self.epoch(len(self._starts) - 1)))
        epoch = bisect.bisect_right(self._starts, number) - 1
        return self.epoch(epoch)[number - self._starts[epoch]]


def share(rows: Rows, rank: int, processes: int) -> Rows:
    """The rows of a batch that one of several processes takes; as many for each."""
    return rows[rank::processes]


def _shares(total: int, weights: Sequence[float]) -> list[int]:
    """`total` in whole numbers proportional to the weights, by largest remainder, at least 1 each."""
    exact = total * np.array(weights) / sum(weights)
    whole = np.floor(exact).astype(int)
    for place in np.argsort(whole - exact, kind="stable")[: total - int(whole.sum())]:
        whole[place] += 1
    return [max(1, int(one)) for one in whole]
