"""How many documents have which values: the filters that the page offers beside the results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from searchfit.filters import parse
from searchfit.server.page.address import Asked

if TYPE_CHECKING:
    import pyarrow as pa

    from searchfit.stores.corpus import StoreCorpus

MOST_VALUES = 300  # of a column of text; one with more names things rather than sorting them
MOST_NUMBERS = 12  # of a column of whole numbers; one with more gets bounds
SHOWN = 30


@dataclass(frozen=True, slots=True)
class Facet:
    """A column and its values as an address writes them, each with the number of documents that have it and
    meet all conditions on other columns. `kind` is the column's type; one with bounds has no values."""

    column: str
    kind: str
    values: tuple[tuple[str, int], ...] = ()
    more: int = 0


@dataclass(frozen=True, slots=True)
class Counted:
    """The documents that meet all conditions, and the facets."""

    documents: int
    facets: tuple[Facet, ...]


@dataclass(frozen=True, slots=True)
class _Column:
    """A column by document: the code of each one's value (-1: none) among `values`."""

    kind: str
    values: tuple[str, ...]
    codes: npt.NDArray[np.int32]


class Facets:
    """Counts over an index; what they need of its metadata is read once for each version of it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._held: tuple[StoreCorpus, dict[str, _Column], npt.NDArray[np.int64]] | None = None

    def count(self, corpus: StoreCorpus, asked: Asked) -> Counted:
        """What the conditions of an address leave. Raises FilterError where they do not fit the columns."""
        columns, firsts = self._columns(corpus)
        every = self._among(corpus, asked, firsts)
        chosen = {name for name, _ in asked.values}
        found = []
        for name, column in columns.items():
            if not column.values:
                found.append(Facet(name, column.kind))
                continue
            if len(column.values) == 1 and column.codes.min() == 0:
                continue  # all documents have it
            among = self._among(corpus, asked.without(name), firsts) if name in chosen else every
            codes = column.codes[among]
            counts = np.bincount(codes[codes >= 0], minlength=len(column.values)).tolist()
            picked = {value for own, value in asked.values if own == name}
            some = [
                (v, n) for v, n in zip(column.values, counts, strict=True) if n or v in picked
            ]  # fmt: skip
            if column.kind == "string":
                some.sort(key=lambda each: (each[0] not in picked, -each[1], each[0]))
            if some:
                found.append(Facet(name, column.kind, tuple(some[:SHOWN]), max(0, len(some) - SHOWN)))
        return Counted(int(np.count_nonzero(every)), tuple(found))

    @staticmethod
    def _among(corpus: StoreCorpus, asked: Asked, firsts: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which documents meet the conditions."""
        condition = asked.condition(corpus.store.columns)
        if not condition:
            return np.ones(len(firsts), np.bool_)
        rows = corpus.store.matching(parse(condition, corpus.store.columns))
        there = np.zeros(len(firsts), np.bool_)
        there[np.searchsorted(firsts, corpus.places(rows), "right") - 1] = True
        return there

    def _columns(self, corpus: StoreCorpus) -> tuple[dict[str, _Column], npt.NDArray[np.int64]]:
        """The columns to filter by, and the first place of each document."""
        with self._lock:
            if self._held is None or self._held[0] is not corpus:
                firsts = np.unique(corpus.documents, return_index=True)[1].astype(np.int64)
                self._held = corpus, dict(_read(corpus, firsts)), firsts
            return self._held[1:]


def _read(corpus: StoreCorpus, firsts: npt.NDArray[np.int64]) -> Iterator[tuple[str, _Column]]:
    import pyarrow as pa

    stored = {
        each["name"]: (each["column"], each["type"])
        for each in corpus.info.get("metadata", ())
        if each["type"] in {"string", "bool", "int", "float", "date"}
    }
    wanted = [column for column, kind in stored.values() if kind in {"string", "bool", "int"}]
    batches = list(corpus.store.scan(wanted)) if wanted else []
    for name, (column, kind) in stored.items():
        bounds = _Column(kind, (), np.empty(0, np.int32))
        if kind in {"float", "date"}:
            yield name, bounds
            continue
        whole = pa.chunked_array([batch[column] for batch in batches]).take(pa.array(firsts))
        coded = _coded(whole, kind)
        if coded is not None:
            yield name, coded
        elif kind == "int":
            yield name, bounds


def _coded(values: pa.ChunkedArray, kind: str) -> _Column | None:
    """The values as codes; None where there are too many of them to choose from, or none."""
    encoded: Any = values.combine_chunks().dictionary_encode()
    most = MOST_NUMBERS if kind == "int" else MOST_VALUES
    if kind == "string":
        most = min(most, max(MOST_NUMBERS, len(values) // 2))
    if not 0 < len(encoded.dictionary) <= most:
        return None
    known: list[Any] = encoded.dictionary.to_pylist()
    order = sorted(range(len(known)), key=lambda i: known[i])
    places = np.empty(len(known), np.int32)
    places[order] = np.arange(len(known), dtype=np.int32)
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    shown: Mapping[Any, str] = {True: "true", False: "false"} if kind == "bool" else {}
    names = tuple(shown.get(known[i]) or str(known[i]) for i in order)
    return _Column(kind, names, np.where(codes >= 0, places[codes], -1).astype(np.int32))
