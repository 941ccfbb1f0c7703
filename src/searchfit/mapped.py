"""Arrays in files that may be larger than memory: mapped, read or written in order, and let go of behind."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_LARGE = 1 << 30
_FEW = 128


def let_go(*arrays: npt.NDArray[Any]) -> None:
    """Give back the memory of what was read or written so far of mapped arrays, or views of them: it counts
    as this process's own as long as it is mapped. What was written is kept; what is asked for again is read
    again, most often from the system's cache. Other arrays are left as they are."""
    for array in arrays:
        base: Any = array
        while isinstance(base, np.ndarray):
            held = getattr(base, "_mmap", None)
            if isinstance(held, mmap.mmap) and hasattr(held, "madvise"):
                held.madvise(mmap.MADV_DONTNEED)
                break
            base = base.base


def is_large(array: npt.NDArray[Any]) -> bool:
    """Whether an array is so large that no more of it should be held than is worked on: above 1 GiB."""
    return array.nbytes > _LARGE


def rows_of(array: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """array[rows]. Of a large one a few rows at a time: the system maps up to 2 MiB around each."""
    if not is_large(array):
        return np.asarray(array[rows])
    found = np.empty((len(rows), *array.shape[1:]), array.dtype)
    for start in range(0, len(rows), _FEW):
        part = slice(start, start + _FEW)
        found[part] = array[rows[part]]
        let_go(array)
    return found


def scratch_array(path: Path | None, kind: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """An array to be filled: in a file that is replaced, or in memory where none is named."""
    if path is None or not all(shape):
        return np.empty(shape, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    return np.memmap(path, kind, "w+", shape=shape)
