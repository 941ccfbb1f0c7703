"""Evaluate: every candidate engine and the baselines on dev and test questions, by the serving code."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.config import Settings
from searchfit.encoders import load_encoder
from searchfit.encoders.corpus import Encoding
from searchfit.encoders.trained import Trained
from searchfit.fusion import Rows, rank
from searchfit.metrics import NAMES, score_ranking
from searchfit.records import Engine, StageResult
from searchfit.search import ArrayCorpus, untuned_engine
from searchfit.sources.queries import read_queries
from searchfit.stages import Tools
from searchfit.training.lessons import ANSWERS
from searchfit.workspace import write_json, write_table

VERSION = 1

DEPTH = 100  # documents ranked for each question


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions that engines are compared on: `relevant[i]` holds the judged documents of `texts[i]`."""

    kind: str
    ids: list[str]
    texts: list[str]
    styles: list[str]
    splits: list[str]
    relevant: list[Mapping[str, int]]
    unjudged: list[str]


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Write evaluation/{systems.json,queries.parquet,metrics.parquet,top.parquet}."""
    document_ids = pq.read_table(inputs["documents.parquet"], columns=["id"])["id"].to_pylist()
    questions = _questions(settings, inputs, document_ids)
    trained = Trained.load(inputs["models/trained"])
    engines = systems(settings, trained, lambda tower: Encoding.load(_encoded(inputs, tower)))
    scores: dict[str, list[dict[str, float]]] = {}
    top: dict[str, Rows] = {}
    texts = questions.texts + questions.unjudged
    for name, ranked in _rankings(settings, inputs, engines, texts, tools):
        judged = ranked[: len(questions.texts)]
        scores[name] = [
            score_ranking([document_ids[i] for i in row if i >= 0], relevant)
            for row, relevant in zip(judged, questions.relevant, strict=True)
        ]
        top[name] = ranked[:, :10]
    folder = tools.output / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    counts = {split: questions.splits.count(split) for split in ("dev", "test")}
    rows = [_system(engine, kind, scores[engine.name], questions.splits) for engine, kind in engines]
    write_json(
        folder / "systems.json",
        {"questions": questions.kind, "counts": counts, "systems": rows, "unjudged": questions.unjudged},
    )
    write_table(folder / "queries.parquet", _by_query(questions, scores))
    write_table(folder / "metrics.parquet", _by_query_and_system(questions, scores))
    lists = {name: pa.array(list(rows), pa.list_(pa.int32())) for name, rows in top.items()}
    write_table(folder / "top.parquet", pa.table(lists))
    return StageResult(counts={"questions": questions.kind, **counts, "systems": len(engines)})


def systems(
    settings: Settings, trained: Trained, encoding: Callable[[float], Encoding]
) -> list[tuple[Engine, str]]:
    """The engines that are compared, each with its kind; `encoding` tells that of a document tower.

    The candidates differ in their towers alone: units and keyword weight stay at the prior, for generated
    questions copy words from their passages and would over-reward keyword search and sentence vectors.
    """
    weight = settings.engine.keyword_weight
    prior = untuned_engine(settings.engine, encoding(0.0))
    engines = [
        (replace(prior, name="untuned dense", units="passage", keyword_weight=0), "baseline"),
        (Engine("keyword", dense_weight=0), "baseline"),
        (replace(prior, name="untuned blend", units="passage"), "baseline"),
        (replace(prior, name="untuned dense, engine's units", keyword_weight=0), "baseline"),
        (prior, "candidate"),
    ]
    engines += [
        (replace(prior, name=f"untuned engine, keyword weight {w:g}", keyword_weight=w), "baseline")
        for w in settings.evaluate.keyword_weights
        if w != weight
    ]
    merges = settings.reencode.merges if trained.both else settings.evaluate.merges
    for share in sorted({*merges, 1.0}) if trained.towers else ():
        tower = "tuned" if share == 1 else f"tuned {share:.0%}"
        document = share if trained.both else 0.0
        tuned = replace(
            prior,
            name=f"{tower} engine",
            query_tower=share,
            document_tower=document,
            dense_weight=encoding(document).dense_weight,
        )
        engines.append((replace(tuned, name=f"{tower} dense, engine's units", keyword_weight=0), "baseline"))
        engines.append((tuned, "candidate"))
    return engines


def _rankings(
    settings: Settings,
    inputs: Mapping[str, Path],
    engines: Sequence[tuple[Engine, str]],
    texts: list[str],
    tools: Tools,
) -> Iterator[tuple[str, Rows]]:
    """(system, (questions, DEPTH) documents, -1 where there are fewer), one pair of towers after another."""
    encoder = load_encoder(settings.model)
    trained = Trained.load(inputs["models/trained"])
    towers = list(dict.fromkeys((engine.query_tower, engine.document_tower) for engine, _ in engines))
    for done, pair in enumerate(towers):
        tools.progress("evaluate", done, len(towers))
        vectors = trained.encoder(encoder, pair[0]).encode_queries(texts)
        corpus = ArrayCorpus.load(_encoded(inputs, pair[1]), inputs["keyword"])
        mine = [engine for engine, _ in engines if (engine.query_tower, engine.document_tower) == pair]
        for engine, ranking in zip(mine, rank(mine, corpus, vectors, texts, DEPTH), strict=True):
            documents = corpus.documents[np.maximum(ranking.rows, 0)]
            yield engine.name, np.where(ranking.rows >= 0, documents, -1)


def _encoded(inputs: Mapping[str, Path], tower: float) -> Path:
    """The vectors of the corpus under a share of the tuned document tower."""
    return inputs["encoded_tuned"] / f"{tower:g}" if tower else inputs["encoded"]


def _questions(settings: Settings, inputs: Mapping[str, Path], document_ids: list[str]) -> Questions:
    """The user's judged questions when there are any, else their labelled ones of held-out documents when
    they are enough, else generated ones."""
    unjudged: list[str] = []
    if settings.queries.file:
        own = read_queries(settings.queries)
        known = set(document_ids)
        judged = [
            (id_, text)
            for id_, text in own.queries
            if any(grade > 0 and document in known for document, grade in own.qrels.get(id_, {}).items())
        ]
        if judged:
            ids, texts = [id_ for id_, _ in judged], [text for _, text in judged]
            splits = ["dev" if hashlib.blake2b(id_.encode()).digest()[0] % 2 else "test" for id_ in ids]
            relevant = [own.qrels[id_] for id_ in ids]
            judged_ids = set(ids)
            others = [text for id_, text in own.queries if id_ not in judged_ids]
            return Questions("judged", ids, texts, ["yours"] * len(ids), splits, relevant, others)
        unjudged = [text for _, text in own.queries]
    if labelled := _labelled(settings, inputs, document_ids, unjudged):
        return labelled
    pairs = pq.read_table(inputs["pairs.parquet"], columns=["id", "text", "style", "document"])
    split = pq.read_table(inputs["holdout.parquet"], columns=["split"])["split"].to_numpy()
    of_pair = split[pairs["document"].to_numpy()]
    random = np.random.default_rng(settings.seed)
    chosen = np.sort(
        np.concatenate(
            [
                random.permutation(np.flatnonzero(of_pair == name))[: settings.evaluate.max_queries]
                for name in ("dev", "test")
            ]
        )
    )
    held = pairs.take(chosen)
    relevant = [{document_ids[row]: 1} for row in held["document"].to_pylist()]
    return Questions(
        "generated",
        held["id"].to_pylist(),
        held["text"].to_pylist(),
        held["style"].to_pylist(),
        list(of_pair[chosen]),
        relevant,
        unjudged,
    )


def _labelled(
    settings: Settings, inputs: Mapping[str, Path], document_ids: list[str], unjudged: list[str]
) -> Questions | None:
    """The user's labelled queries on held-out documents; None where they are too few to judge by."""
    relevant: dict[tuple[str, str], dict[str, int]] = {}
    for row in pq.read_table(inputs["labelled.parquet"]).to_pylist():
        if row["split"] != "train" and row["document"] >= 0 and row["label"] >= ANSWERS:
            found = relevant.setdefault((row["split"], row["query"]), {})
            # Whole grades, as judgements are: 0.5 of 1 counts less than 1.
            found[document_ids[row["document"]]] = max(1, round(2 * row["label"]))
    counts = Counter(split for split, _ in relevant)
    if min(counts["dev"], counts["test"]) < settings.evaluate.min_labelled:
        return None
    splits, texts = [split for split, _ in relevant], [text for _, text in relevant]
    ids = [f"labelled/{number}" for number in range(len(texts))]
    return Questions("judged", ids, texts, ["labelled"] * len(ids), splits, list(relevant.values()), unjudged)


