"""`searchfit evaluate`: figures on judged questions, and a run file that trec_eval reads alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytrec_eval
from pipeline_tools import CUT, Corpus, cli, fit, tiny_model, write_corpus

from searchfit.errors import SettingsError, SourceError, WorkspaceError
from searchfit.growth import remove
from searchfit.judged import Beside, evaluate_judged
from searchfit.keyword import KeywordIndex
from searchfit.metrics import read_run, score_run
from searchfit.search import open_searcher
from searchfit.significance import holm

TREC_NAMES = {"ndcg@10": "ndcg_cut_10", "map": "map", "recall@10": "recall_10", "recall@100": "recall_100"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judged")
    corpus = Corpus(write_corpus(folder / "places.csv"), str(tiny_model(folder)))
    # Cut into several passages a document: a run must name each document once.
    fit(folder / "ws", corpus, **CUT)
    return folder / "ws"


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """Six questions, graded, some of them hard, one without a relevant document."""
    questions = {
        "q1": ("the captain without a head in the library", {"doc-21": 2, "doc-16": 1, "doc-0": 0}),
        "q2": ("birds and comets", {f"doc-{i}": 1 + i % 3 for i in range(24, 32)}),
        "q3": ("doors that open to the south", {"doc-40": 1, "doc-44": 3, "gone-1": 2}),
        "q4": ("postcards", {"doc-55": 1, "gone-2": 1}),
        "q5": ("nothing like this anywhere", {"doc-3": 1}),
        "q6": ("no answer to this one", {"doc-1": 0}),
    }
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": id_, "text": text}) for id_, (text, _) in questions.items()]
    (folder / "queries.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = [f"{q}\t{d}\t{grade}" for q, (_, judged) in questions.items() for d, grade in judged.items()]
    text = "query-id\tcorpus-id\tscore\n" + "\n".join(rows) + "\n"
    (folder / "qrels" / "test.tsv").write_text(text, encoding="utf-8")
    return folder


def qrels(folder: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, grade = line.split("\t")
        found.setdefault(query, {})[document] = int(grade)
    return found


def test_the_run_file_gives_the_printed_figures(workspace: Path, beir: Path, tmp_path: Path) -> None:
    run_file = tmp_path / "chosen.run"
    done = cli("evaluate", workspace, beir, "--run", run_file, "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["questions"] == 5
    systems = printed["systems"]
    assert [name.split(" (")[0] for name in systems] == [
        "untuned dense", "keyword", "untuned blend", "untuned engine", "whitened dense", "whitened blend",
        "chosen dense alone", "chosen engine",
    ]  # fmt: skip
    with run_file.open(encoding="utf-8") as file:
        run = pytrec_eval.parse_run(file)
    assert set(run) == {"q1", "q2", "q3", "q4", "q5"}
    assert all(len(ranked) == 56 for ranked in run.values())
    by_query = pytrec_eval.RelevanceEvaluator(qrels(beir), {"ndcg_cut", "map", "recall"}).evaluate(run)
    chosen = next(row for name, row in systems.items() if name.startswith("chosen engine"))
    for name, theirs in TREC_NAMES.items():
        expected = sum(row[theirs] for row in by_query.values()) / len(by_query)
        assert chosen[name] == pytest.approx(expected, abs=1e-6), name
    assert 0.3 < chosen["ndcg@10"] < 1
    best_rank = [sorted(run[q], key=run[q].__getitem__, reverse=True) for q in run]
    first = [next(i for i, d in enumerate(ranked, 1) if qrels(beir)[q].get(d, 0) > 0)
             for q, ranked in zip(run, best_rank, strict=True)]  # fmt: skip
    assert chosen["mrr@10"] == pytest.approx(sum(1 / i if i <= 10 else 0 for i in first) / 5, abs=1e-9)


def test_the_run_is_what_search_gives(workspace: Path, beir: Path, tmp_path: Path) -> None:
    evaluate_judged(workspace, beir, run=tmp_path / "run")
    ranked = [
        line.split()[2] for line in (tmp_path / "run").read_text().splitlines() if line.startswith("q2 ")
    ]
    hits = open_searcher(workspace).search("birds and comets", k=56)
    assert ranked[:20] == [hit.document_id for hit in hits[:20]]


def test_the_keyword_figure_is_that_of_a_plain_count(workspace: Path, beir: Path) -> None:
    """q4's word stands in the eight famous places alone, so keyword search finds the judged one there."""
    (beir / "qrels" / "test.tsv").write_text("q\td\tscore\nq4\tdoc-55\t1\n", encoding="utf-8")
    row = evaluate_judged(workspace, beir).systems["keyword"]
    assert row["recall@10"] == 1


