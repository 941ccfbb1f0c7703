from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pipeline_tools import cli
from test_export import save, write_workspace

from searchfit.errors import SettingsError, WorkspaceError
from searchfit.records import SCREENED
from searchfit.screened import Wanted, screened_queries


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("screened") / "ws"
    write_workspace(folder)
    return folder


@pytest.fixture(scope="module")
def rows(workspace: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(workspace / "screened.parquet").to_pylist())


def test_all_are_listed_with_their_document(workspace: Path, rows: list[dict[str, Any]]) -> None:
    found = list(screened_queries(workspace))
    assert len(found) == 60
    for record, row in zip(found, rows, strict=True):
        same = ("id", "text", "passage_id", "style", "generator", "rank", "reason")
        assert record == {**{name: row[name] for name in same}, "document_id": f"d{row['document']}"}


@pytest.mark.parametrize(
    ("wanted", "test"),
    [
        (Wanted(kept=True), lambda row: not row["reason"]),
        (Wanted(kept=False), lambda row: row["reason"]),
        (Wanted(reason="SAYS 1"), lambda row: row["reason"].endswith("says 1")),
        (Wanted(style="title"), lambda row: row["style"] == "title"),
        (Wanted(generator="t5"), lambda row: row["generator"] == "t5"),
        (Wanted(document="d3"), lambda row: row["document"] == 3),
        (Wanted(contains="PLAIN words"), lambda row: "plain words" in row["text"]),
        (Wanted(contains="A1:A9) ("), lambda _: False),
        (
            Wanted(True, style="crop", document="d2"),
            lambda r: (r["reason"], r["style"], r["document"]) == ("", "crop", 2),
        ),
    ],
)
def test_filters(workspace: Path, rows: list[dict[str, Any]], wanted: Wanted, test: Any) -> None:
    expected = [row["id"] for row in rows if test(row)]
    assert [record["id"] for record in screened_queries(workspace, wanted)] == expected
    assert wanted.contains.endswith("(") or 0 < len(expected) < 60


def test_what_is_not_there_says_so(workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no document 'nobody'"):
        list(screened_queries(workspace, Wanted(document="nobody")))
    with pytest.raises(WorkspaceError, match="is not a searchfit workspace"):
        list(screened_queries(tmp_path))
    write_workspace(tmp_path / "early")
    (tmp_path / "early" / "screened.parquet").unlink()
    with pytest.raises(WorkspaceError, match="not come to the stage screen") as caught:
        list(screened_queries(tmp_path / "early"))
    assert "--until screen" in caught.value.hint


def test_the_command_prints_a_line_for_each(workspace: Path, rows: list[dict[str, Any]]) -> None:
    done = cli("queries", workspace, "--limit", 0)
    lines = done.stdout.splitlines()
    assert len(lines) == 60
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    for line, row in zip(lines, rows, strict=True):
        cells = row["passage_id"], row["style"], row["generator"], row["reason"] or "kept"
        assert all(cell in line for cell in cells)


def test_the_command_s_limit_and_filters(workspace: Path) -> None:
    done = cli("queries", workspace)
    assert len(done.stdout.splitlines()) == 50
    assert "the first 50" in done.stderr
    done = cli("queries", workspace, "--dropped", "--reason", "says 1", "--json", "--limit", 3)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == 3
    assert {record["reason"] for record in records} == {"too short, says 1"}
    assert cli("queries", workspace, "--kept", "--limit", 45).stderr == ""
    done = cli("queries", workspace, "--style", "nobody's")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no such query\n")


def test_very_many_are_streamed(workspace: Path, tmp_path: Path) -> None:
    import shutil
    import tracemalloc

    many = shutil.copytree(workspace, tmp_path / "many")
    row = ("q", "text", "d0#0", "crop", "phrases", 1, 0, 1, "")
    save(many / "screened.parquet", [row] * 100_000, SCREENED)
    tracemalloc.start()
    assert len(list(zip(range(5), screened_queries(many), strict=False))) == 5
    assert sum(1 for _ in screened_queries(many)) == 100_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000
