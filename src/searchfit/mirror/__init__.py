"""A workspace in an object store, and the folder on this machine that mirrors it.

URL/contents.json     names every file of the workspace with the digest of its content; put last
URL/objects/DIGEST    the contents; never changed, removed when no contents name them any more
URL/lock.json         who writes

FOLDER is an ordinary workspace, of which what is not needed yet is not here; FOLDER/.mirror/ knows the URL,
the contents that the folder goes back to (base.json) and the digests of its files (known.json). Whoever
reads fetches an artefact when it is asked for. Whoever writes works in the folder; `Writer.publish` puts what
is new and then the contents, so that a reader elsewhere, or a kill, finds the work of whole stages.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

from searchfit.errors import WorkspaceError
from searchfit.layout import GROWN, LEDGER, MIRROR
from searchfit.mirror.bucket import Bucket
from searchfit.mirror.contents import (
    Contents,
    Digests,
    File,
    Files,
    is_pointer,
    local_units,
)
from searchfit.mirror.ledger import merge
from searchfit.writing import files_of, sync_folder, write_bytes, write_json

ENVIRONMENT = "SEARCHFIT_MIRRORS"
CONTENTS = "contents.json"
OBJECTS = "objects/"
AT_ONCE = 4
"""Files that are fetched or put at the same time."""


def root() -> Path:
    """Where the mirrors lie."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(ENVIRONMENT) or Path(cache) / "searchfit" / "workspaces").absolute()


@lru_cache(maxsize=8)
def _bucket(url: str) -> Bucket:
    return Bucket(url)


@lru_cache(maxsize=8)
def _contents(file: Path, _stamp: tuple[int, int, int]) -> Contents:
    held = json.loads(file.read_text(encoding="utf-8"))
    return Contents({name: File(*one) for name, one in held["files"].items()}, held["tag"])


