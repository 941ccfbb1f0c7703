from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from searchfit.config import load_settings
from searchfit.encoders import load_encoder
from searchfit.encoders.trained import Trained
from searchfit.objectives.distill import listwise_kl
from searchfit.records import LABELLED, Engine, StageResult
from searchfit.search import ArrayCorpus
from searchfit.similarity import score_pairs
from searchfit.stages import Tools, mine, train
from searchfit.teachers import PassageTexts
from searchfit.training.lists import Lists


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
    return [float(row["loss"]) for row in course(out) if row["loss"]]


def course(out: Path) -> list[dict[str, str]]:
    """The rows of course.csv: epoch, step, loss, score."""
    with (out / "models" / "trained" / "course.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("precision", "kills"),
    [
        ("fp32", [3, 29]),
        ("bf16", [13]),
        *(
            pytest.param(precision, kills, marks=pytest.mark.slow)
            for precision, kills in [("fp32", [13]), ("fp32", [10, 20, 30]), ("bf16", [10, 20, 30])]
        ),
    ],
)
def test_a_killed_run_goes_on_to_the_same_weights_and_losses(
    bench: Any, tmp_path: Path, kills: list[int], precision: str
) -> None:
    values = {"train.checkpoint_steps": 5, "model.precision": precision}
    run(bench, tmp_path / "whole", **values)
    steps: list[int] = []
    waiting = list(kills)

    def kill(label: str, done: int, total: int, note: str = "") -> None:
        assert label == "train"
        assert total == len(losses(tmp_path / "whole"))
        if note:  # a score, told beside the loss of its step
            return
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
    assert course(tmp_path / "cut") == course(tmp_path / "whole")
    assert result.counts["steps"] == len(losses(tmp_path / "cut"))
    lost = [kill - (kill - 1) // 5 * 5 for kill in kills]
    assert len(steps) == result.counts["steps"] + sum(lost)  # no more than 5 steps were taken twice


def test_an_unfinished_checkpoint_is_not_resumed_from(bench: Any, tmp_path: Path) -> None:
    values = {"train.checkpoint_steps": 5}
    run(bench, tmp_path / "whole", **values)

    def kill(_label: str, done: int, _total: int, note: str = "") -> None:
        if done == 12 and not note:
            raise Killed

    with pytest.raises(Killed):
        run(bench, tmp_path / "cut", progress=kill, **values)
    (checkpoint,) = (tmp_path / "cut" / "checkpoints").iterdir()
    shutil.copytree(checkpoint, checkpoint.with_name("new.tmp"))
    (checkpoint.with_name("new.tmp") / "model.safetensors").write_bytes(b"half")
    run(bench, tmp_path / "cut", **values)
    assert course(tmp_path / "cut") == course(tmp_path / "whole")


def test_the_loss_falls_and_only_the_queries_move(bench: Any, tmp_path: Path) -> None:
    result = run(bench, tmp_path, **{"train.epochs": 25, "train.learning_rate": 3e-3})
    found = losses(tmp_path)
    assert np.mean(found[-5:]) < 0.8 * np.mean(found[:5])
    assert result.counts["first loss"] == round(found[0], 4)
    encoder = load_encoder(bench.settings.model)
    before = encoder.query_modules().state_dict()
    after = weights(tmp_path)
    assert before.keys() == after.keys()
    assert any(not np.array_equal(before[name].numpy(), after[name]) for name in after)


def lists_of(inputs: dict[str, Path], units: str, similarity: str = "cosine") -> Lists:
    corpus = ArrayCorpus.load(inputs["encoded"], inputs["keyword"])
    count = pq.ParquetFile(inputs["mined"] / "queries.parquet").metadata.num_rows
    return Lists.load(inputs["mined"], corpus, units, similarity, np.arange(count))


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("units", ["passage", "sentence", "both"])
def test_the_students_score_is_the_engines_dense_leg(bench: Any, units: str, similarity: str) -> None:
    import torch

    inputs = bench.inputs("train")
    corpus = ArrayCorpus.load(inputs["encoded"], inputs["keyword"])
    lists = lists_of(inputs, units, similarity)
    random = np.random.default_rng(0)
    queries = random.standard_normal((3, 32)).astype(np.float32)
    batch = np.array([7, 0, 40])
    scores = lists.student(batch, torch.from_numpy(queries)).numpy()
    if similarity == "cosine":
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
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
    texts = pq.read_table(inputs["mined"] / "queries.parquet")["text"].to_pylist()
    vectors = load_encoder(settings.model).encode_queries(texts)
    lists = lists_of(inputs, settings.engine.units)
    everything = np.arange(len(texts))
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
    trained = Trained.load(tmp_path / "models" / "trained")
    assert trained.towers == ""
    assert not trained.both
    assert sorted(path.name for path in trained.folder.iterdir()) == ["course.csv", "towers.json"]
    assert course(tmp_path) == []
    untuned = load_encoder(bench.settings.model)
    assert trained.encoder(untuned, 1.0) is untuned


def test_the_seed_decides_the_course(bench: Any, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 2), ("again", 1)):
        run(bench, tmp_path / name, seed=seed)
    assert losses(tmp_path / "one") == losses(tmp_path / "again") != losses(tmp_path / "two")


