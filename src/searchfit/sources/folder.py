"""A folder of text and Markdown files, one document a file."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from searchfit.errors import SourceError
from searchfit.sources.files import BAD_UTF8, TOO_LONG, fingerprint_files, is_sound, unreadable
from searchfit.sources.rows import BadRow, Columns, Row

SUFFIXES = (".md", ".markdown", ".txt")
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(.*?)[ \t]*#*[ \t]*$")
_FENCE = re.compile(r" {0,3}(```|~~~)")


@dataclass(frozen=True, slots=True)
class _Found:
    path: Path
    id: str


class FolderReader:
    """All .txt and .md files below a folder, in order of their paths.

    The id is the path below the folder with "/", the title the first Markdown heading or else the name
    of the file, `folder` the path of the folder that holds it. Hidden files and folders are skipped.
    """

    untyped = False
    known: Columns | None = Columns(("text",), "id", "title")

    def __init__(self, root: Path, max_text_chars: int) -> None:
        self.name = str(root)
        self._max_chars = max_text_chars
        others: Counter[str] = Counter()
        self._files = _find(root, others)
        said = ", ".join(f"{suffix or 'no extension'} ({count})" for suffix, count in sorted(others.items()))
        if not self._files:
            raise SourceError(
                f"{root} holds no document: expected .txt or .md files, or a BEIR folder's corpus.jsonl"
                + (f"; there are files with {said}." if said else "."),
                "To read a table, name the file: .csv, .tsv, .jsonl or .parquet.",
            )
        self.notes = (f"{root.name}: files of other kinds are left out: {said}",) if said else ()

    def columns(self, everything: bool = False) -> tuple[str, ...]:  # noqa: ARG002
        """Always the same four."""
        return ("id", "title", "text", "folder")

    def fingerprint(self) -> dict[str, Any]:
        """Path, size and time of change of every file."""
        return fingerprint_files(file.path for file in self._files)

    def rows(self) -> Iterator[Row | BadRow]:
        """One row a file."""
        for number, file in enumerate(self._files, 1):
            yield self._row(number, file)

    def _row(self, number: int, file: _Found) -> Row | BadRow:
        where = file.id.encode("utf-8", "replace").decode()
        if not is_sound(file.id):
            return BadRow(where, "a file name that is not UTF-8")
        try:
            with file.path.open("rb") as opened:
                data = opened.read(4 * self._max_chars + 4)
        except OSError as error:
            return BadRow(where, f"cannot be read: {error.strerror}")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            return BadRow(where, TOO_LONG if len(data) > 4 * self._max_chars else BAD_UTF8)
        place = PurePosixPath(file.id)
        title = _heading(text) if place.suffix.lower() != ".txt" else ""
        folder = "" if place.parent == PurePosixPath() else str(place.parent)
        return Row(
            where, number, {"id": file.id, "title": title or place.stem, "text": text, "folder": folder}
        )


def _find(root: Path, others: Counter[str]) -> list[_Found]:
    """The documents below `root`; those of other kinds are counted into `others`."""
    found = []
    seen: set[tuple[int, int]] = set()  # a folder reached again through a symbolic link is not read again

    def refuse(error: OSError) -> None:
        raise unreadable(Path(error.filename or root), error) from error

    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(folder, name)
            if name.startswith(".") or not _is_file(path):
                continue
            if path.suffix.lower() in SUFFIXES:
                found.append(_Found(path, path.relative_to(root).as_posix()))
            else:
                others[path.suffix.lower()] += 1
    return sorted(found, key=lambda file: file.id)


def _is_file(path: Path) -> bool:
    """Not a pipe or a device, which would block; a link that leads nowhere is none either."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _heading(text: str) -> str:
    fence = ""
    for line in text.splitlines():
        if mark := _FENCE.match(line):
            fence = "" if fence == mark[1] else fence or mark[1]
        elif not fence and (heading := _HEADING.match(line)) and heading[1]:
            return heading[1]
    return ""
