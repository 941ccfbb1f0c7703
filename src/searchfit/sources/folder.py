"""A folder of files, one document a file; PDF and the like are parsed in a process of their own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from searchfit.config import Settings
from searchfit.errors import MissingExtraError, SourceError
from searchfit.parsers import Mark, Parsed, UnparsableError, Unread
from searchfit.parsers.child import unpacked
from searchfit.parsers.process import Limits, ParserProcess
from searchfit.parsers.text import UTF8, decode, markdown_marks, rst_marks
from searchfit.sources.files import TOO_LONG, fingerprint_files, is_sound
from searchfit.sources.finding import Chooser, Found, find_files
from searchfit.sources.rows import BadRow, Columns, Row

_TEXTS = frozenset(("text", "markdown", "rst"))
_READ = "PDF, DOCX, HTML, Markdown, text or e-mail (.pdf .docx .html .md .rst .txt .eml .mbox)"


class FolderReader:
    """The files below a folder that hold text, in order of their paths, or those that a glob names.

    The id is the path below the folder with "/" (that of a message in an .mbox file with #number after it),
    the title that of the file, its first heading or else its name, `folder` the path of the folder that holds
    it. Pages and headings are marks of the rows.
    """

    untyped = False
    known: Columns | None = Columns(("text",), "id", "title")

    def __init__(self, root: Path, settings: Settings, glob: str = "") -> None:
        """Raises SourceError where nothing is to be read, MissingExtraError where a parser is not installed,
        and SettingsError for globs that lead out of the folder."""
        self.name = str(root / glob)
        self._settings = settings.files
        self._max_chars = settings.source.max_text_chars
        self._left: Counter[str] = Counter()
        self._encodings: Counter[str] = Counter()
        chooser = Chooser(self._settings, glob)
        if root.is_file():
            self._files = [Found(root, root.name, *chooser.kind(root, root.name))]
        else:
            self._files = find_files(root, chooser, self._left)
        if not self._files:
            said = _listed(self._left)
            raise SourceError(
                f"{self.name} holds no document: expected {_READ}, or a BEIR folder's corpus.jsonl"
                + (f"; there are files with {said}." if said else "."),
                "To read a table, name the file: .csv, .tsv, .jsonl or .parquet.",
            )
        self._check_parsers()

    def _check_parsers(self) -> None:
        kinds = {file.kind for file in self._files}
        if "pdf" in kinds and find_spec("pypdf") is None:
            raise MissingExtraError("reading PDF", "files")
        parser = self._settings.parser
        if "other" in kinds and find_spec(parser) is None:
            raise MissingExtraError(f"the parser {parser}", parser, f"pip install {parser}")

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out, and in which encodings texts were read, as far as they have been read."""
        notes = []
        if self._left:
            notes.append(f"{Path(self.name).name}: files of other kinds are left out: {_listed(self._left)}")
        for encoding, count in sorted(self._encodings.items()):
            notes.append(f"{count} files are no UTF-8 and were read as {encoding}")
        return tuple(notes)

    def columns(self, everything: bool = False) -> tuple[str, ...]:  # noqa: ARG002
        """Those that every file has."""
        return ("id", "title", "text", "folder")

    def fingerprint(self) -> dict[str, Any]:
        """Path, size and time of change of every file."""
        return fingerprint_files(file.path for file in self._files)

    def rows(self) -> Iterator[Row | BadRow]:
        """One row a file, one a message of an .mbox file."""
        self._encodings.clear()
        limits = Limits(
            self._max_chars,
            self._settings.max_file_mb << 20,
            self._settings.timeout,
            self._settings.memory_mb,
        )
        number = 0
        with ParserProcess(limits, self._settings.parser) as process:
            for file in self._files:
                for row in self._rows(file, process):
                    number += 1
                    yield row if isinstance(row, BadRow) else _row(number, file, row)

    def _rows(self, file: Found, process: ParserProcess) -> Iterator[Parsed | BadRow]:
        where = file.id.encode("utf-8", "replace").decode()
        if not is_sound(file.id):
            yield BadRow(where, "a file name that is not UTF-8")
            return
        try:
            before = _state(file.path)
            if before[0] > self._settings.max_file_mb << 20:
                yield BadRow(where, f"larger than files.max_file_mb ({self._settings.max_file_mb} MiB)")
                return
            if file.kind in _TEXTS:
                found: Iterator[Parsed | Unread] = iter((self._text(file),))
            else:
                found = process.parse(os.fspath(file.path.absolute()), file.kind, file.packed)
            for document in found:
                part = f"#{document.part}" if document.part else ""
                if _state(file.path) != before:
                    yield BadRow(where + part, "changed while it was read")
                elif isinstance(document, Unread):
                    yield BadRow(where + part, document.reason)
                else:
                    yield document
        except OSError as error:
            yield BadRow(where, f"cannot be read: {error.strerror}")

    def _text(self, file: Found) -> Parsed | Unread:
        """A file that is text already; at most a little more than may be used of it is read."""
        most = 4 * self._max_chars + 4
        try:
            if file.packed:
                data = unpacked(os.fspath(file.path), most + 1)
            else:
                with file.path.open("rb") as opened:
                    data = opened.read(most + 1)
            if len(data) > most:
                return Unread(TOO_LONG)
            text, encoding = decode(data)
        except UnparsableError as error:
            return Unread(str(error))
        if encoding != UTF8:
            self._encodings[encoding] += 1
        marks: tuple[Mark, ...] = ()
        if file.kind != "text":
            marks = (markdown_marks if file.kind == "markdown" else rst_marks)(text)
        return Parsed(text, marks[0][2] if marks else "", marks)


def _row(number: int, file: Found, document: Parsed) -> Row:
    place = PurePosixPath(file.id)
    name = PurePosixPath(place.stem).stem if file.packed else place.stem
    part = f"#{document.part}" if document.part else ""
    folder = "" if place.parent == PurePosixPath() else str(place.parent)
    values: dict[str, Any] = {
        "id": file.id + part,
        "title": document.title or name + part,
        "text": document.text,
        "folder": folder,
        **document.metadata,
    }
    if "date" in values:
        values["date"] = datetime.fromisoformat(values["date"])
    return Row(file.id + part, number, values, document.marks)


def _state(path: Path) -> tuple[int, int, int]:
    """What changes when a file is written or replaced. Raises OSError."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _listed(left: Counter[str]) -> str:
    return ", ".join(f"{suffix or 'no extension'} ({count})" for suffix, count in sorted(left.items()))