def test_documents_that_are_not_there_are_noted(workspace: Path, beir: Path) -> None:
    outcome = evaluate_judged(workspace, beir)
    assert outcome.notes == ("2 of 16 judged documents are not in the workspace.",)
    done = cli("evaluate", workspace, beir)
    assert done.returncode == 0
    assert "2 of 16 judged documents" in done.stderr
    assert done.stdout.split("\n", 1)[0].split() == ["system", "ndcg@10", "mrr@10", "recall@10", "gain", "p"]
    assert max(len(line.rstrip()) for line in done.stdout.splitlines()) <= 80
    assert [line.split("  ")[0].strip() for line in done.stdout.splitlines()[1:4]] == [
        "untuned dense", "keyword", "untuned blend",
    ]  # fmt: skip


def test_no_document_known_is_an_error(workspace: Path, beir: Path) -> None:
    (beir / "qrels" / "test.tsv").write_text("q\td\tscore\nq1\tother-1\t1\n", encoding="utf-8")
    with pytest.raises(SourceError, match="none of the 1 judged"):
        evaluate_judged(workspace, beir)


def test_a_wrong_split_names_those_there_are(workspace: Path, beir: Path) -> None:
    done = cli("evaluate", workspace, beir, "--split", "dev")
    assert done.returncode == 1
    assert "'dev'" in done.stderr
    assert "test" in done.stderr


def test_a_split_without_a_relevant_document(workspace: Path, beir: Path) -> None:
    (beir / "qrels" / "test.tsv").write_text("q\td\tscore\nq1\tdoc-1\t0\n", encoding="utf-8")
    with pytest.raises(SourceError, match="no judged questions"):
        evaluate_judged(workspace, beir)


