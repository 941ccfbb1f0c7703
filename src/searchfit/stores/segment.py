"""A segment of an index: a folder that is written once and never changed.

It holds a LanceDB table of texts and metadata (`passages`), the vectors as flat arrays that are read through
the memory map, the keyword postings, and info.json, written last. A large one has a second table with an
index of the passage vectors. LanceDB is not fork-safe: processes that read an index must be spawned.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from searchfit.errors import WorkspaceError
from searchfit.filters import TYPES, Compare, Filter
from searchfit.fusion import Block, gathered
from searchfit.interaction import PassageWords
from searchfit.stores import Floats, Rows, VectorColumn
from searchfit.stores.ann import Ann
from searchfit.stores.building import ARRAYS, FORMAT, bits_array, vector_array
from searchfit.stores.files import REBUILD, open_array
from searchfit.stores.lance_filters import expression
from searchfit.stores.postings import Postings

Flags = npt.NDArray[np.bool_]

_NO_BITS = np.empty((0, 0), np.uint8)
_NO_ROWS = np.zeros(1, np.int64)

OWN = {"id": "document_id", "title": "title", "text": "text"}
"""What can be filtered on beside the metadata, unless a metadata column has the name."""


def filterable(metadata: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The columns that can be filtered on, with their types; `metadata` is as `build` takes it."""
    types = dict.fromkeys(OWN, "string") | {column["name"]: column["type"] for column in metadata}
    return {name: kind for name, kind in types.items() if kind in TYPES}