OBJECTIVES = {
    "distill": {"train.objective": "distill"},
    "mnr": {"train.objective": "mnr"},
    "mnr-cached": {"train.objective": "mnr-cached"},
    "mnr-symmetric": {"train.objective": "mnr-symmetric"},
    "margin-mse": {"train.objective": "margin-mse"},
    "triplet": {"train.objective": "triplet"},
    "contrastive": {"train.objective": "contrastive"},
    "online-contrastive": {"train.objective": "online-contrastive", "train.distance": "euclidean"},
    "cosine": {"train.objective": "cosine"},
    "two, weighted": {"train.objective": "mnr, distill", "train.weights": (2.0, 1.0)},
    "matryoshka": {"train.objective": "mnr", "train.matryoshka": (8, 16)},
    "lora": {"train.objective": "mnr", "train.lora_rank": 2},
    "frozen embeddings": {"train.objective": "mnr", "train.freeze_embeddings": True},
    "two batches a step": {"train.objective": "triplet", "train.accumulate": 2},
}
SHORT = {"train.epochs": 1, "train.measure_steps": 2, "mine.max_queries": 96}
TEXTS = ["the rose and the soil", "an anchor in the harbour", "query: a violin sonata"]


@pytest.fixture(scope="module")
def few(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What train reads, with 96 mined queries."""
    out = tmp_path_factory.mktemp("few")
    view = load_settings(base=bench.settings, values=SHORT).only("mine", "engine", "model", "seed")
    mine.run(view, bench.inputs("mine"), Tools(out))
    return {**bench.inputs("train"), "mined": out / "mined"}


@pytest.fixture(scope="module")
def blind(few: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same without dev questions: with none to judge by, the last weights are kept."""
    table = pq.read_table(few["holdout.parquet"])
    split = ["test" if name == "dev" else name for name in table["split"].to_pylist()]
    file = tmp_path_factory.mktemp("blind") / "holdout.parquet"
    pq.write_table(table.set_column(table.schema.get_field_index("split"), "split", pa.array(split)), file)
    return {**few, "holdout.parquet": file}


@pytest.mark.parametrize("towers", ["query", "shared", "separate"])
@pytest.mark.parametrize("case", OBJECTIVES)
def test_every_objective_trains_every_kind_of_towers(
    bench: Any, blind: dict[str, Path], tmp_path: Path, case: str, towers: str
) -> None:
    result = run(bench, tmp_path, blind, **SHORT, **OBJECTIVES[case], **{"train.towers": towers})
    rows = course(tmp_path)
    assert len(losses(tmp_path)) == len(rows) == result.counts["steps"] > 2
    assert np.isfinite(losses(tmp_path)).all()
    assert [row["step"] for row in rows] == [str(step) for step in range(1, len(rows) + 1)]
    assert not any(row["score"] for row in rows)
    trained = Trained.load(tmp_path / "models" / "trained")
    assert trained.towers == towers
    assert trained.both == (towers != "query")
    untuned = load_encoder(bench.settings.model)
    before = untuned.encode_queries(TEXTS)
    for share in (0.5, 1.0):
        moved = trained.encoder(untuned, share)
        queries, documents = moved.encode_queries(TEXTS), moved.encode_documents(TEXTS)
        np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-5)
        assert not np.array_equal(queries, before)
        assert np.array_equal(documents, untuned.encode_documents(TEXTS)) == (towers == "query")
        assert np.array_equal(queries, documents) == (towers == "shared")
    np.testing.assert_array_equal(trained.encoder(untuned, 0).encode_queries(TEXTS), before)