def test_a_run_that_cannot_be_written(workspace: Path, beir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    done = cli("evaluate", workspace, beir, "--run", tmp_path / "file" / "run")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")


def test_an_unfinished_workspace(tmp_path: Path, beir: Path) -> None:
    with pytest.raises(WorkspaceError):
        evaluate_judged(tmp_path, beir)


def test_other_models_and_runs_are_compared(workspace: Path, beir: Path, tmp_path: Path) -> None:
    """The run that the engine wrote scores as the engine does, and so does the workspace's own model named as
    another one; what it encoded is not encoded again."""
    run_file, model = tmp_path / "chosen.run", tiny_model(tmp_path)
    evaluate_judged(workspace, beir, run=run_file)
    options = ("--model", model, "--run-file", run_file, "--metric", "precision@5", "--json")
    done = cli("evaluate", workspace, beir, *options)
    assert done.returncode == 0, done.stderr
    systems = json.loads(done.stdout)["systems"]
    assert systems[f"{model.name} dense"] == pytest.approx(systems["untuned dense"])
    assert systems[f"{model.name} engine"] == pytest.approx(systems["untuned engine"])
    chosen = next(row for name, row in systems.items() if name.startswith("chosen engine"))
    assert systems["run chosen.run"] == pytest.approx(chosen)
    assert 0 < chosen["precision@5"] < 1
    (encoded,) = (workspace / "cache").iterdir()
    before = (encoded / "passages.npy").stat().st_mtime_ns
    evaluate_judged(workspace, beir, beside=Beside(models=(str(model),)))
    assert [path.name for path in (workspace / "cache").iterdir()] == [encoded.name]
    assert (encoded / "passages.npy").stat().st_mtime_ns == before


def test_a_model_s_encoding_goes_on_after_a_kill(workspace: Path, beir: Path, tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    once = evaluate_judged(workspace, beir, beside=Beside(models=(str(model),))).systems
    folder = max((workspace / "cache").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    # As a kill between two chunks leaves it: the vectors are there, the last file is not.
    (folder / "info.json").unlink()
    (folder / "progress.json").write_text(json.dumps({"passages": 0}), encoding="utf-8")
    assert evaluate_judged(workspace, beir, beside=Beside(models=(str(model),))).systems == once
    assert (folder / "info.json").exists()


def test_keywords_are_scored_once_for_all_systems(
    workspace: Path, beir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    scores = KeywordIndex.scores

    def counted(self: KeywordIndex, queries: Sequence[str]) -> Any:
        asked.extend(queries)
        return scores(self, queries)

    monkeypatch.setattr(KeywordIndex, "scores", counted)
    assert len(evaluate_judged(workspace, beir).systems) == 8
    assert len(asked) == len(set(asked)) == 5


def test_after_a_removal_all_systems_rank_what_is_left(workspace: Path, beir: Path, tmp_path: Path) -> None:
    """The workspace's own model, as another one, scores as it does: each by the documents that it found."""
    ws, model = tmp_path / "ws", tiny_model(tmp_path)
    shutil.copytree(workspace, ws, symlinks=True)
    remove(ws, ["doc-0", "doc-22"])
    outcome = evaluate_judged(ws, beir, beside=Beside(models=(str(model),)))
    systems = outcome.systems
    assert systems["untuned dense"]["recall@100"] == systems["whitened dense"]["recall@100"] > 0.5
    assert systems[f"{model.name} dense"] == pytest.approx(systems["untuned dense"])
    assert any("has changed since the fit" in note for note in outcome.notes)


def test_every_gain_has_its_p_corrected_for_all_of_them(workspace: Path, beir: Path, tmp_path: Path) -> None:
    outcome = evaluate_judged(workspace, beir, run=tmp_path / "run")
    assert set(outcome.compared) == set(outcome.systems) - {"untuned engine"}
    ps = [row["p"] for row in outcome.compared.values()]
    assert [row["p_holm"] for row in outcome.compared.values()] == holm(ps)
    chosen = next(row for name, row in outcome.compared.items() if name.startswith("chosen engine"))
    after = [row["ndcg@10"] for row in score_run(read_run(tmp_path / "run"), qrels(beir)).values()]
    assert chosen["mean_b"] == pytest.approx(sum(after) / 5)
    assert chosen["gain"] == pytest.approx(chosen["mean_b"] - outcome.systems["untuned engine"]["ndcg@10"])
    assert chosen["n"] == 5
    assert chosen["detectable"] >= 0


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("z1 Q0 doc-1 1 1.0 x\n", "none of the 5 judged questions"),
        ("q1 Q0 other 1 1.0 x\n", "no document of the corpus"),
        ("q1 doc-1 1.0\n", "six fields"),
        ("", "ranks 0 queries"),
    ],
)
def test_a_run_that_does_not_fit(
    workspace: Path, beir: Path, tmp_path: Path, lines: str, message: str
) -> None:
    file = tmp_path / "other.run"
    file.write_text(lines, encoding="utf-8")
    with pytest.raises(SourceError, match=message):
        evaluate_judged(workspace, beir, beside=Beside(runs=(file,)))


def test_a_run_with_gaps_is_told_of(workspace: Path, beir: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.run"
    file.write_text("q1 Q0 elsewhere 1 2.0 x\nq1 Q0 doc-21 2 1.0 x\n", encoding="utf-8")
    outcome = evaluate_judged(workspace, beir, beside=Beside(runs=(file,)))
    assert "other.run lacks 4 of 5 questions; they score 0." in outcome.notes
    assert "other.run: 1 of 2 results are not documents of the corpus." in outcome.notes
    # The unknown document holds the first place.
    assert outcome.systems["run other.run"]["mrr@10"] == pytest.approx(0.5 / 5)


@pytest.mark.parametrize("name", ["recall", "ndcg@0", "ndcg@", "hit@1000", "bleu@4", "map@٣"])
def test_a_metric_that_cannot_be_had(workspace: Path, beir: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="metric"):
        evaluate_judged(workspace, beir, beside=Beside(metrics=(name,)))
