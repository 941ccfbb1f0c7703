"""The postings of a keyword index on disk: which passages hold a term, and how often.

A term is found by bisection of the sorted vocabulary, its postings are a stretch of two memory-mapped arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from searchfit.stores.files import ArrayFile, open_array, write_array

TERMS = pa.schema(
    [
        ("term", pa.string()),
        ("rows", pa.list_(pa.int64())),
        ("frequencies", pa.list_(pa.float32())),
    ]
)
"""The postings as they are handed over: a term in one row, the passage rows in ascending order."""

Places = npt.NDArray[np.int32]
Frequencies = npt.NDArray[np.float32]


def write_postings(folder: Path, batches: Iterable[pa.RecordBatch], rows: npt.NDArray[np.int64]) -> int:
    """Write postings (as TERMS) of the passages `rows` and their lengths (the sum of a passage's
    frequencies); the number of terms."""
    words: list[bytes] = []
    sizes: list[npt.NDArray[np.int64]] = []
    lengths = np.zeros(len(rows))
    dense = bool(len(rows)) and int(rows[-1] - rows[0]) == len(rows) - 1
    with (
        ArrayFile(folder / "places.bin", np.int32) as places_file,
        ArrayFile(folder / "frequencies.bin", np.float32) as frequencies_file,
    ):
        for batch in batches:
            own = batch.cast(TERMS)
            words += [term.encode() for term in own["term"].to_pylist()]
            sizes.append(np.diff(own["rows"].offsets.to_numpy()).astype(np.int64))
            named = own["rows"].flatten().to_numpy()
            places = named - rows[0] if dense else np.searchsorted(rows, named)
            frequencies = own["frequencies"].flatten().to_numpy()
            np.add.at(lengths, places, frequencies)
            places_file.append(places)
            frequencies_file.append(frequencies)
    _write_vocabulary(folder, words, np.concatenate([np.empty(0, np.int64), *sizes]))
    write_array(folder / "lengths.bin", lengths.astype(np.float32))
    return len(words)


def _write_vocabulary(folder: Path, words: list[bytes], sizes: npt.NDArray[np.int64]) -> None:
    order = sorted(range(len(words)), key=words.__getitem__)
    begins = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    spans = np.stack([begins[:-1], begins[1:]], axis=1)[order]
    ends = np.cumsum([0, *(len(words[place]) for place in order)])
    write_array(folder / "spans.bin", spans.astype(np.int64))
    write_array(folder / "ends.bin", ends.astype(np.int64))
    with ArrayFile(folder / "vocabulary.bin", np.uint8) as file:
        file.append(np.frombuffer(b"".join(words[place] for place in order), np.uint8))


class Postings:
    """Postings that `write_postings` wrote, of `count` passages and `terms` terms.

    Raises WorkspaceError when a file is damaged.
    """

    def __init__(self, folder: Path, count: int, terms: int) -> None:
        self.lengths: npt.NDArray[np.float32] = open_array(folder / "lengths.bin", np.float32, (count,))
        self._spans = open_array(folder / "spans.bin", np.int64, (terms, 2))
        self._ends = open_array(folder / "ends.bin", np.int64, (terms + 1,))
        entries = int(self._spans[:, 1].max()) if terms else 0
        self._places = open_array(folder / "places.bin", np.int32, (entries,))
        self._frequencies = open_array(folder / "frequencies.bin", np.float32, (entries,))
        self._words: Any = open_array(folder / "vocabulary.bin", np.uint8, (int(self._ends[-1]),)).data

    def find(self, term: str) -> tuple[Places, Frequencies]:
        """Places of the passages that hold the term, ascending, and its frequencies there."""
        place = self._bisect(term.encode())
        begin, end = self._spans[place] if place >= 0 else (0, 0)
        return self._places[begin:end], self._frequencies[begin:end]

    def all(self) -> Iterator[tuple[str, Places, Frequencies]]:
        """Every term, sorted, with its postings."""
        for place in range(len(self._spans)):
            begin, end = self._spans[place]
            yield self._word(place).decode(), self._places[begin:end], self._frequencies[begin:end]

    def _word(self, place: int) -> bytes:
        return bytes(self._words[self._ends[place] : self._ends[place + 1]])

    def _bisect(self, word: bytes) -> int:
        low, high = 0, len(self._spans)
        while low < high:
            middle = (low + high) // 2
            if self._word(middle) < word:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self._spans) and self._word(low) == word else -1
