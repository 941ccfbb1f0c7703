from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from searchfit import writing
from searchfit.errors import WorkspaceError
from searchfit.workspace import FORMAT, Workspace
from searchfit.writing import digest, size, write_bytes, write_json, write_table

HOLDER = """
import sys
from pathlib import Path
from searchfit.workspace import Workspace
with Workspace(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_lock_that_another_process_holds_is_refused_and_dies_with_it(tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(WorkspaceError, match="another process"), space.lock():
            pass
        holder.kill()
        holder.wait()
    with space.lock():
        pass
    with space.lock():  # and it was given back
        pass


def test_the_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    with pytest.raises(ZeroDivisionError), space.lock():
        _ = 1 / 0
    with space.lock():
        pass


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    file = tmp_path / "deep" / "file.json"
    write_json(file, {"old": 1})
    old = file.read_bytes()
    table = tmp_path / "table.parquet"
    write_table(table, pa.table({"a": [1, 2]}))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_bytes(file, b"new" * 1000)
        with pytest.raises(KeyboardInterrupt):
            write_table(table, pa.table({"a": [3]}))
    assert file.read_bytes() == old
    assert pq.read_table(table).to_pydict() == {"a": [1, 2]}
    write_bytes(file, b"new")
    assert file.read_bytes() == b"new"
    assert [path.name for path in file.parent.iterdir()] == ["file.json"]


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(WorkspaceError, match="is a file"):
        Workspace(file).create()
    with pytest.raises(WorkspaceError, match="cannot make"):
        Workspace(file / "below").create()
    assert file.read_text() == "mine"


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(WorkspaceError, match="not empty and is not a searchfit workspace"):
        Workspace(tmp_path).create()
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_new_empty_and_started_folders_become_workspaces(tmp_path: Path) -> None:
    for name in ("new/deep", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        space = Workspace(tmp_path / name)
        space.create()
        with space.lock():
            pass
        (space.path / "documents.parquet").write_bytes(b"")
        space.create()  # killed before its first manifest, it is still known as ours
        with pytest.raises(WorkspaceError, match=r"no manifest\.json"):
            space.require()
        space.write_manifest(space.manifest())
        space.require()
        assert space.manifest() == {"format": FORMAT, "stages": {}}


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 1, "stages"', b"\xff\xfe"])
def test_a_damaged_manifest_is_an_error(tmp_path: Path, content: bytes) -> None:
    space = Workspace(tmp_path)
    space.manifest_file.write_bytes(content)
    with pytest.raises(WorkspaceError, match="damaged") as caught:
        space.manifest()
    assert "Remove it" in caught.value.hint


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"format": 999, "stages": {}}'])
def test_a_manifest_of_another_version_is_an_error(tmp_path: Path, content: str) -> None:
    space = Workspace(tmp_path)
    space.manifest_file.write_text(content)
    with pytest.raises(WorkspaceError, match="another version"):
        space.manifest()


def _tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        write_bytes(root / name, data)
    return root


def test_digests_tell_names_and_contents(tmp_path: Path) -> None:
    base = {"a/x.bin": b"12", "b.bin": b"3" * 5000}
    trees = [
        base,
        {"a/x.bin": b"12", "b.bin": b"3" * 4999 + b"4"},
        {"a/y.bin": b"12", "b.bin": b"3" * 5000},
        {"a/x.bin": b"12"},
    ]
    digests = [digest(_tree(tmp_path / str(number), tree)) for number, tree in enumerate(trees)]
    assert len(set(digests)) == 4
    assert digest(_tree(tmp_path / "again", dict(reversed(base.items())))) == digests[0]
    assert digest(tmp_path / "0" / "b.bin") != digest(tmp_path / "1" / "b.bin")
    assert size(tmp_path / "0") == 5002
    assert size(tmp_path / "0" / "a" / "x.bin") == 2
    assert size(tmp_path / "nothing") == -1


def test_publishing_replaces_files_and_folders(tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    for content in (b"one", b"two"):
        _tree(space.partial("stage"), {"models/tuned/w": content, "pairs.parquet": content})
        if content == b"one":
            write_bytes(space.partial("stage") / "models/tuned/extra", b"")
        space.publish("stage", "models/tuned")
        space.publish("stage", "pairs.parquet")
        assert (space.artefact("models/tuned") / "w").read_bytes() == content
        assert space.artefact("pairs.parquet").read_bytes() == content
    assert [path.name for path in space.artefact("models/tuned").iterdir()] == ["w"]
    assert not any(space.partial("stage").rglob("w"))
    assert [path.name for path in (tmp_path / ".partial").iterdir()] == ["stage"]


def test_the_parent_folder_of_a_write_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(writing, "sync_folder", synced.append)
    write_bytes(tmp_path / "f", b"x")
    assert synced == [tmp_path]
