"""From texts to postings, whatever their number: words are numbered in one pass and spooled to disk, then
sorted by word, some at a time."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int32]
Rows = npt.NDArray[np.int64]

_READ = 1 << 21
"""Postings read from the spool at a time."""

_SORTED = 1 << 23
"""Postings sorted at a time; 30 bytes each are held. One word's are never divided."""


def invert(texts: Iterable[Mapping[str, int]], folder: Path) -> list[str]:
    """Write what texts, each given as its terms and how often they stand in it, hold by term; the v terms,
    sorted. starts.npy (v + 1) has where each term's postings begin in rows.npy and frequencies.npy (p), in
    ascending rows; lengths.npy (n) the terms of each text. Memory: the terms, 16 bytes a text, and what is
    sorted at a time. Needs 8 bytes a posting on the disk beside the result."""
    spool = _Spool(folder)
    try:
        numbers = spool.fill(texts)
        vocabulary = sorted(numbers)
        place = np.empty(len(numbers), np.int32)
        place[[numbers[term] for term in vocabulary]] = np.arange(len(numbers), dtype=np.int32)
        del numbers
        held = np.zeros(len(place), np.int64)
        for _, terms, _ in spool.read():
            held += np.bincount(place[terms], minlength=len(place))
        starts = np.concatenate([[0], np.cumsum(held)]).astype(np.int64)
        np.save(folder / "starts.npy", starts)
        np.save(folder / "lengths.npy", np.frombuffer(spool.lengths, np.float32))
        with (
            _new(folder / "rows.npy", "<i4", int(starts[-1])) as rows,
            _new(folder / "frequencies.npy", "<f4", int(starts[-1])) as frequencies,
        ):
            for low, high in _ranges(starts):
                found = spool.sorted(place, low, high)
                rows.write(found[0].data)
                frequencies.write(found[1].data)
    finally:
        spool.remove()
    return vocabulary


@dataclass(slots=True)
class _Spool:
    """The postings in the order of the texts: a file of the numbers of terms, one of their frequencies."""

    folder: Path
    sizes: array[int] = field(default_factory=lambda: array("i"))
    """Postings of each text."""
    lengths: array[float] = field(default_factory=lambda: array("f"))

    @property
    def files(self) -> tuple[Path, Path]:
        """Where they are."""
        return self.folder / "terms.tmp", self.folder / "frequencies.tmp"

    def fill(self, texts: Iterable[Mapping[str, int]]) -> dict[str, int]:
        """Write the postings; the number of each term, in the order in which they first stood."""
        numbers: dict[str, int] = {}
        terms, frequencies = array("i"), array("f")
        with self.files[0].open("wb") as one, self.files[1].open("wb") as other:
            for counts in texts:
                terms.extend([numbers.setdefault(term, len(numbers)) for term in counts])
                frequencies.extend(counts.values())
                self.sizes.append(len(counts))
                self.lengths.append(sum(counts.values()))
                if len(terms) > _READ:
                    _flush(terms, one)
                    _flush(frequencies, other)
            _flush(terms, one)
            _flush(frequencies, other)
        return numbers

    def read(self) -> Iterator[tuple[int, Numbers, BinaryIO]]:
        """(the first posting, numbers of terms, the file of frequencies), some at a time."""
        first = 0
        with self.files[0].open("rb") as one, self.files[1].open("rb") as other:
            while len(terms := np.fromfile(one, np.int32, _READ)):
                yield first, terms, other
                first += len(terms)

    def sorted(self, place: Numbers, low: int, high: int) -> tuple[Numbers, npt.NDArray[np.float32]]:
        """Rows and frequencies of the terms whose places are from `low` to `high`, by place, then row."""
        borders = np.cumsum(np.frombuffer(self.sizes, np.int32), dtype=np.int64)
        terms, rows, frequencies = [], [], []
        for first, numbers, file in self.read():
            places = place[numbers]
            chosen = np.flatnonzero((places >= low) & (places < high))
            terms.append(places[chosen])
            rows.append(np.searchsorted(borders, first + chosen, side="right").astype(np.int32))
            frequencies.append(np.fromfile(file, np.float32, len(numbers))[chosen])
        order = np.argsort(np.concatenate(terms), kind="stable")
        return np.concatenate(rows)[order], np.concatenate(frequencies)[order]

    def remove(self) -> None:
        """Remove the files."""
        for file in self.files:
            file.unlink(missing_ok=True)


def _flush(values: array[int] | array[float], file: BinaryIO) -> None:
    values.tofile(file)
    del values[:]


def _new(path: Path, kind: str, count: int) -> BinaryIO:
    """A file of so many numbers, as numpy writes it, that are still to come."""
    file = path.open("wb")
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": (count,)})
    return file


def _ranges(starts: Rows) -> Iterator[tuple[int, int]]:
    """(first term, end) in stretches of at most _SORTED postings, or one term."""
    low, count = 0, len(starts) - 1
    while low < count:
        high = int(np.searchsorted(starts, starts[low] + _SORTED, side="right")) - 1
        high = min(max(high, low + 1), count)
        yield low, high
        low = high
