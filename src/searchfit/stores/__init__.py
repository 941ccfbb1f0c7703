"""Where an index lives: vectors, text, metadata and keyword postings, by passage row, behind one protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from searchfit.errors import SearchfitError
from searchfit.filters import Filter

Rows: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float32]
VectorColumn: TypeAlias = Literal["vector", "sentence_vectors"]


class Store(Protocol):
    """One version of an index, read only. Passages are named by their row, a whole number that they keep for
    life: rows ascend in the order of the corpus, are never given anew, and deletions leave holes."""

    @property
    def info(self) -> Mapping[str, Any]:
        """What the index was built with."""

    @property
    def columns(self) -> Mapping[str, str]:
        """The columns that can be filtered on: the user's name -> type, as `filters.parse` takes them."""

    def count(self) -> int:
        """Number of passages."""

    def nearest(
        self, vector: Floats, column: VectorColumn, k: int, where: Filter | None = None
    ) -> tuple[Rows, Floats]:
        """Rows and similarities (n,), cosines or dot products as the index was built, of the k passages
        nearest to a (d,) vector, best first, among those that the filter lets through; of sentence vectors,
        a passage's best one counts."""

    def matching(self, where: Filter) -> Rows:
        """The rows that the filter lets through, ascending."""

    def vectors(self, rows: Rows | Sequence[int]) -> tuple[Floats, Floats, Rows]:
        """Passage vectors (n, d), their sentence vectors one after another (m, d), and offsets (n + 1,):
        the sentences of the i-th row asked for are offsets[i] to offsets[i + 1]."""

    def postings(self, terms: Sequence[str]) -> dict[str, tuple[Rows, Floats]]:
        """For each term that occurs: the rows it occurs in and its frequencies there."""

    def fetch(self, rows: Rows | Sequence[int]) -> list[dict[str, Any]]:
        """The passages' fields, in the order asked; "metadata" holds the user's columns by their names."""

    def scan(self, columns: Sequence[str], batch: int = 1024) -> Iterator[pa.RecordBatch]:
        """Stored columns of all passages in row order, at most `batch` rows at a time."""


def checked(vector: Floats, size: int) -> Floats:
    """A query vector. Raises SearchfitError for another shape or numbers that are not finite."""
    if vector.shape != (size,) or not np.isfinite(vector).all():
        got = f"shape {vector.shape}, {np.count_nonzero(~np.isfinite(vector))} of them not finite"
        raise SearchfitError(f"expected a query vector of {size} finite numbers, got {got}.")
    return vector.astype(np.float32)
