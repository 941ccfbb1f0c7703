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


def check_file(path: Path) -> None:
    """Raise SourceError unless `path` is a readable file of UTF-8 text, as far as its first bytes tell."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise unreadable(path, error) from error
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


def check_not_blank(path: Path) -> None:
    """Raise SourceError when the file has no bytes but white space."""
    try:
        with path.open("rb") as file:
            if any(chunk.strip(b" \t\r\n\xef\xbb\xbf") for chunk in iter(lambda: file.read(1 << 20), b"")):
                return
    except OSError as error:
        raise unreadable(path, error) from error
    raise SourceError(f"{path} is empty.", "Expected at least one document.")


def unreadable(path: Path, error: OSError) -> SourceError:
    """The error for a path that the system does not let us read."""
    if isinstance(error, FileNotFoundError):
        return SourceError(f"{path} does not exist.", "Check the spelling and the current folder.")
    if isinstance(error, PermissionError):
        return SourceError(
            f"{path} may not be read: permission denied.", "Check the owner and mode of the file."
        )
    return SourceError(f"{path} cannot be read: {error.strerror or error}.")


def read_lines(path: Path, limit: int, newline: str) -> Iterator[Line]:
    """The lines of a UTF-8 file, undecodable bytes as lone surrogates; one over `limit` characters is cut."""
    try:
        with io.TextIOWrapper(
            path.open("rb"), "utf-8-sig", errors="surrogateescape", newline=newline
        ) as file:
            number = 0
            while text := file.readline(limit + 1):
                number += 1
                cut = len(text) > limit and not text.endswith("\n")
                rest = text
                while cut and rest and not rest.endswith(("\n", "\r")):
                    rest = file.readline(limit + 1)
                yield Line(number, "" if cut else text, cut)
    except OSError as error:
        raise unreadable(path, error) from error


def fingerprint_files(paths: Iterable[Path]) -> dict[str, Any]:
    """Absolute path, size in bytes and time of change in ns of each file."""
    files = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise unreadable(path, error) from error
        files.append([str(path.absolute()), status.st_size, status.st_mtime_ns])
    return {"files": files}
