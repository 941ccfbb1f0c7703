"""What stages hand over can travel: pickled, alone with one batch, it gives what it gives in this process."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from searchfit import ranking
from searchfit.config import load_settings
from searchfit.encoders import batched
from searchfit.executors import LOCAL, B, Executor, R, Work
from searchfit.recipe import STAGES
from searchfit.stages import Tools


class Travelling:
    """Each batch alone goes to a worker that knows nothing else, and its result comes back."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def map_batches(self, work: Work[B, R], batches: Iterable[B]) -> Iterator[R]:
        there = pickle.loads(pickle.dumps(work))
        for batch in batches:
            (result,) = there([pickle.loads(pickle.dumps(batch))])
            self.done.append(getattr(work, "func", work).__name__)
            yield pickle.loads(pickle.dumps(result))

    def release(self) -> None: ...

    def close(self) -> None: ...


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("stage", "works"),
    [
        ("gauge", {"_answered"}),
        ("screen", {"_answered", "_ranked", "score_pairs"}),
        ("mine", {"_ranked", "_answered", "score_pairs"}),
        ("evaluate", {"_answered", "_ranked", "_raw_scores", "encode_passages"}),
    ],
)
def test_a_stage_makes_the_same_wherever_its_batches_are_worked_on(
    bench: Any,
    tiny_reranker: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    works: set[str],
) -> None:
    monkeypatch.setattr(batched, "_BATCH", 16)
    monkeypatch.setattr(ranking, "_BATCH", 16)
    model = bench.settings.model.name
    other = shutil.copytree(model, tmp_path / "other")
    values = {
        "screen.reranker": str(tiny_reranker),
        "screen.reranker_min": 0.01,
        "mine.teacher": f"cross-encoder:{tiny_reranker}+bi-encoder:{model}+blend",
        "mine.force_teacher": True,
        "mine.max_queries": 20,
        "rerank.model": str(tiny_reranker),
        "evaluate.models": (str(other),),
    }
    entry = next(entry for entry in STAGES if entry.name == stage)
    settings = load_settings(base=bench.settings, values=values).only(*entry.sections)
    inputs, worker = bench.inputs(stage), Travelling()
    executors: dict[str, Executor] = {"here": LOCAL, "there": worker}
    found = {
        name: entry.module.run(settings, inputs, Tools(tmp_path / name, executor=executor))
        for name, executor in executors.items()
    }
    assert {*worker.done} == works
    if stage == "evaluate":  # whose notes tell seconds
        assert found["there"].counts == found["here"].counts
    else:
        assert found["there"] == found["here"]
    assert content(tmp_path / "there") == content(tmp_path / "here")
