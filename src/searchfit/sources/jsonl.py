"""JSON Lines: one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from searchfit.errors import SourceError
from searchfit.places import Place
from searchfit.sources.files import (
    BAD_UTF8,
    Line,
    check_file,
    fingerprint_files,
    is_sound,
    read_lines,
    record_limit,
)
from searchfit.sources.rows import BadRow, Columns, Row

HEAD_ROWS = 1000
BROKEN = "broken JSON"
NOT_AN_OBJECT = "not a JSON object"
UNNAMED = "column"


class JsonlReader:
    """A .jsonl or .ndjson file. Rows are numbered as its lines are; blank lines are skipped."""

    untyped = False
    notes: tuple[str, ...] = ()

    def __init__(self, path: Place, max_text_chars: int, known: Columns | None = None) -> None:
        check_file(path)
        self._path = path
        self._limit = record_limit(max_text_chars)
        self.known = known
        self.name = str(path)

    def columns(self, everything: bool = False) -> tuple[str, ...]:
        """The keys of the first objects, in order of appearance, or of all objects."""
        rows = list(islice(self.rows(), HEAD_ROWS)) if not everything else self.rows()
        names: dict[str, None] = {}
        first: BadRow | None = None
        for row in rows:
            if isinstance(row, Row):
                names.update(dict.fromkeys(row.values))
            else:
                first = first or row
        if not names and first:
            raise SourceError(
                f"{self._path} starts with no readable JSON object: {first.where}: {first.reason}.",
                'Expected one object a line, such as {"id": "a1", "text": "..."}.',
            )
        return tuple(names)

    def fingerprint(self) -> dict[str, Any]:
        """Path, size and time of change."""
        return fingerprint_files([self._path])

    def rows(self) -> Iterator[Row | BadRow]:
        """Every object."""
        for line in read_lines(self._path, self._limit, newline="\n"):
            if line.cut or (line.text and not line.text.isspace()):
                yield self._row(line)

    def _row(self, line: Line) -> Row | BadRow:
        where = f"{self._path.name}, row {line.number}"
        if fault := line.fault():
            return BadRow(where, fault)
        try:
            value = json.loads(line.text)
        except (ValueError, RecursionError):  # ValueError also for integers of thousands of digits
            return BadRow(where, BROKEN)
        if not isinstance(value, dict):
            return BadRow(where, NOT_AN_OBJECT)
        if "\\u" in line.text and not is_sound(json.dumps(value, ensure_ascii=False)):
            return BadRow(where, BAD_UTF8)
        return Row(where, line.number, self._values(value))

    def _values(self, value: dict[str, Any]) -> Mapping[str, Any]:
        if "" in value:
            value[UNNAMED] = value.pop("")
        return value


class BeirReader(JsonlReader):
    """The corpus.jsonl of a BEIR folder; the keys of its `metadata` objects count as columns."""

    def __init__(self, folder: Path, max_text_chars: int) -> None:
        super().__init__(
            Place(str(folder / "corpus.jsonl")), max_text_chars, Columns(("text",), "_id", "title")
        )
        if (folder / "queries.jsonl").is_file():
            self.notes = (f"{folder.name}/queries.jsonl is not read: use it with --queries {folder}",)

    def _values(self, value: dict[str, Any]) -> Mapping[str, Any]:
        inner = value.get("metadata")
        if not isinstance(inner, dict):
            return super()._values(value)
        outer = {key: item for key, item in value.items() if key != "metadata"}
        return super()._values({**inner, **outer})
