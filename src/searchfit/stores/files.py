"""Arrays in files: written by appending, read through the memory map."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from searchfit.errors import WorkspaceError
from searchfit.writing import sync_file

REBUILD = "Rebuild it: searchfit fit with --force index."


class ArrayFile:
    """An array that grows on disk; `with` it to have it synced at the end."""

    def __init__(self, path: Path, kind: npt.DTypeLike) -> None:
        self._path, self._kind = path, np.dtype(kind)
        self._file = path.open("wb")

    def append(self, values: npt.ArrayLike) -> None:
        """Write values after those that are there; shapes are forgotten."""
        array = np.ascontiguousarray(values, self._kind)
        if array.size:
            self._file.write(array.reshape(-1).data.cast("B"))

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        sync_file(self._path)


def write_array(path: Path, values: npt.NDArray[Any]) -> None:
    """Write a whole array."""
    with ArrayFile(path, values.dtype) as file:
        file.append(values)


def open_array(path: Path, kind: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """The array of a file, memory-mapped. Raises WorkspaceError when it is absent or of another size."""
    expected = int(np.prod(shape)) * np.dtype(kind).itemsize
    try:
        if path.stat().st_size != expected:
            raise WorkspaceError(
                f"the index is damaged: {path} has {path.stat().st_size:,} bytes, {expected:,} are expected.",
                REBUILD,
            )
        if not expected:
            return np.empty(shape, kind)
        return np.asarray(np.memmap(path, kind, "r", shape=shape))
    except OSError as error:
        raise WorkspaceError(f"the index is damaged: {path}: {error.strerror}.", REBUILD) from error
