"""The process that parses, seen from outside: started when it is first needed, ended when a file is too much
for it, and started again for the next."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from threading import Timer
from types import TracebackType
from typing import Any, BinaryIO, cast

from searchfit.parsers import Parsed, Unread

_START = "import sys; sys.path[:] = sys.argv[1:]; from searchfit.parsers.child import main; main()"
_START_SECONDS, _END_SECONDS = 60.0, 1.0
_SMALL = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What one document may take: characters of text, bytes when decompressed, seconds, MiB of memory."""

    max_chars: int
    max_bytes: int
    timeout: float
    memory_mb: int


class _Child:
    """A running child. Raises EOFError where it ends instead of answering."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what a parser starts is ended with it
        )
        self.late = False

    def send(self, request: dict[str, Any]) -> None:
        """Ask."""
        pipe = cast(BinaryIO, self.process.stdin)
        try:
            pipe.write(json.dumps(request).encode() + b"\n")
            pipe.flush()
        except BrokenPipeError as error:
            raise EOFError from error

    def answer(self, seconds: float, most: int) -> dict[str, Any]:
        """The next answer, of at most `most` bytes; a child that is too late is killed."""
        pipe = cast(BinaryIO, self.process.stdout)
        timer = Timer(seconds, self._expire)
        timer.start()
        try:
            size = int.from_bytes(pipe.read(8), "big")
            data = pipe.read(size) if 0 < size <= most else b""
        finally:
            timer.cancel()
        if len(data) != size or not data:
            raise EOFError
        found: dict[str, Any] = json.loads(data)
        return found

    def _expire(self) -> None:
        self.late = True
        self.kill()

    def kill(self) -> None:
        """End it and what it started."""
        if self.process.poll() is None:
            if sys.platform == "win32":
                self.process.kill()
            else:
                os.killpg(self.process.pid, signal.SIGKILL)

    def status(self) -> int:
        """The exit status of a child that closed its pipe, negative for the signal that ended it."""
        try:
            self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(BrokenPipeError):
                cast(BinaryIO, pipe).close()
        return self.process.wait()


class ParserProcess:
    """Parses files in a child process, one after the other. Its memory is limited where the system can
    (Linux), its time everywhere. Use it in a `with`, which ends the child."""

    def __init__(self, limits: Limits, parser: str = "builtin") -> None:
        self._limits, self._parser = limits, parser
        self._child: _Child | None = None

    def __enter__(self) -> ParserProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.status()

    def parse(self, path: str, kind: str, packed: bool = False) -> Iterator[Parsed | Unread]:
        """The documents of a file of a kind: pdf, docx, html, eml, mbox, or other for the parser of another
        project. `packed` is for one that ends in .gz."""
        limits = self._limits
        done = False
        child = self._child or _Child()
        try:
            if self._child is None:
                self._child = child
                child.answer(_START_SECONDS, _SMALL)
            request = {"path": path, "kind": kind, "packed": packed, "parser": self._parser}
            child.send(request | asdict(limits))
            # JSON writes a character as up to twelve.
            while "end" not in (answer := child.answer(limits.timeout, 12 * limits.max_chars + _SMALL)):
                yield _document(answer)
            done = True
        except EOFError:
            yield Unread(self._why(child))
        finally:
            if not done:  # what it would still say is of this file
                self._end()

    def _why(self, child: _Child) -> str:
        status = child.status()
        if child.late or -status == getattr(signal, "SIGXCPU", 0):
            return f"takes longer than files.timeout ({self._limits.timeout:g} s)"
        if status < 0:
            return f"the parser was ended by {signal.Signals(-status).name}"
        return f"the parser ended with status {status}"


def _document(answer: dict[str, Any]) -> Parsed | Unread:
    if "reason" in answer:
        return Unread(**answer)
    marks = tuple((start, page, heading) for start, page, heading in answer.pop("marks"))
    return Parsed(**answer, marks=marks)
