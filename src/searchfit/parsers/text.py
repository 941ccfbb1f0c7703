"""Plain text, Markdown and reStructuredText: the encoding of the bytes, and the headings."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

from searchfit.parsers import Mark, UnparsableError

UTF8 = "utf-8"

_BOMS = (
    (codecs.BOM_UTF8, UTF8),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LATIN = frozenset(("iso8859-1", "ascii"))
_CONTROL = re.compile("[\x01-\x08\x0b\x0e-\x1a\x1c-\x1f]")
_MOST_CONTROL = 0.02

_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(.*?)[ \t]*#*[ \t]*$")
_FENCE = re.compile(r" {0,3}(```|~~~)")
_RULE = re.compile(r"([=\-~^\"'`#*+:._])\1{2,}\s*$")


def decode(data: bytes, declared: str = "") -> tuple[str, str]:
    """The text of the bytes, and the encoding: told by a byte order mark, by what the file declares, UTF-8
    where it is valid, else Windows-1252, and Latin-1 where that has no such character.

    Raises UnparsableError for bytes that are no text.
    """
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            try:
                return data[len(bom) :].decode(encoding), encoding
            except UnicodeDecodeError as error:
                raise UnparsableError(f"bad {encoding.upper()} at byte {error.start + len(bom)}") from error
    for encoding in (*_named(declared), UTF8, "cp1252", "latin-1"):
        try:
            text = data.decode(encoding)
        except (UnicodeError, LookupError):  # LookupError: a codec of Python's that is none of text
            continue
        if len(_CONTROL.findall(text[:65_536])) > _MOST_CONTROL * min(len(text), 65_536):
            raise UnparsableError("not text: too many control characters")
        return text, encoding
    raise UnparsableError("not text")


def _named(declared: str) -> tuple[str, ...]:
    """The codec of a declared name; what declares Latin-1 means Windows-1252, as in browsers."""
    try:
        name = codecs.lookup(declared.strip()).name if declared.strip() else ""
    except (LookupError, ValueError):
        return ()
    if not name:
        return ()
    return (UTF8, "cp1252") if name in _LATIN else (name,)


def markdown_marks(text: str) -> tuple[Mark, ...]:
    """Where the headings of a Markdown text begin; those in fenced code are none."""
    return tuple(_markdown(text))


def _markdown(text: str) -> Iterator[Mark]:
    fence, before, place = "", (0, ""), 0
    for line in text.splitlines(keepends=True):
        if mark := _FENCE.match(line):
            fence = "" if fence == mark[1] else fence or mark[1]
        elif not fence:
            heading = _HEADING.match(line.rstrip("\r\n"))
            if heading and heading[1]:
                yield place, 0, heading[1]
            elif line.startswith("===") and not line.strip("=\r\n \t") and before[1]:
                yield before[0], 0, before[1]
        before = place, line.strip()
        place += len(line)


def rst_marks(text: str) -> tuple[Mark, ...]:
    """Where the headings of a reStructuredText begin: lines with a rule below that is as long."""
    return tuple(_rst(text))


def _rst(text: str) -> Iterator[Mark]:
    before, place = (0, ""), 0
    for line in text.splitlines(keepends=True):
        rule = _RULE.match(line)
        start, title = before
        if rule and not _RULE.match(title) and title.strip() and len(line.rstrip()) >= len(title.rstrip()):
            yield start, 0, title.strip()
        before = place, line.rstrip("\r\n")
        place += len(line)
