"""What the stores outside of the workspace share: records on their way, the identity check, push.

A passage's row is its id there, and what a row holds never changes; so a push sends the rows that are new
and deletes those that are gone, and one that was interrupted carries on. A record of the index lies beside
the rows and is marked as finished last.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa

from searchfit.errors import StoreError
from searchfit.filters import TYPES, Compare, Either, Every, Filter, Member, Missing, Not, matches
from searchfit.filters.tree import plain
from searchfit.records import PASSAGES
from searchfit.stores import Floats, Rows, Store, VectorColumn
from searchfit.stores.address import Address
from searchfit.stores.building import list_offsets
from searchfit.stores.segment import OWN, filterable

FORMAT = 1
"""Version of what is stored elsewhere."""

ROWS_OF = ("lineage", "dimension", "similarity", "metadata", "keyword")
"""What of the index info the stored rows depend on."""

IDENTITY = (*ROWS_OF, "generation", "model", "model_digest")
"""What of the index info has to be the same here and there for a search."""

Atom: TypeAlias = Compare | Member | Missing
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Record:
    """A passage on its way to a store: (d,) vector, (m, d) sentence vectors, the fields to show, and the
    values to filter on by their stored column, null ones left out, timestamps naive UTC."""

    row: int
    vector: Floats
    sentences: Floats
    fields: dict[str, Any]
    values: dict[str, Any]


class RemoteStore(ABC):
    """A store outside of the workspace: `stores.Store` to read, and what push writes by.

    `local` is the same index in the workspace; it serves what the store has no means for (whole-corpus
    scans, and where said so postings, vectors and filters). All methods raise StoreError when the store
    cannot be reached or refuses.
    """

    def __init__(self, address: Address, local: Store | None = None) -> None:
        self.address = address
        self.local = local
        self.record = self._read_record()

    @property
    def info(self) -> Mapping[str, Any]:
        """What the index was built with. Raises StoreError where there is no index."""
        if self.record is None:
            raise StoreError(f"there is no index in {self.address}.", again(self.address))
        info: Mapping[str, Any] = self.record["info"]
        return info

    @property
    def columns(self) -> Mapping[str, str]:
        """See Store."""
        return filterable(self.info["metadata"])

    @property
    def names(self) -> dict[str, str]:
        """The stored column of each column that can be filtered on."""
        stored = OWN | {column["name"]: column["column"] for column in self.info["metadata"]}
        return {name: stored[name] for name in self.columns}

    @abstractmethod
    def create(self, record: Mapping[str, Any]) -> None:
        """Make the place for an index and write its record. Raises StoreError when the place is taken."""

    @abstractmethod
    def write_record(self, record: Mapping[str, Any]) -> None:
        """Replace the record of the index."""

    @abstractmethod
    def upsert(self, records: Sequence[Record]) -> None:
        """Store passages; one that is there is replaced. On return they are safe, and after an interruption
        the same call may be made again."""

    @abstractmethod
    def delete(self, rows: Rows) -> None:
        """Remove passages; those that are not there do not matter."""

    @abstractmethod
    def drop(self) -> None:
        """Remove the index and its record, where there is one."""

    @abstractmethod
    def rows(self) -> Rows:
        """The rows that are there, ascending."""

    def ready(self) -> None:  # noqa: B027
        """Build what makes search fast; called after all rows are there."""

    def close(self) -> None:  # noqa: B027
        """Let go of connections and locks."""

    @abstractmethod
    def count(self) -> int:
        """See Store."""

    @abstractmethod
    def nearest(
        self, vector: Floats, column: VectorColumn, k: int, where: Filter | None = None
    ) -> tuple[Rows, Floats]:
        """See Store."""

    @abstractmethod
    def matching(self, where: Filter) -> Rows:
        """See Store."""

    @abstractmethod
    def vectors(self, rows: Rows | Sequence[int]) -> tuple[Floats, Floats, Rows]:
        """See Store."""

    @abstractmethod
    def fetch(self, rows: Rows | Sequence[int]) -> list[dict[str, Any]]:
        """See Store."""

    def postings(self, terms: Sequence[str]) -> dict[str, tuple[Rows, Floats]]:
        """See Store; served by the local index."""
        return self.beside.postings(terms)

    def scan(self, columns: Sequence[str], batch: int = 1024) -> Iterator[pa.RecordBatch]:
        """See Store; served by the local index, which reads whole corpora faster than any network."""
        return self.beside.scan(columns, batch)

    def holds(self, column: str, value: Any) -> bool:  # noqa: ARG002
        """Whether the store can hold a column's value so that filters mean the same there."""
        return True

    def compiles(self, atom: Atom, kind: str) -> bool:  # noqa: ARG002
        """Whether the store can express a comparison with a column of this type."""
        return True

    @property
    def beside(self) -> Store:
        """The local index. Raises StoreError where none was given."""
        if self.local is None:
            raise StoreError(f"{self.address} needs the index of the workspace for this.")
        return self.local

    def expresses(self, where: Filter) -> bool:
        """Whether the store can run the whole filter by itself, exactly."""
        unheld = set((self.record or {}).get("unheld", ()))
        names, columns = self.names, self.columns
        return all(
            names[atom.column] not in unheld and self.compiles(atom, columns[atom.column])
            for atom in atoms(where)
        )

    def resolved(self, where: Filter) -> Rows:
        """The rows that pass a filter which the store cannot express: by the local index, and without one
        by looking at every passage."""
        if self.local is not None:
            return self.local.matching(where)
        passing: list[int] = []
        rows = self.rows()
        for start in range(0, len(rows), 1000):
            for fields in self.fetch(rows[start : start + 1000]):
                own = {name: fields[column] for name, column in OWN.items()}
                if matches(where, own | fields["metadata"]):
                    passing.append(fields["row"])
        return np.array(passing, np.int64)

    @abstractmethod
    def _read_record(self) -> dict[str, Any] | None:
        """The record of the index, None where there is no index."""


