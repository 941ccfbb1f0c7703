"""Text files, line by line, whatever bytes are in them."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searchfit.errors import SourceError
from searchfit.places import Place

HEAD_BYTES = 4096
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SURROGATE = re.compile("[\ud800-\udfff]")

NUL = "NUL byte"
BAD_UTF8 = "bad UTF-8"
TOO_LONG = "longer than source.max_text_chars"


@dataclass(frozen=True, slots=True)
class Line:
    """One line with its end; `cut` when it is longer than the limit and its rest was skipped."""

    number: int
    text: str
    cut: bool = False

    def fault(self) -> str:
        """Why no record may be read from this line; "" for a sound one."""
        if self.cut:
            return TOO_LONG
        if "\0" in self.text:
            return NUL
        return "" if is_sound(self.text) else BAD_UTF8


def is_sound(text: str) -> bool:
    """Whether the text can be written as UTF-8: undecodable bytes and JSON escapes leave lone surrogates."""
    return text.isascii() or _SURROGATE.search(text) is None


def record_limit(max_text_chars: int) -> int:
    """The longest record worth parsing, in characters: JSON may write each character as six."""
    return min(6 * max_text_chars + (1 << 20), (1 << 31) - 1)


def check_file(path: Place) -> None:
    """Raise SourceError unless `path` is a readable file of UTF-8 text, as far as its first bytes tell."""
    with path.open() as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(_UTF16):
        raise SourceError(
            f"{path} is UTF-16, expected UTF-8.", "Convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW"
        )
    if len(head) >= 8 and head.count(0) > len(head) // 4:
        raise SourceError(
            f"{path} is not UTF-8 text: {head.count(0)} of its first {len(head)} bytes are zero.",
            "Is it UTF-16 or binary? Save it as UTF-8 text.",
        )
    if not head.strip(b" \t\r\n\xef\xbb\xbf"):
        check_not_blank(path)


def check_not_blank(path: Place) -> None:
    """Raise SourceError when the file has no bytes but white space."""
    with path.open() as file:
        if any(chunk.strip(b" \t\r\n\xef\xbb\xbf") for chunk in iter(lambda: file.read(1 << 20), b"")):
            return
    raise SourceError(f"{path} is empty.", "Expected at least one document.")


def read_lines(path: Place, limit: int, newline: str) -> Iterator[Line]:
    """The lines of a UTF-8 file, undecodable bytes as lone surrogates; one over `limit` characters is cut."""
    with io.TextIOWrapper(path.open(), "utf-8-sig", errors="surrogateescape", newline=newline) as file:
        number = 0
        while text := file.readline(limit + 1):
            number += 1
            cut = len(text) > limit and not text.endswith("\n")
            rest = text
            while cut and rest and not rest.endswith(("\n", "\r")):
                rest = file.readline(limit + 1)
            yield Line(number, "" if cut else text, cut)


def fingerprint_files(files: Iterable[Place | Path]) -> dict[str, Any]:
    """Absolute path or URL, size in bytes and time of change (ns) or ETag of each file."""
    return {"files": [(file if isinstance(file, Place) else Place(str(file))).mark() for file in files]}
