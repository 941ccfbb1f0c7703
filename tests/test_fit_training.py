"""Whole fits through the training room: both towers, labelled pairs, pretraining, other teachers."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pipeline_tools import Corpus, cli, fit, options, ran, tiny_model, write_corpus

import searchfit
from searchfit.encoders.trained import Trained
from searchfit.errors import MissingExtraError, SettingsError
from searchfit.judged import evaluate_judged
from searchfit.search import open_searcher

TAKEN = {"choose__alpha": 0.99, "train__min_queries": 8}
"""What is better at all is taken: these tests are about how a tuned engine is served."""
SHARED = {"train__towers": "shared", "train__objective": "mnr"}
LONG = {
    "train__epochs": 8,
    "train__batch_size": 16,
    "train__learning_rate": 3e-3,
    "engine__keyword_weight": 0.0,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("source")
    return Corpus(write_corpus(folder / "places.csv"), str(tiny_model(folder)))


@pytest.fixture(scope="module")
def rows(corpus: Corpus) -> list[dict[str, str]]:
    """The documents: id, name, body, price, rooms, town."""
    with corpus.source.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table(path: Path, header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *lines])
    return str(path)


def question(row: dict[str, str]) -> str:
    trait, place = row["name"].split()
    return f"{trait} {place} above which bay"


def beir(folder: Path, rows: list[dict[str, str]]) -> str:
    """A question for each of some documents, judged."""
    (folder / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": f"q-{row['id']}", "text": question(row)}) for row in rows]
    (folder / "queries.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    judged = "".join(f"q-{row['id']}\t{row['id']}\t1\n" for row in rows)
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}", encoding="utf-8")
    return str(folder)


def result(workspace: Path, stage: str) -> dict[str, Any]:
    """What a stage said of its work."""
    found: dict[str, Any] = json.loads((workspace / "manifest.json").read_text(encoding="utf-8"))["stages"][
        stage
    ]
    return found


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("shared", {**SHARED}),
        ("separate", {"train__towers": "separate", "train__objective": "mnr"}),
        ("mlm, shared", {**SHARED, "pretrain__objective": "mlm"}),
        pytest.param(
            "lora, matryoshka",
            {
                **SHARED,
                "train__lora_rank": 8,
                "train__matryoshka": (8,),
                "train__learning_rate": 1e-2,
                "train__epochs": 20,
            },
            marks=pytest.mark.slow,
        ),
        pytest.param("dot", {**SHARED, "model__similarity": "dot"}, marks=pytest.mark.slow),
    ],
)
def test_a_tuned_document_tower_is_served_as_it_was_measured(
    tmp_path: Path, corpus: Corpus, rows: list[dict[str, str]], name: str, change: dict[str, Any]
) -> None:
    """The figure of the evaluation, over arrays, is that of the index, over the store."""
    judged, ws = beir(tmp_path / "beir", rows[::2]), tmp_path / "ws"
    fit(ws, corpus, queries__file=judged, **{**LONG, **TAKEN, **change})
    searcher = open_searcher(ws)
    board = json.loads((ws / "evaluation" / "systems.json").read_text(encoding="utf-8"))
    candidates = [s["engine"] for s in board["systems"] if s["kind"] == "candidate"]
    assert [engine["document_tower"] for engine in candidates] == [0, 0.5, 1], name
    assert [engine["query_tower"] for engine in candidates] == [0, 0.5, 1]
    assert json.loads((ws / "encoded_tuned" / "shares.json").read_text()) == [0.5, 1.0]
    assert searcher.engine.document_tower == searcher.engine.query_tower > 0
    measured = pq.read_table(ws / "evaluation" / "queries.parquet")
    served = evaluate_judged(ws, Path(judged)).systems
    for label in ("untuned dense", "untuned engine", searcher.engine.name):
        key = f"chosen engine ({label})" if label == searcher.engine.name else label
        assert served[key]["ndcg@10"] == pytest.approx(np.mean(measured[label].to_numpy()), abs=1e-9), label
    assert served[key]["ndcg@10"] != served["untuned engine"]["ndcg@10"]
    # The store holds the vectors of the tuned tower, and the saved model gives them.
    tuned = np.load(ws / "encoded_tuned" / f"{searcher.engine.document_tower:g}" / "passages.npy")
    np.testing.assert_array_equal(searcher.corpus.store.vectors(np.arange(len(tuned)))[0], tuned)
    text = f"{rows[3]['name']}. {rows[3]['body']}"
    np.testing.assert_allclose(searcher.encoder.encode_documents([text])[0], tuned[3], atol=2e-5)
    assert ran(fit(ws, corpus, queries__file=judged, **{**LONG, **TAKEN, **change})) == []


def test_train_alone_trains_and_what_follows(tmp_path: Path, corpus: Corpus) -> None:
    ws = tmp_path / "ws"
    assert cli("fit", "-o", ws, *options(corpus)).returncode == 0
    arguments = ["train", ws, "--json", "--set", "train.objective=mnr", "--set", "train.towers=shared"]
    arguments += ["--set", "choose.alpha=0.99"]
    done = cli(*arguments)
    assert done.returncode == 0, done.stderr
    again = [step["stage"] for step in json.loads(done.stdout) if step["why"]]
    assert again[:4] == ["train", "reencode", "evaluate", "choose"]
    assert set(again) <= {"train", "reencode", "evaluate", "choose", "index", "report"}
    assert Trained.load(ws / "models" / "trained").towers in ("", "shared")
    # A second time there is nothing to do, with the same settings or with those of the workspace.
    for same in (arguments, ["train", ws, "--json"]):
        assert not any(step["why"] for step in json.loads(cli(*same).stdout))


PAIRS = {"train__data": "labelled", **SHARED}


def test_labelled_pairs_without_a_source_are_the_corpus(
    tmp_path: Path, corpus: Corpus, rows: list[dict[str, str]]
) -> None:
    pairs = table(tmp_path / "p.csv", ("query", "passage"), [(question(row), row["body"]) for row in rows])
    done = cli("fit", "-o", tmp_path / "ws", "--pairs", pairs, *options(corpus, **TAKEN, **SHARED)[1:])
    assert done.returncode == 0, done.stderr
    ws = tmp_path / "ws"
    assert result(ws, "ingest")["counts"]["documents"] == len(rows)
    counts = result(ws, "label")["counts"]
    assert counts["labelled pairs"] == counts["in the corpus"] == len(rows)
    assert counts["train queries"] + counts["dev queries"] + counts["test queries"] == len(rows)
    assert result(ws, "mine")["counts"]["labelled ones"] == counts["train queries"]
    hit = searchfit.open(ws).search("painted ceiling with birds and comets", k=1)[0]
    assert "comets" in hit.text


def test_only_labelled_queries_of_training_documents_train(
    tmp_path: Path, corpus: Corpus, rows: list[dict[str, str]]
) -> None:
    pairs = table(tmp_path / "p.csv", ("query", "passage"), [(question(row), row["body"]) for row in rows])
    fit(tmp_path / "ws", corpus, pairs__file=pairs, **TAKEN, **PAIRS)
    ws = tmp_path / "ws"
    holdout = pq.read_table(ws / "holdout.parquet").to_pylist()
    kept = {row["document_id"] for row in holdout if row["split"] == "train"}
    training = {question(row) for row in rows if row["id"] in kept}
    mined = pq.read_table(ws / "mined" / "queries.parquet").to_pylist()
    assert {row["text"] for row in mined if row["origin"] == "labelled"} == training
    assert 0 < len(training) < len(rows)
    trained = result(ws, "train")["counts"]
    assert trained["queries"] == trained["labelled ones"] == len(training)


@pytest.mark.parametrize(
    ("objective", "labels", "towers"),
    [
        ("contrastive", (0, 1), "shared"),
        ("online-contrastive", (0, 1), "query"),
        ("cosine", (0, 0.25, 1), "separate"),
        ("cosine", (0, 0.25, 1), "query"),
    ],
)
def test_labels_are_learnt_from(
    tmp_path: Path, corpus: Corpus, rows: list[dict[str, str]], objective: str, labels: Any, towers: str
) -> None:
    lines = [(question(row), row["body"], 1) for row in rows]
    lines += [(question(row), rows[n - 9]["body"], labels[n % len(labels)]) for n, row in enumerate(rows)]
    pairs = table(tmp_path / "p.csv", ("query", "passage", "label"), lines)
    change = {"train__towers": towers, "train__objective": objective, "train__data": "labelled"}
    fit(tmp_path / "ws", corpus, pairs__file=pairs, until="train", **TAKEN, **change)
    assert result(tmp_path / "ws", "train")["counts"]["steps"] > 0


def test_labels_between_are_refused_by_an_objective_that_cannot_take_them(
    tmp_path: Path, corpus: Corpus, rows: list[dict[str, str]]
) -> None:
    lines = [(question(row), row["body"], 0.5) for row in rows]
    pairs = table(tmp_path / "p.csv", ("query", "passage", "label"), lines)
    change = {"train__towers": "shared", "train__objective": "contrastive"}
    with pytest.raises(SettingsError, match="labels that are 0 or 1"):
        fit(tmp_path / "ws", corpus, pairs__file=pairs, until="train", **TAKEN, **change)


def test_columns_of_negatives_are_learnt_from(
    tmp_path: Path, corpus: Corpus, rows: list[dict[str, str]]
) -> None:
    """Texts that are not in the corpus: with both towers they train, with frozen passages they cannot."""
    lines = [
        (question(row), f"New: {row['body']}", f"Other: {rows[n - 5]['body']}") for n, row in enumerate(rows)
    ]
    pairs = table(tmp_path / "p.csv", ("query", "positive", "negative"), lines)
    fit(tmp_path / "ws", corpus, pairs__file=pairs, until="train", **TAKEN, **PAIRS)
    assert result(tmp_path / "ws", "label")["counts"]["in the corpus"] == 0
    assert result(tmp_path / "ws", "train")["counts"]["steps"] > 0
    frozen = {**PAIRS, "train__towers": "query"}
    fit(tmp_path / "ws", corpus, pairs__file=pairs, until="train", **TAKEN, **frozen)
    assert "Too few training queries: 0" in result(tmp_path / "ws", "train")["notes"][0]


def test_questions_of_the_evaluation_never_train(
    tmp_path: Path, corpus: Corpus, rows: list[dict[str, str]]
) -> None:
    judged = beir(tmp_path / "beir", rows[:10])
    lines = [(f"q-{rows[0]['id']}", "other words altogether", rows[0]["body"])]
    lines += [("a", question(rows[1]).upper() + "?", rows[1]["body"])]
    lines += [("b", f"{question(rows[2])} really", rows[2]["body"])]
    lines += [(f"own-{n}", question(row), row["body"]) for n, row in enumerate(rows[10:])]
    pairs = table(tmp_path / "p.csv", ("query_id", "query", "passage"), lines)
    fit(tmp_path / "ws", corpus, queries__file=judged, pairs__file=pairs, until="mine")
    said = result(tmp_path / "ws", "label")
    assert said["counts"]["test questions excluded"] == 3
    assert {drop["reason"]: (drop["count"], drop["samples"]) for drop in said["drops"]} == {
        "a question of the evaluation, by its id": (1, ["other words altogether"]),
        "a question of the evaluation, by its text": (1, [question(rows[1]).upper() + "?"]),
        "nearly a question of the evaluation": (1, [f"{question(rows[2])} really"]),
    }
    mined = pq.read_table(tmp_path / "ws" / "mined" / "queries.parquet").to_pylist()
    theirs = [row["text"] for row in mined if row["origin"] == "labelled"]
    assert theirs == [question(row) for row in rows[10:]]


def noise_model(corpus: Corpus, folder: Path) -> str:
    """A model whose vectors are all alike."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(corpus.model, folder)
    file = next(folder.rglob("model.safetensors"))
    save_file({name: value * 0 + 0.1 for name, value in load_file(file).items()}, file, {"format": "pt"})
    return str(folder)