class Segment:
    """A segment that `build` wrote. Its passages are named by place, 0 to count - 1; `rows` (count,) gives
    their rows. Safe to share between threads.

    Raises WorkspaceError when the folder is absent, unfinished, damaged or of another format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.info, counts = _read_info(self.folder)
        count, sentences, size = counts["passages"], counts["sentences"], counts["dimension"]
        self.count: int = count
        self.rows: Rows = open_array(folder / "rows.bin", np.int64, (count,))
        self.documents = open_array(folder / "documents.bin", np.int32, (count,))
        self.vectors: Floats = open_array(folder / "vectors.bin", np.float32, (count, size))
        self.sentences: Floats = open_array(folder / "sentences.bin", np.float32, (sentences, size))
        self.offsets: Rows = open_array(folder / "offsets.bin", np.int64, (count + 1,))
        size = -(-len(self.info.get("centre", ())) // 8)
        words = open_array(folder / "words.bin", np.uint8, (counts["words"], size)) if size else _NO_BITS
        borders = open_array(folder / "word_offsets.bin", np.int64, (count + 1,)) if size else _NO_ROWS
        self.words = PassageWords(words, borders)
        self.postings = Postings(folder, count, counts["terms"])
        self.ann = Ann.open(folder, counts["ann"])
        self.dense = bool(count) and int(self.rows[-1] - self.rows[0]) == count - 1
        self._metadata = {column["name"]: column["column"] for column in self.info.get("metadata", ())}
        self._names = {**OWN, **self._metadata}
        import lancedb

        with self._reading():
            self._table = lancedb.connect(str(folder)).open_table("passages")
            found = self._table.count_rows()
        if found != count:
            raise WorkspaceError(f"the index {folder} holds {found} passages, expected {count}.", REBUILD)

    @cached_property
    def _spoken(self) -> bool:
        """Whether every passage has a sentence."""
        return bool((np.diff(self.offsets) > 0).all())

    @property
    def schema(self) -> pa.Schema:
        """The stored columns, other than vectors."""
        return self._table.schema

    def places(self, rows: Rows) -> Rows:
        """The places of rows; -1 for those that are not here."""
        if not self.count:
            return np.full(len(rows), -1, np.int64)
        if self.dense:
            places = rows - self.rows[0]
            return np.where((places >= 0) & (places < self.count), places, -1)
        places = np.minimum(np.searchsorted(self.rows, rows), self.count - 1)
        return np.where(self.rows[places] == rows, places, -1)

    def nearest(
        self, vector: Floats, column: VectorColumn, k: int, among: Rows | None, spare: int
    ) -> tuple[Rows, Floats]:
        """Places and similarities of the k passages nearest to a vector, in no order; `among` are the places
        to choose from, `spare` is how many the caller will throw away besides."""
        # vecdot is as fast as @ here, and wakes no threads that would spin for longer than the search takes.
        if column == "vector" and self.ann is not None:
            # Of candidates it is enough to have as many more as are thrown away on average.
            more = int(k * spare / max(1, self.count - spare))
            found = self.ann.nearest(vector, k + more, among, self.count)
            if found is not None:
                return found, np.vecdot(self.vectors[found], vector)
        if column == "vector":
            scores = np.vecdot(self.vectors if among is None else self.vectors[among], vector)
        else:
            among, scores = self._best_sentences(vector, among)
        best = _largest(scores, k + spare)
        return (best if among is None else among[best]), scores[best]

    def _best_sentences(self, vector: Floats, among: Rows | None) -> tuple[Rows | None, Floats]:
        """(places or None for all, similarity of the best sentence of each), of those that have one."""
        places = among
        if places is None and self._spoken:
            return None, np.maximum.reduceat(np.vecdot(self.sentences, vector), self.offsets[:-1])
        places = np.arange(self.count) if places is None else places
        places = places[self.offsets[places + 1] > self.offsets[places]]
        if not len(places):
            return places, np.empty(0, np.float32)
        _, sentences, offsets = self.take(places)
        return places, np.maximum.reduceat(np.vecdot(sentences, vector), offsets[:-1])

    def take(self, places: Rows) -> tuple[Floats, Floats, Rows]:
        """Vectors (n, d), sentence vectors (m, d) and offsets (n + 1,) of places."""
        parts, offsets = gathered(self.offsets, places)
        return self.vectors[places], self.sentences[parts], offsets

    def block(self, begin: int, end: int, live: Flags | None, start: int) -> Block:
        """The places from `begin` to `end`, those that live, as passages `start` and on."""
        if live is not None and not live.all():
            places = begin + np.flatnonzero(live)
            return Block(start, self.documents[places], *self.take(places))
        first, last = self.offsets[begin], self.offsets[end]
        return Block(
            start,
            self.documents[begin:end],
            self.vectors[begin:end],
            self.sentences[first:last],
            self.offsets[begin : end + 1] - first,
        )

    def places_of(self, document_id: str) -> Rows:
        """The places of a document's passages, ascending; none when it is not here."""
        where = expression(Compare("id", "=", document_id), {"id": "document_id"})
        with self._reading():
            rows = self._table.search().where(where).select(["row"]).to_arrow()["row"].to_numpy()
        return self.places(np.sort(rows))

    def matching(self, where: Filter) -> Rows:
        """The places that the filter lets through, ascending."""
        query = self._table.search().where(expression(where, self._names)).select(["row"])
        with self._reading():
            rows = query.to_arrow()["row"].to_numpy()
        return self.places(np.sort(rows))

    def fetch(self, places: Rows) -> list[dict[str, Any]]:
        """The fields of places, which are distinct and ascending; "metadata" holds the user's columns."""
        stored = set(self._metadata.values())
        table = self._taken(places)
        fields = [name for name in table.schema.names if name not in stored]
        return [
            {field: record[field] for field in fields}
            | {"metadata": {name: record[column] for name, column in self._metadata.items()}}
            for record in table.to_pylist()
        ]

    def document_ids(self, places: Rows) -> list[str]:
        """The documents of places, which are distinct and ascending."""
        ids: list[str] = self._taken(places, "document_id")["document_id"].to_pylist()
        return ids

    def _taken(self, places: Rows, *columns: str) -> pa.Table:
        """These columns, or all, of places, which are distinct and ascending."""
        query = self._table.take_offsets(places.tolist())
        with self._reading():
            table = (query.select(["row", *columns]) if columns else query).to_arrow()
        found = np.argsort(table["row"].to_numpy())
        self._expect(table["row"].to_numpy()[found], self.rows[places])
        return table.take(found)

    def scan(self, columns: Sequence[str], batch: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Stored columns in order of places: (first place, batch)."""
        place = 0
        with self._reading():
            stored = dict.fromkeys(["row", *(c for c in columns if c not in ARRAYS)])
            query = self._table.search().select(list(stored))
            for found in query.to_batches(batch):
                end = place + found.num_rows
                self._expect(found["row"].to_numpy(), self.rows[place:end])
                whole = {name: found[name] for name in found.schema.names}
                for name in ARRAYS:
                    if name in columns:
                        whole[name] = self._vector_column(name, place, end)
                yield place, pa.RecordBatch.from_pydict({name: whole[name] for name in columns})
                place = end
        self._expect(np.array(place), np.array(self.count))

    def _vector_column(self, name: str, start: int, end: int) -> pa.Array:
        if name == "vector":
            return vector_array(self.vectors[start:end])
        if name == "words":
            first, last = self.words.offsets[start], self.words.offsets[end]
            return bits_array(self.words.bits[first:last], self.words.offsets[start : end + 1])
        first, last = self.offsets[start], self.offsets[end]
        offsets = pa.array((self.offsets[start : end + 1] - first).astype(np.int32))
        return pa.ListArray.from_arrays(offsets, vector_array(self.sentences[first:last]))

    def _expect(self, rows: Rows, expected: Rows) -> None:
        if not np.array_equal(rows, expected):
            raise WorkspaceError(f"the index {self.folder} has lost its row order.", REBUILD)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            raise WorkspaceError(f"the index {self.folder} cannot be read: {error}", REBUILD) from error


def _largest(scores: Floats, k: int) -> Rows:
    if len(scores) <= k or k < 1:
        return np.arange(min(k, len(scores)))
    return np.argpartition(scores, len(scores) - k)[-k:]


def _read_info(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the index was built with, and what the store noted of itself."""
    file = folder / "info.json"
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
        counts = info.pop("store")
        known = counts["format"] == FORMAT
    except FileNotFoundError as error:
        raise WorkspaceError(
            f"there is no finished index in {folder}.", "Build it: searchfit fit."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkspaceError(f"the index description {file} is damaged: {error!r}", REBUILD) from error
    if not known:
        raise WorkspaceError(f"the index {folder} has format {counts['format']}, not {FORMAT}.", REBUILD)
    return info, counts
