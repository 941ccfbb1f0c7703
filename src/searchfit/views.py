"""Views over what a workspace holds: its documents and its passages, as tables that are read as they are
asked for.

`documents.parquet` and `passages.parquet` are what the last fit read. An index that was built from them and
has changed since (`searchfit add`, `update`, `remove`) is followed: what was removed is left out, what was
added or replaced comes after the others. Where the documents were read again since the index was built, the
views tell what was read, and `note` says so: the index, and what was added to it, is older.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from searchfit.catalog import segment_catalog
from searchfit.errors import MissingExtraError, SettingsError
from searchfit.filters import TYPES, matches, named, parse, type_name
from searchfit.records import DOCUMENTS, METADATA_PREFIX, PLACE, plain_names
from searchfit.saving import Stream, save
from searchfit.screened import artefact
from searchfit.stores.versions import Opened, open_index, stamp
from searchfit.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

    from searchfit.stores.segment import Segment

BATCH = 1024
_OWN = ("id", "document_id", "title", "text", "start", "end")
"""The columns of passages.parquet that are shown; the others are numbers that only the fit uses."""

_Reader: TypeAlias = Callable[[Sequence[str]], Iterator[pa.RecordBatch]]


@dataclass(frozen=True, slots=True)
class _Test:
    """A condition on rows: the columns that it reads, and which rows of a batch of them it keeps."""

    columns: tuple[str, ...]
    keep: Callable[[pa.RecordBatch], pa.Array]


@dataclass(frozen=True, slots=True)
class View:
    """A table that is read as it is asked for, a few thousand rows in memory; every look reads the files
    again. Columns have the user's names (`metadata.NAME` where that is also the name of one of ours).
    """

    schema: pa.Schema
    note: str
    """What the reader should know of the state of the workspace; mostly empty."""
    _read: _Reader
    _count: Callable[[], int]
    _owner: str
    _tests: tuple[_Test, ...] = ()
    _limit: int = 0

    @property
    def columns(self) -> dict[str, str]:
        """The columns that can be filtered on, with their types."""
        types = {field.name: type_name(field.type) for field in self.schema}
        return {name: kind for name, kind in types.items() if kind in TYPES}

    def select(self, where: str = "", contains: str = "", ids: Iterable[str] = ()) -> View:
        """The rows that pass a filter (`price < 300000 and rooms >= 3`), have a text in title or text
        (whatever the case), and are of these documents; what is empty asks nothing. Raises FilterError for a
        filter that does not fit the columns."""
        tests = []
        if where:
            tests.append(_filter_test(where, self.columns))
        if contains:
            tests.append(_text_test(contains))
        if wanted := list(ids):
            known = pa.array(wanted, pa.string())
            tests.append(_Test((self._owner,), lambda batch: pc.is_in(batch[self._owner], known)))
        return replace(self, _tests=(*self._tests, *tests))

    def first(self, count: int) -> View:
        """At most so many rows from the beginning; 0: all of them."""
        return replace(self, _limit=count)

    def batches(self, columns: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
        """The rows as Arrow batches, in order; `columns` are those wanted, all where it is empty. Raises
        SettingsError for a column that is not there."""
        names = list(columns) or self.schema.names
        for name in names:
            if name not in self.schema.names:
                raise SettingsError(
                    f"there is no column {name!r}.", f"The columns are: {', '.join(self.schema.names)}."
                )
        asked = dict.fromkeys([*(name for test in self._tests for name in test.columns), *names])
        left = self._limit
        for batch in self._read(list(asked)):
            kept = batch
            for test in self._tests:
                kept = kept.filter(test.keep(kept))
            if left:
                kept, left = kept.slice(0, left), left - min(left, kept.num_rows)
            if kept.num_rows:
                yield kept.select(names)
            if self._limit and not left:
                return

    def __len__(self) -> int:
        if not self._tests and not self._limit:
            return self._count()
        return sum(batch.num_rows for batch in self.batches([self._owner]))

    def __bool__(self) -> bool:
        return next(self.batches([self._owner]), None) is not None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows as dictionaries, column -> value."""
        for batch in self.batches():
            yield from batch.to_pylist()

    def __repr__(self) -> str:
        return f"<{len(self)} rows: {', '.join(self.schema.names)}>"

    def to_arrow(self) -> pa.Table:
        """All rows in memory, as an Arrow table."""
        return pa.Table.from_batches(self.batches(), self.schema)

    def to_pandas(self) -> pd.DataFrame:
        """All rows in memory, as a data frame. Raises MissingExtraError where pandas is not installed."""
        try:
            import pandas  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("a data frame", "pandas") from error
        return self.to_arrow().to_pandas()

    def save(self, file: str | Path, force: bool = False, escape: bool = True) -> int:
        """Write the rows into a .csv, .jsonl or .parquet file; how many. `force` replaces a file that is
        there; without `escape`, CSV cells that look like formulas stay as they are. Raises SettingsError and
        SearchfitError like `saving.save`."""
        return save(Stream(self.schema, self.batches(), escape), Path(file), force)


