"""The right to write into a workspace in an object store: one object, put on conditions and renewed."""

from __future__ import annotations

import json
import os
import socket
from datetime import datetime, timezone
from threading import Lock
from typing import Any
from uuid import uuid4

from searchfit.errors import WorkspaceError
from searchfit.mirror.bucket import LOCAL_FIRST, Bucket

KEY = "lock.json"
RENEW = 30.0
"""Seconds between two renewals."""
STALE = 300.0
"""Seconds without a renewal after which a lock is taken to be that of a killed writer."""


class Lease:
    """The lock, held from `take` to `release`. `mirror` names the copy of the workspace that is written in,
    which one process at a time does: a lock of the same mirror is that of a killed writer."""

    def __init__(self, bucket: Bucket, mirror: str) -> None:
        self._bucket = bucket
        self._mutex = Lock()
        self._tag: str | None = None
        self._body: dict[str, Any] = {
            "holder": uuid4().hex,
            "mirror": mirror,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": _now(),
        }

    def take(self) -> None:
        """Raises WorkspaceError where another writer has it, and for a store that heeds no condition."""
        held = self._bucket.get(KEY)
        if held is not None:
            other = _read(held.data)
            killed = other.get("mirror") == self._body["mirror"] or held.age >= STALE
            if other.get("holder") and not killed:
                raise self._taken(other, held.age)
        self._tag = self._bucket.put(KEY, self._data(), held.tag if held else "")
        if self._tag is None:
            held = self._bucket.get(KEY)
            raise self._taken(_read(held.data) if held else {}, held.age if held else 0.0)
        self._prove()

    def _prove(self) -> None:
        """Some stores take a condition and do not look at it: two puts that have to be refused."""
        for tag in ("", '"00000000000000000000000000000000"'):
            if self._bucket.put(KEY, json.dumps({"probe": uuid4().hex}).encode(), tag) is not None:
                self._bucket.remove([KEY])
                raise WorkspaceError(
                    f"{self._bucket.url} cannot be a workspace: the store put an object although the "
                    f"condition ({'If-Match' if tag else 'If-None-Match'}) did not hold, so that two writers "
                    "could not be kept apart.",
                    LOCAL_FIRST,
                )

    def renew(self) -> None:
        """Say that the writer lives. Raises WorkspaceError where the lock was taken over, or the store cannot
        be reached."""
        with self._mutex:
            if self._tag is not None:
                self._tag = self._bucket.put(KEY, self._data(), self._tag)
            if self._tag is None:
                raise WorkspaceError(
                    f"another process has taken over {self._bucket.url}: this one had not renewed its lock "
                    f"for {STALE:.0f} seconds or more.",
                    "Nothing of what was not there yet has been put. Once the other is done, run the same "
                    "command again.",
                )

    def release(self) -> None:
        """Give the lock back, if it is still held."""
        with self._mutex:
            if self._tag is not None:
                self._bucket.put(KEY, json.dumps({"holder": None, "free": _now()}).encode(), self._tag)
                self._tag = None

    def _data(self) -> bytes:
        return json.dumps({**self._body, "renewed": _now(), "nonce": uuid4().hex}).encode()

    def _taken(self, other: dict[str, Any], age: float) -> WorkspaceError:
        who = ", ".join(f"{name} {other[name]}" for name in ("host", "pid", "since") if name in other)
        return WorkspaceError(
            f"another process is writing to {self._bucket.url}" + (f" ({who})." if who else "."),
            f"Wait for it to end, or name another workspace. It renewed its lock {max(0.0, age):.0f} seconds "
            f"ago; after {STALE:.0f} without that the lock is free.",
        )


def _read(data: bytes) -> dict[str, Any]:
    try:
        held = json.loads(data)
    except ValueError:
        return {"holder": "unknown"}  # until it is stale
    return held if isinstance(held, dict) else {"holder": "unknown"}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
