"""Kill a fit at any moment: the same command carries on, and makes what an undisturbed fit makes."""

from __future__ import annotations

import csv
import importlib.util
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pipeline_tools import (
    Corpus,
    Killed,
    fit,
    killed_at_a_rename,
    options,
    ran,
    random_sentences,
    tiny_model,
    write_corpus,
)

from searchfit.recipe import STAGES

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kill -9")

ALL = [stage.name for stage in STAGES]

# Where to strike: what stands in the workspace then, by thirds of the fit.
MOMENTS = (
    ("split/key", "encode/encoded/passages.npy", "encode/encoded/progress.json"),
    ("generate/queries/part-00001.parquet", "screen/key", "mine/key"),
    ("train/checkpoints/step-*", "evaluate/key", "index/index"),
)


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """benchmarks/kill.py, which does the same twenty times."""
    path = Path(__file__).parent.parent / "benchmarks" / "kill.py"
    spec = importlib.util.spec_from_file_location("kill", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """530 documents of two sentences: two chunks to encode."""
    folder = tmp_path_factory.mktemp("source")
    sentences = random_sentences(5)
    with (folder / "made-up.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "text"])
        rows.writerows([i, f"{next(sentences)} {next(sentences)}"] for i in range(530))
    return Corpus(folder / "made-up.csv", str(tiny_model(folder)))


@pytest.mark.parametrize("seed", [42])
def test_kill_9_at_two_moments(tmp_path: Path, corpus: Corpus, bench: ModuleType, seed: int) -> None:
    settings: dict[str, Any] = {
        "generate__part_passages": 10,
        "train__checkpoint_steps": 1,
        "train__batch_size": 64,
    }
    arguments = ["fit", *options(corpus, **settings), "-o"]
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    os.environ["OMP_NUM_THREADS"] = "1"
    fit(calm, corpus, **settings)  # in this process: only what is killed needs one of its own
    kept: dict[str, int] = {}
    for moment in (random.Random(seed).choice(third) for third in MOMENTS[1:]):
        assert bench.attempt([*arguments, str(killed)], standing(killed, moment))
        parts = killed.rglob("part-*.parquet")
        kept |= {path.name: path.stat().st_mtime_ns for path in parts}
    fit(killed, corpus, **settings)
    assert bench.differences(calm, killed) == []
    # Parts that were whole have been carried on, not written again.
    assert kept
    assert kept.items() <= {p.name: p.stat().st_mtime_ns for p in killed.glob("queries/*")}.items()
    assert not (killed / ".partial").exists()


def standing(workspace: Path, pattern: str) -> Callable[[], str]:
    """The moment when a stage's unfinished work holds a file, or, should that be missed, when it is done."""
    stage = pattern.partition("/")[0]

    def come() -> str:
        if next(workspace.glob(f".partial/{pattern}"), None):
            return stage
        text = workspace / "manifest.json"
        return stage if text.exists() and f'"{stage}": {{' in text.read_text(encoding="utf-8") else ""

    return come


def test_stopped_before_every_file_that_gets_its_name(
    tmp_path: Path, bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is written takes its place by a rename. One fit, stopped at the first rename, then, carried
    on, at the second, and so on until it ends: each place between two writes is struck."""
    corpus = Corpus(write_corpus(tmp_path / "places.csv"), str(tiny_model(tmp_path)))
    settings: dict[str, Any] = {"train__checkpoint_steps": 1, "train__batch_size": 32}
    fit(tmp_path / "calm", corpus, **settings)
    strike = killed_at_a_rename(monkeypatch)
    for attempt in range(1, 200):
        strike(attempt)
        try:
            fit(tmp_path / "killed", corpus, **settings)
            break
        except Killed:
            continue
    monkeypatch.undo()
    assert attempt >= len(ALL)
    assert ran(fit(tmp_path / "killed", corpus, **settings)) == []
    assert bench.differences(tmp_path / "calm", tmp_path / "killed") == []
