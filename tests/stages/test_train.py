from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from searchfit.config import load_settings
from searchfit.encoders import load_encoder
from searchfit.objectives.distill import listwise_kl
from searchfit.records import Engine, StageResult
from searchfit.search import ArrayCorpus
from searchfit.stages import Tools, train


class Killed(Exception):
    """Stands for a kill."""


def run(
    bench: Any, out: Path, inputs: dict[str, Path] | None = None, progress: Any = None, **values: Any
) -> StageResult:
    settings = load_settings(base=bench.settings, values=values).only("train", "engine", "model", "seed")
    tools = Tools(out, progress=progress) if progress else Tools(out)
    return train.run(settings, inputs or bench.inputs("train"), tools)


def weights(out: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(out / "models" / "trained" / "query_tower.safetensors")


def losses(out: Path) -> list[float]:
    found: list[float] = json.loads((out / "models" / "trained" / "losses.json").read_text())
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kills", [[13], [3, 29], [10, 20, 30]])
def test_a_killed_run_goes_on_to_the_same_weights_and_losses(
    bench: Any, tmp_path: Path, kills: list[int], precision: str
) -> None:
    values = {"train.checkpoint_steps": 5, "model.precision": precision}
    run(bench, tmp_path / "whole", **values)
    steps: list[int] = []
    waiting = list(kills)

    def kill(label: str, done: int, total: int) -> None:
        assert label == "train"
        assert total == len(losses(tmp_path / "whole"))
        steps.append(done)
        if done in waiting:
            waiting.remove(done)
            raise Killed

    for _ in kills:
        with pytest.raises(Killed):
            run(bench, tmp_path / "cut", progress=kill, **values)
    result = run(bench, tmp_path / "cut", progress=kill, **values)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    for name, array in whole.items():
        assert array.tobytes() == cut[name].tobytes(), name
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert result.counts["steps"] == len(losses(tmp_path / "cut"))
    lost = [kill - (kill - 1) // 5 * 5 for kill in kills]
    assert len(steps) == result.counts["steps"] + sum(lost)  # no more than 5 steps were taken twice


def test_an_unfinished_checkpoint_is_not_resumed_from(bench: Any, tmp_path: Path) -> None:
    values = {"train.checkpoint_steps": 5}
    run(bench, tmp_path / "whole", **values)

    def kill(_label: str, done: int, _total: int) -> None:
        if done == 12:
            raise Killed

    with pytest.raises(Killed):
        run(bench, tmp_path / "cut", progress=kill, **values)
    (checkpoint,) = (tmp_path / "cut" / "checkpoints").iterdir()
    shutil.copytree(checkpoint, checkpoint.with_name("new.tmp"))
    (checkpoint.with_name("new.tmp") / "model.safetensors").write_bytes(b"half")
    run(bench, tmp_path / "cut", **values)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_the_loss_falls_and_only_the_queries_move(bench: Any, tmp_path: Path) -> None:
    result = run(bench, tmp_path, **{"train.epochs": 25, "train.learning_rate": 3e-3})
    course = losses(tmp_path)
    assert np.mean(course[-5:]) < 0.8 * np.mean(course[:5])
    assert result.counts["first loss"] == round(course[0], 4)
    encoder = load_encoder(bench.settings.model)
    before = encoder.query_modules().state_dict()
    after = weights(tmp_path)
    assert before.keys() == after.keys()
    assert any(not np.array_equal(before[name].numpy(), after[name]) for name in after)


@pytest.mark.parametrize("units", ["passage", "sentence", "both"])
def test_the_students_score_is_the_engines_dense_leg(bench: Any, units: str) -> None:
    import torch

    settings = load_settings(base=bench.settings, values={"engine.units": units})
    inputs = bench.inputs("train")
    lists = train._Lists.load(inputs, settings)
    corpus = ArrayCorpus.load(inputs["encoded"], inputs["keyword"])
    random = np.random.default_rng(0)
    queries = random.standard_normal((3, 32)).astype(np.float32)
    batch = np.array([7, 0, 40])
    scores = lists.student(batch, torch.from_numpy(queries)).numpy()
    assert scores.shape == lists.teacher(batch).shape == (3, 12 + 20)
    for query, number in enumerate(batch):
        rows = np.concatenate([lists.candidates[number], lists.negatives])
        for column, row in enumerate(rows):
            whole = float(corpus.passages[row] @ queries[query])
            best = max(corpus.sentences[corpus.offsets[row] : corpus.offsets[row + 1]] @ queries[query])
            dense = {"passage": whole, "sentence": best, "both": (whole + best) / 2}[units]
            assert scores[query, column] == pytest.approx(dense, abs=1e-5)


def test_the_first_loss_is_that_of_the_untuned_model(bench: Any, tmp_path: Path) -> None:
    """Without dropout, from the vectors of the serving encoder."""
    import torch

    folder = tmp_path / "model"
    shutil.copytree(bench.settings.model.name, folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}))
    values = {"model.name": str(folder), "model.query_prompt": "query: ", "train.batch_size": 500}
    run(bench, tmp_path, **values, **{"train.epochs": 1})
    inputs = bench.inputs("train")
    settings = load_settings(base=bench.settings, values=values)
    rows = np.load(inputs["mined"] / "queries.npy")
    texts = pq.read_table(inputs["pairs.parquet"])["text"].take(rows).to_pylist()
    vectors = load_encoder(settings.model).encode_queries(texts)
    lists = train._Lists.load(inputs, settings)
    everything = np.arange(len(rows))
    expected = listwise_kl(
        lists.student(everything, torch.from_numpy(vectors)),
        lists.teacher(everything),
        settings.train.temperature,
    )
    assert losses(tmp_path)[0] == pytest.approx(expected.item(), rel=1e-4)
    assert settings.engine.units == Engine("default").units


def test_the_prompt_of_the_model_is_trained_with(bench: Any, tmp_path: Path) -> None:
    """A prompt in the model's own configuration and the same one in the settings are the same training."""
    folder = tmp_path / "model"
    shutil.copytree(bench.settings.model.name, folder)
    file = folder / "config_sentence_transformers.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "prompts": {"query": "query: ", "document": ""}})
    )
    run(bench, tmp_path / "model's", **{"model.name": str(folder)})
    run(bench, tmp_path / "user's", **{"model.query_prompt": "query: "})
    run(bench, tmp_path / "none")
    assert losses(tmp_path / "model's") == losses(tmp_path / "user's") != losses(tmp_path / "none")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"train.enabled": False}, "switched off"),
        ({"train.min_queries": 100_000}, "Too few training queries"),
    ],
)
def test_with_too_little_to_learn_from_nothing_is_trained(
    bench: Any, tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    result = run(bench, tmp_path, **values)
    assert said in result.notes[0]
    assert result.counts == {"steps": 0}
    assert [path.name for path in (tmp_path / "models" / "trained").iterdir()] == ["losses.json"]
    assert losses(tmp_path) == []


def test_the_seed_decides_the_course(bench: Any, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 2), ("again", 1)):
        run(bench, tmp_path / name, seed=seed)
    assert losses(tmp_path / "one") == losses(tmp_path / "again") != losses(tmp_path / "two")
