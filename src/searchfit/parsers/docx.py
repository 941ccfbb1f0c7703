"""DOCX as text: the parts of a ZIP file that hold it, streamed through expat. No tree is built, nothing is
extracted, and a document type declaration, without which there are no entities, is refused."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable
from typing import BinaryIO
from xml.parsers import expat

from searchfit.parsers import Draft, Parsed, UnparsableError

_CHUNK = 1 << 16
_MOST_MEMBERS = 10_000
_FREE_BYTES, _MOST_RATIO = 16 << 20, 200
_HEADING = re.compile(r"heading [1-9]")

Start = Callable[[str, dict[str, str]], None]
End = Callable[[str], None]
Data = Callable[[str], None]


def parse(file: BinaryIO, max_chars: int, max_bytes: int) -> Parsed:
    """The text of a Word document: paragraphs, lists and tables; headings are marks, and pages where Word
    noted them when it last laid out the document. Raises UnparsableError."""
    try:
        with zipfile.ZipFile(file) as archive:
            package = _Package(archive, max_bytes)
            main = package.main()
            styles = _Styles()
            folder = main.rpartition("/")[0]
            package.read(f"{folder}/styles.xml".lstrip("/"), styles.start)
            core = _Core()
            package.read("docProps/core.xml", core.start, core.end, core.data)
            body = _Body(Draft(max_chars), styles.names)
            if not package.read(main, body.start, body.end, body.data):
                raise UnparsableError("no DOCX: it has no document inside")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise UnparsableError(f"a damaged DOCX: {error}") from error
    except RuntimeError as error:  # what zipfile raises for a member with a password
        raise UnparsableError("encrypted: a password is needed") from error
    metadata = {"author": core.values.get("creator", "")}
    return body.draft.parsed(body.title or core.values.get("title", "") or body.first, metadata)


class _Package:
    """The members of the ZIP file, of at most `max_bytes` together when decompressed."""

    def __init__(self, archive: zipfile.ZipFile, max_bytes: int) -> None:
        if len(archive.namelist()) > _MOST_MEMBERS:
            raise UnparsableError(f"{len(archive.namelist())} members, more than {_MOST_MEMBERS}")
        self._archive, self._room = archive, max_bytes

    def main(self) -> str:
        """The name of the part that holds the text."""
        found: list[str] = []

        def start(name: str, values: dict[str, str]) -> None:
            if name == "Relationship" and values.get("Type", "").endswith("/officeDocument"):
                found.append(values.get("Target", "").lstrip("/"))

        self.read("_rels/.rels", start)
        return found[0] if found else "word/document.xml"

    def read(self, name: str, start: Start, end: End | None = None, data: Data | None = None) -> bool:
        """Whether there is such a member; its elements go to the handlers, without their name spaces."""
        try:
            info = self._archive.getinfo(name)
        except KeyError:
            return False
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = _refuse
        parser.StartElementHandler = lambda tag, values: start(
            _local(tag), {_local(key): value for key, value in values.items()}
        )
        if end is not None:
            parser.EndElementHandler = lambda tag: end(_local(tag))
        if data is not None:
            parser.CharacterDataHandler = data
        read = 0
        try:
            with self._archive.open(info) as member:
                while chunk := member.read(_CHUNK):
                    read += len(chunk)
                    self._check(read, info.compress_size)
                    parser.Parse(chunk, False)
            parser.Parse(b"", True)
        except expat.ExpatError as error:
            raise UnparsableError(f"a damaged DOCX: {name}: {error}") from error
        self._room -= read
        return True

    def _check(self, read: int, packed: int) -> None:
        if read > self._room:
            raise UnparsableError("decompresses to more than files.max_file_mb")
        if read > _FREE_BYTES and read > _MOST_RATIO * packed:
            raise UnparsableError(f"a zip bomb: it decompresses to more than {_MOST_RATIO} times its size")


def _refuse(*_: object) -> None:
    raise UnparsableError("a document type declaration, which no DOCX has: entities are not read")


def _local(name: str) -> str:
    return name.rpartition(" ")[2]


class _Styles:
    """The names of the paragraph styles by their ids, which are translated in localized Words."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self._id = ""

    def start(self, tag: str, values: dict[str, str]) -> None:
        if tag == "style":
            self._id = values.get("styleId", "")
        elif tag == "name" and self._id:
            self.names[self._id] = values.get("val", "").lower()


class _Core:
    """The core properties: creator, title, ..."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self._tag = ""

    def start(self, tag: str, values: dict[str, str]) -> None:  # noqa: ARG002
        self._tag = tag

    def end(self, tag: str) -> None:  # noqa: ARG002
        self._tag = ""

    def data(self, text: str) -> None:
        if self._tag:
            self.values[self._tag] = (self.values.get(self._tag, "") + text)[:1000]


class _Body:
    """The text. A paragraph may hold a box with paragraphs of its own, a cell of a table a table."""

    def __init__(self, draft: Draft, styles: dict[str, str]) -> None:
        self.draft = draft
        self.title = self.first = ""
        self._styles = styles
        self._open: list[tuple[list[str], str, bool]] = []
        self._cells: list[list[list[str]]] = []
        self._fallback = 0
        self._in_text = False
        self._page = 0

    def start(self, tag: str, values: dict[str, str]) -> None:
        if tag == "Fallback":
            self._fallback += 1
        elif self._fallback:
            return
        elif tag == "p":
            self._open.append(([], "", False))
        elif tag == "tr":
            self._cells.append([])
        elif tag == "tc" and self._cells:
            self._cells[-1].append([])
        elif tag == "lastRenderedPageBreak":
            self._page = max(self._page, 1) + 1
        elif self._open:
            self._inside(tag, values)

    def _inside(self, tag: str, values: dict[str, str]) -> None:
        """An element of a paragraph."""
        parts, style, item = self._open[-1]
        if tag == "t":
            self._in_text = True
        elif tag in ("tab", "br", "cr"):
            parts.append("\n" if tag != "tab" else "\t")
        elif tag == "pStyle":
            name = values.get("val", "")
            self._open[-1] = parts, self._styles.get(name, name.lower()), item
        elif tag == "numPr":
            self._open[-1] = parts, style, True

    def data(self, text: str) -> None:
        if self._in_text and self._open and not self._fallback:
            self._open[-1][0].append(text)

    def end(self, tag: str) -> None:
        if tag == "Fallback":
            self._fallback -= 1
        elif self._fallback:
            return
        elif tag == "t":
            self._in_text = False
        elif tag == "p" and self._open:
            self._paragraph(*self._open.pop())
        elif tag == "tr" and self._cells:
            row = " | ".join(" ".join(cell) for cell in self._cells.pop())
            if row.strip(" |"):
                self._add(row, "\n")

    def _add(self, text: str, joint: str) -> None:
        if self._cells and self._cells[-1]:
            self._cells[-1][-1].append(text)
            return
        self.draft.mark(page=self._page or None)
        self.draft.add(text, joint)

    def _paragraph(self, parts: list[str], style: str, item: bool) -> None:
        text = "".join(parts).strip()
        if not text:
            return
        if style == "title":
            self.title = self.title or text
        elif _HEADING.fullmatch(style):
            self.first = self.first or text
            self.draft.mark(heading=text)
            item = False
        self._add(f"- {text}" if item else text, "\n" if item else "\n\n")
