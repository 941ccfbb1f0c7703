"""A fit is done once: what runs again, and what does not, after each kind of change."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from pipeline_tools import (
    CUT,
    SMALL,
    Corpus,
    children_seconds,
    cli,
    environment,
    fit,
    options,
    ran,
    settings,
    tiny_model,
    write_corpus,
)

import searchfit
from searchfit.config import Settings, load_settings, to_toml
from searchfit.errors import SearchfitError, SettingsError, SourceError, WorkspaceError
from searchfit.pipeline import Fit, Step
from searchfit.recipe import STAGES
from searchfit.search import open_searcher
from searchfit.workspace import Workspace

ALL = [stage.name for stage in STAGES]
QUESTION = "ceiling with painted comets"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """With a tiny model: here it matters what runs, not how well it ranks."""
    folder = tmp_path_factory.mktemp("source")
    return Corpus(write_corpus(folder / "places.csv"), str(tiny_model(folder)))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Path:
    """A fitted workspace that no test may change."""
    path = tmp_path_factory.mktemp("fitted") / "ws"
    assert ran(fit(path, corpus)) == ALL
    return path


@pytest.fixture
def workspace(tmp_path: Path, fitted: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(fitted, tmp_path / "ws"))


def plan(path: Path, corpus: Corpus, **changes: Any) -> list[Step]:
    return list(Fit(Workspace(path), settings(corpus, **changes)).plan())


def tree(path: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file."""
    return {
        str(file): (file.stat().st_size, file.stat().st_mtime_ns)
        for file in path.rglob("*")
        if file.is_file()
    }


def test_a_second_fit_does_nothing_quickly(tmp_path: Path, corpus: Corpus) -> None:
    """With the built-in model, whose 90 MB are hashed each time."""
    few = tmp_path / "few.csv"
    few.write_text("".join(corpus.source.read_text(encoding="utf-8").splitlines(True)[:6]), encoding="utf-8")
    real, path = Corpus(few), tmp_path / "ws"
    assert ran(fit(path, real)) == ALL
    code = (
        "import sys\nfrom searchfit.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print('loaded', sorted({'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, "fit", "-o", str(path), *options(real)]
    seconds: list[float] = []
    while len(seconds) < 3 and min(seconds, default=99.0) >= 3:
        before = {k: v for k, v in tree(path).items() if not k.endswith("searchfit.toml")}
        started = children_seconds()
        done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment(), check=False)
        seconds.append(children_seconds() - started)
        assert done.returncode == 0, done.stderr
        assert "nothing to do" in done.stderr
        assert "loaded []" in done.stdout
        assert {k: v for k, v in tree(path).items() if not k.endswith("searchfit.toml")} == before
    assert min(seconds) < 3


# Every change with the stages that have to run, and no other; the index too when the choice is another.
CHANGES: list[tuple[dict[str, Any], list[str]]] = [
    # No document is that long, so the passages come out the same; the index notes how additions are split.
    ({"split__max_chars": 2000}, ["split", "index", "report"]),
    ({"holdout__near_duplicate": 0.99}, ["holdout", "label", "report"]),
    # Other part files with the same queries in them give the same pairs.
    ({"generate__part_passages": 7}, ["generate", "screen", "holdout", "report"]),
    ({"screen__min_chars": 5}, ["screen", "report"]),
    ({"screen__top_k": 1}, ["screen", "mine", "train", "reencode", "evaluate", "choose", "report"]),
    ({"train__enabled": False}, ["train", "reencode", "evaluate", "choose", "report"]),
    ({"mine__candidates": 3}, ["mine", "train", "reencode", "evaluate", "choose", "report"]),
    ({"train__epochs": 2}, ["train", "reencode", "evaluate", "choose", "report"]),
    ({"evaluate__merges": (0.5,)}, ["evaluate", "choose", "report"]),
    ({"choose__bootstrap": 100}, ["choose", "report"]),
    # Passages are as they were, so there is nothing to encode anew.
    ({"reencode__merges": (0.25,)}, ["reencode", "evaluate", "report"]),
    ({"pretrain__epochs": 2}, ["pretrain", "report"]),
    ({"pairs__query": ("question",)}, ["ingest", "label", "report"]),
    (
        {"seed": 14},
        [stage for stage in ALL if stage not in ("ingest", "split", "keyword", "encode", "index")],
    ),
]


