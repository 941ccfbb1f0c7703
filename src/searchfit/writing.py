"""Files and folders that are written whole: a reader, or a kill, finds what was there or what is new."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    import pyarrow.parquet as pq


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a kill, finds the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.tmp")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    sync_folder(path.parent)


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
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Force a file's content to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Force the names in a folder to disk."""
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
    for file in files_of(path):
        total.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as handle:
            while block := handle.read(1 << 22):
                total.update(block)
    return total.hexdigest()


def size(path: Path) -> int:
    """Bytes of a file or of all files in a folder; -1 when absent."""
    if not path.exists():
        return -1
    return sum(file.stat().st_size for file in files_of(path))


def files_of(path: Path) -> list[Path]:
    """A file, or the files of a folder in the order of their names."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
