from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from searchfit.config import load_settings
from searchfit.encoders import load_encoder
from searchfit.encoders.corpus import encode_corpus
from searchfit.encoders.trained import Trained
from searchfit.errors import SettingsError
from searchfit.keyword import KeywordIndex
from searchfit.leaks import leaked_questions
from searchfit.metrics import NAMES, score_ranking
from searchfit.recipe import STAGES
from searchfit.search import ArrayCorpus
from searchfit.stages import Tools, evaluate
from searchfit.training.lessons import Lessons
from searchfit.trust import Trust, gauge

SECTIONS = next(stage.sections for stage in STAGES if stage.name == "evaluate")


def run(
    bench: Any, out: Path, inputs: dict[str, Path] | None = None, **values: Any
) -> tuple[dict[str, Any], Any, Any]:
    """systems.json, and the tables of queries and of the top ten."""
    settings = load_settings(base=bench.settings, values=values).only(*SECTIONS)
    evaluate.run(settings, {**bench.inputs("evaluate"), **(inputs or {})}, Tools(out))
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


def test_nothing_that_was_trained_on_is_tested_on(bench: Any, tmp_path: Path) -> None:
    """The made-up corpus repeats its sentences: all that shares too much with a training text is left out."""
    systems, table, _ = run(bench, tmp_path, **{"evaluate.leak_share": 0.4})
    leaks = systems["leaks"]
    assert leaks["documents"] == len({row["document"] for row in leaks["named"]}) > 0
    left_out = {row["document"] for row in leaks["named"]}
    assert not left_out & {document for row in table["relevant"].to_pylist() for document in row}
    assert all(row["share"] >= 0.4 for row in leaks["named"])
    everything, _, _ = run(bench, tmp_path / "more", **{"evaluate.leak_share": 1.0})
    assert sum(everything["counts"].values()) > sum(systems["counts"].values())