def _system(
    engine: Engine, kind: str, scores: list[dict[str, float]], splits: list[str]
) -> dict[str, object]:
    row: dict[str, object] = {"name": engine.name, "kind": kind, "engine": engine.to_dict()}
    for split in ("dev", "test"):
        mine = [score for score, own in zip(scores, splits, strict=True) if own == split]
        row[split] = {name: float(np.mean([score[name] for score in mine])) for name in NAMES} if mine else {}
    return row


def _by_query_and_system(questions: Questions, scores: Mapping[str, list[dict[str, float]]]) -> pa.Table:
    """Every metric of every system on every question, one row each."""
    rows = [
        {"query_id": id_, "split": split, "system": name, **metrics}
        for name, each in scores.items()
        for id_, split, metrics in zip(questions.ids, questions.splits, each, strict=True)
    ]
    fields = [("query_id", pa.string()), ("split", pa.string()), ("system", pa.string())]
    return pa.Table.from_pylist(rows, schema=pa.schema([*fields, *((name, pa.float64()) for name in NAMES)]))


def _by_query(questions: Questions, scores: Mapping[str, list[dict[str, float]]]) -> pa.Table:
    columns: dict[str, object] = {
        "query_id": pa.array(questions.ids, pa.string()),
        "split": pa.array(questions.splits, pa.string()),
        "text": pa.array(questions.texts, pa.string()),
        "style": pa.array(questions.styles, pa.string()),
        "relevant": pa.array(
            [[d for d, grade in r.items() if grade > 0] for r in questions.relevant], pa.list_(pa.string())
        ),
    }
    for name, rows in scores.items():
        columns[name] = pa.array([row["ndcg@10"] for row in rows], pa.float64())
    return pa.table(columns)