def test_a_teacher_that_is_worse_is_refused_unless_forced(tmp_path: Path, corpus: Corpus) -> None:
    teacher = f"bi-encoder:{noise_model(corpus, tmp_path / 'noise')}"
    with pytest.raises(
        SettingsError, match=r"is worse than the student on \d+ dev queries: nDCG@10"
    ) as caught:
        fit(tmp_path / "ws", corpus, mine__teacher=teacher)
    assert "force" in caught.value.hint
    forced = {"mine__teacher": teacher, "mine__force_teacher": True}
    steps = ran(fit(tmp_path / "ws", corpus, until="train", **forced))
    assert steps == ["mine", "train"]
    assert "worse than the student" in result(tmp_path / "ws", "mine")["notes"][0]
    assert result(tmp_path / "ws", "train")["counts"]["steps"] > 0


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"pretrain__objective": "mlm"}, "changes the vectors of passages"),
    ({"pretrain__objective": "tsdae", "train__towers": "query"}, "changes the vectors of passages"),
    ({"train__objective": "mnr, contrast"}, "'contrast' is not known"),
    ({"train__objective": "mnr,cosine", "train__weights": (1.0,)}, "do not fit 2 objectives"),
    ({"train__data": "labelled"}, "there are no labelled pairs"),
    ({"train__lora_rank": 4, "train__freeze_embeddings": True}, "freezes the model's own weights"),
    ({"train__report_to": ("tensorbored",)}, "'tensorbored' is not known"),
    ({"mine__teacher": "blond"}, "no teacher is called 'blond'"),
]


@pytest.mark.parametrize(("change", "said"), WRONG, ids=[said for _, said in WRONG])
def test_settings_that_contradict_each_other_are_refused_before_anything_is_done(
    tmp_path: Path, corpus: Corpus, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        fit(tmp_path / "ws", corpus, **change)
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize("change", [{"train__lora_rank": 4}, {"train__report_to": ("tensorboard",)}])
def test_a_library_that_is_not_there_is_said_before_anything_is_done(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    gone = ("peft", "tensorboard")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in gone else found(name, *a)
    )
    with pytest.raises(MissingExtraError):
        fit(tmp_path / "ws", corpus, **change)
    assert not (tmp_path / "ws").exists()
