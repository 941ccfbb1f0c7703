"""Evaluate a workspace on judged questions, through the code and the index that serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from searchfit.config import QueriesSettings, load_settings
from searchfit.encoders import load_encoder
from searchfit.encoders.corpus import Encoding
from searchfit.errors import SearchfitError, SourceError
from searchfit.fusion import Corpus, Ranking, rank
from searchfit.metrics import NAMES, means, score_ranking, write_run
from searchfit.records import Engine
from searchfit.search import ArrayCorpus, Searcher, open_searcher
from searchfit.sources.queries import read_queries
from searchfit.workspace import Workspace

_DEPTH = 100


@dataclass(frozen=True, slots=True)
class Judged:
    """Mean metrics by system over the judged questions."""

    questions: int
    systems: dict[str, dict[str, float]]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def evaluate_judged(path: Path, folder: Path, split: str = "test", run: Path | None = None) -> Judged:
    """Score the chosen engine and the baselines on the queries and qrels of a BEIR folder; write the chosen
    engine's rankings of document ids to `run` (TREC format, 100 a query).

    Raises WorkspaceError for an unfinished workspace, SourceError when no judged document is in it.
    """
    workspace = Workspace(path)
    workspace.require()
    searcher = open_searcher(path)
    asked = read_queries(QueriesSettings(file=str(folder), split=split))
    queries = [
        (id_, text) for id_, text in asked.queries if any(g > 0 for g in asked.qrels.get(id_, {}).values())
    ]
    if not queries:
        raise SourceError(
            f"{folder} has no judged questions in split {split!r}.", "Judgements are in qrels/SPLIT.tsv."
        )
    ids = _document_ids(searcher)
    notes = _missing(set(ids), asked.qrels, [id_ for id_, _ in queries])
    texts = [text for _, text in queries]
    scores: dict[str, dict[str, float]] = {}
    for name, ranking in _rankings(searcher, workspace, texts):
        rows = [[ids[row] for row in found if row >= 0] for found in ranking.rows]
        by_query = {
            id_: score_ranking(documents, asked.qrels[id_])
            for (id_, _), documents in zip(queries, rows, strict=True)
        }
        scores[name] = means(by_query)
        if run is not None and name.startswith("chosen engine"):
            found = zip(queries, rows, ranking.scores.tolist(), strict=True)
            _write(run, {q: list(zip(docs, s, strict=False)) for (q, _), docs, s in found})
    return Judged(len(queries), {name: {m: row[m] for m in NAMES} for name, row in scores.items()}, notes)


def _write(path: Path, rankings: Mapping[str, Sequence[tuple[str, float]]]) -> None:
    try:
        write_run(path, "searchfit", rankings)
    except OSError as error:
        raise SearchfitError(f"the run {path} cannot be written: {error.strerror}.") from error


def _rankings(searcher: Searcher, workspace: Workspace, texts: Sequence[str]) -> list[tuple[str, Ranking]]:
    chosen = searcher.engine
    model = load_encoder(load_settings(workspace.settings_file).model)
    # Where passages were tuned, the index holds their tuned vectors; the untuned ones are in the workspace.
    plain: Corpus = searcher.corpus
    if chosen.document_tower:
        plain = ArrayCorpus.load(workspace.artefact("encoded"), workspace.artefact("keyword"))
    weight = Encoding.load(workspace.artefact("encoded")).dense_weight
    engine = replace(chosen, name="untuned engine", query_tower=0.0, document_tower=0.0, dense_weight=weight)
    untuned = {
        "untuned dense": replace(engine, name="untuned dense", units="passage", keyword_weight=0),
        "keyword": Engine("keyword", dense_weight=0),
        "untuned blend": replace(engine, name="untuned blend", units="passage"),
        "untuned engine": engine,
    }
    served = {
        "chosen dense alone": replace(chosen, name="chosen dense alone", keyword_weight=0),
        f"chosen engine ({chosen.name})": chosen,
    }
    rankings: list[tuple[str, Ranking]] = []
    for engines, encoder, corpus in ((untuned, model, plain), (served, searcher.encoder, searcher.corpus)):
        vectors = encoder.encode_queries(texts)
        ranked = rank(list(engines.values()), corpus, vectors, texts, _DEPTH)
        rankings += zip(engines, ranked, strict=True)
    return rankings


def _document_ids(searcher: Searcher) -> list[str]:
    """The document id of every passage row."""
    batches = searcher.corpus.store.scan(["document_id"])
    return [str(id_) for batch in batches for id_ in batch["document_id"].to_pylist()]


def _missing(known: set[str], qrels: Any, queries: Sequence[str]) -> tuple[str, ...]:
    judged = {document for id_ in queries for document, grade in qrels[id_].items() if grade > 0}
    absent = judged - known
    if absent == judged:
        raise SourceError(
            f"none of the {len(judged)} judged documents is in the workspace, {sorted(judged)[0]!r} for one.",
            "Are the judgements for this corpus, and was it fitted with the same id column?",
        )
    return (f"{len(absent)} of {len(judged)} judged documents are not in the workspace.",) if absent else ()
