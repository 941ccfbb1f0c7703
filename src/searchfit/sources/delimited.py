"""CSV and TSV."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from typing import Any

from searchfit.errors import SourceError
from searchfit.places import Place
from searchfit.sources.files import TOO_LONG, Line, check_file, fingerprint_files, read_lines, record_limit
from searchfit.sources.rows import BadRow, Columns, Row

WRONG_CELLS = "wrong number of cells"
OPEN_QUOTE = "a quote that is never closed"
AFTER_QUOTE = "text after a closing quote"


class DelimitedReader:
    """A .csv or .tsv file with a header. Rows are numbered from 1 below the header.

    A quote that is never closed costs its own row only: reading goes on at the next line.
    """

    untyped = True
    known: Columns | None = None

    def __init__(self, path: Place, max_text_chars: int) -> None:
        check_file(path)
        self._path = path
        self._limit = record_limit(max_text_chars)
        # The csv module's own limit, one for the whole process, is below what a text may have.
        csv.field_size_limit(max(csv.field_size_limit(), self._limit))
        self._delimiter, said = _delimiter(path, self._limit)
        self._header: tuple[str, ...] = ()
        self._header, renamed = _named(self._read_header())
        self.name = str(path)
        self.notes = (*said, *renamed)

    def columns(self, everything: bool = False) -> tuple[str, ...]:  # noqa: ARG002
        """The names in the header."""
        return self._header

    def fingerprint(self) -> dict[str, Any]:
        """Path, size and time of change."""
        return fingerprint_files([self._path])

    def rows(self) -> Iterator[Row | BadRow]:
        """Every record below the header; blank lines are skipped."""
        number = -1
        for cells, lines, fault in self._records():
            if number >= 0 and (cells or fault):
                number += 1
                where = f"{self._path.name}, row {number} (line {lines[0].number})"
                yield self._row(where, number, cells, lines, fault)
            elif cells:
                number = 0

    def _row(self, where: str, number: int, cells: list[str], lines: list[Line], fault: str) -> Row | BadRow:
        broken = _broken(lines)
        if not broken and self._delimiter == "\t" and fault:
            # Much TSV is written without quoting: a quote is then a character like any other.
            literal = lines[0].text.rstrip("\r\n").split("\t")
            if len(literal) == len(self._header):
                cells, fault = literal, ""
        fault = broken or fault or ("" if len(cells) == len(self._header) else WRONG_CELLS)
        return (
            BadRow(where, fault) if fault else Row(where, number, dict(zip(self._header, cells, strict=True)))
        )

    def _records(self) -> Iterator[tuple[list[str], list[Line], str]]:
        feed = _Feed(read_lines(self._path, self._limit, newline=""), self._limit)
        reader = csv.reader(feed, delimiter=self._delimiter, strict=True)
        while True:
            feed.taken = []
            try:
                cells, fault = next(reader), ""
            except StopIteration:
                return
            except _Overlong:
                cells, fault = [], OPEN_QUOTE if len(feed.taken) > 1 else TOO_LONG
            except csv.Error as error:
                cells, fault = [], OPEN_QUOTE if "end of data" in str(error) else AFTER_QUOTE
            lines = feed.taken
            if not fault and self._runs_on(cells, lines):
                fault = OPEN_QUOTE
            if fault:
                feed.give_back(lines[1:])
                lines = lines[:1]
            yield cells, lines, fault

    def _runs_on(self, cells: list[str], lines: list[Line]) -> bool:
        """Whether a TSV record of several lines is rather one row a line, with quotes that mean nothing."""
        if self._delimiter != "\t" or len(lines) < 2:
            return False
        width = len(self._header)
        return len(cells) != width or all(line.text.count("\t") == width - 1 > 0 for line in lines)

    def _read_header(self) -> list[str]:
        for cells, lines, quoting in self._records():
            if fault := _broken(lines) or quoting:
                raise SourceError(
                    f"the header of {self._path}, line {lines[0].number}, cannot be read: {fault}.",
                    "Expected the names of the columns in the first line.",
                )
            if cells:
                return [cell.strip() for cell in cells]
        raise SourceError(f"{self._path} is empty.", "Expected the names of the columns in the first line.")


def _broken(lines: list[Line]) -> str:
    return next((fault for line in lines if (fault := line.fault())), "")


class _Overlong(Exception):
    """A record exceeds what is worth holding."""


class _Feed:
    """Hands lines to csv.reader, remembers those of the current record and takes them back."""

    def __init__(self, lines: Iterator[Line], limit: int) -> None:
        self._lines = lines
        self._again: deque[Line] = deque()
        self._limit = limit
        self._size = 0
        self.taken: list[Line] = []

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self._size = len(line.text) + (self._size if self.taken else 0)
        self.taken.append(line)
        if line.cut or self._size > self._limit:
            raise _Overlong
        # Before Python 3.11 the csv module refuses NUL; the row is told bad by its lines in any case.
        return line.text.replace("\0", " ")

    def give_back(self, lines: list[Line]) -> None:
        self._again.extendleft(reversed(lines))


def _delimiter(path: Place, limit: int) -> tuple[str, tuple[str, ...]]:
    if path.suffix in {".tsv", ".tab"}:
        return "\t", ()
    header = next((line.text for line in read_lines(path, limit, newline="") if line.text.strip()), "")
    others = [mark for mark in ";\t|" if mark in header]
    if "," in header or len(others) != 1:
        return ",", ()
    return others[0], (f"{path.name}: the header has no comma, so {others[0]!r} is taken as the separator",)


def _named(cells: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Unique names for all columns, and what was renamed."""
    names: list[str] = []
    notes = []
    for place, cell in enumerate(cells, 1):
        name, again = cell or f"column_{place}", 2
        while name in names:
            name, again = f"{cell or 'column'}_{again}", again + 1
        if name != cell:
            notes.append(
                f"column {place} is {f'named {cell!r} again' if cell else 'unnamed'}: read as {name!r}"
            )
        names.append(name)
    return tuple(names), tuple(notes)