def documents(workspace: Path) -> View:
    """The documents of a workspace: id, title, text, and the other columns of the source.

    A document of which no passage could be made is shown while it stands in documents.parquet. Raises
    WorkspaceError for a folder that is no workspace, or where nothing is read yet.
    """
    place = _home(workspace)
    file = artefact(place.path, "documents.parquet", "ingest")
    schema = pq.read_schema(file)
    opened, note = _index(place, "documents.parquet")
    table = _Named(schema, [name for name in schema.names if name in DOCUMENTS.names or _users(name)])
    if opened is None:
        return table.view(
            lambda names: _rows(file, names), lambda: pq.read_metadata(file).num_rows, note, "id"
        )
    grown = _Grown(opened, file, schema)
    return table.view(
        grown.documents, lambda: sum(batch.num_rows for batch in grown.documents(["id"])), note, "id"
    )


def passages(workspace: Path) -> View:
    """The passages of a workspace: id, document_id, title, text, start and end in the document's text, its
    page and heading where they are known, and the other columns of its document. Raises WorkspaceError like
    `documents`."""
    place = _home(workspace)
    file = artefact(place.path, "passages.parquet", "split")
    documents = artefact(place.path, "documents.parquet", "ingest")
    schema = pq.read_schema(documents)
    own = pq.read_schema(file)
    metadata = [name for name in schema.names if _users(name)]
    placed = [name for name in PLACE.names if name in own.names and name not in metadata]
    fields = [*(own.field(name) for name in (*_OWN, *placed)), *(schema.field(name) for name in metadata)]
    table = _Named(pa.schema(fields), [*_OWN, *placed, *metadata])
    opened, note = _index(place, "passages.parquet")
    if opened is None:
        return table.view(
            lambda names: _joined(file, documents, names, metadata),
            lambda: pq.read_metadata(file).num_rows,
            note,
            "document_id",
        )
    grown = _Grown(opened, documents, table.schema)
    return table.view(grown.passages, opened.store.count, note, "document_id")


