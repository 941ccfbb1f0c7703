"""What a workspace consists of: the names, sizes and digests of its files, and the units they come in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from searchfit.errors import WorkspaceError
from searchfit.layout import GROWN, LEDGER
from searchfit.writing import files_of, write_bytes

FORMAT = 1

_FOLDERS = ("models", "evaluation", "index")
"""Folders that are no artefact, but hold some."""
_PRIVATE = ("cache",)
"""What stays on this machine, beside hidden names."""
_WAITING = (".tmp", ".partial", "-wal", "-shm")
"""Ends of the names of what is not finished."""


class File(NamedTuple):
    """A file by its size in bytes and the digest of its content (BLAKE2b, 16 bytes)."""

    bytes: int
    digest: str


Files = Mapping[str, File]
"""Files by their names in the workspace. An artefact that is an empty folder is NAME/ and no bytes."""


def unit(name: str) -> str:
    """The artefact that a file belongs to: it is here as a whole, or not at all."""
    parts = PurePosixPath(name).parts
    start = 2 if parts[0] == "runs" else 0
    deep = 2 if parts[start : start + 1] and parts[start] in _FOLDERS else 1
    return "/".join(parts[: start + deep])


def is_pointer(name: str) -> bool:
    """Whether it is one of the small files that say what else there is; these are always here."""
    path = PurePosixPath(name)
    home = path.parent.as_posix() == "." or (path.parts[0] == "runs" and len(path.parts) == 3)
    return home and path.suffix in (".json", ".toml")


@dataclass(frozen=True)
class Contents:
    """The files of a workspace as a writer left them, and the ETag of the object that says so ("": none)."""

    files: Files = field(default_factory=dict)
    tag: str = ""

    @cached_property
    def units(self) -> dict[str, dict[str, File]]:
        """The files of each unit."""
        found: dict[str, dict[str, File]] = {}
        for name, file in self.files.items():
            found.setdefault(unit(name), {})[name] = file
        return found

    def asked(self, name: str) -> list[str]:
        """The units that are wanted with a name: its own, those below it, and what was added to an index; all
        with none."""
        if not name:
            return list(self.units)
        own = unit(name)
        return [
            one for one in self.units if one in (own, own + GROWN) or one.startswith(f"{name.rstrip('/')}/")
        ]

    def to_bytes(self) -> bytes:
        """As JSON."""
        return json.dumps({"format": FORMAT, "files": self.files}, separators=(",", ":")).encode()

    @classmethod
    def read(cls, data: bytes, tag: str, where: object) -> Contents:
        """From JSON. Raises WorkspaceError for what is none, or of another version."""
        try:
            held = json.loads(data)
            if held["format"] != FORMAT:
                raise WorkspaceError(
                    f"{where} was made by another version of searchfit.", "Fit into another place."
                )
            if astray := [name for name in held["files"] if not _is_below(name)]:
                raise WorkspaceError(f"{where} names {astray[0]!r}, which is no file of a workspace.")
            return cls({name: File(*file) for name, file in held["files"].items()}, tag)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WorkspaceError(f"{where} is damaged: {error!r}.", "Put back a copy of it.") from error


def local_units(folder: Path) -> Iterator[tuple[str, Path]]:
    """The units that are in a folder, but for what is private, unfinished, or the ledger."""
    for path in sorted(folder.iterdir()):
        if not _is_ours(path.name):
            continue
        if path.name == "runs":
            for run in path.iterdir():
                for name, place in local_units(run):
                    yield f"runs/{run.name}/{name}", place
        elif path.name in _FOLDERS and path.is_dir():
            yield from ((f"{path.name}/{one.name}", one) for one in path.iterdir() if _is_ours(one.name))
        else:
            yield path.name, path


def _is_below(name: str) -> bool:
    """Whether a name stays in the workspace: whoever may write into a bucket may not write elsewhere here."""
    parts = name.removesuffix("/").split("/")
    return not any(part in ("", ".", "..") or "\\" in part for part in parts) and _is_public(unit(name))


def _is_public(unit_: str) -> bool:
    return unit_ == LEDGER or all(_is_ours(part) for part in unit_.split("/"))


def _is_ours(name: str) -> bool:
    return not (name.startswith(".") or name in (*_PRIVATE, LEDGER) or name.endswith(_WAITING))


def digest_of(source: Path | bytes) -> str:
    """The digest of a file's content."""
    total = hashlib.blake2b(source if isinstance(source, bytes) else b"", digest_size=16)
    if isinstance(source, Path):
        with source.open("rb") as file:
            while block := file.read(1 << 22):
                total.update(block)
    return total.hexdigest()


class Digests:
    """The digests of the files in a folder, computed anew only for those that changed since."""

    def __init__(self, folder: Path, note: Path) -> None:
        """What is known is in the file `note`."""
        self._folder, self._note = folder, note
        try:
            self._known: dict[str, list[Any]] = json.loads(note.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # it is but a memory
            self._known = {}

    def files(self, name: str, place: Path) -> dict[str, File]:
        """The files of a unit that is here."""
        names = (path.relative_to(self._folder).as_posix() for path in files_of(place))
        found = {name: file for name in names if (file := self.of(name)) is not None}
        return found or {f"{name}/": File(0, "")}

    def of(self, name: str) -> File | None:
        """A file; None where there is none."""
        path = self._folder / name
        if not path.is_file():
            return None
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns, status.st_ino]
        if self._known.get(name, [])[:3] != stamp:
            self._known[name] = [*stamp, digest_of(path)]
        return File(status.st_size, self._known[name][3])

    def add(self, file: str, digest: str) -> None:
        """Take note of a file whose digest is known."""
        status = (self._folder / file).stat()
        self._known[file] = [status.st_size, status.st_mtime_ns, status.st_ino, digest]

    def save(self) -> None:
        """Write down those of files that are there."""
        there = {file: known for file, known in self._known.items() if (self._folder / file).exists()}
        write_bytes(self._note, json.dumps(there, separators=(",", ":")).encode())
