from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from searchfit.config import load_settings
from searchfit.encoders import load_encoder
from searchfit.metrics import NAMES, score_ranking
from searchfit.search import ArrayCorpus
from searchfit.stages import Tools, evaluate


def run(bench: Any, out: Path, **values: Any) -> tuple[dict[str, Any], Any, Any]:
    """systems.json, and the tables of queries and of the top ten."""
    settings = load_settings(base=bench.settings, values=values)
    settings = settings.only("evaluate", "queries", "reencode", "engine", "model", "seed")
    evaluate.run(settings, bench.inputs("evaluate"), Tools(out))
    folder = out / "evaluation"
    systems = json.loads((folder / "systems.json").read_text())
    return systems, pq.read_table(folder / "queries.parquet"), pq.read_table(folder / "top.parquet")


def names(systems: dict[str, Any], kind: str) -> list[str]:
    return [system["name"] for system in systems["systems"] if system["kind"] == kind]


def system(systems: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(system for system in systems["systems"] if system["name"] == name)
    return found


def test_figures_are_those_of_rankings_made_by_hand(bench: Any, tmp_path: Path) -> None:
    """Untuned dense and keyword search, over full score matrices and with a sort in plain Python."""
    systems, table, top = run(bench, tmp_path)
    corpus = ArrayCorpus.load(bench.path("encoded"), bench.path("keyword"))
    ids = pq.read_table(bench.path("documents.parquet"))["id"].to_pylist()
    texts = table["text"].to_pylist()
    vectors = load_encoder(bench.settings.model).encode_queries(texts)
    legs = {"untuned dense": vectors @ corpus.passages.T, "keyword": corpus.keyword.scores(texts).toarray()}
    for name, scores in legs.items():
        figures: dict[str, list[dict[str, float]]] = {"dev": [], "test": []}
        for query, row in enumerate(table.to_pylist()):
            rounded = np.rint(scores[query].astype(float) * 1e6)
            order = sorted(range(corpus.count), key=lambda i, s=rounded: (-s[i], i))  # type: ignore[misc]
            ranking = list(dict.fromkeys(int(corpus.documents[i]) for i in order))[:100]
            score = score_ranking([ids[document] for document in ranking], dict.fromkeys(row["relevant"], 1))
            assert row[name] == pytest.approx(score["ndcg@10"], abs=1e-12)
            assert top[name][query].as_py() == ranking[:10]
            figures[row["split"]].append(score)
        for split, rows in figures.items():
            means = {metric: np.mean([score[metric] for score in rows]) for metric in NAMES}
            assert system(systems, name)[split] == pytest.approx(means, abs=1e-12)
            assert systems["counts"][split] == len(rows) > 0


def test_generated_questions_are_of_held_out_documents(bench: Any, tmp_path: Path) -> None:
    systems, table, _ = run(bench, tmp_path, **{"evaluate.max_queries": 10})
    assert systems["questions"] == "generated"
    assert systems["counts"] == {"dev": 10, "test": 10}
    holdout = {
        row["document_id"]: row["split"] for row in pq.read_table(bench.path("holdout.parquet")).to_pylist()
    }
    for row in table.to_pylist():
        (document,) = row["relevant"]
        assert holdout[document] == row["split"] in ("dev", "test")
    assert len(set(table["query_id"].to_pylist())) == 20


def test_the_candidates_differ_in_the_query_tower_alone(bench: Any, tmp_path: Path) -> None:
    systems, table, top = run(bench, tmp_path, **{"evaluate.merges": (0.5,), "engine.keyword_weight": 0.8})
    candidates = [s["engine"] for s in systems["systems"] if s["kind"] == "candidate"]
    assert [engine["query_tower"] for engine in candidates] == [0, 0.5, 1]
    assert len({(engine["units"], engine["keyword_weight"]) for engine in candidates}) == 1
    every = [s["name"] for s in systems["systems"]]
    assert len(set(every)) == len(every)
    assert set(every) <= set(table.column_names)
    assert set(every) == set(top.column_names)
    assert {"untuned dense", "keyword", "untuned blend"} <= set(names(systems, "baseline"))


def write_questions(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_the_users_judged_questions_are_preferred(bench: Any, tmp_path: Path) -> None:
    rows = [
        {"query_id": f"u{n}", "query": f"about garden notes {n}", "document_id": f"garden-{n}", "score": 2}
        for n in range(0, 72, 6)
    ]
    rows.append({"query_id": "u0", "query": "about garden notes 0", "document_id": "kitchen-1", "score": 0})
    rows.append({"query_id": "far", "query": "the moon", "document_id": "not-here", "score": 1})
    rows.append({"query_id": "open", "query": "an open question"})
    file = write_questions(tmp_path / "mine.jsonl", rows)
    systems, table, top = run(bench, tmp_path, **{"queries.file": file})
    assert systems["questions"] == "judged"
    assert table["query_id"].to_pylist() == [f"u{n}" for n in range(0, 72, 6)]
    assert table["relevant"].to_pylist() == [[f"garden-{n}"] for n in range(0, 72, 6)]
    assert set(table["split"].to_pylist()) == {"dev", "test"}
    assert systems["counts"] == {s: table["split"].to_pylist().count(s) for s in ("dev", "test")}
    # Questions that cannot be scored are answered beside the others, for the user to look at.
    assert systems["unjudged"] == ["the moon", "an open question"]
    assert top.num_rows == 12 + 2


def test_questions_without_judgements_are_answered_beside_generated_ones(bench: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("where is the anchor\nwho plays the cello\n", encoding="utf-8")
    systems, table, top = run(bench, tmp_path, **{"queries.file": str(file)})
    assert systems["questions"] == "generated"
    assert systems["unjudged"] == ["where is the anchor", "who plays the cello"]
    assert table.num_rows == sum(systems["counts"].values())
    assert top.num_rows == table.num_rows + 2
    assert all(len(rows) == 10 for rows in top["keyword"].to_pylist())
