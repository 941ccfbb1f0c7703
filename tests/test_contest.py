"""Several base models in one run."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_tools import Done, cli, one_thread

import searchfit
from searchfit import contest
from searchfit.config import Settings, load_settings, to_toml
from searchfit.contest import Contest, run_names
from searchfit.errors import SettingsError
from searchfit.pipeline import Fit
from searchfit.recipe import STAGES
from searchfit.significance import compare, holm
from searchfit.workspace import Workspace

sys.path.insert(0, str(Path(__file__).parent / "generators"))

from faulty_server import FaultyServer


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two models whose names end alike, the second with other weights."""
    import torch
    from sentence_transformers import SentenceTransformer

    folder = tmp_path_factory.mktemp("models")
    first = shutil.copytree(tiny_model, folder / "Tiny model (1)")
    other = SentenceTransformer(str(tiny_model), device="cpu")
    torch.manual_seed(9)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    other.save(str(folder / "Tiny model [1]"))
    return str(first), str(folder / "Tiny model [1]")


@pytest.fixture(scope="module")
def settings(small_settings: Settings) -> Settings:
    values = {"generate.max_queries": 120, "train.epochs": 1, "choose.permutations": 200}
    return load_settings(base=small_settings, values=values)


@pytest.fixture(scope="module")
def root(settings: Settings, models: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished contest of both models."""
    path = tmp_path_factory.mktemp("contest") / "ws"
    with one_thread():
        list(Contest(Fit(Workspace(path), settings), models).run())
    return path


def fit(path: Path, settings: Settings, models: tuple[str, str], *options: str) -> Done:
    config = path.with_suffix(".toml")
    config.write_text(to_toml(settings), encoding="utf-8")
    return cli("fit", "-o", path, "--config", config, "--model", models[0], "--model", models[1], *options)


def leaderboard(root: Path) -> dict[str, Any]:
    board: dict[str, Any] = json.loads((root / "leaderboard.json").read_text(encoding="utf-8"))
    return board


def test_names_are_safe_and_distinct() -> None:
    models = (
        "org/model",
        "org-model",
        "ORG/Model",
        "../..",
        "/a/" + "x" * 80,
        "/b/" + "x" * 80,
        "é ü",
        "CON?",
    )
    names = run_names(models)
    assert list(names) == list(models)
    assert names["org/model"] == "org-model"
    assert len({name.lower() for name in names.values()}) == len(models)
    for name in names.values():
        assert name
        assert len(name) <= 70
        assert not {*name} - {*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"}
        assert not name.startswith((".", "-"))
    assert run_names(models[:2]) == {model: names[model] for model in models[:2]}
    with pytest.raises(SettingsError, match="twice"):
        run_names(("a", "b", "a"))


def test_the_leaderboard_says_what_the_runs_scored(
    root: Path, settings: Settings, models: tuple[str, str]
) -> None:
    board = leaderboard(root)
    assert Counter((row["model"], row["tuned"]) for row in board["rows"]) == Counter(
        (model, tuned) for model in models for tuned in (False, True)
    )
    assert [row["test"] for row in board["rows"]] == sorted(
        (row["test"] for row in board["rows"]), reverse=True
    )
    assert [(row["model"], row["tuned"]) for row in board["rows"] if row["wins"]] == [(board["winner"], True)]
    runs = {row["model"]: root / row["folder"] for row in board["rows"]}
    evidence = {model: Evidence(path) for model, path in runs.items()}
    common = evidence[models[0]].questions & evidence[models[1]].questions
    dev = sorted(question for question in common if question[0] == "dev")
    assert board["questions"] == {"kind": "generated", "dev": len(dev), "test": len(common) - len(dev)}
    assert len(dev) > 3
    for row in board["rows"]:
        for split in ("dev", "test"):
            asked = [question for question in common if question[0] == split]
            expected = evidence[row["model"]].mean(asked, row["tuned"])
            assert row[split] == pytest.approx(expected, abs=1e-6)
    before, after = (evidence[model].of(dev, tuned=True) for model in models)
    found = compare(before, after, permutations=200, samples=100, seed=settings.seed)
    wins = found.gain > 0 and holm([found.p])[0] < settings.choose.alpha
    assert board["winner"] == models[wins]


class Evidence:
    """What a run wrote of its evaluation; on generated questions dense legs are compared."""

    def __init__(self, run: Path) -> None:
        import pyarrow.parquet as pq

        chosen = json.loads((run / "evaluation" / "choice.json").read_text())["chosen"]["name"]
        self.rows = pq.read_table(run / "evaluation" / "queries.parquet").to_pylist()
        self.names = {tuned: self.leg(name) for tuned, name in ((False, "untuned engine"), (True, chosen))}

    @staticmethod
    def leg(name: str) -> str:
        return f"{name.removesuffix(' engine')} dense, engine's units"

    @property
    def questions(self) -> set[tuple[str, str, tuple[str, ...]]]:
        return {(row["split"], row["text"], tuple(sorted(row["relevant"]))) for row in self.rows}

    def of(self, questions: list[Any], tuned: bool) -> list[float]:
        by_question = {
            (row["split"], row["text"], tuple(sorted(row["relevant"]))): row[self.names[tuned]]
            for row in self.rows
        }
        return [by_question[question] for question in questions]

    def mean(self, questions: list[Any], tuned: bool) -> float:
        return float(np.mean(self.of(questions, tuned)))


def test_the_winner_is_served(root: Path, models: tuple[str, str]) -> None:
    board = leaderboard(root)
    folder = next(row["folder"] for row in board["rows"] if row["wins"])
    question = "pruning the rose hedge"
    found = [hit.document_id for hit in searchfit.open(root).search(question)]
    assert found == [hit.document_id for hit in searchfit.open(root / folder).search(question)]
    done = cli("search", root, question, "--json")
    assert done.returncode == 0, done.stderr
    assert [hit["document_id"] for hit in json.loads(done.stdout)] == found

    done = cli("status", root)
    assert done.returncode == 0, done.stderr
    assert f"from {folder}/index/" in done.stdout
    for model in models:
        assert Path(model).name in done.stdout.replace("\n", "")
    assert json.loads(cli("status", root, "--json").stdout)["leaderboard"] == board


def test_each_model_is_a_model_folder(root: Path, models: tuple[str, str]) -> None:
    from sentence_transformers import SentenceTransformer

    for name in run_names(models).values():
        tuned = SentenceTransformer(str(root / "models" / name), device="cpu")
        same = SentenceTransformer(str(root / "runs" / name / "models" / "tuned"), device="cpu")
        np.testing.assert_array_equal(tuned.encode_query(["oven"]), same.encode_query(["oven"]))


def test_a_second_run_does_nothing(root: Path, settings: Settings, models: tuple[str, str]) -> None:
    before = leaderboard(root), Workspace(root).served()
    done = fit(root, settings, models, "--json")
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)
    expected = [(model, stage.name) for model in models for stage in STAGES]
    assert [(step["model"], step["stage"]) for step in steps] == expected
    assert not any(step["why"] for step in steps)
    assert (leaderboard(root), Workspace(root).served()) == before


def test_a_dry_run_writes_nothing(tmp_path: Path, settings: Settings, models: tuple[str, str]) -> None:
    done = fit(tmp_path / "ws", settings, models, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert {step["model"] for step in json.loads(done.stdout)} == {*models}
    assert all(step["why"] for step in json.loads(done.stdout))
    assert not (tmp_path / "ws").exists()


class Killed(BaseException):
    """Stands for a kill."""


def test_a_killed_contest_carries_on(
    root: Path, settings: Settings, models: tuple[str, str], tmp_path: Path
) -> None:
    def kill(label: str, done: int, total: int, note: str = "") -> None:  # noqa: ARG001
        if label == "train" and done == 2:
            raise Killed

    work = Fit(Workspace(tmp_path / "ws"), settings)
    with one_thread():
        for _ in models:
            with pytest.raises(Killed):
                list(Contest(replace(work, progress=kill), models).run())
        assert not (tmp_path / "ws" / "leaderboard.json").exists()
        steps = list(Contest(work, models).run())
    again = [step.stage for model, step in steps if step.why and model == models[0]]
    assert again[:1] == ["train"]
    assert leaderboard(tmp_path / "ws") == leaderboard(root)


def test_generators_are_asked_once_for_all_models(
    settings: Settings, models: tuple[str, str], tmp_path: Path
) -> None:
    values = {"generate.generator": "openai:any", "generate.per_passage": 2, "generate.max_queries": 40}
    asks = load_settings(base=settings, values=values)
    server = FaultyServer()
    try:
        done = fit(tmp_path / "ws", asks, models, "--base-url", server.url, "--until", "generate")
        assert done.returncode == 0, done.stderr
        asked, answered = Counter(server.calls), Counter(server.answered)
    finally:
        server.close()
    assert len(asked) >= 10
    assert set(asked.values()) == {1}
    assert asked == answered
    for name in run_names(models).values():
        entry = Workspace(tmp_path / "ws" / "runs" / name).manifest()["stages"]["generate"]
        assert entry["counts"]["queries"] >= 20
    assert not (tmp_path / "ws" / "leaderboard.json").exists()


QUESTIONS = [("dev", f"question {n}", ("d",)) for n in range(40)]


def run_of(model: str, tuned: Any) -> contest.Run:
    scores = np.asarray(tuned, np.float64)
    return contest.Run(model, model, "engine", list(QUESTIONS), scores, scores, judged=True)


def test_the_first_model_wins_unless_another_is_better_for_sure(settings: Settings) -> None:
    random = np.random.default_rng(0)
    base = random.random(40) * 0.5
    first = run_of("first", base)
    same, lucky = run_of("same", base), run_of("lucky", base + random.normal(0.01, 0.2, 40))
    better, best = run_of("better", base + 0.2), run_of("best", base + 0.3)
    assert contest._winner([first, same], QUESTIONS, settings)[0] is first
    assert contest._winner([first, lucky, same], QUESTIONS, settings)[0] is first
    assert contest._winner([first, same, better], QUESTIONS, settings)[0] is better
    assert contest._winner([first, better, best, lucky], QUESTIONS, settings)[0] is best
    assert contest._winner([better, first], QUESTIONS, settings)[0] is better
    winner, reason = contest._winner([first, best], [], settings)
    assert winner is first
    assert "no dev questions" in reason


def test_the_p_values_are_corrected_for_the_number_of_models(settings: Settings) -> None:
    gains = np.zeros(40)
    gains[:6] = 0.1  # six wins and no loss: p = 2 / 64 = 0.031, which two models double
    first, other = run_of("first", np.zeros(40)), run_of("other", gains)
    third = run_of("third", np.zeros(40))
    assert settings.choose.alpha == 0.05
    assert contest._winner([first, other], QUESTIONS, settings)[0] is other
    assert contest._winner([first, other, third], QUESTIONS, settings)[0] is first


def test_a_contest_is_compared_as_its_runs(root: Path, corpus: list[Any], tmp_path: Path) -> None:
    from searchfit.compare import compare_on, compare_workspaces

    board = compare_workspaces([root], common=True)
    leaderboard = json.loads((root / "leaderboard.json").read_text())
    assert {row.workspace for row in board.rows} == {str(root / row["folder"]) for row in leaderboard["rows"]}
    scores = {(row["folder"], row["engine"]): row["test"] for row in leaderboard["rows"]}
    for row in board.rows:
        folder = Path(row.workspace).relative_to(root).as_posix()
        assert row.score == pytest.approx(scores[folder, row.engine], abs=1e-6)

    (tmp_path / "qrels").mkdir()
    questions = [{"_id": doc.id, "text": doc.title} for doc in corpus[:12]]
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, questions)))
    lines = "".join(f"{doc.id}\t{doc.id}\t1\n" for doc in corpus[:12])
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    with one_thread():
        judged = compare_on([root], tmp_path)
    assert (judged.questions, judged.kind, judged.compared) == (12, "judged", "whole engines")
    assert {row.workspace for row in judged.rows} == {row.workspace for row in board.rows}
    assert all(row.score > 0.3 for row in judged.rows)  # titles are in what the engines search
