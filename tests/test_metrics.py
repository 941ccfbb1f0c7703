from __future__ import annotations

import random
from pathlib import Path

import pytest
import pytrec_eval

from searchfit import metrics
from searchfit.errors import SettingsError, SourceError

ORACLE = {"ndcg@10": "ndcg_cut_10", "map": "map", "recall@10": "recall_10", "recall@100": "recall_100"}
IDS = ["a", "b", "ab", "B", "10", "9", "é", "中文", "🙂", "z.", *(f"d{number}" for number in range(140))]


def random_case(seed: int) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    """A graded run with many ties: some exact, some only in single precision."""
    chance = random.Random(seed)
    levels = [0.0, -1.0, 0.5, 0.5 + 1e-9, 0.1, 1e30, 3.25]
    run, qrels = {}, {}
    for query in ("q1", "q2", "q3"):
        retrieved = chance.sample(IDS, chance.choice([1, 5, 30, 150]))
        run[query] = {doc: chance.choice([chance.choice(levels), chance.random()]) for doc in retrieved}
        qrels[query] = {doc: chance.choice([-1, 0, 0, 1, 1, 2, 3]) for doc in chance.sample(IDS, 40)}
    return run, qrels


def oracle(run: dict[str, dict[str, float]], qrels: dict[str, dict[str, int]]) -> dict[str, dict[str, float]]:
    measures = {"ndcg_cut.10", "recip_rank", "map", "recall.10,100"}
    table = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    # trec_eval has no cut reciprocal rank: the rank is at most 10 when the reciprocal is at least 1/10.
    return {
        query: {name: row[theirs] for name, theirs in ORACLE.items()}
        | {"mrr@10": row["recip_rank"] if row["recip_rank"] > 1 / 10.5 else 0.0}
        for query, row in table.items()
    }


@pytest.mark.parametrize("block", range(10))
def test_equals_trec_eval_with_ties_and_grades(block: int) -> None:
    for seed in range(block * 30, block * 30 + 30):
        run, qrels = random_case(seed)
        ours, theirs = metrics.score_run(run, qrels), oracle(run, qrels)
        assert set(ours) == set(theirs)
        for query, row in ours.items():
            assert list(row) == list(metrics.NAMES)
            assert row == pytest.approx(theirs[query], abs=1e-9), (seed, query)


BY_NAME = {
    "ndcg@1": "ndcg_cut_1", "ndcg@3": "ndcg_cut_3", "ndcg@100": "ndcg_cut_100", "map@5": "map_cut_5",
    "map@1000": "map_cut_1000", "map": "map", "recall@5": "recall_5", "recall@50": "recall_50",
    "precision@1": "P_1", "precision@5": "P_5", "precision@100": "P_100", "hit@1": "success_1",
    "hit@7": "success_7", "mrr@1000": "recip_rank",
}  # fmt: skip


def test_a_thousand_runs_by_any_metric_equal_trec_eval() -> None:
    """pytrec_eval on 1,000 random runs of three queries, with ties and grades; the largest difference
    counts."""
    cuts = {
        "ndcg_cut.1,3,100",
        "map_cut.5,1000",
        "map",
        "recall.5,50",
        "P.1,5,100",
        "success.1,7",
        "recip_rank",
    }
    largest = 0.0
    for seed in range(1000, 2000):
        run, qrels = random_case(seed)
        theirs = pytrec_eval.RelevanceEvaluator(qrels, cuts).evaluate(run)
        ours = metrics.score_run(run, qrels, list(BY_NAME))
        assert set(ours) == set(theirs)
        for query, row in ours.items():
            assert list(row) == list(BY_NAME)
            largest = max(largest, *(abs(row[name] - theirs[query][own]) for name, own in BY_NAME.items()))
    assert largest < 1e-9


def test_cut_reciprocal_rank_is_that_of_the_cut_run() -> None:
    for seed in range(60):
        run, qrels = random_case(seed)
        row = metrics.score_run(run, qrels, ["mrr@4"])
        for query, scores in run.items():
            first = metrics.trec_order(query, scores)[:4]
            cut = {document: float(-place) for place, document in enumerate(first)}
            judged = {query: qrels[query]}
            theirs = pytrec_eval.RelevanceEvaluator(judged, {"recip_rank"}).evaluate({query: cut})
            assert row.get(query, {}).get("mrr@4", 0.0) == pytest.approx(theirs[query]["recip_rank"])


