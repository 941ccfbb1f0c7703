"""Who writes into a workspace in an object store: holds the lock, and puts what a stage has made."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, RLock, Thread
from time import monotonic

from searchfit.errors import WorkspaceError
from searchfit.layout import LEDGER
from searchfit.mirror import AT_ONCE, CONTENTS, OBJECTS, Mirror
from searchfit.mirror import lease as lock
from searchfit.mirror.bucket import AGAIN
from searchfit.mirror.contents import Contents, Digests, File, digest_of, local_units
from searchfit.mirror.ledger import snapshot, stamp

KEEP = 600.0
"""Seconds after which answers of generators are put while a stage runs."""
_SMALL = 8 << 20
"""Bytes of files that are read whole, so that what is put is what was hashed."""

_writing: dict[Path, Writer] = {}
"""The writers of this process by the folder of the mirror: a fit of several models is one of several fits."""


class Writer:
    """One that holds the lock of a mirror's store."""

    def __init__(self, mirror: Mirror, lease: lock.Lease) -> None:
        self.mirror, self.lease = mirror, lease
        self._mutex = RLock()
        self._over = Event()
        self._there = mirror.bucket.names(OBJECTS)
        self._removed: set[str] = set()
        self._ledger: tuple[list[int], File | None] = ([], None)

    def publish(self, ledger_only: bool = False) -> None:
        """Put what is new here, then the contents that name it, and remove what neither these nor the ones
        before name. Raises WorkspaceError where the lock is lost or the store cannot be reached; the contents
        then stay what they were."""
        with self._mutex:
            base, digests = self.mirror.base, self.mirror.digests()
            sources: dict[str, Path] = {}
            files = dict(base.files) if ledger_only else self._files(base, digests)
            if ledger := self._ledger_file():
                files[LEDGER] = ledger
                sources[ledger.digest] = self.mirror.state / LEDGER
            digests.save()
            if files == base.files:
                return
            for name, file in files.items():
                if not name.endswith("/"):
                    sources.setdefault(file.digest, self.mirror.folder / name)
            missing = {d: path for d, path in sources.items() if OBJECTS + d not in self._there}
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(self._upload, missing.items()))
            self._commit(Contents(files, base.tag), base)

    def remove(self, unit: str) -> None:
        """Leave a unit out of what is published next."""
        self._removed.add(unit)

    def _files(self, base: Contents, digests: Digests) -> dict[str, File]:
        """What is here, and what is only there."""
        here = dict(local_units(self.mirror.folder))
        gone = {*here, *self._removed}
        files = {
            name: file for unit, own in base.units.items() if unit not in gone for name, file in own.items()
        }
        for unit, place in here.items():
            files |= digests.files(unit, place)
        return files

    def _ledger_file(self) -> File | None:
        """The ledger as it is now, a copy of which lies in the mirror's state where it was not put yet."""
        file = self.mirror.folder / LEDGER
        now = stamp(file)
        if now and now != self._ledger[0]:
            copy = self.mirror.state / LEDGER
            snapshot(file, copy)
            self._ledger = now, File(copy.stat().st_size, digest_of(copy))
        return self._ledger[1]

    def _upload(self, item: tuple[str, Path]) -> None:
        digest, path = item
        small = path.stat().st_size <= _SMALL
        data = path.read_bytes() if small else path
        if small and digest_of(data) != digest:
            raise WorkspaceError(f"{path} changed while it was being put.", AGAIN)
        self.mirror.bucket.upload(data, OBJECTS + digest)
        self._there.add(OBJECTS + digest)

    def _commit(self, contents: Contents, before: Contents) -> None:
        self.lease.renew()
        bucket = self.mirror.bucket
        tag = bucket.put(CONTENTS, contents.to_bytes(), before.tag)
        if tag is None:
            raise WorkspaceError(
                f"another process has changed {self.mirror.url}; nothing of this one's was put.", AGAIN
            )
        self.mirror.set_base(Contents(contents.files, tag))
        named = {OBJECTS + file.digest for one in (contents, before) for file in one.files.values()}
        garbage = self._there - named
        bucket.remove(sorted(garbage))
        self._there -= garbage

    def _live(self) -> None:
        """Renew the lock, and put what was paid for, until it is over. What goes wrong here is told when the
        stage publishes."""
        kept = monotonic()
        while not self._over.wait(lock.RENEW):
            with suppress(WorkspaceError):
                self.lease.renew()
            if monotonic() - kept >= KEEP and self._mutex.acquire(blocking=False):
                try:
                    with suppress(WorkspaceError):
                        self.publish(ledger_only=True)
                finally:
                    self._mutex.release()
                kept = monotonic()

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Take over what others put, and renew the lock meanwhile. What was finished is put at the end, after
        a failure only what generators answered."""
        thread = Thread(target=self._live, name="searchfit lock", daemon=True)
        thread.start()
        try:
            self.mirror.take_over()
            try:
                yield
            except BaseException:
                with suppress(WorkspaceError):  # the failure is what counts, and the ledger is here
                    self.publish(ledger_only=True)
                raise
            self.publish()
        finally:
            self._over.set()
            thread.join()


@contextmanager
def writing(mirror: Mirror) -> Iterator[None]:
    """Hold the right to write; what others put is taken over first.

    Raises WorkspaceError at once when another writer, here or elsewhere, has it, and where something else
    lies at the URL.
    """
    from filelock import FileLock, Timeout

    if mirror.folder in _writing:
        yield
        return
    try:
        with FileLock(mirror.state / "writer", timeout=0):
            _check_free(mirror)
            lease = lock.Lease(mirror.bucket, mirror.name)
            lease.take()
            try:
                found = _writing[mirror.folder] = Writer(mirror, lease)
                with found.alive():
                    yield
            finally:
                _writing.pop(mirror.folder, None)
                with suppress(WorkspaceError):  # it will be stale
                    lease.release()
    except Timeout as error:
        raise WorkspaceError(
            f"another process of this machine is writing to {mirror.url}.", "Wait for it to end."
        ) from error


def writer(mirror: Mirror) -> Writer:
    """The writer of this process. Raises WorkspaceError where it holds no lock."""
    found = _writing.get(mirror.folder)
    if found is None:
        raise WorkspaceError(f"{mirror.url} is not locked by this process.", AGAIN)
    return found


def _check_free(mirror: Mirror) -> None:
    """Raise WorkspaceError where something else than a workspace lies at the URL."""
    if mirror.bucket.get(CONTENTS) is None:
        foreign = {key for key in mirror.bucket.names() if key != lock.KEY and not key.startswith(OBJECTS)}
        if foreign:
            raise WorkspaceError(
                f"{mirror.url} is not empty and is not a searchfit workspace; it has {min(foreign)}.",
                "Name a new place with -o.",
            )