@pytest.mark.parametrize("towers", ["query", "shared", "separate"])
def test_the_course_tells_of_losses_and_scores_and_the_best_is_kept(
    bench: Any, few: dict[str, Path], tmp_path: Path, towers: str
) -> None:
    values = {**SHORT, "train.objective": "mnr-cached", "train.towers": towers}
    result = run(bench, tmp_path, few, **values)
    rows = course(tmp_path)
    assert [row["step"] for row in rows] == [str(step) for step in range(len(rows))]
    assert (float(rows[0]["epoch"]), rows[0]["loss"]) == (0, "")
    assert float(rows[-1]["epoch"]) == 1
    scores = {int(row["step"]): float(row["score"]) for row in rows if row["score"]}
    assert set(scores) == {*range(0, len(rows), 2), len(rows) - 1}
    assert result.counts["dev before"] == round(scores[0], 4)
    best = max(scores, key=lambda step: (scores[step], -step))
    assert result.counts["best step"] == best
    assert result.counts["dev best"] == round(scores[best], 4) >= result.counts["dev before"]
    assert Trained.load(tmp_path / "models" / "trained").towers == (towers if best else "")


@pytest.mark.parametrize("towers", ["query", "shared", "separate"])
def test_the_score_is_that_of_the_encoder_that_is_kept(
    bench: Any, few: dict[str, Path], tmp_path: Path, towers: str
) -> None:
    """The best score on dev, from the weights on disk, with whole rankings in plain numpy."""
    values = {**SHORT, "train.epochs": 4, "train.objective": "mnr", "train.towers": towers}
    result = run(bench, tmp_path, few, **values, **{"engine.units": "passage", "train.dev_queries": 10_000})
    assert result.counts["best step"] > 0
    trained = Trained.load(tmp_path / "models" / "trained")
    encoder = trained.encoder(load_encoder(bench.settings.model), 1.0)
    split = pq.read_table(few["holdout.parquet"])["split"].to_pylist()
    pairs = [r for r in pq.read_table(few["pairs.parquet"]).to_pylist() if split[r["document"]] == "dev"]
    texts = PassageTexts(few["passages.parquet"])
    scores = (
        encoder.encode_queries([r["text"] for r in pairs])
        @ encoder.encode_documents(texts.take(np.arange(texts.count))).T
    )
    gains = []
    for row, pair in zip(scores, pairs, strict=True):
        place = 1 + sum(row > row[pair["passage"]])
        gains.append(1 / np.log2(1 + place) if place <= 10 else 0)
    assert result.counts["dev best"] == pytest.approx(np.mean(gains), abs=2e-3)


def test_a_step_that_is_no_better_is_not_kept(bench: Any, few: dict[str, Path], tmp_path: Path) -> None:
    result = run(bench, tmp_path, few, **{**SHORT, "train.learning_rate": 1e-12})
    assert result.counts["best step"] == 0
    assert "No step was better" in result.notes[0]
    assert Trained.load(tmp_path / "models" / "trained").towers == ""
    assert len(course(tmp_path)) == result.counts["steps"] + 1


def test_it_stops_early(bench: Any, few: dict[str, Path], tmp_path: Path) -> None:
    values = {**SHORT, "train.epochs": 50, "train.learning_rate": 1e-12}
    result = run(bench, tmp_path, few, **values, **{"train.patience": 2})
    assert result.counts["steps"] == 4  # measured every 2 steps, twice in vain
    assert len(losses(tmp_path)) == 4


def test_adapters_alone_are_trained(bench: Any, blind: dict[str, Path], tmp_path: Path) -> None:
    """Merged, the embeddings and norms of the model are as they were, its linear layers are not."""
    run(
        bench,
        tmp_path,
        blind,
        **{"train.epochs": 3, "train.objective": "mnr", "train.lora_rank": 2},
        **{"train.learning_rate": 1e-2},
    )
    before = load_encoder(bench.settings.model).tower("query").state_dict()
    after = weights(tmp_path)
    assert before.keys() == after.keys()
    moved = {name for name in after if not np.array_equal(before[name].numpy(), after[name])}
    assert moved == {n for n in after if "encoder.layer" in n and n.endswith("weight") and "Norm" not in n}


def pretrained(bench: Any, folder: Path) -> tuple[Path, Any]:
    """models/pretrained with weights a little away from the model's, and their encoder."""
    state = {n: v + 0.05 for n, v in load_encoder(bench.settings.model).tower("query").state_dict().items()}
    trained = Trained.save(folder, "shared", {"query": state})
    (folder / "course.csv").write_text("epoch,step,loss,score\n1,1,9.0,\n")
    return folder, trained.encoder(load_encoder(bench.settings.model), 1.0)


