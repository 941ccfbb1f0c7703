"""Tables by the kind of their files, one or several that are read as one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from searchfit.errors import SourceError
from searchfit.places import (
    TABLES,
    Place,
    find_places,
    is_glob,
    is_hidden,
    is_table,
    is_url,
    local,
    refuse,
)
from searchfit.sources.delimited import DelimitedReader
from searchfit.sources.files import fingerprint_files
from searchfit.sources.jsonl import JsonlReader
from searchfit.sources.parquet import ParquetReader
from searchfit.sources.rows import BadRow, Columns, Reader, Row

KNOWN = ".csv, .tsv, .jsonl or .parquet, all but the last also as .gz, .bz2, .xz or .zst"
_HINTS = {
    ".json": "JSON Lines is read (.jsonl, one object a line): jq -c '.[]' FILE.json > FILE.jsonl",
    ".xlsx": "Save the sheet as CSV UTF-8.",
}


def table_places(name: str) -> list[Place]:
    """The tables that a path, URL, glob or folder names; none where it names, here, files of other kinds.

    Raises SourceError for what is not there and for a folder with tables of several kinds.
    """
    if is_url(name):
        return find_places(name)
    path = local(name)
    if os.path.isdir(path):
        found = [] if os.path.isfile(os.path.join(path, "corpus.jsonl")) else _below(path)
    elif not os.path.exists(path):
        found = find_places(name) if is_glob(path) else []
    else:
        found = [Place(path)] if os.path.isfile(path) else []
    return found if all(is_table(place.name) for place in found) else []


def _below(folder: str) -> list[Place]:
    """The tables below a folder, unless it holds files of another kind. Raises SourceError for a folder that
    cannot be looked into."""
    found = []
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not is_hidden(name)]
        shown = [name for name in names if not is_hidden(name)]
        if not all(map(is_table, shown)):
            return []
        found += [Place(os.path.join(root, name)) for name in shown]
    return sorted(found, key=str)


def open_table(place: Place, max_text_chars: int) -> DelimitedReader | JsonlReader | ParquetReader:
    """The reader of a file by its suffix. Raises SourceError for a kind that is not read."""
    if place.suffix == ".parquet":
        if place.compression:
            raise SourceError(
                f"{place} is a compressed Parquet file, which cannot be read in parts.",
                f"Decompress it: Parquet is compressed inside. {place.compression} gains nothing.",
            )
        return ParquetReader(place)
    if place.suffix in {".jsonl", ".ndjson"}:
        return JsonlReader(place, max_text_chars)
    if place.suffix in TABLES:
        return DelimitedReader(place, max_text_chars)
    place.mark()  # that it is not there comes first
    raise SourceError(
        f"{place} ends in {place.suffix or 'no extension'}, which is not read. Expected {KNOWN}.",
        _HINTS.get(place.suffix, ""),
    )


def open_tables(name: str, places: Sequence[Place], max_text_chars: int) -> Reader:
    """One reader of them all. Raises SourceError unless they are of one kind and have the same columns."""
    if len(places) == 1:
        return open_table(places[0], max_text_chars)
    kinds = sorted({place.suffix for place in places})
    if len(kinds) > 1:
        raise SourceError(
            f"{name} holds tables of several kinds: {', '.join(kinds)}.",
            f"Name those of one: {name.rstrip('/')}/*{kinds[0]}",
        )
    return TablesReader(name, [open_table(place, max_text_chars) for place in places], places)


class TablesReader:
    """Several tables of one kind as one. Rows are numbered through."""

    known: Columns | None = None

    def __init__(
        self,
        name: str,
        readers: Sequence[DelimitedReader | JsonlReader | ParquetReader],
        places: Sequence[Place],
    ) -> None:
        """Raises SourceError, naming the file, where one has other columns than the first. Objects of JSON
        Lines may each have keys of their own."""
        self.name = name
        self.untyped = readers[0].untyped
        self.notes = (
            f"{len(readers)} files are read as one",
            *dict.fromkeys(chain.from_iterable(reader.notes for reader in readers)),
        )
        self._readers, self._places = readers, places
        first = readers[0].columns()
        for reader in readers[1:]:
            if not isinstance(reader, JsonlReader) and set(reader.columns()) != set(first):
                raise _different(readers[0].name, first, reader.name, reader.columns())

    def columns(self, everything: bool = False) -> tuple[str, ...]:
        """Those of all the files, in order."""
        every = (reader.columns(everything) for reader in self._readers)
        return tuple(dict.fromkeys(chain.from_iterable(every)))

    def fingerprint(self) -> dict[str, Any]:
        """Path or URL, size and time of change or ETag of each."""
        return fingerprint_files(self._places)

    def rows(self) -> Iterator[Row | BadRow]:
        """Every row of every file, in order of their names."""
        before = 0
        for reader in self._readers:
            last = 0
            for row in reader.rows():
                if isinstance(row, Row):
                    last = row.number
                    yield replace(row, number=before + row.number)
                else:
                    yield row
            before += last


def _different(first: str, expected: Sequence[str], name: str, got: Sequence[str]) -> SourceError:
    missing = [column for column in expected if column not in got]
    extra = [column for column in got if column not in expected]
    said = [
        f"{what} {', '.join(map(repr, some[:10]))}"
        for what, some in (("lacks", missing), ("has besides", extra))
        if some
    ]
    return SourceError(
        f"{Path(name).name} has other columns than {Path(first).name}: it {' and '.join(said)}.",
        "Files that are read as one need the same columns.",
    )
