"""The objects of a workspace in an object store: by key, streamed, and put on conditions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

from searchfit.errors import SourceError, WorkspaceError
from searchfit.places import explained, faults, file_system
from searchfit.writing import sync_file

CONDITIONAL = ("s3", "s3a")
"""The schemes whose objects are put on a condition here."""

LOCAL_FIRST = "Fit into a local folder, and copy that to where you want it."
AGAIN = "Run the same command again; it carries on."

_PART = 16 << 20
"""Bytes that are sent or received together; a file of twice as many goes in parts."""
_PARTS = 4
"""Parts of one file that are on their way at the same time."""
_BLOCK = 4 << 20
_REFUSED = (409, 412)
"""HTTP: the condition of a put does not hold, or another one is putting just now."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Held:
    """A small object: its content, its ETag, and how many seconds ago it was put, by the store's clock."""

    data: bytes
    tag: str
    age: float


class Bucket:
    """What lies below the URL of a workspace. Every fault of the store is a WorkspaceError that names the
    object; the client tries again by itself before that."""

    def __init__(self, url: str) -> None:
        """Raises WorkspaceError for a store where no condition can be put, MissingExtraError without its
        library."""
        self.url = url.rstrip("/")
        scheme = url.partition("://")[0]
        if scheme not in CONDITIONAL:
            kinds = ", ".join(f"{name}://" for name in CONDITIONAL)
            raise WorkspaceError(
                f"{url} cannot be a workspace: one writer at a time needs a put on a condition, which is "
                f"made for {kinds} only, and this is {scheme}://.",
                LOCAL_FIRST,
            )
        try:
            # No listing is kept: another machine may have written since.
            self._files, path = file_system(self.url, use_listings_cache=False)
        except SourceError as error:
            raise WorkspaceError(error.message, error.hint) from error
        self._name, self._prefix, _ = self._files.split_path(path)
        if not self._prefix:
            raise WorkspaceError(
                f"{url} is a whole bucket; a workspace has a folder of its own in it.",
                f"Name one, for example {self.url}/my-search",
            )

    def get(self, key: str) -> Held | None:
        """A small object; None where there is none. It may be newer than its tag says, never older."""
        try:
            head = self._asked(key, lambda: self._call("head_object", key))
            data = self._asked(key, lambda: self._files.cat_file(self._path(key)))
        except FileNotFoundError:
            return None
        date = head["ResponseMetadata"].get("HTTPHeaders", {}).get("date")
        now = parsedate_to_datetime(date) if date else datetime.now(timezone.utc)
        return Held(bytes(data), head["ETag"], (now - head["LastModified"]).total_seconds())

    def put(self, key: str, data: bytes, tag: str) -> str | None:
        """Put a small object in place of the one with this ETag, or, where the tag is empty, of none; the new
        tag. None where another one is there."""
        condition = {"IfMatch": tag} if tag else {"IfNoneMatch": "*"}
        try:
            done = self._call("put_object", key, Body=data, **condition)
        except faults() as error:
            if _status(error) not in _REFUSED and not (tag and _code(error) == "NoSuchKey"):
                raise self._fault(key, error, "written") from error
            held = self.get(key)  # an answer that was lost makes the client put it again
            return held.tag if held is not None and held.data == data else None
        return str(done["ETag"])

    def upload(self, file: Path | bytes, key: str) -> None:
        """Put a file."""
        if isinstance(file, bytes):
            self._asked(key, lambda: self._call("put_object", key, Body=file), "written")
            return
        put = self._files.put_file
        self._asked(
            key, lambda: put(str(file), self._path(key), chunksize=_PART, max_concurrency=_PARTS), "written"
        )

    def download(self, key: str, file: Path, digest: str) -> None:
        """Write an object into a file and to the disk. Raises FileNotFoundError where there is none any more,
        WorkspaceError where it has not this digest."""
        total = hashlib.blake2b(digest_size=16)
        path = self._path(key)
        source = self._asked(
            key, lambda: self._files.open(path, "rb", block_size=_BLOCK, cache_type="readahead")
        )
        with source, file.open("wb") as target:
            while block := self._asked(key, lambda: source.read(_BLOCK)):
                total.update(block)
                target.write(block)
        if total.hexdigest() != digest:
            raise WorkspaceError(
                f"{self.url}/{key} is damaged: its content has not the digest that the workspace names.",
                "Fit into another place, or put back a copy of the object.",
            )
        sync_file(file)

    def names(self, below: str = "") -> set[str]:
        """The keys that begin like this."""
        root = self._path("")
        try:
            found = self._asked(below, lambda: self._files.find(root, prefix=below))
        except FileNotFoundError:
            return set()
        return {str(name).removeprefix(root) for name in found}

    def remove(self, keys: Iterable[str]) -> None:
        """Remove objects."""
        paths = [self._path(key) for key in keys]
        if paths:
            self._asked("", lambda: self._files.rm(paths), "written")

    def _path(self, key: str) -> str:
        return f"{self._name}/{self._prefix}/{key}"

    def _call(self, method: str, key: str, **arguments: Any) -> Any:
        return self._files.call_s3(method, Bucket=self._name, Key=f"{self._prefix}/{key}", **arguments)

    def _asked(self, key: str, ask: Callable[[], _T], doing: str = "read") -> _T:
        try:
            return ask()
        except FileNotFoundError as error:
            if doing == "read" and _code(error) != "NoSuchBucket":
                raise
            raise self._fault(key, error, doing) from error
        except faults() as error:
            raise self._fault(key, error, doing) from error

    def _fault(self, key: str, error: Exception, doing: str) -> WorkspaceError:
        if _status(error) == 501:
            return WorkspaceError(
                f"{self.url} cannot be a workspace: the store has no put on a condition.", LOCAL_FIRST
            )
        message, hint = explained(f"{self.url}/{key}".rstrip("/"), error, doing)
        return WorkspaceError(message, hint or f"Once it can be reached again: {AGAIN}")


def _response(error: BaseException) -> dict[str, Any]:
    """What the server answered; the client's errors have it themselves or as their cause."""
    for one in (error, error.__cause__):
        found = getattr(one, "response", None)
        if isinstance(found, dict):
            return found
    return {}


def _status(error: BaseException) -> int:
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: BaseException) -> str:
    return str(_response(error).get("Error", {}).get("Code", ""))