def test_what_pretraining_left_is_kept_where_tuning_gains_nothing(
    bench: Any, few: dict[str, Path], tmp_path: Path
) -> None:
    folder, expected = pretrained(bench, tmp_path / "pretrained")
    inputs = {**few, "models/pretrained": folder}
    values = {**SHORT, "train.towers": "shared", "train.objective": "mnr"}
    run(bench, tmp_path / "in vain", inputs, **{**values, "train.learning_rate": 1e-12})
    run(bench, tmp_path / "off", inputs, **values, **{"train.enabled": False})
    for name in ("in vain", "off"):
        trained = Trained.load(tmp_path / name / "models" / "trained")
        assert trained.towers == "shared"
        found = trained.encoder(load_encoder(bench.settings.model), 1.0)
        np.testing.assert_array_equal(found.encode_queries(TEXTS), expected.encode_queries(TEXTS))
    assert course(tmp_path / "off") == []
    assert len(course(tmp_path / "in vain")) > 2
    assert "9.0" not in {row["loss"] for row in course(tmp_path / "in vain")}


def test_tuning_begins_where_pretraining_ended(bench: Any, few: dict[str, Path], tmp_path: Path) -> None:
    folder, _ = pretrained(bench, tmp_path / "pretrained")
    values = {**SHORT, "train.towers": "separate", "train.objective": "mnr"}
    run(bench, tmp_path / "raw", few, **values)
    run(bench, tmp_path / "pre", {**few, "models/pretrained": folder}, **values)
    assert course(tmp_path / "raw")[0]["score"] != course(tmp_path / "pre")[0]["score"]
    assert losses(tmp_path / "raw")[0] != losses(tmp_path / "pre")[0]


def test_losses_and_scores_are_told_to_tensorboard(bench: Any, few: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run(bench, tmp_path, few, **SHORT, **{"train.report_to": ("tensorboard",)})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "models" / "trained" / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses(tmp_path))
    assert events.Scalars("score")[0].step == 0


@pytest.mark.parametrize("towers", ["query", "shared"])
def test_labelled_dev_pairs_are_logged_beside_the_score(
    bench: Any, few: dict[str, Path], tmp_path: Path, towers: str
) -> None:
    """The best row is what the encoder that is left gives; the log of a killed run is that of a whole one."""
    pairs = pq.read_table(bench.path("pairs.parquet")).to_pylist()[:24]
    texts = pq.read_table(bench.path("passages.parquet"))["text"].to_pylist()
    rows = [
        {
            "query_id": "",
            "query": pair["text"],
            "text": texts[pair["passage"] if n % 2 else -1],
            "label": float(n % 2),
            "negatives": ["nothing of the sort"] if n == 3 else [],
            "passage": -1,
            "document": -1,
            "split": "dev",
        }
        for n, pair in enumerate(pairs)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=LABELLED), tmp_path / "labelled.parquet")
    inputs = {**few, "labelled.parquet": tmp_path / "labelled.parquet"}
    values = {
        "train.towers": towers,
        "train.epochs": 1,
        "train.objective": "mnr",
        "train.learning_rate": 1e-4,
    }
    values |= {"train.checkpoint_steps": 1, "train.measure_steps": 2}

    def kill(label: str, done: int, total: int, note: str = "") -> None:  # noqa: ARG001
        if done == 3 and not note:
            raise Killed

    result = run(bench, tmp_path / "whole", inputs, **values)
    with pytest.raises(Killed):
        run(bench, tmp_path / "cut", inputs, progress=kill, **values)
    run(bench, tmp_path / "cut", inputs, **values)
    log = Path("models", "trained", "similarity.csv")
    text = (tmp_path / "whole" / log).read_text(encoding="utf-8")
    assert (tmp_path / "cut" / log).read_text(encoding="utf-8") == text
    told = list(csv.DictReader(text.splitlines()))
    scores = [row for row in course(tmp_path / "whole") if row["score"]]
    assert [(row["epoch"], row["step"]) for row in told] == [(row["epoch"], row["step"]) for row in scores]
    trained = Trained.load(tmp_path / "whole" / "models" / "trained")
    encoder = trained.encoder(load_encoder(bench.settings.model), 1.0)
    labelled = [(row["query"], row["text"], row["label"]) for row in rows]
    labelled.append((rows[3]["query"], "nothing of the sort", 0.0))
    asked = encoder.encode_queries([query for query, _, _ in labelled])
    answers = encoder.encode_documents([text for _, text, _ in labelled])
    figures = score_pairs((asked * answers).sum(axis=1), [label for _, _, label in labelled])
    best = next(row for row in told if row["step"] == str(result.counts["best step"]))
    for name, value in figures.items():
        assert float(best[name]) == pytest.approx(value, abs=1e-4), name