def best_first(rows: Iterable[int], similarities: Iterable[float], k: int) -> tuple[Rows, Floats]:
    """The k best, ties in row order."""
    numbers, scores = np.fromiter(rows, np.int64), np.fromiter(similarities, np.float32)
    best = np.lexsort((numbers, -scores))[:k]
    return numbers[best], scores[best]


def in_order(rows: Rows | Sequence[int], found: Mapping[int, Result]) -> list[Result]:
    """What was found, in the order asked, repeats included. Raises IndexError for a row that is not there."""
    if absent := [row for row in map(int, rows) if row not in found]:
        raise IndexError(f"there is no passage of row {absent[0]}")
    return [found[row] for row in map(int, rows)]


def stacked(parts: Sequence[tuple[Floats, Floats]], size: int) -> tuple[Floats, Floats, Rows]:
    """(vector, sentence vectors) of some passages as Store.vectors gives them."""
    vectors = np.array([vector for vector, _ in parts], np.float32).reshape(-1, size)
    sentences = np.concatenate([np.empty((0, size), np.float32), *(own for _, own in parts)])
    lengths = [len(own) for _, own in parts]
    return vectors, sentences, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def atoms(where: Filter) -> Iterator[Atom]:
    """The comparisons of a filter."""
    if isinstance(where, Not):
        yield from atoms(where.part)
    elif isinstance(where, (Every, Either)):
        for part in where.parts:
            yield from atoms(part)
    else:
        yield where


def negations_inside(where: Filter, negated: bool = False) -> Filter:
    """The same filter with `not` on comparisons only, where a null's unknown is easily kept."""
    if isinstance(where, Not):
        return negations_inside(where.part, not negated)
    if isinstance(where, (Every, Either)):
        parts = tuple(negations_inside(part, negated) for part in where.parts)
        return Every(parts) if isinstance(where, Every) != negated else Either(parts)
    return Not(where) if negated else where


def retried(
    action: Callable[[], Result],
    transient: Callable[[Exception], bool],
    errors: tuple[type[Exception], ...],
    patience: float,
) -> Result:
    """Run until it works, waiting twice as long each time, at most `patience` seconds in all; an error that
    is not transient is raised at once."""
    until, pause = time.monotonic() + patience, 0.1
    while True:
        try:
            return action()
        except errors as error:
            if not transient(error) or time.monotonic() + pause > until:
                raise
        time.sleep(pause * random.uniform(0.75, 1))
        pause = min(pause * 2, 10)


def again(address: Address, more: str = "") -> str:
    """The hint that says how the index gets there."""
    return f'Push it: searchfit index WORKSPACE --store "{address}"{more}'


def records(batch: pa.RecordBatch, metadata: Sequence[Mapping[str, str]]) -> list[Record]:
    """The passages of a batch, which is as `stores.building.build` takes it."""
    size = batch["vector"].type.list_size
    vectors = batch["vector"].flatten().to_numpy().reshape(-1, size)
    lists = batch["sentence_vectors"]
    sentences = lists.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, size)
    offsets = list_offsets(lists)
    kinds = {column["column"]: column["type"] for column in metadata}
    names = {column["column"]: column["name"] for column in metadata}
    shown = batch.select(["row", *PASSAGES.names, *kinds]).to_pylist()
    made = []
    for place, fields in enumerate(shown):
        stored = {column: fields.pop(column) for column in kinds}
        values = {column: fields[column] for column in OWN.values()}
        values |= {column: plain(value) for column, value in stored.items() if kinds[column] in TYPES}
        own = sentences[offsets[place] : offsets[place + 1]]
        fields["metadata"] = {names[column]: value for column, value in stored.items()}
        held = {column: value for column, value in values.items() if value is not None}
        made.append(Record(fields.pop("row"), vectors[place], own, fields, held))
    return made