@pytest.mark.parametrize(("change", "expected"), CHANGES, ids=[next(iter(change)) for change, _ in CHANGES])
def test_a_changed_setting_runs_what_depends_on_it(
    workspace: Path, corpus: Corpus, change: dict[str, Any], expected: list[str]
) -> None:
    due = ran(plan(workspace, corpus, **change))
    choice = workspace / "evaluation" / "choice.json"
    before = choice.read_bytes()
    done = ran(fit(workspace, corpus, **change))
    assert done == [s for s in ALL if s in expected or (s == "index" and choice.read_bytes() != before)]
    # The plan cannot know which artefacts will come out the same, so it may hold more, never less.
    assert set(done) <= set(due)
    assert ran(fit(workspace, corpus, **change)) == []
    assert open_searcher(workspace).search(QUESTION, k=1)[0].title.startswith("painted")


def test_long_passages_are_cut_and_everything_after_is_made_anew(workspace: Path, corpus: Corpus) -> None:
    expected = [stage for stage in ALL if stage != "ingest"]
    assert ran(fit(workspace, corpus, **CUT)) == expected


def test_keyword_settings_leave_the_passages_and_the_holdout(workspace: Path, corpus: Corpus) -> None:
    stages = ran(fit(workspace, corpus, keyword__k1=1.9))
    assert {"keyword", "index", "report"} <= set(stages)
    assert not {"ingest", "split", "encode", "holdout"} & set(stages)
    assert open_searcher(workspace).corpus.info["keyword"]["k1"] == 1.9


def test_touching_the_source_reads_it_again_and_nothing_else(
    workspace: Path, corpus: Corpus, tmp_path: Path
) -> None:
    mine = replace(corpus, source=write_corpus(tmp_path / "mine.csv"))
    fit(workspace, mine)
    os.utime(mine.source, ns=(1, 1))
    # The report tells when each stage ran, so it is written anew.
    assert ran(fit(workspace, mine)) == ["ingest", "report"]
    assert ran(fit(workspace, mine)) == []


def test_a_changed_document_is_found_after_a_fit(workspace: Path, corpus: Corpus, tmp_path: Path) -> None:
    mine = replace(corpus, source=write_corpus(tmp_path / "mine.csv"))
    with mine.source.open("a", encoding="utf-8") as file:
        file.write(
            "doc-new,submarine museum,A museum of submarines with a periscope to look through.,5,5,Mahon\n"
        )
    # Without words: a model of random weights would drown the keyword.
    stages = ran(fit(workspace, mine, engine__token_weight=0))
    assert stages[:4] == ["ingest", "split", "keyword", "encode"]
    assert stages[-2:] == ["index", "report"]
    assert open_searcher(workspace).search("periscope", k=1)[0].document_id == "doc-new"


DAMAGE = [
    ("documents.parquet", ["ingest", "report"]),
    ("passages.parquet", ["split", "report"]),
    ("encoded/sentences.npy", ["encode", "report"]),
    ("queries/part-00000.parquet", ["generate", "report"]),
    ("pairs.parquet", ["screen", "report"]),
    ("labelled.parquet", ["label", "report"]),
    ("models/pretrained/towers.json", ["pretrain", "report"]),
    ("mined/queries.parquet", ["mine", "report"]),
    ("models/trained/query_tower.safetensors", ["train", "report"]),
    ("models/trained/course.csv", ["train", "report"]),
    ("encoded_tuned/shares.json", ["reencode", "report"]),
    ("evaluation/choice.json", ["choose", "report"]),
    ("engine.json", ["index", "report"]),
    ("report.html", ["report"]),
    ("report.json", ["report"]),
    ("models/tuned/README.md", ["choose", "report"]),
]


@pytest.mark.parametrize(("name", "expected"), DAMAGE, ids=[name for name, _ in DAMAGE])
@pytest.mark.parametrize("how", ["deleted", "truncated"])
def test_damage_is_mended(workspace: Path, corpus: Corpus, name: str, expected: list[str], how: str) -> None:
    file = workspace / name
    before = file.read_bytes()
    if how == "deleted":
        file.unlink()
    else:
        # Written anew, for the index shares the model's files by hard links.
        file.unlink()
        file.write_bytes(before[:-1])
    stages = ran(fit(workspace, corpus))
    assert stages == expected
    if name not in {"report.html", "report.json", "engine.json"}:
        assert file.read_bytes() == before
    assert open_searcher(workspace).search(QUESTION, k=1)[0].title.startswith("painted")


def test_a_damaged_index_is_mended(workspace: Path, corpus: Corpus) -> None:
    index = open_searcher(workspace).folder
    shutil.rmtree(index / "passages.lance")
    with pytest.raises(WorkspaceError):
        open_searcher(workspace)
    assert ran(fit(workspace, corpus)) == ["index", "report"]
    assert open_searcher(workspace).search(QUESTION, k=1)[0].title.startswith("painted")


