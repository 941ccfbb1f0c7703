"""Tables into files that other tools read: CSV, JSONL, Parquet; streamed, and whole or not there at all."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from searchfit.errors import SearchfitError, SettingsError
from searchfit.writing import sync_file

if TYPE_CHECKING:
    import pyarrow as pa

_FORMULA = re.compile(r"'*[=+\-@\t\r]")


@dataclass(frozen=True, slots=True)
class Stream:
    """A table on its way into a file: its schema, its batches, and whether cells of a CSV file that a
    spreadsheet could take for a formula get an apostrophe before them."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    escape: bool = True


def save(stream: Stream, file: Path, force: bool = False) -> int:
    """Write a table into a .csv, .jsonl or .parquet file, which is seen when it is whole; how many rows.

    CSV: UTF-8 with a header; empty cells are nulls, dates and times as ISO 8601, and text that begins like a
    formula is escaped as OWASP's page on CSV injection says, see `asleep`. JSONL: an object a line, numbers
    that are not finite become null.
    Raises SettingsError for another ending and for a file that is there, unless `force` is given;
    SearchfitError where it cannot be written.
    """
    writer = _WRITERS.get(file.suffix.lower())
    if writer is None:
        raise SettingsError(
            f"{file} ends in {file.suffix!r}, which says no format.",
            f"Expected one of {', '.join(_WRITERS)}.",
        )
    beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        _check_free(file, force)
        count = writer(stream, beside)
        sync_file(beside)
        os.replace(beside, file)
    except OSError as error:
        raise SearchfitError(f"{file} cannot be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):  # it has the file's name by now, or what failed is told
            beside.unlink()
    return count


def _check_free(file: Path, force: bool) -> None:
    """Raise SettingsError for a folder, and for a file that is there unless `force` is given."""
    if file.is_dir():
        raise SettingsError(f"{file} is a folder, a file is expected.")
    if file.exists() and not force:
        raise SettingsError(f"{file} is there already.", "Name another file, or replace it with --force.")


def asleep(cell: str) -> str:
    """A cell that no spreadsheet computes. Cells that look like such a one get one apostrophe more, so that
    taking one away always gives the cell back."""
    cell = cell.replace("\0", " ")
    return f"'{cell}" if _FORMULA.match(cell) else cell


def write_line(file: IO[str], value: dict[str, Any]) -> None:
    """A value as a line of JSON."""
    file.write(json.dumps(value, ensure_ascii=False) + "\n")


def open_new(path: Path) -> IO[str]:
    """A text file to write, UTF-8, with line ends as they are."""
    return path.open("w", encoding="utf-8", newline="")


def plain(value: Any) -> Any:
    """A value as JSON has it: dates and times as ISO 8601, numbers that are not finite as null, values of
    other types as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return value.isoformat() if isinstance(value, (date, time)) else str(value)


def _cell(value: Any, escape: bool) -> str:
    if isinstance(value, str):
        return asleep(value) if escape else value
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return ""
    # A number may begin with a minus and stay a number: no spreadsheet computes it.
    return repr(value) if isinstance(value, (int, float)) else str(plain(value))


def _write_csv(stream: Stream, path: Path) -> int:
    count = 0
    with open_new(path) as file:
        writer = csv.writer(file)  # whose line ends are \r\n, or it would leave a lone \r without quotes
        writer.writerow([_cell(name, stream.escape) for name in stream.schema.names])
        for batch in stream.batches:
            columns = [column.to_pylist() for column in batch.columns]
            rows = zip(*columns, strict=True)
            writer.writerows([_cell(value, stream.escape) for value in row] for row in rows)
            count += batch.num_rows
    return count


def _write_jsonl(stream: Stream, path: Path) -> int:
    count = 0
    with open_new(path) as file:
        for batch in stream.batches:
            for row in batch.to_pylist():
                write_line(file, {name: plain(value) for name, value in row.items()})
            count += batch.num_rows
    return count


def _write_parquet(stream: Stream, path: Path) -> int:
    import pyarrow.parquet as pq

    count = 0
    with pq.ParquetWriter(path, stream.schema, compression="zstd") as writer:
        for batch in stream.batches:
            writer.write_batch(batch)
            count += batch.num_rows
    return count


_WRITERS: dict[str, Callable[[Stream, Path], int]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
