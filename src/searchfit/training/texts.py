"""Texts on disk that are read in any order: a corpus larger than memory can be shuffled."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Rows = npt.NDArray[np.int64]

_BLOCK = 8192
_SCHEMA = pa.schema([("text", pa.large_string())])


def write_texts(path: Path, texts: Iterable[str]) -> None:
    """Write the texts that are not blank, as they come, beside the file and then in its place."""
    beside = path.with_name(f"{path.name}.tmp")
    stream = (text for text in texts if text.strip())
    with pa.OSFile(str(beside), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
        while block := list(islice(stream, _BLOCK)):
            writer.write_batch(pa.record_batch([pa.array(block, pa.large_string())], schema=_SCHEMA))
    os.replace(beside, path)


class Texts:
    """The texts of a file by `write_texts`, mapped into memory. `lengths` holds their characters (n)."""

    def __init__(self, path: Path) -> None:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._blocks = [reader.get_batch(i).column(0) for i in range(reader.num_record_batches)]
        lengths = [pc.utf8_length(block).to_numpy(zero_copy_only=False) for block in self._blocks]
        self.lengths = np.concatenate([np.empty(0, np.int32), *lengths]).astype(np.int32)

    def take(self, rows: Rows) -> list[str]:
        """The texts of these rows, in this order."""
        return [self._blocks[row // _BLOCK][row % _BLOCK].as_py() for row in rows.tolist()]


class Batches:
    """Batches of texts of like length in a random order that follows from the seed; epoch after epoch."""

    def __init__(self, lengths: npt.NDArray[np.int32], size: int, seed: int) -> None:
        self._lengths, self._size, self._seed = lengths, size, seed
        self.per_epoch = -(-len(lengths) // size)
        self._held: tuple[int, list[Rows]] = (-1, [])

    def rows(self, number: int) -> Rows:
        """The rows of a batch, counted from the first one of the first epoch."""
        epoch, place = divmod(number, self.per_epoch)
        if self._held[0] != epoch:
            self._held = (epoch, self._shuffled(epoch))
        return self._held[1][place]

    def _shuffled(self, epoch: int) -> list[Rows]:
        random = np.random.default_rng((self._seed, epoch))
        order = random.permutation(len(self._lengths))
        # Sorted within windows only, so that a batch is not the same company in every epoch.
        window = 16 * self._size
        parts = [order[begin : begin + window] for begin in range(0, len(order), window)]
        near = np.concatenate([part[np.argsort(self._lengths[part], kind="stable")] for part in parts])
        batches = np.split(near, range(self._size, len(near), self._size))
        return [batches[place] for place in random.permutation(len(batches))]
