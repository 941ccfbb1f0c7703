"""The versions of an index that grows: which segments it consists of, and which of their rows are deleted.

The index that a fit built, index/NAME, never changes. What was added since lies beside it, in
index/NAME.grown: segments, lists of deleted rows, and version.json, which names those that count and is
replaced atomically. A reader opens what one version.json names, and so never sees parts of two versions.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from searchfit.errors import WorkspaceError
from searchfit.layout import GROWN
from searchfit.stores import Rows
from searchfit.stores.files import REBUILD, write_array
from searchfit.stores.lancedb import LanceStore
from searchfit.stores.segment import Segment
from searchfit.writing import write_json

BASE = "."
"""The name of the segment that the fit built."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version: its number in the line that the fit began (`lineage`), the segments' names in row order,
    the file of deleted rows ("" for none), the numbers that the next passage and document get, and how far
    sources that tell what changed have been read (see `SqlReader.seen`)."""

    lineage: str
    generation: int
    segments: tuple[str, ...]
    deleted: str
    next_row: int
    next_document: int
    seen: Mapping[str, str] = field(default_factory=dict)

    def names(self) -> set[str]:
        """The files and folders of index/NAME.grown that this version needs."""
        return {*self.segments, self.deleted} - {BASE, ""}


def grown_folder(index: Path) -> Path:
    """Where what was added to an index lies."""
    return index.with_name(index.name + GROWN)


def stamp(index: Path) -> int:
    """A number that changes when the index gets another version."""
    try:
        status = (grown_folder(index) / "version.json").stat()
    except OSError:
        return 0
    return hash((status.st_mtime_ns, status.st_ino))


def read_version(index: Path, base: Segment) -> tuple[Version, Version | None]:
    """The version that counts and the one before it. Raises WorkspaceError when the file is damaged or
    belongs to another index."""
    file = grown_folder(index) / "version.json"
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        now, before = (_version(held[name]) for name in ("now", "before"))
    except (FileNotFoundError, NotADirectoryError):
        return _first(base), None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkspaceError(f"{file} is damaged: {error!r}.", REBUILD) from error
    if now.lineage != base.info.get("lineage", ""):
        raise WorkspaceError(f"{file} does not belong to the index beside it.", REBUILD)
    return now, before


def _version(held: dict[str, Any]) -> Version:
    return Version(**{**held, "segments": tuple(held["segments"])})


def _first(base: Segment) -> Version:
    rows = int(base.rows[-1]) + 1 if base.count else 0
    documents = int(base.documents[-1]) + 1 if base.count else 0
    # Documents without any passage have numbers too.
    documents = max(documents, int(base.info.get("documents", 0)))
    return Version(base.info.get("lineage", ""), 0, (BASE,), "", rows, documents, base.info.get("seen", {}))


def write_version(index: Path, now: Version, before: Version) -> None:
    """Make a version the one that counts: from here on it is safe."""
    write_json(grown_folder(index) / "version.json", {"now": asdict(now), "before": asdict(before)})


def write_deleted(index: Path, generation: int, rows: Rows) -> str:
    """Write the deleted rows of a version; the name of the file."""
    if not len(rows):
        return ""
    name = f"deleted-{generation}.bin"
    write_array(grown_folder(index) / name, rows)
    return name


def tidy(index: Path, *versions: Version | None) -> None:
    """Remove what none of these versions needs: what a reader may hold, and what a killed writer left."""
    needed = set().union(*(version.names() for version in versions if version is not None))
    for path in grown_folder(index).glob("*"):
        if path.name in needed or path.name == "version.json":
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Drift:
    """How far an index has moved from what its fit saw, in passages: those of the fit, those of them that
    were removed since, those that were added since and are still there; and the share of the last two in
    all of them."""

    fitted: int
    removed: int
    added: int
    share: float

    @property
    def refit(self) -> bool:
        """Whether a new fit would pay, by a rule of thumb: a fifth of the passages are others."""
        return self.share >= REFIT_SHARE


REFIT_SHARE = 0.2


def drift(opened: Opened) -> Drift:
    """The drift of a version."""
    fitted = opened.base.count
    living = int(np.count_nonzero(opened.store.rows <= opened.base.rows[-1])) if fitted else 0
    added = opened.store.count() - living
    removed = fitted - living
    return Drift(fitted, removed, added, (added + removed) / max(1, fitted + added))


class Opened:
    """An index version that is open: its store, and what it was opened from.

    `held` are segments that are open already; they are not opened again.
    """

    def __init__(self, index: Path, held: Opened | None = None) -> None:
        self.index = index
        self.stamp = stamp(index)
        open_ = dict(held.segments) if held else {}
        self.base = open_.get(BASE) or Segment(index)
        self.version, self.before = read_version(index, self.base)
        open_[BASE] = self.base
        for name in self.version.segments:
            if name not in open_:
                open_[name] = Segment(grown_folder(index) / name)
        self.segments: dict[str, Segment] = {name: open_[name] for name in self.version.segments}
        self.segments.setdefault(BASE, self.base)
        self.deleted = _read_deleted(grown_folder(index), self.version.deleted)
        parts = [self.segments[name] for name in self.version.segments]
        self.store = LanceStore(parts, self.deleted, self.base.info, self.version.generation)


def _read_deleted(folder: Path, name: str) -> Rows:
    if not name:
        return np.empty(0, np.int64)
    try:
        return np.fromfile(folder / name, np.int64)
    except OSError as error:
        raise WorkspaceError(f"{folder / name} cannot be read: {error.strerror}.", REBUILD) from error


def open_index(index: Path, held: Opened | None = None) -> Opened:
    """Open the version that counts. When another one takes its place meanwhile, that one.

    Raises WorkspaceError when the index is absent or damaged.
    """
    while True:
        before = stamp(index)
        try:
            return Opened(index, held)
        except WorkspaceError:
            if stamp(index) == before:
                raise
