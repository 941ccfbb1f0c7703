from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from searchfit.config import Settings, load_settings
from searchfit.errors import SettingsError, WorkspaceError
from searchfit.reranking import train_reranker
from searchfit.workspace import FORMAT

SMALL = {
    "rerank_training.max_queries": 8,
    "rerank_training.batch_size": 4,
    "rerank_training.negatives": 2,
    "rerank_training.dev_queries": 4,
    "rerank_training.checkpoint_steps": 1,
    "rerank_training.epochs": 2,
    "rerank.max_queries": 10,
    "rerank.depth": 5,
}


@pytest.fixture
def workspace(bench: Any, tmp_path: Path) -> Path:
    """The shared fit as a workspace of its own."""
    bench.path("evaluation/choice.json")
    folder = tmp_path / "ws"
    folder.mkdir()
    for path in bench.folder.iterdir():
        if not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    (folder / "manifest.json").unlink(missing_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"format": FORMAT, "stages": {}}), encoding="utf-8")
    return folder


@pytest.fixture
def settings(bench: Any, tiny_model: Path) -> Settings:
    return load_settings(base=bench.settings, values={**SMALL, "rerank_training.base": str(tiny_model)})


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    found: dict[str, Any] = load_file(folder / "model.safetensors")
    return found


def test_what_is_trained_opens_and_is_judged_on_the_fit_s_questions(
    workspace: Path, settings: Settings, tmp_path: Path
) -> None:
    from sentence_transformers import CrossEncoder

    output = tmp_path / "made"
    result = train_reranker(workspace, output, settings)
    assert (result.queries, result.steps, result.depth) == (8, 4, 5)
    assert result.weight in settings.rerank.weights
    assert set(result.comparisons) == {"dev", "test"}
    table = pq.read_table(workspace / "evaluation" / "queries.parquet")
    chosen = json.loads((workspace / "evaluation" / "choice.json").read_text())["system"]
    for split, found in result.comparisons.items():
        mine = table["split"].to_numpy() == split
        assert found.n == min(10, mine.sum())
        if mine.sum() <= 10:  # then it is the report's own figure
            assert found.mean_a == pytest.approx(table[chosen].to_numpy()[mine].mean(), abs=1e-9)
    scores = CrossEncoder(str(output), device="cpu").predict([("rose", "soil"), ("anchor", "keel")])
    assert ((scores > 0) & (scores < 1)).all()
    card = json.loads((output / "searchfit.json").read_text(encoding="utf-8"))
    assert card["comparisons"]["dev"]["n"] == result.comparisons["dev"].n
    assert (output / "course.csv").read_text(encoding="utf-8").startswith("epoch,step,loss,score\n")
    assert not (tmp_path / "made.partial").exists()


def test_killed_it_carries_on_to_the_same_weights(
    workspace: Path, settings: Settings, tmp_path: Path
) -> None:
    calm = train_reranker(workspace, tmp_path / "calm", settings)

    def until(stop: int, seen: list[int]) -> Callable[..., None]:
        def tell(label: str, done: int, *_: object) -> None:
            if label == "train":
                seen.append(done)
                if done == stop:
                    raise KeyboardInterrupt

        return tell

    first: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        train_reranker(workspace, tmp_path / "killed", settings, until(3, first))
    assert not (tmp_path / "killed").exists()
    then: list[int] = []
    result = train_reranker(workspace, tmp_path / "killed", settings, until(99, then))
    assert max(first) == 3
    assert min(then) > 1, "the steps before the checkpoint are not taken again"
    assert result.comparisons == calm.comparisons
    for name, value in weights(tmp_path / "calm").items():
        np.testing.assert_array_equal(weights(tmp_path / "killed")[name], value)


def test_what_is_in_the_way_is_left_alone(workspace: Path, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(SettingsError, match="not made by train-reranker"):
        train_reranker(workspace, tmp_path / "mine", settings)
    assert (tmp_path / "mine" / "letter.txt").read_text(encoding="utf-8") == "dear"
    (workspace / "evaluation").unlink()
    with pytest.raises(WorkspaceError, match="evaluate"):
        train_reranker(workspace, tmp_path / "other", settings)


def test_with_nothing_to_learn_from_it_says_so(workspace: Path, settings: Settings, tmp_path: Path) -> None:
    strict = load_settings(base=settings, values={"mine.absolute_margin": 9.0})
    with pytest.raises(SettingsError, match="nothing to learn from"):
        train_reranker(workspace, tmp_path / "made", strict)
