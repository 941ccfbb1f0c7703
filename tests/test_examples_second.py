from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from pipeline_tools import EXAMPLES, environment, example

import searchfit

HELD_OUT = ("dev", "test")


def run(name: str, out: Path) -> str:
    """What the example prints, in a process of its own, as a reader would run it."""
    command = [sys.executable, str(EXAMPLES / name / "run.py"), "--out", str(out)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def column(said: str, system: str) -> list[float]:
    """The figures of a system in the printed table: MRR@10, nDCG@10, recall@10."""
    line = next(line for line in said.splitlines() if re.match(rf"{re.escape(system)}  +0", line))
    return [float(cell) for cell in line.removeprefix(system).split()]


def test_finbert_two_tower(tmp_path: Path) -> None:
    said = run("finbert_two_tower", tmp_path)
    workspace = tmp_path / "search"
    with (tmp_path / "labelled.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    urls = {row["url"] for row in rows}
    assert len(re.findall(r"^  \d\.\d{3}  https://", said, re.MULTILINE)) == 15

    # The index has each page once, with its url, and a question finds the page that answers it.
    documents = pq.read_table(workspace / "documents.parquet")
    assert sorted(documents["metadata.url"].to_pylist()) == sorted(urls)
    right = next(row for row in rows if row["query"] == "what do mortgages cost" and row["label"] == "1")
    hits = searchfit.open(workspace).search(right["query"], k=5)
    assert right["url"] in {hit.metadata["url"] for hit in hits}

    # Trained end to end: two towers that began alike, each with its own weights and head now.
    from safetensors.numpy import load_file

    query, document = (
        load_file(workspace / "models" / "trained" / f"{side}_tower.safetensors")
        for side in ("query", "document")
    )
    assert query.keys() == document.keys()
    heads = [name for name, value in query.items() if 256 in value.shape and value.ndim == 2]
    assert heads
    assert all(not np.array_equal(query[name], document[name]) for name in heads)

    # The questions that measure were no lessons, nor were the pages that answer them.
    labelled = pq.read_table(workspace / "labelled.parquet").to_pylist()
    learnt = {row["text"] for row in labelled if row["split"] == "train"}
    tested = {row["text"] for row in labelled if row["split"] in HELD_OUT and row["label"] == 1}
    assert learnt
    assert tested
    assert not learnt & tested
    for system in ("untuned dense", "tuned dense, engine's units"):
        mrr, ndcg, recall = column(said, system)
        assert 0 <= mrr <= ndcg <= recall <= 1
    assert column(said, "untuned engine")[1] > 0.3
    with (workspace / "models" / "trained" / "course.csv").open(encoding="utf-8", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    quarter = len(losses) // 4
    assert np.mean(losses[-quarter:]) < np.mean(losses[:quarter])


def test_question_answering_site(tmp_path: Path) -> None:
    said = example("question_answering_site", "--out", tmp_path)
    workspace = tmp_path / "search"
    with (tmp_path / "triples.csv").open(encoding="utf-8", newline="") as file:
        triples = list(csv.DictReader(file))
    labels = [row["label"] for row in triples]
    assert labels.count("1") == labels.count("0") == len(labels) / 2

    # Questions of the evaluation are among the triples, and were not learnt from.
    lines = (tmp_path / "test" / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    test = {row["_id"]: row["text"] for row in map(json.loads, lines)}
    assert test.keys() & {row["question_id"] for row in triples}
    learnt = [
        row for row in pq.read_table(workspace / "labelled.parquet").to_pylist() if row["split"] == "train"
    ]
    assert len(learnt) > 100
    assert not test.keys() & {row["query_id"] for row in learnt}
    for text in {row["query"] for row in learnt}:
        words = set(re.findall(r"\w+", text.lower()))
        others = (set(re.findall(r"\w+", other.lower())) for other in test.values())
        assert max(len(words & other) / len(words | other) for other in others) < 0.8

    # Measured on held-out triples by epoch, and better in the end than before.
    path = workspace / "models" / "trained" / "similarity.csv"
    with path.open(encoding="utf-8", newline="") as file:
        epochs = list(csv.DictReader(file))
    assert [row["epoch"] for row in epochs] == ["0", "1", "2"]
    assert float(epochs[-1]["average_precision"]) > float(epochs[0]["average_precision"])

    for system in ("untuned dense", "tuned dense, engine's units", "untuned engine re-ranked, weight 2"):
        mrr, ndcg, recall = column(said, system)
        assert min(mrr, ndcg, recall) > 0
        assert max(mrr, ndcg, recall) <= 1
    for head in ("high", "low"):
        assert re.search(rf"questions of {head} effectiveness:\n  \d\.\d\d  .+\n +[a-z -]+: .+", said)
    assert (
        len(re.findall(r"^  [01]\.\d{3}  .+\n {9}\S", said.partition("most similar")[2], re.MULTILINE)) == 5
    )
    assert searchfit.open(workspace).search("Aphids all over the basil", k=3)