def test_a_dry_run_changes_nothing(workspace: Path, corpus: Corpus, tmp_path: Path) -> None:
    before = tree(workspace)
    assert ran(plan(workspace, corpus)) == []
    steps = plan(workspace, corpus, train__epochs=3)
    assert ran(steps) == ["train", "reencode", "evaluate", "choose", "index", "report"]
    assert "settings train" in next(step.why for step in steps if step.stage == "train")
    assert all(step.result is None for step in steps)
    assert tree(workspace) == before
    assert ran(plan(tmp_path / "new", corpus)) == ALL
    assert not (tmp_path / "new").exists()


def test_a_dry_run_on_the_command_line(workspace: Path, corpus: Corpus) -> None:
    before = tree(workspace)
    done = cli("fit", "-o", workspace, "--dry-run", *options(corpus, screen__top_k=3))
    assert done.returncode == 0
    lines = {line.split()[0]: line for line in done.stderr.splitlines()}
    assert "up to date" in lines["split"]
    assert "would run: changed: settings screen" in lines["screen"]
    assert tree(workspace) == before


def test_force_runs_a_stage_and_what_changes_by_it(workspace: Path, corpus: Corpus) -> None:
    assert ran(fit(workspace, corpus, force=["split"])) == ["split", "report"]
    assert ran(fit(workspace, corpus, force=["screen", "choose"])) == ["screen", "choose", "report"]
    assert ran(fit(workspace, corpus)) == []


@pytest.mark.parametrize("option", [{"force": ["trian"]}, {"until": "trian"}])
def test_an_unknown_stage_names_those_there_are(
    tmp_path: Path, corpus: Corpus, option: dict[str, Any]
) -> None:
    with pytest.raises(SettingsError, match="trian") as caught:
        fit(tmp_path / "ws", corpus, **option)
    assert all(stage in caught.value.hint for stage in ALL)
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize("option", [["--force", "trian"], ["--until", "trian"]])
def test_a_dry_run_knows_the_stages_too(tmp_path: Path, corpus: Corpus, option: list[str]) -> None:
    done = cli("fit", corpus.source, "-o", tmp_path / "ws", "--dry-run", *option)
    assert done.returncode == 2
    assert "trian" in done.stderr


def test_until_stops_and_the_same_fit_goes_on(tmp_path: Path, corpus: Corpus, fitted: Path) -> None:
    path = tmp_path / "ws"
    assert ran(fit(path, corpus, until="split")) == ["ingest", "split"]
    assert not (path / "encoded").exists()
    with pytest.raises(WorkspaceError, match="no finished search engine"):
        open_searcher(path)
    assert ran(fit(path, corpus, until="generate")) == ["keyword", "encode", "gauge", "generate"]
    assert ran(fit(path, corpus)) == ALL[6:]
    for name in ("pairs.parquet", "evaluation/systems.json", "models/trained/query_tower.safetensors"):
        assert (path / name).read_bytes() == (fitted / name).read_bytes()


def test_until_an_earlier_stage_keeps_the_work_of_a_killed_later_one(workspace: Path, corpus: Corpus) -> None:
    """Nothing lost: a fit up to some stage throws no later stage's unfinished work away."""
    unfinished = workspace / ".partial" / "train" / "checkpoints" / "step-00000001"
    unfinished.mkdir(parents=True)
    fit(workspace, corpus, until="split")
    assert unfinished.exists()
    fit(workspace, corpus)
    assert not (workspace / ".partial").exists()


def test_two_fits_at_once(workspace: Path, corpus: Corpus) -> None:
    with FileLock(workspace / ".lock"), pytest.raises(WorkspaceError, match="another process is writing"):
        fit(workspace, corpus)
    with FileLock(workspace / ".lock"):
        done = cli("fit", "-o", workspace, *options(corpus))
        assert done.returncode == 1
        assert "another process is writing" in done.stderr
        assert open_searcher(workspace).search(QUESTION, k=1)  # readers need no lock
    assert ran(fit(workspace, corpus)) == []


@pytest.mark.parametrize("missing", ["source", "model", "queries"])
def test_what_is_missing_is_said_before_anything_is_done(
    tmp_path: Path, corpus: Corpus, missing: str
) -> None:
    absent = str(tmp_path / "absent.csv")
    changes = {"source": "source__source", "model": "model__name", "queries": "queries__file"}
    with pytest.raises(SearchfitError, match=r"absent\.csv"):
        fit(tmp_path / "ws", corpus, **{changes[missing]: absent})
    assert not (tmp_path / "ws").exists()


def test_the_lock_is_free_after_a_failed_fit(tmp_path: Path, corpus: Corpus) -> None:
    (tmp_path / "empty.csv").write_text("id,text\na,\n", encoding="utf-8")
    with pytest.raises(SourceError):
        fit(tmp_path / "ws", Corpus(tmp_path / "empty.csv"))
    assert (tmp_path / "ws" / ".lock").exists()
    assert ran(fit(tmp_path / "ws", corpus, until="ingest")) == ["ingest"]


