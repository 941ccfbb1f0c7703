from __future__ import annotations

import csv
import json
import re
import sqlite3
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
from pipeline_tools import example

import searchfit

if TYPE_CHECKING:
    from conftest import Doc


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_property_listings(tmp_path: Path) -> None:
    said = example("property_listings", "--out", tmp_path, "--listings", "44")
    workspace = tmp_path / "search"
    with sqlite3.connect(tmp_path / "listings.db") as database:
        database.row_factory = sqlite3.Row
        listings = {row["id"]: row for row in database.execute("select * from listings")}

    # Long descriptions are segments that keep the id of their property; together they hold all of it.
    passages = pq.read_table(workspace / "passages.parquet").to_pylist()
    parts = Counter(row["document_id"] for row in passages)
    assert parts.keys() == listings.keys()
    long = {ident for ident, row in listings.items() if len(row["description"]) > 1024}
    assert len(long) >= 10
    assert {ident for ident, count in parts.items() if count > 1} == long
    assert max(len(row["text"]) for row in passages) <= 1024
    for row in passages:
        assert row["text"] in listings[row["document_id"]]["description"]

    # A row a passage, with the questions that the language model wrote for it and the screen kept.
    rows = table(tmp_path / "queries" / "passages.csv")
    assert list(rows[0])[-5:] == [f"query_{n}" for n in range(1, 6)]
    kept = pq.read_table(workspace / "pairs.parquet").to_pylist()
    written = [row[f"query_{n}"] for row in rows for n in range(1, 6) if row[f"query_{n}"]]
    assert Counter(written) == Counter(row["text"] for row in kept)
    assert all(row["generator"].startswith("chat:") for row in kept)
    own = {row["id"]: row["document_id"] for row in passages}
    assert all(own[row["passage_id"]] == row["document_id"] for row in rows)
    assert len(rows) == len({row["passage_id"] for row in rows})

    # TSDAE changed a BERT with CLS pooling, and the searches obey their filters.
    manifest = json.loads((workspace / "manifest.json").read_text(encoding="utf-8"))["stages"]
    assert manifest["pretrain"]["counts"]["objective"] == "tsdae"
    assert manifest["train"]["counts"]["steps"] > 0
    from safetensors.numpy import load_file
    from sentence_transformers import SentenceTransformer

    pooling = SentenceTransformer(str(workspace / "models" / "tuned"), device="cpu")[1]
    assert pooling.get_config_dict()["pooling_mode"] == "cls"
    words = "embeddings.word_embeddings.weight"
    before = load_file(tmp_path / "models" / "bert-base-uncased" / "model.safetensors")
    after = load_file(workspace / "models" / "pretrained" / "query_tower.safetensors")
    learnt = next(value for name, value in after.items() if name.endswith(words))
    assert not np.array_equal(next(v for n, v in before.items() if n.endswith(words)), learnt)
    cheap, cold = (re.findall(r"P\d{4}", part) for part in said.split("$ searchfit search")[1:])
    assert cheap
    assert all(listings[id_]["price"] < 200_000 and listings[id_]["city"] == "Huesca" for id_ in cheap)
    assert cold
    assert all(listings[id_]["latitude"] > 42.5 and listings[id_]["rooms"] >= 3 for id_ in cold)


def test_genq_squad(tmp_path: Path, corpus: list[Doc]) -> None:
    data = tmp_path / "squad"
    (data / "qrels").mkdir(parents=True)
    documents = [{"_id": doc.id, "title": doc.title, "text": doc.text} for doc in corpus]
    asked = [{"_id": f"q{n}", "text": " ".join(doc.text.split()[3:9])} for n, doc in enumerate(corpus)]
    for name, lines in (("corpus", documents), ("queries", asked)):
        (data / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    qrels = "".join(f"q{n}\t{doc.id}\t1\n" for n, doc in enumerate(corpus))
    (data / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{qrels}", "utf-8")
    said = example("genq_squad", "--out", tmp_path / "out", "--data", data, "--question", corpus[5].text[:60])
    workspace = tmp_path / "out" / "search"

    # Three questions a passage at most, in TSV of question and passage.
    queries = pq.read_table(workspace / "queries").to_pylist()
    assert max(Counter(row["passage_id"] for row in queries).values()) == 3
    shards = sorted((tmp_path / "out" / "queries").glob("*.tsv"))
    lines = [line for shard in shards for line in shard.read_text("utf-8").splitlines()]
    assert Counter(line.split("\t")[0] for line in lines) == Counter(
        row["text"] for row in pq.read_table(workspace / "pairs.parquet").to_pylist()
    )
    assert {len(line.split("\t")) for line in lines} == {2}

    # The judged questions measure, untuned and tuned.
    assert re.search(r"^\d+ judged test questions", said, re.MULTILINE)
    for system in ("untuned dense", "tuned dense, engine's units", "untuned engine"):
        line = next(line for line in said.splitlines() if re.match(rf"{re.escape(system)}  +\d\.", line))
        mrr, ndcg, recall = map(float, line.removeprefix(system).split())
        assert 0 <= mrr <= ndcg <= recall <= 1

    # Search reads from the other store, which has every passage with its metadata.
    from qdrant_client import QdrantClient

    client = QdrantClient(path=str(tmp_path / "out" / "qdrant"))
    points, _ = client.scroll("passages", limit=1000, with_payload=True)
    client.close()
    passages = pq.read_table(workspace / "passages.parquet").num_rows
    assert (
        len([point for point in points if point.payload and "document_id" in str(point.payload)]) >= passages
    )
    assert "qdrant://" in (workspace / "store.json").read_text("utf-8")
    found = said.rpartition("$ searchfit search")[2]
    assert re.findall(r"^(\d)\. ", found, re.MULTILINE) == list("12345")
    assert corpus[5].id in found


def test_sbert_pairs(tmp_path: Path) -> None:
    said = example("sbert_pairs", "--out", tmp_path)
    workspace = tmp_path / "search"
    board = json.loads((workspace / "leaderboard.json").read_text("utf-8"))
    assert len({row["model"] for row in board["rows"]}) == 2
    pairs = [(row["source_sentence"], row["target_sentence"]) for row in table(tmp_path / "pairs.csv")]
    printed = re.findall(r"(?:own|next one's), on average +(-?\d\.\d+) +(-?\d\.\d+)$", said, re.MULTILINE)
    assert len(printed) == 4
    figures = np.array(printed, float).reshape(2, 2, 2)  # by model, answer, time

    # The same figures by sentence-transformers, from the folders as they were saved.
    from sentence_transformers import SentenceTransformer

    names = re.findall(
        r"^cosine of question and answer by (.+), and after tuning by (.+)$", said, re.MULTILINE
    )
    assert {Path(tuned).parent for _, tuned in names} == {workspace / "models"}
    for (_, tuned), ours in zip(names, figures, strict=True):
        model = SentenceTransformer(tuned, device="cpu")
        left = model.encode_query([question for question, _ in pairs], normalize_embeddings=True)
        right = model.encode_document([answer for _, answer in pairs], normalize_embeddings=True)
        np.testing.assert_allclose(np.mean(np.sum(left * right, 1)), ours[0, 1], atol=2e-3)
    gaps = figures[:, 0] - figures[:, 1]
    assert (gaps[:, 1] > gaps[:, 0] + 0.005).any()

    # What is served finds the answer to a question.
    hits = searchfit.open(workspace).search("was the violin mended in May", k=3)
    assert "No, the violin was mended in May and has worked ever since." in {hit.text for hit in hits}