def test_an_injected_leak_is_caught(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test passage, three of its words changed, goes into the text of a passage that was trained on."""
    before, table, _ = run(bench, tmp_path / "before")
    asked = [row for row in table.to_pylist() if row["split"] == "test"]
    passages = pq.read_table(bench.path("passages.parquet")).to_pylist()
    own = {document for row in asked for document in row["relevant"]}
    # The longest, for three changed words are much of a short text.
    victim = max((row for row in passages if row["document_id"] in own), key=lambda row: len(row["text"]))
    words = victim["text"].split()
    for place in (1, len(words) // 2, len(words) - 2):
        words[place] = "changed"
    trained = pq.read_table(bench.path("mined") / "queries.parquet")["passage"][0].as_py()
    passages[trained]["text"] += " " + " ".join(words)
    schema = pq.read_schema(bench.path("passages.parquet"))
    pq.write_table(pa.Table.from_pylist(passages, schema=schema), tmp_path / "passages.parquet")
    inputs = {"passages.parquet": tmp_path / "passages.parquet"}
    monkeypatch.setattr("searchfit.leaks._READ", 5)
    systems, after, _ = run(bench, tmp_path / "after", inputs)
    found = {row["passage"]: row for row in systems["leaks"]["named"]}
    assert victim["id"] not in {row["passage"] for row in before["leaks"]["named"]}
    assert found[victim["id"]]["training"] == f"document {passages[trained]['document_id']}"
    assert found[victim["id"]]["share"] >= 0.6
    assert victim["document_id"] not in {d for row in after["relevant"].to_pylist() for d in row}
    assert after.num_rows < table.num_rows


def test_a_question_that_was_trained_on_is_left_out(bench: Any, tmp_path: Path) -> None:
    mined = pq.read_table(bench.path("mined") / "queries.parquet")
    folder = tmp_path / "mined"
    folder.mkdir()
    _, table, _ = run(bench, tmp_path / "before")
    stolen = table["text"][0].as_py()
    column = pa.array([f"  {stolen.upper()} ", *mined["text"].to_pylist()[1:]])
    pq.write_table(mined.set_column(0, "text", column), folder / "queries.parquet")
    assert leaked_questions({**bench.inputs("evaluate"), "mined": folder}, ["new", stolen]) == [1]
    systems, after, _ = run(bench, tmp_path / "after", {"mined": folder})
    assert systems["leaks"]["named_questions"] == [stolen]
    assert stolen not in after["text"].to_pylist()


def labelled(bench: Any, out: Path) -> tuple[dict[str, Path], list[dict[str, Any]], list[str]]:
    """What label and mine make of four questions a document, the rows of labelled.parquet, and the splits of
    the documents."""
    lines = [
        (f"{part}{n} {' '.join(row['text'].split()[:3])}", row["text"], row["id"])
        for n, row in enumerate(pq.read_table(bench.path("documents.parquet")).to_pylist())
        for part in "abcd"
    ]
    with (out / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("query", "passage", "document_id"), *lines])
    settings = load_settings(base=bench.settings, values={"pairs.file": str(out / "pairs.csv")})
    inputs: dict[str, Path] = {}
    for name, made in (("label", "labelled.parquet"), ("mine", "mined")):
        stage = next(stage for stage in STAGES if stage.name == name)
        stage.module.run(settings.only(*stage.sections), {**bench.inputs(name), **inputs}, Tools(out))
        inputs[made] = out / made
    split = pq.read_table(bench.path("holdout.parquet"))["split"].to_pylist()
    return inputs, pq.read_table(out / "labelled.parquet").to_pylist(), split


def test_labelled_questions_of_any_document_judge_and_none_of_them_trains(bench: Any, tmp_path: Path) -> None:
    """However little may stand in a training text, those of documents that train are no leaks."""
    inputs, rows, split = labelled(bench, tmp_path)
    judge = {row["query"]: row for row in rows if row["split"] != "train"}
    learnt = set(pq.read_table(tmp_path / "mined" / "queries.parquet")["text"].to_pylist())
    named = {row["document"] for row in rows if row["split"] == "train"}
    assert learnt & {row["query"] for row in rows}
    assert not learnt & judge.keys()
    lessons, _ = Lessons.load(inputs, "labelled", lambda rows: [str(row) for row in rows])
    taught = {*lessons.queries, *lessons.labelled["query"].to_pylist()}
    assert taught == {row["query"] for row in rows} - judge.keys()
    assert {split[row["document"]] for row in judge.values()} == {"train", "dev", "test"}
    values = {"evaluate.min_labelled": 5, "evaluate.merges": ()}
    systems, table, _ = run(bench, tmp_path / "out", inputs, **values, **{"evaluate.leak_share": 1.0})
    assert systems["questions"] == "judged"
    assert systems["leaks"]["questions"] == 0
    assert sum(systems["counts"].values()) == len(table)
    found = {row["text"]: row for row in table.to_pylist()}
    for text, row in found.items():
        kind = "known" if judge[text]["document"] in named else "new"
        assert (row["split"], row["style"]) == (judge[text]["split"], f"labelled, {kind} document")
    assert len({row["style"] for row in found.values()}) == 2
    strict, fewer, _ = run(bench, tmp_path / "strict", inputs, **values, **{"evaluate.leak_share": 0.01})
    assert strict["leaks"]["documents"] > 0
    assert {judge[text]["document"] for text in found} > {
        judge[text]["document"] for text in fewer["text"].to_pylist()
    }
    spared = {text for text, row in judge.items() if split[row["document"]] == "train"}
    assert spared <= found.keys()
    assert spared <= set(fewer["text"].to_pylist())


def test_the_evaluation_says_how_many_labelled_questions_of_each_kind_there_are(
    bench: Any, tmp_path: Path
) -> None:
    inputs, _, _ = labelled(bench, tmp_path)
    change = {"evaluate.min_labelled": 5, "evaluate.merges": ()}
    settings = load_settings(base=bench.settings, values=change).only(*SECTIONS)
    result = evaluate.run(settings, {**bench.inputs("evaluate"), **inputs}, Tools(tmp_path))
    table = pq.read_table(tmp_path / "evaluation" / "queries.parquet").to_pylist()
    of = Counter((row["style"], row["split"]) for row in table)
    kinds = ("labelled, known document", "labelled, new document")
    assert result.notes[:2] == tuple(
        f"{kind}: {of[kind, 'dev']} dev and {of[kind, 'test']} test questions." for kind in kinds
    )
    assert all(of[kind, "dev"] for kind in kinds)


def test_overlap_is_told_by_question_and_by_band(bench: Any, tmp_path: Path) -> None:
    systems, table, _ = run(bench, tmp_path)
    analyzer = KeywordIndex.load(bench.path("keyword")).analyzer
    texts = {
        row["id"]: f"{row['title']}. {row['text']}"
        for row in pq.read_table(bench.path("documents.parquet")).to_pylist()
    }
    for row in table.to_pylist():
        known = set(analyzer.terms(texts[row["relevant"][0]]))
        shared = [term in known for term in set(analyzer.terms(row["text"]))]
        # A document's words are those of all its passages, so its share bounds that of the best one.
        assert 0 <= row["overlap"] <= 1
        if all(shared) and len(texts[row["relevant"][0]]) < 250:
            assert row["overlap"] == 1
    bands = systems["overlap"]["bands"]
    assert [band["band"] for band in bands] == ["low", "middle", "high"]
    assert sum(band["questions"] for band in bands) == systems["counts"]["test"]
    whole = sum(band["questions"] * band["means"].get("keyword", 0) for band in bands)
    mean = system(systems, "keyword")["test"]["ndcg@10"]
    assert whole / systems["counts"]["test"] == pytest.approx(mean)


def test_metrics_by_name_and_what_nobody_judged(bench: Any, tmp_path: Path) -> None:
    rows = [
        {"query": f"about garden notes {n}", "document_id": f"garden-{n}", "score": 1}
        for n in range(0, 72, 6)
    ]
    file = write_questions(tmp_path / "mine.jsonl", rows)
    more = ("precision@3", "hit@1")
    systems, _, top = run(bench, tmp_path, **{"queries.file": file, "evaluate.metrics": more})
    assert systems["metrics"] == [*NAMES, "unjudged@10", *more]
    row = system(systems, "keyword")
    # Of ten results at most one is judged, and that one stands among the first three or not.
    hits = [
        [document in row["relevant"] for document in ranked]
        for row, ranked in zip(
            pq.read_table(tmp_path / "evaluation" / "queries.parquet").to_pylist(),
            ([name(bench, i) for i in found.as_py()] for found in top["keyword"]),
            strict=False,
        )
    ]
    splits = pq.read_table(tmp_path / "evaluation" / "queries.parquet")["split"].to_pylist()
    test = [hit for hit, split in zip(hits, splits, strict=True) if split == "test"]
    assert row["test"]["precision@3"] == pytest.approx(np.mean([sum(hit[:3]) / 3 for hit in test]))
    assert row["test"]["hit@1"] == pytest.approx(np.mean([hit[0] for hit in test]))
    assert row["test"]["unjudged@10"] == pytest.approx(np.mean([1 - sum(hit) / 10 for hit in test]))


def name(bench: Any, document: int) -> str:
    return str(pq.read_table(bench.path("documents.parquet"), columns=["id"])["id"][document].as_py())


def test_another_model_and_a_run_are_rivals(bench: Any, tmp_path: Path) -> None:
    """The workspace's own model, named as another one, ranks as it does; a run file of its ranking too."""
    rows = [
        {"query_id": f"u{n}", "query": f"about garden notes {n}", "document_id": f"garden-{n}", "score": 2}
        for n in range(0, 72, 6)
    ]
    file = write_questions(tmp_path / "mine.jsonl", rows)
    _, table, top = run(bench, tmp_path / "first", **{"queries.file": file})
    lines = [
        f"{id_} Q0 {name(bench, document)} 0 {10 - place} me\n"
        for id_, ranked in zip(table["query_id"].to_pylist(), top["untuned dense"].to_pylist(), strict=True)
        for place, document in enumerate(ranked)
    ]
    (tmp_path / "me.run").write_text("".join(lines), encoding="utf-8")
    model = bench.settings.model.name
    options = {"evaluate.models": (model,), "evaluate.runs": (str(tmp_path / "me.run"),)}
    systems, table, top = run(bench, tmp_path / "second", **{"queries.file": file, **options})
    rivals = names(systems, "rival")
    assert rivals == ["whitened dense", "whitened blend", "model dense", "model engine", "run me.run"]
    assert all(system(systems, rival)["engine"] == {} for rival in rivals)
    for mine, other in (("model dense", "untuned dense"), ("model engine", "untuned engine")):
        assert table[mine].to_pylist() == table[other].to_pylist()
        assert top[mine].to_pylist() == top[other].to_pylist()
    assert table["run me.run"].to_pylist() == table["untuned dense"].to_pylist()
    assert table["whitened dense"].to_pylist() != table["untuned dense"].to_pylist()


def test_a_plain_file_of_questions_needs_no_judgements_but_a_run_does(bench: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("where is the anchor\n", encoding="utf-8")
    (tmp_path / "me.run").write_text("1 Q0 garden-0 1 1.0 me\n", encoding="utf-8")
    outside = next(stage.outside for stage in STAGES if stage.name == "evaluate")
    assert outside is not None
    good = load_settings(base=bench.settings, values={"queries.file": str(file)})
    outside(good)
    with pytest.raises(SettingsError, match="judged questions"):
        outside(load_settings(base=good, values={"evaluate.runs": (str(tmp_path / "me.run"),)}))
    with pytest.raises(SettingsError, match="looks at 500"):
        outside(load_settings(base=good, values={"evaluate.metrics": ("hit@500",)}))


def test_a_re_ranker_competes_on_every_candidate(bench: Any, tiny_reranker: Path, tmp_path: Path) -> None:
    """Its rankings are those of the candidates, their first documents sorted by hand."""
    from sentence_transformers import CrossEncoder

    values = {"rerank.model": str(tiny_reranker), "rerank.depth": 4, "rerank.weights": (1000.0,)}
    systems, table, top = run(bench, tmp_path, **values, **{"rerank.max_queries": 10, "evaluate.merges": ()})
    assert systems["counts"] == {"dev": 10, "test": 10}
    made = names(systems, "re-ranked")
    assert made == [f"{name} re-ranked, weight 1000" for name in names(systems, "candidate")]
    assert len(made) == 2
    passages = pq.read_table(bench.path("passages.parquet")).to_pylist()
    model = CrossEncoder(str(tiny_reranker), device="cpu")
    question, first, then = (
        table["text"][3].as_py(),
        top["untuned engine"][3].as_py(),
        top[made[0]][3].as_py(),
    )
    single = {p["document"]: f"{p['title']}. {p['text']}" for p in passages}
    if all(sum(p["document"] == d for p in passages) == 1 for d in first[:4]):
        scores = model.predict([(question, single[d]) for d in first[:4]])
        assert then[:4] == [first[i] for i in sorted(range(4), key=lambda i: -scores[i])]
    assert then[4:] == first[4:]
    moved = sum(top[made[0]][n].as_py() != top["untuned engine"][n].as_py() for n in range(20))
    assert moved > 5
    known = tmp_path / "reranked.npz"
    before = known.stat().st_mtime_ns
    again, _, _ = run(bench, tmp_path, **values, **{"rerank.max_queries": 10, "evaluate.merges": ()})
    assert known.stat().st_mtime_ns == before, "what a killed run has read is not read again"
    assert again == systems


def test_tuned_towers_are_gauged_where_questions_are_generated(bench: Any, tmp_path: Path) -> None:
    """One that has the untuned weights finds as much as the untuned one, one of other weights does not; where
    questions alone were tuned, their vectors are gauged without the words, which were not."""
    untuned = load_encoder(bench.settings.model)
    state = untuned.tower("query").state_dict()
    found = {}
    for name, noise in (("same", 0.0), ("moved", 0.5)):
        moved = {key: value + noise * torch.randn(value.shape) for key, value in state.items()}
        trained = Trained.save(tmp_path / name / "trained", "shared", {"query": moved})
        encoder, folder = trained.encoder(untuned, 1.0), tmp_path / name / "encoded" / "1"
        encode_corpus(encoder, bench.path("passages.parquet"), folder, lambda *_: None)
        inputs = {"models/trained": tmp_path / name / "trained", "encoded_tuned": folder.parent}
        systems, _, _ = run(bench, tmp_path / name, inputs, **{"reencode.merges": ()})
        assert {s["engine"]["document_tower"] for s in systems["systems"] if s["kind"] == "candidate"} == {
            0,
            1,
        }
        found[name] = systems["towers"]
        systems, _, _ = run(
            bench,
            tmp_path / f"{name} query",
            {
                "models/trained": Trained.save(
                    tmp_path / f"{name} query" / "t", "query", {"query": moved}
                ).folder
            },
            **{"evaluate.merges": ()},
        )
        found[f"{name} query"] = systems["towers"]
    assert found["same"] == found["same query"] == {"1": pytest.approx(1, abs=1e-3)}
    assert found["moved"]["1"] != pytest.approx(1, abs=0.01)
    trust, moved_query = Trust.load(bench.path("trust.json")), found["moved query"]["1"]
    assert trust.vectors not in (0, trust.model)
    own = gauge(
        Trained.load(tmp_path / "moved query" / "t").encoder(untuned, 1.0),
        ArrayCorpus.load(bench.path("encoded"), bench.path("keyword")),
        bench.path("passages.parquet"),
        bench.settings.seed,
    )
    assert moved_query == pytest.approx(own.vectors / trust.vectors, abs=1e-3)
    assert moved_query != pytest.approx(own.model / trust.model, abs=0.01)
    judged = [{"query_id": "u", "query": "notes", "document_id": "garden-0", "score": 1}]
    file = write_questions(tmp_path / "mine.jsonl", judged)
    systems, _, _ = run(bench, tmp_path / "judged", inputs, **{"reencode.merges": (), "queries.file": file})
    assert systems["towers"] == {}
