"""Parquet, a few rows at a time, with its types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.errors import SourceError
from searchfit.places import Place
from searchfit.records import MARKS
from searchfit.sources.files import fingerprint_files
from searchfit.sources.rows import BadRow, Columns, Row

BATCH_ROWS = 256
UNREADABLE = "a value that cannot be read (bad UTF-8, or a time out of range)"
_BROKEN = object()


class ParquetReader:
    """A .parquet file. Binary columns are left out; times are kept to the microsecond. A column `marks` of
    records.MARKS, as the documents of a workspace have it, is the marks of the rows."""

    untyped = False
    known: Columns | None = None

    def __init__(self, path: Place) -> None:
        self._path = path
        self.name = str(path)
        schema = self._open().schema_arrow
        twice = {name for name in schema.names if schema.names.count(name) > 1}
        if twice:
            raise SourceError(f"{path} has two columns named {min(twice)!r}.", "Rename one of them.")
        self._marked = pa.field("marks", MARKS) in list(schema)
        plain = [field for field in schema if not (self._marked and field.name == "marks")]
        self._types = {field.name: target for field in plain if (target := _readable(field.type)) is not None}
        self.notes = tuple(
            f"column {field.name!r} of type {field.type} is left out"
            for field in plain
            if field.name not in self._types
        )

    def columns(self, everything: bool = False) -> tuple[str, ...]:  # noqa: ARG002
        """The columns of the schema that can be read."""
        return tuple(self._types)

    def fingerprint(self) -> dict[str, Any]:
        """Path, size and time of change."""
        return fingerprint_files([self._path])

    def rows(self) -> Iterator[Row | BadRow]:
        """Every row."""
        number = 0
        file = self._open()
        try:
            wanted = [*self._types, *(["marks"] if self._marked else [])]
            for batch in file.iter_batches(BATCH_ROWS, columns=wanted):
                marks = batch.column("marks").to_pylist() if self._marked else [None] * batch.num_rows
                columns = [_values(batch.column(name), target) for name, target in self._types.items()]
                for own, *values in zip(marks, *columns, strict=True):
                    number += 1
                    yield self._row(number, values, own or ())
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damaged(error, f" after row {number}") from error
        finally:
            file.close(force=True)

    def _row(self, number: int, values: Sequence[Any], marks: Sequence[Mapping[str, Any]]) -> Row | BadRow:
        where = f"{self._path.name}, row {number}"
        if any(value is _BROKEN for value in values):
            return BadRow(where, UNREADABLE)
        told = tuple((mark["start"], mark["page"], mark["heading"]) for mark in marks)
        return Row(where, number, dict(zip(self._types, values, strict=True)), told)

    def _open(self) -> Any:
        try:
            # A buffer size keeps whole column chunks out of memory.
            return pq.ParquetFile(self._path.seekable(), buffer_size=1 << 20, pre_buffer=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damaged(error, "") from error

    def _damaged(self, error: Exception, after: str) -> SourceError:
        first = str(error).partition("\n")[0]
        return SourceError(
            f"{self._path} is not a sound Parquet file{after}: {first}",
            "Write or copy the file again.",
        )


def _readable(kind: Any) -> Any:
    """The type that a column is cast to before its values are taken; None where there is none."""
    target = _plain(kind)
    if target is None:
        return None
    try:
        pa.array([], kind).cast(target)
    except (pa.ArrowException, NotImplementedError):
        return None
    return target


def _plain(kind: Any) -> Any:  # noqa: PLR0911
    """`kind` without nanoseconds (more than Python's times hold), dictionaries, views; None for binary."""
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    if pa.types.is_time(kind) or pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_duration(kind):
        return pa.duration("us")
    if pa.types.is_struct(kind):
        inner = {field.name: _plain(field.type) for field in kind}
        return None if None in inner.values() else pa.struct(inner)
    if pa.types.is_map(kind):
        pair = (_plain(kind.key_type), _plain(kind.item_type))
        return None if None in pair else pa.map_(*pair)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        item = _plain(kind.value_type)
        return None if item is None else pa.large_list(item)
    plain = pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)
    return kind if plain or pa.types.is_string(kind) or pa.types.is_large_string(kind) else None


def _values(column: Any, target: Any) -> list[Any]:
    try:
        return list(column.cast(target, safe=False).to_pylist())
    except (pa.ArrowException, ValueError, OverflowError):
        return [_value(item, target) for item in column]


def _value(item: Any, target: Any) -> Any:
    try:
        return item.cast(target, safe=False).as_py()
    except (pa.ArrowException, ValueError, OverflowError):
        return _BROKEN