@dataclass(frozen=True, slots=True)
class _Named:
    """A table by the names of its stored columns, and how it is shown."""

    schema: pa.Schema
    names: Sequence[str]

    def view(self, read: _Reader, count: Callable[[], int], note: str, owner: str) -> View:
        """A view of it; `read` gives batches of stored columns."""
        stored = dict(zip(plain_names(self.names), self.names, strict=True))

        def renamed(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
            fields = [self.schema.field(stored[name]).with_name(name) for name in columns]
            for batch in read([stored[name] for name in columns]):
                yield pa.RecordBatch.from_arrays(batch.columns, schema=pa.schema(fields))

        plain = [self.schema.field(long).with_name(short) for short, long in stored.items()]
        return View(pa.schema(plain), note, renamed, count, owner)


def _filter_test(where: str, columns: dict[str, str]) -> _Test:
    filter_ = parse(where, columns)
    names = sorted(named(filter_))

    def keep(batch: pa.RecordBatch) -> pa.Array:
        rows = zip(*(batch[name].to_pylist() for name in names), strict=True)
        return pa.array([matches(filter_, dict(zip(names, row, strict=True))) for row in rows], pa.bool_())

    return _Test(tuple(names), keep)


def _text_test(contains: str) -> _Test:
    def keep(batch: pa.RecordBatch) -> pa.Array:
        found = (pc.match_substring(batch[name], contains, ignore_case=True) for name in ("title", "text"))
        return pc.or_(*found)

    return _Test(("title", "text"), keep)


def _home(workspace: Path) -> Workspace:
    """The workspace whose documents are served: of a fit of several models, the best one's."""
    place = Workspace(workspace)
    place.require()
    served = place.served()
    return place if served is None else Workspace((place.path / served["index"]).parents[1])


def _index(place: Workspace, table: str) -> tuple[Opened | None, str]:
    """The index where it was built from the table and has changed since, and what to tell of it."""
    served, stages = place.served(), place.manifest()["stages"]
    made = {name: part["digest"] for entry in stages.values() for name, part in entry["artefacts"].items()}
    if served is None:
        return None, ""
    if made.get(table) != stages.get("index", {}).get("parts", {}).get(table):
        return None, "These were read after the index was built; a fit to its end brings it up to date."
    index = place.artefact(served["index"])
    return (open_index(index) if stamp(index) else None), ""


def _rows(file: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Columns of a Parquet file. A row group at a time: a reader that looks ahead would hold many long
    texts."""
    with pq.ParquetFile(file) as source:
        for group in range(source.num_row_groups):
            for batch in source.iter_batches(BATCH, [group], list(names)):
                yield batch.select(list(names))


def _users(name: str) -> bool:
    return name.startswith(METADATA_PREFIX)


def _joined(
    file: Path, documents: Path, names: Sequence[str], metadata: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Columns of passages and, those of `metadata`, of their documents. Both tables are in the same order, so
    that only the documents of a batch are held."""
    own = [name for name in names if name not in metadata]
    more = [name for name in names if name in metadata]
    if not more:
        yield from _rows(file, names)
        return
    batches = _rows(documents, more)
    held, first = pa.Table.from_batches([], pq.read_schema(documents).empty_table().select(more).schema), 0
    for batch in _rows(file, [*own, "document"]):
        rows = batch["document"].to_numpy()
        while first + held.num_rows <= rows[-1]:
            held = pa.concat_tables([held, pa.Table.from_batches([next(batches)])])
        held, first = held.slice(rows[0] - first), int(rows[0])
        of_rows = held.take(rows - first).combine_chunks()
        columns = {name: batch[name] for name in own}
        columns |= {name: _one(of_rows[name]) for name in more}
        yield pa.RecordBatch.from_pydict({name: columns[name] for name in names})


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


@dataclass(frozen=True, slots=True)
class _Grown:
    """An index that has changed since it was built from `file`; batches are cast to `schema`."""

    opened: Opened
    file: Path
    schema: pa.Schema

    def documents(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Those of the file that live, then those that were added."""
        wanted = list(dict.fromkeys(["id", *names]))
        segments = self.opened.store.segments
        living = {segment.folder: self._living(segment) for segment in segments}
        added = {folder: ids for folder, ids in living.items() if (folder / "documents.parquet").exists()}
        own = {
            folder: pc.filter(ids, pc.is_in(ids, _ids(folder / "documents.parquet")))
            for folder, ids in added.items()
        }
        now = pa.chunked_array([*living.values()], pa.string())
        built = _ids(self.opened.base.folder / "catalog.parquet")
        gone = pc.filter(built, pc.invert(pc.is_in(built, now)))
        replaced = pa.chunked_array([*(gone.chunks), *own.values()], pa.string())
        for batch in _rows(self.file, wanted):
            yield batch.filter(pc.invert(pc.is_in(batch["id"], replaced))).select(list(names))
        for folder, ids in own.items():
            for batch in _rows(folder / "documents.parquet", wanted):
                yield self._cast(batch.filter(pc.is_in(batch["id"], ids)).select(list(names)), names)

    def passages(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Those of the index."""
        metadata = self.opened.store.info["metadata"]
        stored = {METADATA_PREFIX + column["name"]: column["column"] for column in metadata}
        columns = [stored.get(name, name) for name in names]
        for batch in self.opened.store.scan(columns, BATCH):
            yield self._cast(pa.RecordBatch.from_arrays(batch.columns, names=list(names)), names)

    def _living(self, segment: Segment) -> pa.Array:
        return _one(segment_catalog(segment, self.opened.deleted)["id"])

    def _cast(self, batch: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
        fields = pa.schema([self.schema.field(name) for name in names])
        # The index keeps timestamps in microseconds; everything else fits.
        return batch.cast(fields, safe=False)


def _ids(file: Path) -> pa.ChunkedArray:
    return pq.read_table(file, columns=["id"])["id"]