def test_unjudged_is_a_share_of_what_was_found() -> None:
    judged = {"a": 1, "b": 0, "c": -1}
    assert metrics.score_ranking(["a", "x", "b", "y"], judged, ["unjudged@10"])["unjudged@10"] == 0.5
    assert metrics.score_ranking(["a", "x", "y"], judged, ["unjudged@2"])["unjudged@2"] == 0.5
    assert metrics.score_ranking([], judged, ["unjudged@10"])["unjudged@10"] == 0
    assert metrics.score_ranking(["a", "z"], {"a": 0}, ["unjudged@10", "hit@1"]) == {
        "unjudged@10": 0.5,
        "hit@1": 0,
    }


@pytest.mark.parametrize("name", ["ndcg", "map@", "hit@0", "hit@-1", "recall@1.5", "bleu@3", "P@5", ""])
def test_a_metric_that_is_not_known(name: str) -> None:
    with pytest.raises(SettingsError, match="is not known"):
        metrics.score_ranking(["a"], {"a": 1}, [name])


def test_ties_go_to_the_larger_id() -> None:
    run = {"q": {"a": 1.0, "b": 1.0}}
    assert metrics.score_run(run, {"q": {"b": 1}})["q"]["mrr@10"] == 1.0
    assert metrics.score_run(run, {"q": {"a": 1}})["q"]["mrr@10"] == 0.5


