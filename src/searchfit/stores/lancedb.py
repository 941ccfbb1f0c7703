"""An index version as a LanceDB folder: the tables `passages` and `terms`, and info.json, written last.

Search is exact: vectors are compared one by one, after the filter. Passages are stored in row order, so that
they are fetched by position. LanceDB is not fork-safe: processes that read an index must be spawned.
"""

from __future__ import annotations

import contextlib
import json
import operator
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from searchfit.errors import SearchfitError, WorkspaceError
from searchfit.filters import TYPES, Compare, Either, Every, Filter, Member, Missing, Not
from searchfit.stores import Floats, Rows, VectorColumn
from searchfit.workspace import sync_file, write_json

FORMAT = 1
"""Version of the folder's layout."""

TERMS = pa.schema(
    [
        ("term", pa.string()),
        ("rows", pa.list_(pa.int32())),
        ("frequencies", pa.list_(pa.float32())),
    ]
)
"""The postings of the keyword index: one row a term."""

_VECTORS = ("vector", "sentence_vectors")
_OWN = {"id": "document_id", "title": "title", "text": "text"}
"""What can be filtered on beside the metadata, unless a metadata column has the name."""

_TYPES = {
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "date": pa.date32(),
}
_TERMS_A_QUERY = 500
_LIFT = np.float32(2**40)
_REBUILD = "Rebuild it: searchfit fit with --force index."


def build(
    folder: Path,
    passages: Iterable[pa.RecordBatch],
    postings: Iterable[pa.RecordBatch],
    info: Mapping[str, Any],
) -> None:
    """Write an index version; what an earlier, unfinished build left in the folder is replaced.

    `passages` holds row (0, 1, 2 ...), the fields of records.PASSAGES, vector (d,), sentence_vectors (any
    number, d), and the metadata columns; `postings` is as TERMS, a term in one row. `info` is JSON;
    info["metadata"] lists {"name": the user's column, "column": as stored, "type": as in filters.TYPES or
    another, which is kept but not filtered on}; info["similarity"] says how vectors are compared, "cosine"
    (the default) or "dot". NaN in metadata becomes null, timestamps keep microseconds.

    Raises SearchfitError for vectors that are not finite or of several lengths, for rows that are not
    dense, and for values that do not fit their column's type; WorkspaceError when writing fails.
    """
    import lancedb
    from lancedb.index import BTree

    (folder / "info.json").unlink(missing_ok=True)
    for name in ("passages", "terms"):
        shutil.rmtree(folder / f"{name}.lance", ignore_errors=True)
    batches = iter(passages)
    first = next(batches, None)
    if first is None:
        raise SearchfitError("there are no passages to index.", "Check that the source has documents.")
    schema = _stored_schema(first.schema, info)
    try:
        database = lancedb.connect(str(folder))
        stored = _create(database, "passages", schema, _checked(chain([first], batches), schema))
        terms = _create(database, "terms", TERMS, (batch.cast(TERMS) for batch in postings))
        if terms.count_rows():
            terms.create_index("term", config=BTree())
        counts = {"format": FORMAT, "passages": stored.count_rows(), "terms": terms.count_rows()}
    except (OSError, RuntimeError) as error:
        raise WorkspaceError(
            f"the index could not be written to {folder}: {error}", "Is the disk full or read only?"
        ) from error
    for file in folder.rglob("*"):
        if file.is_file():
            sync_file(file)
    write_json(folder / "info.json", {**info, "store": counts})


def _stored_schema(schema: pa.Schema, info: Mapping[str, Any]) -> pa.Schema:
    """The schema that is stored: metadata columns of filterable types get one Arrow type each."""
    types = {column["column"]: column["type"] for column in info.get("metadata", ())}

    def stored(field: pa.Field) -> pa.Field:
        kind = types.get(field.name, "")
        if kind == "timestamp":
            zone = "UTC" if getattr(field.type, "tz", None) else None
            return field.with_type(pa.timestamp("us", zone))
        return field.with_type(_TYPES.get(kind, field.type))

    return pa.schema([stored(field) for field in schema])


