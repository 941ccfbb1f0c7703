"""What generators have answered, where several machines write in turn: nothing paid for is lost."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from searchfit.errors import WorkspaceError


def stamp(file: Path) -> list[int]:
    """Differs when something was added; empty where there is no ledger."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return []
    ahead = file.with_name(f"{file.name}-wal")
    return [status.st_size, status.st_mtime_ns, status.st_ino, ahead.stat().st_size if ahead.exists() else 0]


def snapshot(file: Path, target: Path) -> None:
    """A copy of a ledger, which another thread or process may be adding to. Raises WorkspaceError when it is
    damaged."""
    target.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(target)) as copy:
            source.backup(copy)
    except sqlite3.DatabaseError as error:
        raise _damaged(file, error) from error


def merge(file: Path, other: Path) -> None:
    """Add the answers of another ledger; an answer takes the place of a fault. Raises WorkspaceError when one
    of them is damaged."""
    try:
        with closing(sqlite3.connect(file, isolation_level=None)) as base:
            base.execute("attach ? as other", (str(other),))
            base.execute(
                "insert into answers select * from other.answers where true on conflict (key) do update set "
                "queries = excluded.queries, fault = excluded.fault "
                "where answers.fault <> '' and excluded.fault = ''"
            )
    except sqlite3.DatabaseError as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> WorkspaceError:
    return WorkspaceError(
        f"{file} cannot be used: {error}.",
        "Put back a copy of it; or move it away, and its queries are written, and paid for, again.",
    )
