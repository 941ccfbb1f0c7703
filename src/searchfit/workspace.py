"""The workspace: its layout as paths, atomic writers, the lock and the manifest.

WORKSPACE/
  searchfit.toml      the settings, resolved
  manifest.json       per stage: key, inputs, seed, time, memory, counts, drops; written last
  documents.parquet  passages.parquet  encoded/  queries/part-*.parquet  pairs.parquet  pair_vectors.npy
  screened.parquet  holdout.parquet  mined/  models/{trained,tuned,reranker}/  evaluation/
  index/VERSION/  index/VERSION.grown/  engine.json  added/  report.html  report.json  report.md
  ledger.sqlite       every answer of a generator, kept from fit to fit
  cache/              vectors of the corpus by other models, see evaluate.models; may be deleted
  .partial/STAGE/     the work of a stage that has not ended; carried on or thrown away
  .mirror/            of which workspace in an object store this is the copy here, see mirror
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchfit.errors import WorkspaceError
from searchfit.layout import GROWN, LEDGER, MIRROR
from searchfit.writing import (
    size,
    sync_folder,
    write_json,
)

if TYPE_CHECKING:
    from searchfit.mirror import Mirror

FORMAT = 1
"""Version of the workspace's layout."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}(?=[^/])(.*)", re.DOTALL)


def located(name: str | Path) -> Path:
    """The folder of a workspace: of a path the path itself, of a URL the folder here that mirrors it, with
    what was put there since. Raises WorkspaceError for a store that cannot hold a workspace or be reached."""
    found = _URL.fullmatch(str(name))  # a Path has made one slash of two
    if found is None or found[1] == "file":
        return Path(str(name).removeprefix("file://"))
    from searchfit.mirror import Mirror

    url, run = re.subn(r"/runs/([^/]+)/?$", "", f"{found[1]}://{found[2]}")
    mirror = Mirror.of(url)
    mirror.pull()
    return mirror.folder / "runs" / Path(str(name)).name if run else mirror.folder