def test_a_failed_stage_leaves_the_served_index(workspace: Path, corpus: Corpus, tmp_path: Path) -> None:
    before = open_searcher(workspace).folder
    (tmp_path / "empty.csv").write_text("id,text\na,\n", encoding="utf-8")
    with pytest.raises(SourceError):
        fit(workspace, replace(corpus, source=tmp_path / "empty.csv"))
    assert open_searcher(workspace).folder == before
    assert open_searcher(workspace).search(QUESTION, k=1)


def test_the_manifest_tells_where_every_artefact_comes_from(fitted: Path, corpus: Corpus) -> None:
    manifest = json.loads((fitted / "manifest.json").read_text(encoding="utf-8"))
    assert list(manifest["stages"]) == ALL
    assert manifest["seed"] == 13
    assert manifest["searchfit"] == version("searchfit")
    assert manifest["versions"]["torch"] == version("torch")
    written = {
        name: entry for entry in manifest["stages"].values() for name, entry in entry["artefacts"].items()
    }
    for stage in STAGES:
        entry = manifest["stages"][stage.name]
        assert datetime.fromisoformat(entry["finished"]).tzinfo is not None
        assert entry["seconds"] >= 0
        assert entry["peak_memory_mb"] > 10
        assert len(entry["key"]) == 32
        for section in stage.sections:
            assert f"settings {section}" in entry["parts"]
        for name in stage.reads:
            if name != "manifest.json":
                assert entry["parts"][name] == written[name]["digest"], (stage.name, name)
    assert manifest["stages"]["ingest"]["counts"]["documents"] == 56
    assert str(corpus.source.absolute()) in json.dumps(manifest["stages"]["ingest"]["parts"]["outside"])
    assert manifest["stages"]["train"]["parts"]["settings train"]["epochs"] == 1


def test_the_settings_file_reads_back_equal(fitted: Path, corpus: Corpus, tmp_path: Path) -> None:
    assert load_settings(fitted / "searchfit.toml") == settings(corpus)
    strange = 'naïve "quotes" \\ back\nline\ttab # [x] = \x7f \u2028 \U0001f40d'
    odd = load_settings(values={
        "source.source": strange, "source.text": ("a", strange), "train.learning_rate": 1e-7,
        "evaluate.keyword_weights": (0.1, 2.0), "train.enabled": False, "seed": -3,
    })  # fmt: skip
    (tmp_path / "odd.toml").write_text(to_toml(odd), encoding="utf-8")
    assert load_settings(tmp_path / "odd.toml") == odd
    assert load_settings(base=odd) == odd != Settings()


def test_an_open_searcher_goes_on_answering(workspace: Path, corpus: Corpus) -> None:
    """Through re-fits that build another version, the first again, and the served one anew."""
    for change, force in (({"keyword__k1": 2.5}, ()), ({}, ()), ({}, ("index",))):
        reader = open_searcher(workspace)
        before = [(hit.document_id, hit.score) for hit in reader.search(QUESTION)]
        assert "index" in ran(fit(workspace, corpus, force=force, **change))
        assert open_searcher(workspace).folder != reader.folder
        assert [(hit.document_id, hit.score) for hit in reader.search(QUESTION)] == before


def test_old_index_versions_are_tidied(workspace: Path, corpus: Corpus) -> None:
    served = [open_searcher(workspace).folder]
    for _ in range(3):
        fit(workspace, corpus, force=["index"])
        served.append(open_searcher(workspace).folder)
        assert served[-1] != served[-2]
    assert set((workspace / "index").iterdir()) == set(served[-2:])


def test_the_function_fits_and_opens(workspace: Path, corpus: Corpus) -> None:
    opened = searchfit.fit(corpus.source, workspace, model=corpus.model, settings=SMALL)
    assert opened.search(QUESTION, k=2)[0].title == searchfit.open(workspace).search(QUESTION, k=2)[0].title


def test_a_damaged_manifest_says_so(workspace: Path, corpus: Corpus) -> None:
    (workspace / "manifest.json").write_text('{"format": 1, "sta', encoding="utf-8")
    with pytest.raises(WorkspaceError, match="damaged"):
        fit(workspace, corpus)
    (workspace / "manifest.json").unlink()
    assert ran(fit(workspace, corpus)) == ALL


def test_a_workspace_of_another_layout_is_left_alone(workspace: Path, corpus: Corpus) -> None:
    (workspace / "manifest.json").write_text('{"format": 99, "stages": {}}', encoding="utf-8")
    before = tree(workspace)
    with pytest.raises(WorkspaceError, match="another version"):
        fit(workspace, corpus)
    assert {k: v for k, v in tree(workspace).items() if "searchfit.toml" not in k} == {
        k: v for k, v in before.items() if "searchfit.toml" not in k
    }
