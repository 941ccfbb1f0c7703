"""The process that parses. It reads one request a line (JSON) from its input and answers in frames: eight
bytes of length, then JSON. What a parser prints goes nowhere."""

from __future__ import annotations

import gzip
import io
import json
import os
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, BinaryIO

from searchfit.parsers import Parsed, UnparsableError, Unread

HELLO, END = {"hello": True}, {"end": True}


def main() -> None:
    """Answer requests until the input ends."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    limited = False
    _send(answers, HELLO)
    for line in requests:
        request = json.loads(line)
        if not limited:
            _limit_memory(request["memory_mb"])
            limited = True
        for answer in _answers(request):
            _limit_time(request["timeout"])
            _send(answers, asdict(answer))
        _send(answers, END)


def _send(answers: BinaryIO, value: dict[str, Any]) -> None:
    data = json.dumps(value).encode()
    answers.write(len(data).to_bytes(8, "big") + data)
    answers.flush()


def _limit_memory(megabytes: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows, where time is the only limit
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))


def _limit_time(seconds: float) -> None:
    try:
        import resource
    except ImportError:
        return
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + seconds) + 2, hard))


def _answers(request: dict[str, Any]) -> Iterator[Parsed | Unread]:
    _limit_time(request["timeout"])
    try:
        yield from parse(request)
    except UnparsableError as error:
        yield Unread(str(error))
    except MemoryError:
        yield Unread("needs more memory than files.memory_mb")
    except RecursionError:
        yield Unread("nested too deeply")
    except OSError as error:
        yield Unread(f"cannot be read: {error.strerror or error}")
    except Exception as error:  # noqa: BLE001  a parser may raise anything over a damaged file
        yield Unread(f"cannot be parsed: {type(error).__name__}: {str(error)[:200]}")


def parse(request: dict[str, Any]) -> Iterator[Parsed | Unread]:
    """The documents of the file that a request names. Raises what the parsers raise."""
    kind, most, max_bytes = request["kind"], request["max_chars"], request["max_bytes"]
    if kind == "other":
        from searchfit.parsers import others

        yield others.parse(request["parser"], request["path"], most)
        return
    with _opened(request["path"], request["packed"], max_bytes) as file:
        if kind == "pdf":
            from searchfit.parsers import pdf

            yield pdf.parse(file, most)
        elif kind == "docx":
            from searchfit.parsers import docx

            yield docx.parse(file, most, max_bytes)
        elif kind == "html":
            from searchfit.parsers import html

            yield html.parse(file.read(), most)
        else:
            from searchfit.parsers import mail

            if kind == "mbox":
                yield from mail.parse_many(file, most, max_bytes)
            else:
                yield mail.parse(file.read(), most)


def _opened(path: str, packed: bool, max_bytes: int) -> BinaryIO:
    if not packed:
        return open(path, "rb")
    data = unpacked(path, max_bytes + 1)
    if len(data) > max_bytes:
        raise UnparsableError("decompresses to more than files.max_file_mb")
    return io.BytesIO(data)


def unpacked(path: str, most: int) -> bytes:
    """The first bytes of what a .gz file holds. Raises UnparsableError for a damaged one."""
    try:
        with gzip.open(path) as file:
            return file.read(most)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UnparsableError(f"a damaged .gz file: {error}") from error
