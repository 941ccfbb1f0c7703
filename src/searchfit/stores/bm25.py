"""The keyword leg of a query over the postings of an index: the same scores as keyword.KeywordIndex gives, by
reading only what can be among the best."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from searchfit.filters import Filter
from searchfit.keyword import Analyzer, idf
from searchfit.stores import Floats, Rows
from searchfit.stores.lancedb import LanceStore

_LONG = 4096  # a list of postings that it pays to look for a way around


class Bm25:
    """BM25 over the living passages of an index: idf and mean length are those of a fresh index of them."""

    def __init__(self, store: LanceStore, analyzer: Analyzer, k1: float, b: float) -> None:
        self.store, self.analyzer = store, analyzer
        self.k1, self.b = k1, b
        self.starts = [0, *accumulate(segment.count for segment in store.segments)]
        """Where each segment begins when the places of all, dead ones too, are counted through."""
        self.rows = store.count()

    @cached_property
    def norms(self) -> list[Floats]:
        """By segment, what is added to a term's frequency in each passage."""
        total = float(self.store.lengths().sum(dtype=np.float64))
        mean = max(total / max(1, self.rows), 1e-9)
        return [
            (self.k1 * (1 - self.b + self.b * segment.postings.lengths / mean)).astype(np.float32)
            for segment in self.store.segments
        ]

    @cached_property
    def live(self) -> npt.NDArray[np.bool_] | None:
        """Which places live; None for all."""
        if all(live is None for live in self.store.live):
            return None
        parts = self.store.parts()
        return np.concatenate([np.ones(s.count, np.bool_) if m is None else m for s, m in parts])

    @cached_property
    def dead(self) -> list[Rows]:
        """By segment, the places that were deleted."""
        return [np.empty(0, np.int64) if live is None else np.flatnonzero(~live) for live in self.store.live]

    def leg(self, query: str, where: Filter | None = None) -> KeywordLeg:
        """The keyword leg of a query, over what a filter lets through."""
        lists = [self._posted(term) for term in dict.fromkeys(self.analyzer.terms(query))]
        attainable = sum(posted.weight for posted in lists) or 1.0
        found = [posted for posted in lists if posted.entries]
        for posted in found:
            posted.weight /= attainable
        found.sort(key=lambda posted: -posted.weight)
        allowed, total = self.live, self.rows
        if where is not None:
            allowed = np.zeros(self.starts[-1], np.bool_)
            for start, places in zip(self.starts[:-1], self.store.selected(where), strict=True):
                if places is not None:
                    allowed[places + start] = True
            total = int(np.count_nonzero(allowed))
        return KeywordLeg(self, found, allowed, total)

    def idf(self, term: str) -> float:
        """Rarity of a term among what lives."""
        return self._posted(term).weight / (self.k1 + 1)

    def _posted(self, term: str) -> _Posted:
        parts = [segment.postings.find(term) for segment in self.store.segments]
        entries = sum(len(places) for places, _ in parts)
        dead = sum(_both(places, dead) for (places, _), dead in zip(parts, self.dead, strict=True))
        return _Posted(parts, float(idf(entries - dead, self.rows)) * (self.k1 + 1), entries)

    def split(self, places: Rows) -> Iterator[tuple[int, slice]]:
        """Ascending places by segment: (its number, the stretch of them that lies in it)."""
        borders = np.searchsorted(places, self.starts)
        for number, (begin, end) in enumerate(pairwise(borders)):
            if end > begin:
                yield number, slice(begin, end)

    def to_rows(self, places: Rows) -> Rows:
        """The rows of ascending places."""
        rows = np.empty(len(places), np.int64)
        for number, own in self.split(places):
            rows[own] = self.store.segments[number].rows[places[own] - self.starts[number]]
        return rows

    def to_places(self, rows: Rows) -> Rows:
        """The places of rows that the index has."""
        places = np.empty(len(rows), np.int64)
        for start, segment in zip(self.starts[:-1], self.store.segments, strict=True):
            here = segment.places(rows)
            places = np.where(here >= 0, here + start, places)
        return places


@dataclass(slots=True)
class _Posted:
    """A term of a query: its postings by segment, the most that it can add to a score, and how many there
    are."""

    parts: list[tuple[npt.NDArray[np.int32], Floats]]
    weight: float
    entries: int


