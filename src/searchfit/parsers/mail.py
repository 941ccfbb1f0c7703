"""E-mail: a message, or a file of many."""

from __future__ import annotations

import email.errors
from collections.abc import Iterator
from datetime import timezone
from email import policy
from email.message import EmailMessage, Message
from email.parser import BytesParser
from typing import BinaryIO

from searchfit.parsers import Draft, Parsed, UnparsableError, Unread
from searchfit.parsers import html as pages
from searchfit.parsers.text import decode

_DEEPEST = 30
_MOST_PARTS = 1000
_HEADER = 1000


def parse(data: bytes, max_chars: int, part: str = "") -> Parsed:
    """The subject is the title, `from` and `date` (UTC) are metadata; the text is the plain one where there
    is one, else that of the HTML. Attachments are left out. Raises UnparsableError."""
    try:
        message = BytesParser(policy=policy.default).parsebytes(data)
        body = "\n\n".join(_texts(message, max_chars, 0, [_MOST_PARTS]))
    except RecursionError as error:
        raise UnparsableError(f"parts within parts, more than {_DEEPEST} deep") from error
    draft = Draft(max_chars)
    draft.add(body.strip())
    if not body.strip():
        raise UnparsableError("no text in the message")
    metadata = {"from": _header(message, "from"), "date": _date(message)}
    return draft.parsed(_header(message, "subject"), metadata, part)


def parse_many(file: BinaryIO, max_chars: int, max_bytes: int) -> Iterator[Parsed | Unread]:
    """The messages of an mbox file, numbered from 1."""
    for number, data in enumerate(_messages(file, max_bytes), 1):
        try:
            yield parse(data, max_chars, str(number))
        except UnparsableError as error:
            yield Unread(str(error), str(number))


def _messages(file: BinaryIO, max_bytes: int) -> Iterator[bytes]:
    lines: list[bytes] = []
    blank, begun = True, False
    for line in iter(lambda: file.readline(max_bytes), b""):
        if blank and line.startswith(b"From "):
            if begun:
                yield b"".join(lines)
            lines, begun = [], True
        elif begun:
            lines.append(line[1:] if line.startswith(b">From ") else line)
        elif line.strip():
            raise UnparsableError('no mbox: it does not begin with a line "From "')
        blank = not line.strip()
    if begun:
        yield b"".join(lines)


def _texts(message: Message, max_chars: int, depth: int, left: list[int]) -> list[str]:
    """The texts of a message's parts; of alternatives the plain one."""
    left[0] -= 1
    if depth > _DEEPEST:
        raise UnparsableError(f"parts within parts, more than {_DEEPEST} deep")
    if left[0] < 0:
        raise UnparsableError(f"more than {_MOST_PARTS} parts")
    if message.get_content_disposition() == "attachment":
        return []
    kind = message.get_content_type()
    inner = message.get_payload()
    if message.is_multipart() and isinstance(inner, list):
        parts = [part for part in inner if isinstance(part, Message)]
        if kind == "multipart/alternative":
            ranked = sorted(parts, key=lambda part: part.get_content_type() != "text/plain")
            found = (_texts(part, max_chars, depth + 1, left) for part in ranked)
            return next((texts for texts in found if any(text.strip() for text in texts)), [])
        return [text for part in parts for text in _texts(part, max_chars, depth + 1, left)]
    if kind not in ("text/plain", "text/html"):
        return []
    data = message.get_payload(decode=True)
    text = decode(data, message.get_content_charset() or "")[0] if isinstance(data, bytes) else ""
    return [pages.of_text(text, max_chars).text if kind == "text/html" else text]


def _header(message: EmailMessage, name: str) -> str:
    try:
        return str(message[name] or "")[:_HEADER]
    except (ValueError, IndexError, AttributeError, TypeError, email.errors.MessageError):
        return ""  # the standard library stumbles over some damaged headers


def _date(message: EmailMessage) -> str:
    """ISO, in UTC where the header has a time zone."""
    try:
        moment = message["date"].datetime
        return "" if moment is None else moment.astimezone(timezone.utc).isoformat()
    except (ValueError, IndexError, AttributeError, TypeError, OverflowError, email.errors.MessageError):
        return ""