class Mirror:
    """The folder of one URL."""

    def __init__(self, folder: Path) -> None:
        """A folder that `of` made."""
        self.folder, self.state = folder, folder / MIRROR
        held = json.loads((self.state / "mirror.json").read_text(encoding="utf-8"))
        self.url, self.name = str(held["url"]), str(held["name"])

    @classmethod
    def of(cls, url: str, folder: Path | None = None) -> Mirror:
        """The mirror of a URL, in a folder that is named or its own; an empty one where there is none yet.
        Raises WorkspaceError for a store that cannot hold a workspace."""
        url = url.rstrip("/")
        bucket = _bucket(url)
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", url.rpartition("/")[2])[-40:]
        name = f"{slug}-{hashlib.blake2b(bucket.url.encode(), digest_size=8).hexdigest()}"
        folder = folder or root() / name
        note = folder / MIRROR / "mirror.json"
        if not note.exists():
            try:
                write_json(note, {"url": url, "name": uuid4().hex})
            except OSError as error:
                raise WorkspaceError(
                    f"{folder} cannot be made for what is needed here of {url}: {error.strerror}.",
                    f"Name another place in the variable {ENVIRONMENT}.",
                ) from error
        return cls(folder)

    @property
    def bucket(self) -> Bucket:
        """The store."""
        return _bucket(self.url)

    @property
    def base(self) -> Contents:
        """The contents that the folder goes back to."""
        file = self.state / "base.json"
        try:
            status = file.stat()
        except FileNotFoundError:
            return Contents()
        return _contents(file, (status.st_mtime_ns, status.st_ino, status.st_size))

    def set_base(self, contents: Contents) -> None:
        """Write it down."""
        data = json.dumps({"tag": contents.tag, "files": contents.files}, separators=(",", ":"))
        write_bytes(self.state / "base.json", data.encode())

    def pull(self) -> None:
        """Take over what was put since, unless a process of this machine writes: it has the newest."""
        from filelock import FileLock, Timeout

        try:
            with FileLock(self.state / "writer", timeout=0):
                self.take_over()
        except Timeout:
            return

    def take_over(self) -> None:
        """The same, for the one who writes. Of files here that are others only what generators answered is
        kept; contents that the folder goes back to already leave all files as they are."""
        held = self.bucket.get(CONTENTS)
        where = f"{self.url}/{CONTENTS}"
        contents = Contents.read(held.data, held.tag, where) if held else Contents()
        with self._guard():
            if contents.tag == self.base.tag:
                return
            digests = self.digests()
            for name, place in local_units(self.folder):
                new = contents.units.get(name)
                if new == digests.files(name, place) or (new and (is_pointer(name) or name.endswith(GROWN))):
                    continue  # pointers are replaced in one step below
                self._set_aside(place)
            self._merge_ledger(contents)
            always = [name for name in contents.units if is_pointer(name) or self._is_growing(name)]
            self._fetch(contents, always)
            self.set_base(contents)

    def fetch(self, name: str) -> None:
        """Have an artefact, those below a name, or what was added to an index, if the workspace has it."""
        for left in (2, 1, 0):
            base = self.base
            wanted = [one for one in base.asked(name) if not (self.folder / one).exists()]
            if not wanted:
                return
            try:
                with self._guard():
                    self._fetch(base, [one for one in wanted if not (self.folder / one).exists()])
            except FileNotFoundError as error:
                if not left:
                    raise WorkspaceError(
                        f"{self.url} changes faster than {name} can be fetched.", "Try again later."
                    ) from error
                self.pull()  # another writer has put something else in its place

    def size(self, name: str) -> int:
        """Bytes of an artefact, here or there; -1 where there is none."""
        base = self.base
        found = [file.bytes for one in base.asked(name) if one == name for file in base.units[one].values()]
        return sum(found) if found else -1

    def digests(self) -> Digests:
        """Those of the files here, as far as they are known."""
        return Digests(self.folder, self.state / "known.json")

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """One process at a time fetches."""
        from filelock import FileLock

        with FileLock(self.state / "guard"):
            yield

    def _is_growing(self, name: str) -> bool:
        return name.endswith(GROWN) and (self.folder / name.removesuffix(GROWN)).exists()

    def _set_aside(self, place: Path) -> None:
        if place.is_dir():
            aside = self.state / f"old-{uuid4().hex}"
            os.replace(place, aside)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            place.unlink()

    def _merge_ledger(self, contents: Contents) -> None:
        """What was answered here and not put stays, beside what others have put."""
        mine, theirs = self.folder / LEDGER, contents.files.get(LEDGER)
        if mine.exists() and theirs is not None and theirs != self.base.files.get(LEDGER):
            other = self.state / LEDGER
            self.bucket.download(OBJECTS + theirs.digest, other, theirs.digest)
            merge(mine, other)
            other.unlink()

    def _fetch(self, contents: Contents, units: list[str]) -> None:
        """Download units and move them to their places. Raises FileNotFoundError for an object that is gone
        since."""
        staging, digests = self.state / "fetched", self.digests()
        shutil.rmtree(staging, ignore_errors=True)
        wanted: Files = {
            name: file
            for one in units
            for name, file in contents.units[one].items()
            if digests.of(name) != file
        }
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda item: self._download(staging, *item), wanted.items()))
        for one in units:
            place, made = self.folder / one, staging / one
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists() and made.exists():
                os.replace(made, place)
            else:  # additions to an index: version.json is read first, so it is moved last
                files = [path for path in files_of(made) if path.is_file()]
                for path in sorted(files, key=lambda path: path.name == "version.json"):
                    target = self.folder / path.relative_to(staging)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(path, target)
            sync_folder(place.parent)
        for name, file in wanted.items():
            digests.add(name, file.digest)
        digests.save()
        shutil.rmtree(staging, ignore_errors=True)

    def _download(self, staging: Path, name: str, file: File) -> None:
        path = staging / name
        if name.endswith("/"):
            path.mkdir(parents=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self.bucket.download(OBJECTS + file.digest, path, file.digest)


def download(url: str, folder: Path) -> None:
    """Make a workspace of its own of one in an object store: a folder that has all of it. Killed, the same
    call carries on. Raises WorkspaceError where there is none, and for a folder that holds something else."""
    begun = (folder / MIRROR).is_dir() and Mirror(folder).url == url.rstrip("/")
    if folder.exists() and not begun and (folder.is_file() or any(folder.iterdir())):
        raise WorkspaceError(f"{folder} is there already.", "Name a new or an empty folder.")
    mirror = Mirror.of(url, folder)
    mirror.pull()
    if not mirror.base.files:
        shutil.rmtree(folder)
        raise WorkspaceError(f"{url} is not a searchfit workspace.", "Check the bucket and the key.")
    mirror.fetch("")
    shutil.rmtree(mirror.state)
