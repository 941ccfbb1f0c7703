from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from searchfit import mapped
from searchfit.mapped import is_large, let_go, rows_of, scratch_array


def resident() -> int:
    """MiB of files that are mapped into this process."""
    found = re.search(r"RssFile:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) >> 10


@pytest.fixture
def table(tmp_path: Path) -> Path:
    np.save(tmp_path / "table.npy", np.arange(16 << 20, dtype=np.float32).reshape(-1, 64))
    return tmp_path / "table.npy"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells nothing of its memory")
def test_what_was_read_is_given_back(table: Path) -> None:
    array = np.load(table, mmap_mode="r")
    for view in (array, np.asarray(array)[5:]):
        before = resident()
        total = float(view[-1].sum()), view.max()
        assert resident() > before + 50
        let_go(view)
        assert resident() < before + 10
        assert (float(view[-1].sum()), view.max()) == total
        let_go(view)


def test_what_was_written_is_kept(tmp_path: Path) -> None:
    array = scratch_array(tmp_path / "new" / "array", np.int64, (3, 1000))
    array[:] = np.arange(3000).reshape(3, 1000)
    let_go(array)
    assert (array == np.arange(3000).reshape(3, 1000)).all()
    del array
    assert (np.fromfile(tmp_path / "new" / "array", np.int64) == np.arange(3000)).all()


@pytest.mark.parametrize("shape", [(3, 4), (3, 0)])
def test_in_memory_where_no_file_is_named(tmp_path: Path, shape: tuple[int, int]) -> None:
    array = scratch_array(None, np.int32, shape)
    let_go(array)  # as it is
    assert array.shape == shape
    assert scratch_array(tmp_path / "array", np.int32, shape).shape == shape


def test_rows_of_a_large_array(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.load(table, mmap_mode="r")
    rows = np.random.default_rng(1).integers(0, len(array), 1000)
    assert not is_large(array)
    assert (rows_of(array, rows) == array[rows]).all()
    monkeypatch.setattr(mapped, "_LARGE", 1 << 20)
    assert is_large(array)
    before = resident()
    found = rows_of(array, rows)
    assert resident() < before + 40
    assert (found == array[rows]).all()
    assert rows_of(array, rows[:0]).shape == (0, 64)