def _create(database: Any, name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Any:
    """A table of streamed batches. An error of the stream, which LanceDB would wrap, is raised as it was."""
    failures: list[Exception] = []

    def stream() -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except Exception as error:
            failures.append(error)
            raise

    try:
        # Without the schema, LanceDB would guess from the names which columns are vectors.
        reader = pa.RecordBatchReader.from_batches(schema, stream())
        return database.create_table(name, reader, schema=schema)
    except (OSError, RuntimeError, ValueError) as error:
        raise failures[0] if failures else error from None


def _checked(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    count = 0
    for batch in batches:
        stored = pa.record_batch([_cast(batch, field) for field in schema], schema=schema)
        rows = stored["row"].to_numpy(zero_copy_only=False)
        if not np.array_equal(rows, np.arange(count, count + len(rows))):
            raise SearchfitError(f"passage rows must be {count}, {count + 1} ..., got {rows[:3]} ...")
        for name in _VECTORS:
            _check_vectors(stored, name)
        count += len(rows)
        yield stored


def _cast(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    try:
        # Finer timestamps lose their nanoseconds; everything else has to fit.
        column = batch[field.name].cast(field.type, safe=not pa.types.is_timestamp(field.type))
    except (KeyError, pa.ArrowException) as error:
        raise SearchfitError(f"column {field.name!r} is not {field.type} in every row: {error}") from error
    if not pa.types.is_floating(field.type):
        return column
    return pc.if_else(pc.is_nan(column), pa.scalar(None, field.type), column)


def _check_vectors(batch: pa.RecordBatch, name: str) -> None:
    column = batch[name]
    numbers = column.flatten() if name == "vector" else column.flatten().flatten()
    if not column.null_count and not numbers.null_count and np.isfinite(numbers.to_numpy()).all():
        return
    bad = next(row for row, vectors in enumerate(column) if not _finite(vectors))
    raise SearchfitError(
        f"the {name} of passage {batch['id'][bad].as_py()!r} holds numbers that are not finite.",
        "The model is damaged or its precision overflows: try --set model.precision=fp32.",
    )


def _finite(vectors: pa.Scalar) -> bool:
    return vectors.is_valid and bool(np.isfinite(np.array(vectors.as_py(), dtype=float)).all())


class LanceStore:
    """An index version that `build` wrote; see stores.Store. Safe to share between threads.

    Raises WorkspaceError when the folder is absent, unfinished, damaged or of another format.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)
        self.info, counts = _read_info(self._folder)
        self._count: int = counts["passages"]
        import lancedb

        with self._reading():
            database = lancedb.connect(str(folder))
            self._passages = database.open_table("passages")
            self._terms = database.open_table("terms")
            found = {"passages": self._passages.count_rows(), "terms": self._terms.count_rows()}
        if found != {name: counts[name] for name in found}:
            raise WorkspaceError(f"the index {folder} holds {found}, expected {counts}.", _REBUILD)
        self._similarity: str = self.info.get("similarity", "cosine")
        metadata = self.info.get("metadata", ())
        self._metadata = {column["name"]: column["column"] for column in metadata}
        self._names = {**_OWN, **self._metadata}
        types = dict.fromkeys(_OWN, "string") | {column["name"]: column["type"] for column in metadata}
        self.columns = {name: kind for name, kind in types.items() if kind in TYPES}

    def count(self) -> int:
        """Number of passages."""
        return self._count

    def nearest(
        self, vector: Floats, column: VectorColumn, k: int, where: Filter | None = None
    ) -> tuple[Rows, Floats]:
        """See Store. Passages without a vector to compare (no sentence, a cosine of zeros) are not found."""
        size = self._passages.schema.field("vector").type.list_size
        if vector.shape != (size,) or not np.isfinite(vector).all():
            got = f"shape {vector.shape}, {np.count_nonzero(~np.isfinite(vector))} of them not finite"
            raise SearchfitError(f"expected a query vector of {size} finite numbers, got {got}.")
        if k < 1 or not self._count:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        # LanceDB tells a dot product as 1 - dot, which would swallow the digits of a small one.
        lift = _LIFT if self._similarity == "dot" else np.float32(1)
        query = self._passages.search(vector.astype(np.float32) * lift, vector_column_name=column)
        query = query.distance_type(self._similarity).bypass_vector_index().limit(min(k, self._count))
        if where is not None:
            query = query.where(expression(where, self._names), prefilter=True)
        with self._reading():
            found = query.select(["row", "_distance"]).to_arrow()
        rows = found["row"].to_numpy().astype(np.int64)
        similarities = (np.float32(1) - found["_distance"].to_numpy()) / lift
        best = np.lexsort((rows, -similarities))
        return rows[best], similarities[best]

    def matching(self, where: Filter) -> Rows:
        """See Store."""
        query = self._passages.search().where(expression(where, self._names)).select(["row"])
        with self._reading():
            return np.sort(query.to_arrow()["row"].to_numpy().astype(np.int64))

    def vectors(self, rows: Rows | Sequence[int]) -> tuple[Floats, Floats, Rows]:
        """See Store."""
        table = self._take(rows, _VECTORS)
        passages, sentences = (table[name].combine_chunks() for name in _VECTORS)
        size = passages.type.list_size
        offsets = _offsets(sentences)
        return (
            passages.flatten().to_numpy().reshape(-1, size),
            sentences.flatten().flatten().to_numpy().reshape(-1, size),
            offsets,
        )

    def postings(self, terms: Sequence[str]) -> dict[str, tuple[Rows, Floats]]:
        """See Store."""
        from lancedb.expr import col

        wanted = list(dict.fromkeys(terms))
        found: dict[str, tuple[Rows, Floats]] = {}
        for start in range(0, len(wanted), _TERMS_A_QUERY):
            some = wanted[start : start + _TERMS_A_QUERY]
            with self._reading():
                table = self._terms.search().where(col("term").isin(some)).to_arrow()
            lists = table["rows"].combine_chunks()
            offsets = _offsets(lists)
            rows = lists.flatten().to_numpy().astype(np.int64)
            frequencies = table["frequencies"].combine_chunks().flatten().to_numpy()
            for place, term in enumerate(table["term"].to_pylist()):
                own = slice(offsets[place], offsets[place + 1])
                found[term] = rows[own], frequencies[own]
        return found

    def fetch(self, rows: Rows | Sequence[int]) -> list[dict[str, Any]]:
        """See Store."""
        stored = set(self._metadata.values())
        fields = [name for name in self._passages.schema.names if name not in {*stored, *_VECTORS}]
        return [
            {field: record[field] for field in fields}
            | {"metadata": {name: record[column] for name, column in self._metadata.items()}}
            for record in self._take(rows, [*fields, *stored]).to_pylist()
        ]

    def scan(self, columns: Sequence[str], batch: int = 1024) -> Iterator[pa.RecordBatch]:
        """See Store."""
        count = 0
        with self._reading():
            query = self._passages.search().select(list(dict.fromkeys(["row", *columns])))
            for found in query.to_batches(batch):
                rows = found["row"].to_numpy()
                self._expect(rows, np.arange(count, count + len(rows)))
                count += len(rows)
                yield found.select(list(columns))
        self._expect(np.array(count), np.array(self._count))

    def _take(self, rows: Rows | Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Stored columns of some rows, in the order asked, which may repeat rows."""
        wanted = np.asarray(rows, np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self._count:
            raise IndexError(f"rows go from 0 to {self._count - 1}, got {wanted.min()} to {wanted.max()}")
        unique, places = np.unique(wanted, return_inverse=True)
        query = self._passages.take_offsets(unique.tolist()).select(list(dict.fromkeys(["row", *columns])))
        with self._reading():
            table = query.to_arrow()
        found = table["row"].to_numpy()
        order = np.argsort(found)
        self._expect(found[order], unique)
        return table.take(order[places])

    def _expect(self, rows: Rows, expected: Rows) -> None:
        if not np.array_equal(rows, expected):
            raise WorkspaceError(f"the index {self._folder} has lost its row order.", _REBUILD)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            raise WorkspaceError(f"the index {self._folder} cannot be read: {error}", _REBUILD) from error


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
        raise WorkspaceError(f"the index description {file} is damaged: {error!r}", _REBUILD) from error
    if not known:
        raise WorkspaceError(f"the index {folder} has format {counts['format']}, not {FORMAT}.", _REBUILD)
    return info, counts


def _offsets(lists: pa.ListArray) -> Rows:
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)


def expression(where: Filter, names: Mapping[str, str], negated: bool = False) -> Any:
    """The filter as a LanceDB expression, over stored columns: `names` maps the user's column to its own.

    Values only ever become literals, never text of a query.
    """
    if isinstance(where, Not):
        return expression(where.part, names, not negated)
    if isinstance(where, (Every, Either)):
        # Negation goes down to the comparisons: LanceDB's optimiser takes `x in (1) and x in (2)` for false
        # where x is null, and the negation of that, which is unknown, for true.
        join = operator.and_ if isinstance(where, Every) != negated else operator.or_
        return _balanced(join, [expression(part, names, negated) for part in where.parts])
    if not negated:
        return _atom(where, names)
    if isinstance(where, Missing):
        return ~_atom(where, names)
    # For the same reason a negation asks for a value: `not x in (1) or not x in (2)` is not true of null.
    return ~_atom(Missing(where.column), names) & ~_atom(where, names)


def _atom(where: Compare | Member | Missing, names: Mapping[str, str]) -> Any:
    from lancedb.expr import col, func, lit

    column = col(names[where.column])
    if isinstance(where, Missing):
        # There is no IS NULL among the expressions, but concat reads a null as "".
        length = func("octet_length", column.cast("string"))
        return func("concat", length.cast("string"), lit("")) == lit("")
    if isinstance(where, Member):
        return column.isin(where.values)
    if where.operator == "starts with":
        return _starts_with(column, str(where.value))
    return _OPERATORS[where.operator](column, lit(where.value))


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "contains": lambda column, value: column.contains(value),
}


def _balanced(join: Callable[[Any, Any], Any], parts: Sequence[Any]) -> Any:
    """Joined as a tree: a chain of thousands would overflow LanceDB's stack, which ends the process."""
    if len(parts) < 3:
        return reduce(join, parts)
    middle = len(parts) // 2
    return join(_balanced(join, parts[:middle]), _balanced(join, parts[middle:]))


def _starts_with(column: Any, prefix: str) -> Any:
    """There is no such operator: the range from the prefix to the first text after all that start so."""
    from lancedb.expr import lit

    body = prefix.rstrip("\U0010ffff")
    if not body:
        return column >= lit(prefix)
    after = ord(body[-1]) + 1
    # UTF-8 has no surrogates: the next character after U+D7FF is U+E000.
    end = body[:-1] + chr(0xE000 if after == 0xD800 else after)
    return (column >= lit(prefix)) & (column < lit(end))
