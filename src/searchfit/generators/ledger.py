"""The ledger: what generators have answered, by the content of the question. Nothing is asked or paid twice.

One SQLite file in the workspace, kept from run to run. An answer is found again by a hash of the generator's
fingerprint (model revision, template, decoding), the seed and the text of the passage: other passages, or a
different order, change nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searchfit.errors import WorkspaceError
from searchfit.generators import Generator, Written
from searchfit.records import Passage

_SCHEMA = """
create table if not exists answers (
    key blob primary key,
    writer text not null,
    fingerprint text not null,
    queries text not null,
    fault text not null,
    tokens_in integer not null,
    tokens_out integer not null,
    cost real not null
) without rowid
"""
_ENTRY = "key, queries, fault, tokens_in, tokens_out, cost"
_CHUNK = 500
"""Keys in one question to SQLite, which bounds their number."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the ledger holds of a passage: (text, style) of each query, or why it was set aside."""

    queries: tuple[tuple[str, str], ...]
    fault: str
    tokens_in: int
    tokens_out: int
    cost: float


def key(generator: Generator, seed: int, passage: Passage) -> bytes:
    """What an answer is found by."""
    total = hashlib.blake2b(digest_size=16)
    for part in (generator.fingerprint, str(seed), *generator.content(passage)):
        # Each part by its own hash, so that no two different lists of parts look alike.
        total.update(hashlib.blake2b(part.encode("utf-8", "surrogatepass"), digest_size=16).digest())
    return total.digest()


class Ledger:
    """The file. A group that was put in is there after any kill; a group that was not is not there at all."""

    def __init__(self, path: Path) -> None:
        """Open or make it. Raises WorkspaceError when it is damaged."""
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._base = sqlite3.connect(path, isolation_level=None)
            self._base.execute("pragma journal_mode = wal")
            self._base.execute("pragma synchronous = full")
            self._base.execute(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error

    def close(self) -> None:
        """Close the file."""
        self._base.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, generator: Generator, seed: int, group: Sequence[Written]) -> None:
        """Add answers, all or none. An earlier fault is replaced; what it cost is not forgotten."""
        rows = [
            (
                key(generator, seed, written.passage),
                generator.name,
                generator.fingerprint,
                json.dumps(written.queries, ensure_ascii=False),
                written.fault,
                written.tokens_in,
                written.tokens_out,
                written.cost,
            )
            for written in group
        ]
        with self._transaction():
            self._base.executemany(
                "insert into answers values (?, ?, ?, ?, ?, ?, ?, ?) on conflict (key) do update set "
                "queries = excluded.queries, fault = excluded.fault, "
                "tokens_in = tokens_in + excluded.tokens_in, "
                "tokens_out = tokens_out + excluded.tokens_out, cost = cost + excluded.cost",
                rows,
            )

    def get(self, keys: Sequence[bytes]) -> Mapping[bytes, Entry]:
        """The entries of those keys that are there."""
        found = {}
        for start in range(0, len(keys), _CHUNK):
            part = keys[start : start + _CHUNK]
            marks = ", ".join("?" * len(part))
            for name, queries, *rest in self._rows(
                f"select {_ENTRY} from answers where key in ({marks})", part
            ):
                found[name] = Entry(tuple((text, style) for text, style in json.loads(queries)), *rest)
        return found

    def forget_older(self, generator: Generator) -> None:
        """Remove what an earlier state of a generator wrote: for one that costs nothing."""
        with self._transaction():
            self._base.execute(
                "delete from answers where writer = ? and fingerprint <> ?",
                (generator.name, generator.fingerprint),
            )

    def spent(self) -> float:
        """The cost of everything in the ledger."""
        return float(next(self._rows("select coalesce(sum(cost), 0) from answers"))[0])

    def _rows(self, question: str, values: Iterable[bytes] = ()) -> Iterator[Any]:
        try:
            yield from self._base.execute(question, tuple(values))
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._base.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._base.execute("rollback")
            raise
        self._base.execute("commit")

    def _damaged(self, error: Exception) -> WorkspaceError:
        return WorkspaceError(
            f"{self._path} cannot be used: {error}.",
            "Put back a copy of it; or move it away, and its queries are written, and paid for, again.",
        )
