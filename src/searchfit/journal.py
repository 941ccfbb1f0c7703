"""Lines that are added to a file and never changed: each is on the disk before the call returns."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from searchfit.errors import WorkspaceError
from searchfit.workspace import mirrored

MOST_BYTES = 256 << 20
"""Where a journal is full."""


class Journal:
    """A file of JSON objects, one a line. Several processes may add at the same time.

    A line that a kill left half-written is not read, and is taken away before the next is added.
    """

    def __init__(self, file: Path, most: int = MOST_BYTES) -> None:
        self.file = file
        self._most = most
        self._lock = file.with_name(f".{file.stem}.lock")

    def add(self, row: Mapping[str, Any]) -> None:
        """Write an object to the disk. Raises WorkspaceError when it cannot be written, or the file is
        full."""
        from filelock import FileLock

        if mirrored(self.file.parent):
            raise WorkspaceError(
                f"{self.file.name} cannot be kept in a workspace in an object store: no line can be "
                "added to a file there.",
                "Make a folder of it, and name that: searchfit download URL FOLDER",
            )
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace")
        try:
            with FileLock(self._lock), self.file.open("ab+") as file:
                if _drop_half_line(file) + len(line) > self._most:
                    raise WorkspaceError(
                        f"{self.file} is full: it would be larger than {self._most} bytes.",
                        "Fit with what it holds, then move the file away; a new one is begun.",
                    )
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise WorkspaceError(f"{self.file} cannot be written: {error.strerror}.") from error

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The whole lines, each with its number from 1. Raises WorkspaceError for a file that cannot be
        read; one that is not there is empty."""
        try:
            with self.file.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.endswith(b"\n"):
                        yield number, line[:-1]
        except FileNotFoundError:
            return
        except OSError as error:
            raise WorkspaceError(f"{self.file} cannot be read: {error.strerror}.") from error

    def damaged(self, number: int, line: bytes, what: str) -> WorkspaceError:
        """The error for a line that does not hold what the journal is of."""
        return WorkspaceError(
            f"{self.file}, row {number}: this is no {what}: {line[:80]!r}.", "Mend or remove the row."
        )


def _drop_half_line(file: IO[bytes]) -> int:
    """Cut off what stands behind the last end of line; the bytes that are left."""
    end = file.seek(0, os.SEEK_END)
    keep = end
    while keep:
        start = max(0, keep - 4096)
        file.seek(start)
        place = file.read(keep - start).rfind(b"\n")
        if place >= 0:
            keep = start + place + 1
            break
        keep = start
    if keep < end:
        file.truncate(keep)
    return keep