class KeywordLeg:
    """The keyword scores of one query, in 0..1; `total` passages are let through, others are never given."""

    def __init__(
        self, index: Bm25, terms: list[_Posted], allowed: npt.NDArray[np.bool_] | None, total: int
    ) -> None:
        self._index, self._terms, self._allowed = index, terms, allowed
        self.total = total

    def top(self, depth: int) -> tuple[Rows, Floats]:
        """Rows and scores of the `depth` best passages, best first, the earlier first in a tie; only those
        that hold a word of the query.

        Words are taken by falling weight. Once what is left could not lift a new passage among the best,
        only those that are found already are looked up in the rest (Turtle and Flood 1995, "Query
        evaluation: strategies and optimizations").
        """
        scores = np.zeros(self._index.starts[-1], np.float32)
        rest = [*accumulate((term.weight for term in reversed(self._terms)), initial=0.0)][::-1]
        lists: list[Rows] = []
        for number, term in enumerate(self._terms):
            if lists and term.entries > _LONG:
                places = self._above(scores, lists, depth, rest[number])
                if places is not None:
                    return self._finished(places, scores[places], depth, number)
            lists.append(self._add(scores, term))
        places = _union(lists, scores)
        if self._allowed is not None:
            places = places[self._allowed[places]]
        return self._best(places, scores[places], depth)

    def of(self, rows: Rows) -> Floats:
        """The scores of passages by row."""
        places = self._index.to_places(rows)
        order = np.argsort(places)
        scores = np.empty(len(rows), np.float32)
        scores[order] = self.scores_of(places[order], self._terms)
        return scores

    def first(self, count: int) -> Rows:
        """The first rows that are let through."""
        if self._allowed is None:
            return self._index.to_rows(np.arange(min(count, self._index.starts[-1])))
        return self._index.to_rows(np.flatnonzero(self._allowed)[:count])

    def scores_of(self, places: Rows, terms: list[_Posted]) -> Floats:
        """What some terms add to the scores of ascending places."""
        scores = np.zeros(len(places), np.float32)
        for number, own in self._index.split(places):
            here = (places[own] - self._index.starts[number]).astype(np.int32)
            norms = self._index.norms[number][here]
            for term in terms:
                posted, frequencies = term.parts[number]
                if not len(posted):
                    continue
                at = np.minimum(np.searchsorted(posted, here), len(posted) - 1)
                counts = np.where(posted[at] == here, frequencies[at], np.float32(0))
                scores[own] += np.float32(term.weight) * (counts / (counts + norms))
        return scores

    def _add(self, scores: Floats, term: _Posted) -> Rows:
        """Add a term's share to the scores of all places that hold it; the places."""
        touched = [np.empty(0, np.int64)]
        for start, (places, counts), norms in zip(
            self._index.starts[:-1], term.parts, self._index.norms, strict=True
        ):
            own = scores[start : start + len(norms)]
            own[places] += np.float32(term.weight) * (counts / (counts + norms[places]))
            touched.append(places.astype(np.int64) + start)
        return np.concatenate(touched)

    def _above(self, scores: Floats, lists: list[Rows], depth: int, rest: float) -> Rows | None:
        """The places that can be among the best `depth` when terms that add at most `rest` are still to
        come; None while others could be too."""
        places = np.concatenate(lists)
        if self._allowed is not None:
            places = places[self._allowed[places]]
        found = scores[places]
        # A place stands at most once in each list, so that so many hold the best `depth` places.
        some = depth * len(lists)
        best = np.unique(places if len(places) <= some else places[np.argpartition(found, -some)[-some:]])
        if len(best) < depth:
            return None
        limit = float(np.partition(scores[best], len(best) - depth)[-depth]) - 1e-6
        return _distinct(places[found >= limit - rest], len(scores)) if limit > rest else None

    def _finished(self, places: Rows, scores: Floats, depth: int, number: int) -> tuple[Rows, Floats]:
        """The best of some places, to whose scores the terms from a number on are still to be added."""
        rest = sum(term.weight for term in self._terms[number:])
        for term in self._terms[number:]:
            scores = scores + self.scores_of(places, [term])
            rest -= term.weight
            if len(scores) > depth:
                limit = np.partition(scores, len(scores) - depth)[len(scores) - depth]
                kept = scores >= limit - rest - 1e-6
                places, scores = places[kept], scores[kept]
        return self._best(places, scores, depth)

    def _best(self, places: Rows, scores: Floats, depth: int) -> tuple[Rows, Floats]:
        if len(scores) > depth:
            last = np.partition(scores, len(scores) - depth)[len(scores) - depth]
            kept = np.flatnonzero(scores >= last)
            places, scores = places[kept], scores[kept]
        order = np.argsort(-scores, kind="stable")[:depth]
        return self._index.to_rows(places)[order], scores[order]


def _distinct(places: Rows, count: int) -> Rows:
    """Each of some places, which are below `count`, once and in order."""
    if len(places) < count // 500:
        return np.unique(places)
    there = np.zeros(count, np.bool_)
    there[places] = True
    return np.flatnonzero(there)


def _both(ascending: npt.NDArray[np.int32], values: Rows) -> int:
    """How many of the values are among ascending ones."""
    if not len(ascending) or not len(values):
        return 0
    at = np.minimum(np.searchsorted(ascending, values.astype(np.int32)), len(ascending) - 1)
    return int(np.count_nonzero(ascending[at] == values))


def _union(lists: list[Rows], scores: Floats) -> Rows:
    """The places that stand in any list, ascending; `scores` are above 0 there and nowhere else."""
    if len(lists) == 1:
        return lists[0]
    if sum(map(len, lists)) > len(scores) // 8:
        return np.flatnonzero(scores)
    return np.unique(np.concatenate([np.empty(0, np.int64), *lists]))
