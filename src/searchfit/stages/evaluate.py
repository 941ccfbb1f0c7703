"""Evaluate: every candidate engine and the baselines on dev and test questions, by the serving code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.config import Settings
from searchfit.encoders import load_encoder
from searchfit.encoders.sentence import SentenceEncoder
from searchfit.fusion import Rows, Vectors, rank
from searchfit.metrics import NAMES, score_ranking
from searchfit.records import Engine, StageResult
from searchfit.search import ArrayCorpus
from searchfit.sources.queries import read_queries
from searchfit.stages import Tools
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
    corpus = ArrayCorpus.load(inputs["encoded"], inputs["keyword"])
    engines = systems(settings, trained=(inputs["models/trained"] / "query_tower.safetensors").exists())
    scores: dict[str, list[dict[str, float]]] = {}
    top: dict[str, Rows] = {}
    texts = questions.texts + questions.unjudged
    for name, ranked in _rankings(settings, inputs, engines, corpus, texts, tools):
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


def systems(settings: Settings, trained: bool) -> list[tuple[Engine, str]]:
    """The engines that are compared, each with its kind. The candidates differ in the query tower alone:
    units and keyword weight stay at the prior, for generated questions copy words from their passages and
    would over-reward keyword search and sentence vectors."""
    weight, units = settings.engine.keyword_weight, settings.engine.units
    prior = Engine("untuned engine", units=units, keyword_weight=weight)
    engines = [
        (Engine("untuned dense", units="passage", keyword_weight=0), "baseline"),
        (Engine("keyword", dense_weight=0), "baseline"),
        (Engine("untuned blend", units="passage", keyword_weight=weight), "baseline"),
        (replace(prior, name="untuned dense, engine's units", keyword_weight=0), "baseline"),
        (prior, "candidate"),
    ]
    engines += [
        (replace(prior, name=f"untuned engine, keyword weight {w:g}", keyword_weight=w), "baseline")
        for w in settings.evaluate.keyword_weights
        if w != weight
    ]
    for share in (*settings.evaluate.merges, 1.0) if trained else ():
        tower = "tuned" if share == 1 else f"tuned {share:.0%}"
        tuned = replace(prior, name=f"{tower} engine", query_tower=share)
        engines.append((replace(tuned, name=f"{tower} dense, engine's units", keyword_weight=0), "baseline"))
        engines.append((tuned, "candidate"))
    return engines


def _rankings(
    settings: Settings,
    inputs: Mapping[str, Path],
    engines: Sequence[tuple[Engine, str]],
    corpus: ArrayCorpus,
    texts: list[str],
    tools: Tools,
) -> Iterator[tuple[str, Rows]]:
    """(system, (questions, DEPTH) documents, -1 where there are fewer), one query tower after another."""
    encoder = load_encoder(settings.model)
    towers = list(dict.fromkeys(engine.query_tower for engine, _ in engines))
    for done, share in enumerate(towers):
        tools.progress("evaluate", done, len(towers))
        vectors = _encode(encoder, inputs["models/trained"], share, texts)
        mine = [engine for engine, _ in engines if engine.query_tower == share]
        for engine, ranking in zip(mine, rank(mine, corpus, vectors, texts, DEPTH), strict=True):
            documents = corpus.documents[np.maximum(ranking.rows, 0)]
            yield engine.name, np.where(ranking.rows >= 0, documents, -1)


def _encode(encoder: SentenceEncoder, trained: Path, share: float, texts: list[str]) -> Vectors:
    if not share:
        return encoder.encode_queries(texts)
    from safetensors.torch import load_file

    return encoder.with_query_weights(load_file(trained / "query_tower.safetensors"), share).encode_queries(
        texts
    )


def _questions(settings: Settings, inputs: Mapping[str, Path], document_ids: list[str]) -> Questions:
    """The user's judged questions when there are any, else generated ones of held-out documents."""
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
