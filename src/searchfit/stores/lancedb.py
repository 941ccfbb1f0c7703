"""An index version on the machine's own disk: segments, less the passages that were deleted since."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from searchfit.filters import Filter
from searchfit.interaction import PassageWords, joined_words
from searchfit.stores import Floats, Rows, VectorColumn, checked
from searchfit.stores.segment import Segment, filterable

_T = TypeVar("_T")


class LanceStore:
    """The segments of an index version in row order, without the deleted rows; see stores.Store.

    `segments` is a folder that `build` wrote, or segments that are open; `info` and `generation` tell of the
    index as a whole. Safe to share between threads.
    Raises WorkspaceError when a folder is absent, unfinished, damaged or of another format.
    """

    def __init__(
        self,
        segments: Path | Sequence[Segment],
        deleted: Rows | None = None,
        info: Mapping[str, Any] | None = None,
        generation: int | None = None,
    ) -> None:
        self.segments = [Segment(segments)] if isinstance(segments, Path) else list(segments)
        self.info: dict[str, Any] = dict(self.segments[0].info if info is None else info)
        if generation is not None:
            self.info["generation"] = generation
        self.deleted: Rows = np.empty(0, np.int64) if deleted is None else deleted
        self.live = [_live(segment, self.deleted) for segment in self.segments]
        parts = [_kept(segment.rows, live) for segment, live in self.parts()]
        self.rows: Rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        """The rows that there are, ascending."""
        self.columns = filterable(self.info.get("metadata", ()))
        # Without a way back to the store: it is let go of, with its open files, as soon as nobody reads it.
        self._matching = lru_cache(maxsize=4)(partial(_matching, list(self.parts())))

    def parts(self) -> Iterator[tuple[Segment, npt.NDArray[np.bool_] | None]]:
        """Each segment and which of its places live, None for all."""
        return zip(self.segments, self.live, strict=True)

    @property
    def documents(self) -> npt.NDArray[np.int32]:
        """The document of each row, ascending."""
        parts = [_kept(segment.documents, live) for segment, live in self.parts()]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def count(self) -> int:
        """Number of passages."""
        return len(self.rows)

    def nearest(
        self, vector: Floats, column: VectorColumn, k: int, where: Filter | None = None
    ) -> tuple[Rows, Floats]:
        """See Store. Passages without a sentence are not found by sentences."""
        query = checked(vector, self.segments[0].vectors.shape[1])
        k = max(k, 0)
        rows, similarities = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        allowed = self.selected(where) if where is not None else [None] * len(self.segments)
        for (segment, live), among in zip(self.parts(), allowed, strict=True):
            spare = int(np.count_nonzero(~live)) if live is not None and among is None else 0
            places, found = segment.nearest(query, column, k, among, spare)
            if spare and live is not None:
                places, found = places[live[places]], found[live[places]]
            rows.append(segment.rows[places])
            similarities.append(found)
        all_rows, all_found = np.concatenate(rows), np.concatenate(similarities)
        best = np.lexsort((all_rows, -all_found))[:k]
        return all_rows[best], all_found[best]

    def selected(self, where: Filter) -> list[Rows | None]:
        """The living places by segment that the filter lets through, ascending."""
        return self._matching(where)

    def rows_of(self, document_id: str) -> Rows:
        """The rows of a document, ascending; none when it is not in the index."""
        found = [np.empty(0, np.int64)]
        for segment, live in self.parts():
            places = segment.places_of(document_id)
            found.append(segment.rows[places if live is None else places[live[places]]])
        return np.concatenate(found)

    def matching(self, where: Filter) -> Rows:
        """See Store."""
        parts = zip(self.segments, self.selected(where), strict=True)
        return np.concatenate([segment.rows[places] for segment, places in parts])

    def vectors(self, rows: Rows | Sequence[int]) -> tuple[Floats, Floats, Rows]:
        """See Store."""
        wanted = np.asarray(rows, np.int64)
        if len(self.segments) == 1:
            return self.segments[0].take(self._places(wanted)[0][2])
        size = self.segments[0].vectors.shape[1]
        vectors = np.empty((len(wanted), size), np.float32)
        sentences: list[Floats] = [np.empty((0, size), np.float32)] * len(wanted)
        for number, own, places in self._places(wanted):
            vectors[own], found, offsets = self.segments[number].take(places)
            for place, start, end in zip(own, offsets[:-1], offsets[1:], strict=True):
                sentences[place] = found[start:end]
        offsets = np.cumsum([0, *map(len, sentences)]).astype(np.int64)
        return vectors, np.concatenate([*sentences, np.empty((0, size), np.float32)]), offsets

    def words(self, rows: Rows) -> PassageWords:
        """The words of these passages, in the order asked (see interaction.py)."""
        parts = self._places(rows)
        if len(parts) == 1:
            return self.segments[parts[0][0]].words.take(parts[0][2])
        found = [np.empty((0, 0), np.uint8)] * len(rows)
        for number, own, places in parts:
            taken = self.segments[number].words.take(places)
            for place, (start, end) in zip(own, pairwise(taken.offsets), strict=True):
                found[place] = taken.bits[start:end]
        return joined_words(found)

    def postings(self, terms: Sequence[str]) -> dict[str, tuple[Rows, Floats]]:
        """See Store."""
        found: dict[str, tuple[Rows, Floats]] = {}
        for term in dict.fromkeys(terms):
            rows, frequencies = [], []
            for segment, live in self.parts():
                places, counts = segment.postings.find(term)
                rows.append(segment.rows[_kept(places, None if live is None else live[places])])
                frequencies.append(_kept(counts, None if live is None else live[places]))
            if any(map(len, rows)):
                found[term] = np.concatenate(rows), np.concatenate(frequencies)
        return found

    def lengths(self) -> Floats:
        """Index terms of each passage, in row order."""
        return np.concatenate([_kept(segment.postings.lengths, live) for segment, live in self.parts()])

    def fetch(self, rows: Rows | Sequence[int]) -> list[dict[str, Any]]:
        """See Store."""
        return self._read(rows, Segment.fetch)

    def document_ids(self, rows: Rows | Sequence[int]) -> list[str]:
        """The documents of rows, in the order asked."""
        return self._read(rows, Segment.document_ids)

    def scan(self, columns: Sequence[str], batch: int = 1024) -> Iterator[pa.RecordBatch]:
        """See Store."""
        for segment, live in self.parts():
            for start, found in segment.scan(columns, batch):
                kept = found if live is None else found.filter(live[start : start + found.num_rows])
                if kept.num_rows:
                    yield kept

    def _read(self, rows: Rows | Sequence[int], read: Callable[[Segment, Rows], list[_T]]) -> list[_T]:
        """What segments read of their places, in the order of rows."""
        wanted = np.asarray(rows, np.int64)
        found: dict[int, _T] = {}
        for number, _, places in self._places(wanted):
            segment, unique = self.segments[number], np.unique(places)
            found |= dict(zip(segment.rows[unique].tolist(), read(segment, unique), strict=True))
        return [found[row] for row in wanted.tolist()]

    def _places(self, rows: Rows) -> list[tuple[int, Rows, Rows]]:
        """By segment: (its number, which of `rows` lie in it, their places there)."""
        here: list[tuple[int, Rows, Rows]] = []
        there = np.zeros(len(rows), np.bool_)
        for number, (segment, live) in enumerate(self.parts()):
            places = segment.places(rows)
            own = np.flatnonzero(places >= 0 if live is None else (places >= 0) & live[places])
            there[own] = True
            if len(own) or number == 0:
                here.append((number, own, places[own]))
        if not there.all():
            missing = rows[~there][:3].tolist()
            raise IndexError(f"the index has no rows {missing}; it holds {self.count()}.")
        return here


def _matching(
    parts: Sequence[tuple[Segment, npt.NDArray[np.bool_] | None]], where: Filter
) -> list[Rows | None]:
    """The living places of each segment that a filter lets through."""
    found: list[Rows | None] = []
    for segment, live in parts:
        places = segment.matching(where)
        found.append(places if live is None else places[live[places]])
    return found


def _live(segment: Segment, deleted: Rows) -> npt.NDArray[np.bool_] | None:
    places = segment.places(deleted)
    dead = places[places >= 0]
    if not len(dead):
        return None
    live = np.ones(segment.count, np.bool_)
    live[dead] = False
    return live


def _kept(values: npt.NDArray[Any], live: npt.NDArray[np.bool_] | None) -> npt.NDArray[Any]:
    return values if live is None else values[live]
