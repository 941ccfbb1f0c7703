"""Leaderboards over workspaces: the same questions, the test and its correction, what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pipeline_tools import cli

from searchfit.compare import compare_workspaces
from searchfit.config import load_settings, to_toml
from searchfit.errors import SettingsError, WorkspaceError
from searchfit.records import Engine
from searchfit.significance import compare, holm

COUNT = 40


def finished(
    path: Path,
    scores: Sequence[float],
    questions: Sequence[str] | None = None,
    kind: str = "judged",
    corpus: str = "same",
) -> Path:
    """A workspace whose tuned engine has these scores on its test questions, and its untuned one 0.1 less."""
    folder = path / "evaluation"
    folder.mkdir(parents=True)
    tuned = Engine("tuned engine", query_tower=1.0)
    engines = [("candidate", Engine("untuned engine")), ("candidate", tuned)]
    dense = [("baseline", Engine(f"{e.name} alone", e.query_tower, keyword_weight=0)) for _, e in engines]
    rows = [{"name": e.name, "kind": kind_, "engine": e.to_dict()} for kind_, e in (*engines, *dense)]
    (folder / "systems.json").write_text(json.dumps({"questions": kind, "systems": rows}))
    (folder / "choice.json").write_text(json.dumps({"chosen": tuned.to_dict()}))
    texts = questions or [f"question {n}" for n in range(len(scores))]
    table = {"split": ["test"] * len(texts) + ["dev"], "text": [*texts, "a dev question"]}
    table["relevant"] = [[f"d{n}"] for n in range(len(texts) + 1)]
    values = np.array([*scores, 0.0])
    for name, column in (("untuned engine", values - 0.1), ("tuned engine", values)):
        table |= {name: column, f"{name} alone": column / 2}
    pq.write_table(pa.table(table), folder / "queries.parquet")
    made = {"ingest": {"artefacts": {"documents.parquet": {"digest": corpus}}}}
    (path / "manifest.json").write_text(json.dumps({"format": 1, "stages": made}))
    settings = load_settings(values={"choose.permutations": 500, "choose.bootstrap": 200})
    (path / "searchfit.toml").write_text(to_toml(settings))
    return path


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    random = np.random.default_rng(0)
    base = random.uniform(0.2, 0.6, COUNT)
    moved = (base, base + random.normal(0.02, 0.1, COUNT), base + 0.2)
    return [finished(tmp_path / f"ws{n}", scores.tolist()) for n, scores in enumerate(moved)]


def test_the_board_is_sorted_and_tested_against_the_first(three: list[Path]) -> None:
    board = compare_workspaces(three)
    assert (board.questions, board.kind, board.compared) == (COUNT, "judged", "whole engines")
    assert board.rows[0].workspace == str(three[2])
    assert [row.score for row in board.rows] == sorted((row.score for row in board.rows), reverse=True)
    columns = {}
    for path in three:
        table = pq.read_table(path / "evaluation" / "queries.parquet").slice(0, COUNT)
        columns[str(path), True] = table["tuned engine"].to_numpy()
        columns[str(path), False] = table["untuned engine"].to_numpy()
    first = columns.pop((str(three[0]), True))
    tests = {
        key: compare(first, other, permutations=500, samples=200, seed=13) for key, other in columns.items()
    }
    corrected = dict(zip(tests, holm([test.p for test in tests.values()]), strict=True))
    for row in board.rows:
        if (row.workspace, row.tuned) == (str(three[0]), True):
            assert (row.p, row.gain, row.score) == (None, 0.0, pytest.approx(first.mean()))
            continue
        test = tests[row.workspace, row.tuned]
        assert (row.gain, row.low, row.high) == (test.gain, test.low, test.high)
        assert row.p == pytest.approx(corrected[row.workspace, row.tuned])
    assert sum(row.p is None for row in board.rows) == 1


def test_generated_questions_compare_vectors_alone(tmp_path: Path) -> None:
    paths = [finished(tmp_path / n, [0.4 + 0.1 * i] * 9, kind="generated") for i, n in enumerate("ab")]
    board = compare_workspaces(paths)
    assert "vectors alone" in board.compared
    assert board.rows[0].score == pytest.approx(0.25)


def test_other_questions_are_refused_or_left_aside(tmp_path: Path) -> None:
    texts = [f"question {n}" for n in range(10)]
    one = finished(tmp_path / "one", [0.5] * 10, texts)
    other = finished(tmp_path / "other", [0.1] * 4 + [0.9] * 6, [*texts[:4], *(f"{t}?" for t in texts[4:])])
    with pytest.raises(WorkspaceError, match=r"one 10, .*other 10; 4 are in all.*'question 4' of .*one") as e:
        compare_workspaces([one, other])
    assert "--common" in e.value.hint
    board = compare_workspaces([one, other], common=True)
    assert board.questions == 4
    assert "Only the 4 test questions" in board.notes[0]
    assert [row.score for row in board.rows if row.tuned] == pytest.approx([0.5, 0.1])
    strange = finished(tmp_path / "strange", [0.5] * 3, ["x", "y", "z"])
    with pytest.raises(WorkspaceError, match="no test question in common"):
        compare_workspaces([one, strange], common=True)


def test_what_is_no_comparison_is_said(tmp_path: Path, three: list[Path]) -> None:
    with pytest.raises(SettingsError, match="one workspace was named"):
        compare_workspaces(three[:1])
    with pytest.raises(SettingsError, match="named twice"):
        compare_workspaces([three[0], three[0] / "." / "evaluation" / ".."])
    generated = finished(tmp_path / "generated", [0.5] * COUNT, kind="generated")
    with pytest.raises(WorkspaceError, match=r"judged questions, .* on generated"):
        compare_workspaces([three[0], generated])
    (generated / "evaluation" / "choice.json").unlink()
    with pytest.raises(WorkspaceError, match="has not been evaluated"):
        compare_workspaces([three[0], generated])
    grown = finished(tmp_path / "grown", [0.5] * COUNT, corpus="larger")
    assert "same documents" in compare_workspaces([three[0], grown]).notes[0]


def test_the_command_prints_a_table_json_or_markdown(
    three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = cli("compare", *three)
    assert shown.returncode == 0, shown.stderr
    assert "Holm" in shown.stderr
    monkeypatch.chdir(three[0].parent)
    short = cli("compare", *(one.name for one in three)).stdout.splitlines()
    assert max(len(line.rstrip()) for line in short) <= 80
    board = json.loads(cli("compare", *three, "--json").stdout)
    assert board["metric"] == "ndcg@10"
    lines = cli("compare", *three, "--markdown").stdout.splitlines()
    cells = [re.split(r" *\| *", line)[1:-1] for line in lines if line.startswith("| ")]
    assert [row[3] for row in cells[1:]] == [f"{row['score']:.4f}" for row in board["rows"]]
    assert cli("compare", three[0], three[0].parent).returncode == 1
