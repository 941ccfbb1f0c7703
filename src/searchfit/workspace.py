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
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchfit.errors import WorkspaceError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FORMAT = 1
"""Version of the workspace's layout."""


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a kill, finds the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.tmp")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    _sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically."""
    write_bytes(path, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


def write_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow table as Parquet, atomically."""
    with table_writer(path, table.schema) as writer:
        writer.write_table(table)


@contextlib.contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Write a Parquet file part by part, atomically: it is in its place when the context ends without an
    error."""
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.tmp")
    with pq.ParquetWriter(beside, schema, compression="zstd") as writer:
        yield writer
    sync_file(beside)
    os.replace(beside, path)
    _sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Force a file's content to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system can sync a folder; the rename stays atomic
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def link_tree(source: Path, target: Path) -> None:
    """A second name for each file of a folder where the file system can, else a copy: the target stays whole
    when the source is replaced. A target that is there is replaced."""

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:
            shutil.copy2(one, other)

    beside = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source, beside, copy_function=link)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(beside, target)


def digest(path: Path) -> str:
    """A hash of a file's content, or of a folder's file names and contents."""
    total = hashlib.blake2b(digest_size=16)
    for file in _files(path):
        total.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as handle:
            while block := handle.read(1 << 22):
                total.update(block)
    return total.hexdigest()


def size(path: Path) -> int:
    """Bytes of a file or of all files in a folder; -1 when absent."""
    if not path.exists():
        return -1
    return sum(file.stat().st_size for file in _files(path))


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folder of one fit. It holds paths and the manifest; the artefacts belong to the stages. Fits that
    belong together may share a ledger of generators."""

    path: Path
    shared_ledger: Path | None = None

    def artefact(self, name: str) -> Path:
        """The path of an artefact by its name in the layout."""
        return self.path / name

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
        return self.shared_ledger or self.path / "ledger.sqlite"

    @property
    def cache(self) -> Path:
        """Vectors of the corpus by models that are compared, kept from run to run; may be deleted."""
        return self.path / "cache"

    def check(self) -> None:
        """Raise WorkspaceError where a file or a foreign folder is in the way."""
        if self.path.is_file():
            raise WorkspaceError(f"{self.path} is a file, not a folder.", "Name another workspace with -o.")
        ours = self.manifest_file.exists() or (self.path / ".lock").exists()
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
                f"{self.path} is not a searchfit workspace (it has no manifest.json).",
                f"Make one with: searchfit fit SOURCE -o {self.path}",
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
                f"{self.path} has no finished search engine.",
                "Run searchfit fit to its end; the same command carries on where it stopped.",
            )
        return self.artefact(served["index"])

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Replace the manifest atomically."""
        write_json(self.manifest_file, manifest)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the right to write. Raises WorkspaceError at once when another process holds it.

        The lock belongs to the process: a killed writer leaves it free.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise WorkspaceError(
                f"another process is writing to {self.path}.",
                "Wait for it to end, or name another workspace.",
            ) from error
        try:
            yield
        finally:
            lock.release()

    def publish(self, stage: str, name: str) -> None:
        """Move an artefact from a stage's partial folder to its place, replacing what is there."""
        made, place = self.partial(stage) / name, self.artefact(name)
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
        _sync_folder(place.parent)