def mirrored(path: Path) -> tuple[Mirror, str] | None:
    """The mirror that a workspace belongs to and what its names begin with there ("runs/NAME/" for one of
    several models); None for one that is here alone."""
    for root in (path, path.parent.parent) if path.parent.name == "runs" else (path,):
        if (root / MIRROR).is_dir():
            from searchfit.mirror import Mirror

            return Mirror(root), "" if root == path else f"runs/{path.name}/"
    return None


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folder of one fit. It holds paths and the manifest; the artefacts belong to the stages. Fits that
    belong together may share a ledger of generators."""

    path: Path
    shared_ledger: Path | None = None

    @property
    def name(self) -> str:
        """Its path, or URL, for people."""
        found = mirrored(self.path)
        return str(self.path) if found is None else f"{found[0].url}/{found[1]}".rstrip("/")

    def artefact(self, name: str) -> Path:
        """The path of an artefact by its name in the layout; from an object store it is fetched first."""
        if found := mirrored(self.path):
            found[0].fetch(found[1] + name)
        return self.path / name

    def size_of(self, name: str) -> int:
        """Bytes of an artefact; -1 where there is none. Nothing is fetched."""
        here = size(self.path / name)
        if here < 0 and (found := mirrored(self.path)):
            return found[0].size(found[1] + name)
        return here

    def partial(self, stage: str) -> Path:
        """Where a stage writes until it ends."""
        return self.path / ".partial" / stage

    @property
    def settings_file(self) -> Path:
        """The resolved settings."""
        return self.path / "searchfit.toml"

    @property
    def manifest_file(self) -> Path:
        """What was made, from what, by which code."""
        return self.path / "manifest.json"

    @property
    def ledger(self) -> Path:
        """What generators have answered, kept from fit to fit."""
        return self.shared_ledger or self.artefact(LEDGER)

    @property
    def cache(self) -> Path:
        """Vectors of the corpus by models that are compared, kept from run to run; may be deleted."""
        return self.path / "cache"

    def check(self) -> None:
        """Raise WorkspaceError where a file or a foreign folder is in the way."""
        if self.path.is_file():
            raise WorkspaceError(f"{self.path} is a file, not a folder.", "Name another workspace with -o.")
        ours = any((self.path / name).exists() for name in ("manifest.json", ".lock", MIRROR))
        if self.path.exists() and not ours and any(self.path.iterdir()):
            raise WorkspaceError(
                f"{self.path} is not empty and is not a searchfit workspace.",
                "Name a new or empty folder with -o.",
            )

    def create(self) -> None:
        """Make the folder. Raises WorkspaceError where a file or a foreign folder is in the way."""
        self.check()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkspaceError(f"cannot make the workspace {self.path}: {error.strerror}.") from error

    def require(self) -> None:
        """Raise WorkspaceError unless this is a workspace."""
        if not self.manifest_file.exists():
            raise WorkspaceError(
                f"{self.name} is not a searchfit workspace (it has no manifest.json).",
                f"Make one with: searchfit fit SOURCE -o {self.name}",
            )

    def manifest(self) -> dict[str, Any]:
        """The manifest; an empty one where there is none. Raises WorkspaceError when it is damaged."""
        try:
            manifest = json.loads(self.manifest_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"format": FORMAT, "stages": {}}
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise WorkspaceError(
                f"{self.manifest_file} is damaged: {error}.", "Remove it; the same fit makes it anew."
            ) from error
        except OSError as error:
            raise WorkspaceError(f"{self.manifest_file} cannot be read: {error.strerror}.") from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise WorkspaceError(
                f"{self.path} was made by another version of searchfit (layout {FORMAT} is expected).",
                "Fit into a new folder.",
            )
        return manifest

    def served(self) -> dict[str, Any] | None:
        """The engine that is served and its index version, as the index stage wrote them; None where there
        is none yet. Raises WorkspaceError when the file is damaged."""
        file = self.artefact("engine.json")
        try:
            pointer: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(pointer["index"], str) and isinstance(pointer["engine"]["name"], str):
                return pointer
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise WorkspaceError(f"{file} is damaged.", "Run the same fit again.") from error
        raise WorkspaceError(f"{file} is damaged.", "Run the same fit again.")

    def served_index(self) -> Path:
        """The folder of the index version that is served. Raises WorkspaceError where there is none yet."""
        served = self.served()
        if served is None:
            raise WorkspaceError(
                f"{self.name} has no finished search engine.",
                "Run searchfit fit to its end; the same command carries on where it stopped.",
            )
        return self.artefact(served["index"])

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Replace the manifest atomically."""
        write_json(self.manifest_file, manifest)

    @contextlib.contextmanager
    def lock(self, here: bool = False) -> Iterator[None]:
        """Hold the right to write, or with `here` to write what stays on this machine. Raises WorkspaceError
        at once when another process holds it.

        The lock belongs to the process: a killed writer leaves it free. In an object store it is an object;
        what has changed here is put there when the work inside has ended, see `share`.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise WorkspaceError(
                f"another process is writing to {self.name}.",
                "Wait for it to end, or name another workspace.",
            ) from error
        try:
            found = None if here else mirrored(self.path)
            with _writing(found[0]) if found else contextlib.nullcontext():
                yield
        finally:
            lock.release()

    def share(self) -> None:
        """Put what is new here where others read it: under the lock, of a workspace in an object store."""
        if found := mirrored(self.path):
            from searchfit.mirror.writer import writer

            writer(found[0]).publish()

    def versions(self) -> list[str]:
        """The index versions, index/NAME, oldest first."""
        here = [path for path in self.path.glob("index/*") if path.suffix != GROWN]
        names = [f"index/{path.name}" for path in sorted(here, key=lambda path: path.stat().st_mtime)]
        if found := mirrored(self.path):
            there = (one.removeprefix(found[1]) for one in found[0].base.units if one.startswith(found[1]))
            absent = {one for one in there if one.startswith("index/") and not one.endswith(GROWN)}
            names = [*sorted(absent.difference(names)), *names]
        return names

    def remove(self, name: str) -> None:
        """Remove an artefact, under the lock."""
        path = self.path / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        if found := mirrored(self.path):
            from searchfit.mirror.writer import writer

            writer(found[0]).remove(found[1] + name)

    def publish(self, stage: str, name: str) -> None:
        """Move an artefact from a stage's partial folder to its place, replacing what is there."""
        made, place = self.partial(stage) / name, self.path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_dir():
            # A folder cannot be replaced in one step: set the old one aside under a name that the next
            # clean-up removes. The manifest no longer vouches for it at this point.
            aside = self.path / ".partial" / f".old-{stage}-{os.getpid()}"
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(place, aside)
            os.replace(made, place)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.replace(made, place)
        sync_folder(place.parent)


def _writing(mirror: Mirror) -> contextlib.AbstractContextManager[None]:
    from searchfit.mirror.writer import writing

    return writing(mirror)