def test_worked_example() -> None:
    row = metrics.score_ranking(["x", "a", "y", "b"], {"a": 1, "b": 3, "c": 0, "d": -2})
    assert row["mrr@10"] == 0.5
    assert row["map"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert row["ndcg@10"] == pytest.approx((1 / 1.5849625 + 3 / 2.3219281) / (3 + 1 / 1.5849625))
    assert row["recall@10"] == row["recall@100"] == 1.0


def test_cuts_at_ten() -> None:
    row = metrics.score_ranking([f"d{place}" for place in range(1, 30)], {"d11": 1})
    assert row == {"ndcg@10": 0, "mrr@10": 0, "map": pytest.approx(1 / 11), "recall@10": 0, "recall@100": 1}


def test_a_repeated_id_counts_once() -> None:
    relevant = {"a": 1, "b": 1}
    assert metrics.score_ranking(["a", "a", "b"], relevant) == metrics.score_ranking(["a", "b"], relevant)


def test_missing_and_unjudged_queries() -> None:
    qrels = {"missing": {"a": 1}, "nothing relevant": {"a": 0}, "empty": {}, "found": {"a": 2}}
    table = metrics.score_run({"found": {"a": 1.0}, "unjudged": {"a": 1.0}, "empty": {"a": 1.0}}, qrels)
    assert set(table) == {"missing", "found"}
    assert metrics.means(table) == dict.fromkeys(metrics.NAMES, 0.5)
    assert metrics.means({}) == {}
    assert set(metrics.score_ranking(["a"], {}).values()) == {0.0}


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(SourceError, match="query 'q', document 'a'"):
        metrics.score_run({"q": {"a": float("nan")}}, {"q": {"a": 1}})


def test_run_file_keeps_the_order_for_trec_eval(tmp_path: Path) -> None:
    ranking = [
        ("a", 1.0),
        ("c", 1.0),
        ("b", 1.0 - 1e-12),
        ("e", 3.0),
        ("\u00a0x", 0.0),
        ("g", -0.0),
        ("h", -1.5),
    ]
    metrics.write_run(tmp_path / "runs" / "mine.run", "mine", {"q1": ranking, "é": [("a", 0.5)], "q2": []})
    lines = (tmp_path / "runs" / "mine.run").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "q1 Q0 a 1 1 mine"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine.run"]
    run = metrics.read_run(tmp_path / "runs" / "mine.run")
    assert set(run) == {"q1", "é"}
    assert run["q1"]["h"] == -1.5
    for relevant in run["q1"]:
        qrels = {"q1": {relevant: 1}}
        expected = metrics.score_ranking([document for document, _ in ranking], qrels["q1"])
        assert oracle(run, qrels)["q1"] == pytest.approx(expected, abs=1e-9)


def test_a_long_run_of_ties_stays_in_order(tmp_path: Path) -> None:
    ranking = [(f"d{place:04}", 0.25) for place in range(2000)]
    metrics.write_run(tmp_path / "run", "tag", {"q": ranking})
    scores = metrics.read_run(tmp_path / "run")["q"]
    assert [d for d, _ in ranking] == metrics.trec_order("q", scores)
    assert min(scores.values()) > 0.249


@pytest.mark.parametrize(
    ("query", "ranking", "message"),
    [
        ("q", [("my notes.md", 1.0)], "document id 'my notes.md'"),
        ("a\tb", [("x", 1.0)], "query id"),
        ("q", [("", 1.0)], "document id ''"),
        ("q", [("a\0b", 1.0)], "document id"),
        ("q", [("a", float("nan"))], "score nan"),
        ("q", [("a", float("inf"))], "score inf"),
        ("q", [("a", -1e300)], "score"),
        ("q", [("a", 2.0), ("a", 1.0)], "twice"),
    ],
)
def test_what_the_run_format_cannot_carry_is_refused(
    tmp_path: Path, query: str, ranking: list[tuple[str, float]], message: str
) -> None:
    path = tmp_path / "run"
    metrics.write_run(path, "tag", {"kept": [("a", 1.0)]})
    before = path.read_bytes()
    with pytest.raises(SourceError, match=message):
        metrics.write_run(path, "tag", {"fine": [("a", 1.0)], query: ranking})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"q Q0 a 1 0.5 t\nq Q0 b 2\n", "row 2.*six fields"),
        (b"q Q0 a 1 high t\n", "row 1.*score"),
        (b"q Q0 a 1 nan t\n", "row 1.*score"),
        (b"q Q0 a 1 2 t\n\nq Q0 a 2 1 t\n", "row 3.*once"),
        (b"q Q0 \xff 1 2 t\n", "row 1: not UTF-8"),
    ],
)
def test_a_broken_run_file_names_its_row(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "run"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        metrics.read_run(path)


@pytest.mark.parametrize(
    "content",
    [
        "q1 0 a 1\nq1 0 b 0\r\n\nq2 0 é -1\n",
        "\ufeffq1\t0\ta\t1\nq1\t0\tb\t0\nq2\t0\té\t-1",
        "query-id\tcorpus-id\tscore\nq1\ta\t1\nq1\tb\t0\nq1\tb\t0\nq2\té\t-1.0\n",
    ],
)
def test_reads_both_forms_of_qrels(tmp_path: Path, content: str) -> None:
    path = tmp_path / "qrels.tsv"
    path.write_bytes(content.encode())
    assert metrics.read_qrels(path) == {"q1": {"a": 1, "b": 0}, "q2": {"é": -1}}


def test_ids_with_spaces_in_a_beir_file(tmp_path: Path) -> None:
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq 1\tmy notes.md\t1\n")
    assert metrics.read_qrels(tmp_path / "qrels.tsv") == {"q 1": {"my notes.md": 1}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q 0 a\n", "row 1"),
        ("q\n", "row 1"),
        ("q a 1\n", "row 1"),
        ("q 0 a x\n", "row 1"),
        ("h\th\th\nq\ta\tinf\n", "row 2"),
        ("h\th\th\nq\ta\t0.5\n", "row 2"),
        ("q 0 a 1\nq 0 a 2\n", "row 2.*one grade"),
    ],
)
def test_broken_qrels_name_their_row(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "qrels"
    path.write_text(content)
    with pytest.raises(SourceError, match=message):
        metrics.read_qrels(path)


def test_an_absent_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        metrics.read_qrels(tmp_path / "absent")
    with pytest.raises(SourceError, match="cannot be read"):
        metrics.read_run(tmp_path)


def test_an_empty_file_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert metrics.read_run(tmp_path / "empty") == metrics.read_qrels(tmp_path / "empty") == {}
