"""Files that are more than text: PDF, HTML, DOCX, e-mail. What turns them into text runs in a process of its
own (`process` starts it, `child` is it), which imports this folder and nothing else of the package."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

TOO_LONG = "longer than source.max_text_chars"

Mark = tuple[int, int, str]
"""(start, page, heading): what holds from this character of a text on; page 0 and heading "" are none."""

_UNSOUND = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Parsed:
    """The text of a document with its marks, ascending. `part` tells documents of one file apart; `metadata`
    are texts by name."""

    text: str
    title: str = ""
    marks: tuple[Mark, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    part: str = ""


@dataclass(frozen=True, slots=True)
class Unread:
    """A document, or a whole file, that gave no text, and why."""

    reason: str
    part: str = ""


class UnparsableError(Exception):
    """A file that cannot be turned into text; the message is the reason, for people."""


class Draft:
    """A text in the making, of at most `max_chars` characters, with the marks of where its parts begin."""

    def __init__(self, max_chars: int) -> None:
        self._max_chars = max_chars
        self._parts: list[str] = []
        self._marks: list[Mark] = []
        self._now, self._told = (0, ""), (0, "")
        self._chars = 0

    def mark(self, page: int | None = None, heading: str | None = None) -> None:
        """What is added from now on stands on this page, below this heading; None is as before."""
        self._now = (
            self._now[0] if page is None else page,
            self._now[1] if heading is None else " ".join(heading.split()),
        )

    def add(self, text: str, joint: str = "\n\n") -> None:
        """Add a block after `joint`; blank ones are left out. Raises UnparsableError beyond the limit."""
        if not text.strip():
            return
        if self._parts:
            self._parts.append(joint)
            self._chars += len(joint)
        if self._now != self._told:
            self._marks.append((self._chars, *self._now))
            self._told = self._now
        self._parts.append(text)
        self._chars += len(text)
        if self._chars > self._max_chars:
            raise UnparsableError(TOO_LONG)

    def parsed(self, title: str = "", metadata: dict[str, str] | None = None, part: str = "") -> Parsed:
        """What was added. Halves of characters and NUL bytes, which some files hold, are replaced."""
        text = _UNSOUND.sub("\ufffd", "".join(self._parts))
        told = {name: sound(value) for name, value in (metadata or {}).items() if value.strip()}
        marks = tuple((start, page, sound(heading)) for start, page, heading in self._marks)
        return Parsed(text, sound(title), marks, told, part)


def sound(text: str) -> str:
    """A short text on one line, fit to be written as UTF-8."""
    return " ".join(_UNSOUND.sub(" ", text).split())
