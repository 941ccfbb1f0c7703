"""What other tools take: runs that pytrec_eval scores alike, BEIR folders that go round, a model for mteb."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytrec_eval
from pipeline_tools import Corpus, cli, fit, random_sentences, tiny_model

from searchfit.config import QueriesSettings, Settings, SourceSettings
from searchfit.errors import SettingsError, SourceError, WorkspaceError
from searchfit.exchange import export_judgements, export_model, export_runs
from searchfit.judgements import Judgement, Record
from searchfit.judging import Questions, questions
from searchfit.metrics import read_qrels, read_run, score_run
from searchfit.records import DOCUMENTS
from searchfit.search import open_searcher
from searchfit.sources import open_source
from searchfit.sources.queries import read_queries

COUNT = 60


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Documents of one sentence: passage, sentence and document are the same vector."""
    sentences = random_sentences(4)
    return [next(sentences) for _ in range(COUNT)]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """20 questions of a few words of two documents each, graded, as a BEIR folder."""
    folder = tmp_path_factory.mktemp("judged")
    (folder / "qrels").mkdir()
    random = np.random.default_rng(1)
    lines, rows = [], ["query-id\tcorpus-id\tscore"]
    for number in range(20):
        one, other, none = (int(i) for i in random.choice(COUNT, 3, replace=False))
        words = [*texts[one].rstrip(".").split()[:3], *texts[other].rstrip(".").split()[-2:]]
        lines.append(json.dumps({"_id": f"q{number}", "text": " ".join(words)}))
        rows += [f"q{number}\td{one}\t2", f"q{number}\td{other}\t1", f"q{number}\td{none}\t0"]
    (folder / "queries.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, texts: list[str], judged: Path) -> Path:
    """A workspace that serves a model of two towers with prompts, as a tuned one is."""
    import torch

    folder = tmp_path_factory.mktemp("exchange")
    source = folder / "docs.jsonl"
    source.write_text(
        "".join(
            json.dumps(
                {"id": f"d{i}", "text": text, "price": i, "seen": [1, 2], "née": None if i % 2 else "ü"}
            )
            + "\n"
            for i, text in enumerate(texts)
        ),
        encoding="utf-8",
    )
    changes: dict[str, Any] = {
        "model__query_prompt": "ask: ",
        "model__document_prompt": "text: ",
        "model__precision": "fp32",
        "queries__file": str(judged),
        "source__text": ("text",),
        "source__id": "id",
    }
    fit(folder / "ws", Corpus(source, str(tiny_model(folder))), train__enabled=False, **changes)
    searcher = open_searcher(folder / "ws")
    random = np.random.default_rng(2)
    weights = {
        name: value + torch.from_numpy(random.normal(0, 0.03, tuple(value.shape))).to(value.dtype)
        for name, value in searcher.encoder.query_modules().state_dict().items()
    }
    info = json.loads((searcher.folder / "info.json").read_text(encoding="utf-8"))
    info["engine"]["query_tower"] = 1.0
    (searcher.folder / "info.json").write_text(json.dumps(info), encoding="utf-8")
    card = (searcher.folder / "model" / "README.md").read_text(encoding="utf-8")
    shutil.rmtree(searcher.folder / "model")
    searcher.encoder.with_query_weights(weights, 1.0).save(searcher.folder / "model")
    (searcher.folder / "model" / "README.md").write_text(card, encoding="utf-8")
    return folder / "ws"


@pytest.fixture
def record(workspace: Path) -> Iterator[Record]:
    """A record with a judgement, which is gone after the test."""
    held = Record(workspace)
    held.add(Judgement("q0", questions(workspace).queries[0][1], "d59", 3, "me"))
    yield held
    (workspace / "judgements.jsonl").unlink()


def test_runs_of_every_system_are_scored_as_evaluate_prints_them(
    workspace: Path, judged: Path, tmp_path: Path
) -> None:
    done = cli("export", workspace, "--runs", tmp_path / "runs", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["queries"] == 20
    with (tmp_path / "runs" / "qrels.txt").open(encoding="utf-8") as file:
        qrels = pytrec_eval.parse_qrel(file)
    assert qrels == read_qrels(judged / "qrels" / "test.tsv") == read_qrels(tmp_path / "runs" / "qrels.txt")
    printed = json.loads(cli("evaluate", workspace, judged, "--json").stdout)["systems"]
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut", "map"})
    figures = set()
    for name, row in printed.items():
        path = tmp_path / "runs" / f"{name.partition(' (')[0].replace(' ', '-')}.run"
        assert path.name in told["files"]
        with path.open(encoding="utf-8") as file:
            run = pytrec_eval.parse_run(file)
        assert run == read_run(path)
        theirs = evaluator.evaluate(run).values()
        for ours, metric in (("ndcg@10", "ndcg_cut_10"), ("map", "map")):
            mean = sum(each[metric] for each in theirs) / 20
            assert row[ours] == pytest.approx(mean, abs=1e-6), name
        figures.add(round(row["ndcg@10"], 6))
    assert len(figures) > 2
    assert len(told["files"]) == len(printed) + 1


def test_a_folder_with_judgements_goes_round(
    workspace: Path, judged: Path, record: Record, texts: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "beir"
    assert cli("judge", workspace, "--export", out).returncode == 0
    again = read_queries(QueriesSettings(file=str(out)))
    before = read_queries(QueriesSettings(file=str(judged)))
    assert again.queries == before.queries
    assert again.qrels == {**before.qrels, "q0": {**before.qrels["q0"], "d59": 3}}
    source = open_source(Settings(source=SourceSettings(source=str(out))))
    rows = [row.values for row in source.rows()]  # type: ignore[union-attr]
    assert [(row["_id"], row["text"]) for row in rows] == [(f"d{i}", text) for i, text in enumerate(texts)]
    assert (rows[3]["price"], rows[4]["née"], rows[3]["seen"]) == (3, "ü", "[1, 2]")
    scored = json.loads(cli("evaluate", workspace, out, "--json").stdout)
    assert scored["questions"] == 20
    (taken_back,) = record.judgements()
    record.add(replace(taken_back, grade=None))
    export_judgements(workspace, out, questions(workspace))  # over the earlier one
    assert read_queries(QueriesSettings(file=str(out))).qrels == before.qrels


@pytest.mark.usefixtures("record")
def test_judgements_for_trec(workspace: Path, tmp_path: Path) -> None:
    assert cli("judge", workspace, "--export", tmp_path / "t", "--format", "trec").returncode == 0
    with (tmp_path / "t" / "qrels.txt").open(encoding="utf-8") as file:
        assert pytrec_eval.parse_qrel(file)["q0"]["d59"] == 3
    asked = dict(questions(workspace).queries)
    lines = (tmp_path / "t" / "queries.tsv").read_text(encoding="utf-8").splitlines()
    assert dict(line.split("\t") for line in lines) == asked


@pytest.mark.parametrize("ident", ["with space", " edge", "tab\there", "line\nbreak", ""])
def test_ids_that_a_format_cannot_hold_are_named(tmp_path: Path, ident: str) -> None:
    (tmp_path / "manifest.json").write_text('{"format": 1, "stages": {}}', encoding="utf-8")
    table = pa.table({"id": [ident], "title": [""], "text": ["t"]}, schema=DOCUMENTS)
    pq.write_table(table, tmp_path / "documents.parquet")
    asked = Questions((("q", "what"),), {"q": {ident: 1}})
    if ident != "with space":
        with pytest.raises(SourceError, match="cannot stand in a BEIR qrels file"):
            export_judgements(tmp_path, tmp_path / "out", asked)
    else:
        export_judgements(tmp_path, tmp_path / "fine", asked)
        assert read_queries(QueriesSettings(file=str(tmp_path / "fine"))).qrels == {"q": {ident: 1}}
    with pytest.raises(SourceError, match="document id"):
        export_judgements(tmp_path, tmp_path / "out", asked, trec=True)
    assert not (tmp_path / "out").exists()


def test_the_exported_model_is_the_served_one(workspace: Path, texts: list[str], tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    done = cli("export", workspace, "--model", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu", trust_remote_code=False)
    ours = open_searcher(workspace).encoder
    assert model.similarity_fn_name == ours.similarity
    assert model.prompts["query"] == "ask: "
    for theirs, mine in (
        (model.encode_query(texts[:5]), ours.encode_queries(texts[:5])),
        (model.encode_document(texts[:5]), ours.encode_documents(texts[:5])),
    ):
        assert np.allclose(theirs / np.linalg.norm(theirs, axis=1, keepdims=True), mine, atol=1e-5)
    assert not np.allclose(ours.encode_queries(texts[:1]), ours.encode_documents(texts[:1]), atol=0.05)
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    assert "library_name: sentence-transformers" in card
    # A copy: what becomes of it does not reach the workspace.
    weights = next((tmp_path / "model").rglob("*.safetensors"))
    weights.write_bytes(b"")
    assert len(open_searcher(workspace).encoder.encode_queries(["x"])) == 1


def test_mteb_measures_what_we_measure(
    workspace: Path, judged: Path, texts: list[str], tmp_path: Path
) -> None:
    mteb = pytest.importorskip("mteb", reason="mteb is a heavy package that searchfit does not need itself")
    abstract = pytest.importorskip("mteb.abstasks.retrieval").AbsTaskRetrieval
    describe = pytest.importorskip("mteb.abstasks.task_metadata").TaskMetadata
    from sentence_transformers import SentenceTransformer

    asked = read_queries(QueriesSettings(file=str(judged)))

    class Tiny(abstract):  # type: ignore[misc]
        metadata = describe(
            name="Tiny",
            description="A tiny retrieval task.",
            reference=None,
            dataset={"path": "none/at-all", "revision": "1"},
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, *_: Any, **__: Any) -> None:
            self.corpus = {"test": {f"d{i}": {"text": text} for i, text in enumerate(texts)}}
            self.queries = {"test": dict(asked.queries)}
            self.relevant_docs = {"test": {q: dict(grades) for q, grades in asked.qrels.items()}}
            self.convert_v1_dataset_format_to_v2(None)
            self.data_loaded = True

    export_model(workspace, tmp_path / "model")
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    result = mteb.evaluate(model, Tiny(), cache=None, show_progress_bar=False)
    theirs = result.task_results[0].scores["test"][0]
    export_runs(workspace, tmp_path / "runs", questions(workspace))
    scores = score_run(read_run(tmp_path / "runs" / "chosen-dense-alone.run"), asked.qrels)
    for name, metric in (("ndcg@10", "ndcg_at_10"), ("recall@10", "recall_at_10"), ("map", "map_at_100")):
        ours = sum(row[name] for row in scores.values()) / len(scores)
        assert ours == pytest.approx(theirs[metric], abs=1.1e-5), name
    assert 0.05 < theirs["ndcg_at_10"] < 0.95


def test_misuse_is_told(workspace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for options in (
        (),
        ("--pairs", out, "--model", out),
        ("--model", out, "--format", "csv"),
        ("--model", out, "--split", "test"),
        ("--pairs", out, "--queries", "x.txt"),
        ("--runs", out, "--format", "csv"),
    ):
        done = cli("export", workspace, *options)
        assert done.returncode == 2, options
        assert "Traceback" not in done.stderr
    out.mkdir()
    (out / "mine").touch()
    for export in (export_model, lambda ws, place: export_runs(ws, place, Questions((), {}))):
        with pytest.raises(SettingsError, match="no earlier export"):
            export(workspace, out)
    with pytest.raises(WorkspaceError):
        export_model(tmp_path / "none", tmp_path / "new")
    shutil.rmtree(out)
    assert not list(tmp_path.iterdir())
