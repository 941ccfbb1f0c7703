"""Evaluate a workspace on judged questions, through the code and the index that serve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from searchfit.config import QueriesSettings, Settings, load_settings
from searchfit.encoders import load_encoder
from searchfit.encoders.corpus import Encoding
from searchfit.errors import SearchfitError, SourceError, WorkspaceError
from searchfit.executors import Portable
from searchfit.fusion import Ranking, SharedKeywords
from searchfit.interaction import Questions, rank_words, word_scores
from searchfit.metrics import NAMES, check_metrics, means, score_ranking, write_run
from searchfit.prior import blend_engine
from searchfit.ranking import Asked, rank_rounds
from searchfit.records import Engine
from searchfit.rerank import first_stage
from searchfit.rivals import DEPTH, Bench, label, read_rankings, training_vectors, whitened
from searchfit.search import ArrayCorpus, Searcher, open_searcher
from searchfit.significance import compare_by, holm
from searchfit.sources.queries import UserQueries, read_queries
from searchfit.stores.corpus import StoreCorpus
from searchfit.stores.versions import stamp
from searchfit.trust import Trust
from searchfit.workspace import Workspace

BASE = "untuned engine"
"""What the other systems are compared with."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What is looked at beside the systems of the workspace and the usual metrics: other models (folders or
    hub ids), TREC run files, and metrics by name."""

    models: tuple[str, ...] = ()
    runs: tuple[Path, ...] = ()
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Judged:
    """Mean metrics by system over the judged questions. `compared` holds, for every system but the untuned
    engine, its `Comparison` with that in nDCG@10, and `p_holm`: p corrected for so many comparisons."""

    questions: int
    systems: dict[str, dict[str, float]]
    compared: dict[str, dict[str, Any]]
    notes: tuple[str, ...]

    def said(self) -> str:
        """How the comparisons are to be read, in a sentence or two."""
        chosen = next((row for name, row in self.compared.items() if name.startswith("chosen engine")), {})
        told = (
            f"gain: in nDCG@10, over the {BASE}; p: of that, corrected for {len(self.compared)} comparisons "
            "(Holm)."
        )
        if chosen.get("detectable"):
            told += (
                f" With {self.questions} questions, a true gain of the chosen engine below "
                f"{chosen['detectable']:.4f} would often be missed."
            )
        return told

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def evaluate_judged(
    path: Path, folder: Path, split: str = "test", run: Path | None = None, beside: Beside = Beside()
) -> Judged:
    """Score the chosen engine and the baselines on the queries and qrels of a BEIR folder; write the chosen
    engine's rankings of document ids to `run` (TREC format, 100 a query).

    A model that is named encodes the corpus once; its vectors stay in the workspace. Raises WorkspaceError
    for an unfinished workspace, SourceError when no judged document is in it or a run file does not fit,
    SettingsError for an unknown metric, ModelError for a model that cannot be loaded.
    """
    names = tuple(dict.fromkeys((*NAMES, "unjudged@10", *beside.metrics)))
    check_metrics(beside.metrics, DEPTH)
    workspace = Workspace(path)
    workspace.require()
    searcher = open_searcher(path)
    asked, queries = judged_queries(folder, split)
    notes = list(missing(set(document_ids(searcher.corpus)), asked.qrels, list(queries)))
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for name, rows, values in _ranked(searcher, workspace, queries, beside, notes):
        scores[name] = {
            id_: score_ranking(found, asked.qrels[id_], names)
            for id_, found in zip(queries, rows, strict=True)
        }
        if run is not None and name.startswith("chosen engine"):
            ranked = zip(queries, rows, values, strict=True)
            _write(run, {id_: list(zip(found, own, strict=False)) for id_, found, own in ranked})
    settings = load_settings(workspace.settings_file)
    return Judged(
        len(queries),
        {name: means(rows) for name, rows in scores.items()},
        _compared(scores, settings),
        tuple(notes),
    )


def judged_queries(folder: Path, split: str) -> tuple[UserQueries, dict[str, str]]:
    """What a BEIR folder asks, and those questions by id for which a document is judged relevant. Raises
    SourceError where there is none."""
    asked = read_queries(QueriesSettings(file=str(folder), split=split))
    queries = {
        id_: text for id_, text in asked.queries if any(g > 0 for g in asked.qrels.get(id_, {}).values())
    }
    if not queries:
        raise SourceError(
            f"{folder} has no judged questions in split {split!r}.", "Judgements are in qrels/SPLIT.tsv."
        )
    return asked, queries


def _ranked(
    searcher: Searcher,
    workspace: Workspace,
    queries: Mapping[str, str],
    beside: Beside,
    notes: list[str],
) -> Iterator[tuple[str, list[list[str]], list[list[float]]]]:
    """(system, document ids by query, their scores); what people should know goes to `notes`."""
    texts = list(queries.values())
    corpus, rankings = steady_rankings(searcher, workspace, texts)
    ids = document_ids(corpus)  # of this version of the index, for documents may have come and gone
    if stamp(searcher.folder) and (beside.models or searcher.engine.document_tower):
        notes.append(
            "The index has changed since the fit: systems with other vectors rank the fit's documents only."
        )
    others = ((name, in_index(corpus, one)) for name, one in _models(workspace, beside.models, texts))
    for name, ranking in chain(rankings, others):
        rows = [[ids[row] for row in own if row >= 0] for own in ranking.rows.tolist()]
        yield name, rows, ranking.scores.tolist()
    known = {id_: number for number, id_ in enumerate(dict.fromkeys(ids))}
    names = [*known, *(f"\0{number}" for number in range(DEPTH))]
    for file in beside.runs:
        places, told = read_rankings(file, list(queries), known)
        notes.extend(told)
        yield f"run {label(str(file))}", [[names[i] for i in own if i >= 0] for own in places.tolist()], []


def _models(
    workspace: Workspace, models: Sequence[str], texts: Sequence[str]
) -> Iterator[tuple[str, Ranking]]:
    """Rankings of the fit's passages by other models, one after another."""
    if not models:
        return
    keyword = workspace.artefact("keyword")
    bench = Bench(
        workspace.artefact("passages.parquet"),
        keyword,
        workspace.cache,
        load_settings(workspace.settings_file),
    )
    with workspace.lock(here=True):  # two that encode into one folder would spoil it
        for model in models:
            yield from bench.rankings(model, texts)


def _compared(
    scores: Mapping[str, Mapping[str, Mapping[str, float]]], settings: Settings
) -> dict[str, dict[str, Any]]:
    by_system = {name: [row["ndcg@10"] for row in rows.values()] for name, rows in scores.items()}
    found = {
        name: compare_by(settings, by_system[BASE], values)
        for name, values in by_system.items()
        if name != BASE
    }
    corrected = holm([one.p for one in found.values()])
    return {
        name: {**one.to_dict(), "p_holm": p} for (name, one), p in zip(found.items(), corrected, strict=True)
    }


def _write(path: Path, rankings: Mapping[str, Sequence[tuple[str, float]]]) -> None:
    try:
        write_run(path, "searchfit", rankings)
    except OSError as error:
        raise SearchfitError(f"the run {path} cannot be written: {error.strerror}.") from error


def system_rankings(
    searcher: Searcher, workspace: Workspace, texts: Sequence[str], whiten: bool = False
) -> list[tuple[str, Ranking]]:
    """The rankings (len(texts), 100) of the baselines, with `whiten` of whitened vectors too, and, last, of
    the chosen engine, by their names; their rows are places in the index."""
    chosen, corpus = searcher.engine, searcher.corpus
    served_corpus = SharedKeywords(corpus.keyword_scores).over(corpus)
    settings = load_settings(workspace.settings_file)
    encoding = Encoding.load(workspace.artefact("encoded"))
    trust = Trust.load(workspace.artefact("trust.json"))
    blend = blend_engine(settings.engine, encoding, trust, "untuned blend")
    untuned = _untuned(chosen, blend)
    name = f"chosen engine ({chosen.name})"
    served = {
        "chosen dense alone": chosen.vectors_alone("chosen dense alone"),
        "chosen, not re-ranked" if chosen.reranker else name: chosen,
    }
    plain, fitted = served_corpus, None
    if chosen.document_tower:
        # The index holds the tuned vectors of the passages; the untuned ones are in the workspace.
        fitted = ArrayCorpus.load(workspace.artefact("encoded"), workspace.artefact("keyword"))
        plain = SharedKeywords(fitted.keyword_scores).over(fitted)
    known = fitted or corpus
    vectors, tokens = load_encoder(settings.model).encode_questions(texts)
    words = word_scores(known, known.words, texts, tokens)
    ranked = rank_words(list(untuned.values()), plain, Questions(texts, vectors, words), DEPTH)
    rankings = list(zip(untuned, ranked, strict=True))
    if whiten:
        learnt = training_vectors(workspace.artefact)
        own, asked = whitened(Portable(lambda: plain), learnt, vectors, blend.keyword_weight)
        names = [engine.name for engine in own.engines]
        rankings += zip(names, rank_rounds([own], Asked(texts, [asked]), DEPTH), strict=True)
    if chosen.document_tower:
        rankings = [(system, in_index(corpus, ranking)) for system, ranking in rankings]
    if chosen.query_tower:
        vectors, tokens = searcher.encoder.encode_questions(texts)
        words = word_scores(corpus, corpus.words, texts, tokens)
    ranked = rank_words(list(served.values()), served_corpus, Questions(texts, vectors, words), DEPTH)
    rankings += zip(served, ranked, strict=True)
    if chosen.reranker:
        found = searcher.search_many(texts, DEPTH)
        rankings.append((name, in_index(corpus, found)))
    return rankings


def _untuned(chosen: Engine, blend: Engine) -> dict[str, Engine]:
    """The baselines by their names; the untuned engine is the chosen one with the untuned model."""
    engine = replace(
        first_stage(chosen), query_tower=0.0, document_tower=0.0, dense_weight=blend.dense_weight
    )
    return {
        "untuned dense": replace(engine.vectors_alone("untuned dense"), units="passage"),
        "keyword": Engine("keyword", dense_weight=0),
        "untuned blend": replace(blend, units="passage"),
        "untuned engine": replace(engine, name="untuned engine"),
    }


def steady_rankings(
    searcher: Searcher, workspace: Workspace, texts: Sequence[str], whiten: bool = True
) -> tuple[StoreCorpus, list[tuple[str, Ranking]]]:
    """The version of the index that is served and the rankings of all systems by places in it; with `whiten`
    those of whitened vectors are among them where the fit had them. Raises WorkspaceError when the index
    changes again and again meanwhile, and for a workspace that has no more than its index."""
    whiten = whiten and load_settings(workspace.settings_file).evaluate.whiten
    for _ in range(5):
        corpus = searcher.corpus
        try:
            rankings = system_rankings(searcher, workspace, texts, whiten)
        except FileNotFoundError as error:
            raise WorkspaceError(
                f"the workspace has no {Path(error.filename or str(error)).name}, which its systems need.",
                "Name the whole folder that searchfit fit made.",
            ) from error
        if searcher.corpus is corpus:
            return corpus, rankings
    raise WorkspaceError(f"the index of {workspace.path} is being changed.", "Try again when that has ended.")


def in_index(corpus: StoreCorpus, ranking: Ranking) -> Ranking:
    """A ranking of passages by their rows as one by their places in the index; -1 for those that were removed
    from it since."""
    there = np.isin(ranking.rows, corpus.store.rows)
    return Ranking(np.where(there, corpus.places(ranking.rows), -1), ranking.scores)


def document_ids(corpus: StoreCorpus) -> list[str]:
    """The document id of every passage, by its place."""
    batches = corpus.store.scan(["document_id"])
    return [str(id_) for batch in batches for id_ in batch["document_id"].to_pylist()]


def missing(known: set[str], qrels: Any, queries: Sequence[str]) -> tuple[str, ...]:
    """A note where some documents judged relevant for these queries are not among the known ids. Raises
    SourceError where none is."""
    judged = {document for id_ in queries for document, grade in qrels[id_].items() if grade > 0}
    absent = judged - known
    if absent == judged:
        raise SourceError(
            f"none of the {len(judged)} judged documents is in the workspace, {sorted(judged)[0]!r} for one.",
            "Are the judgements for this corpus, and was it fitted with the same id column?",
        )
    return (f"{len(absent)} of {len(judged)} judged documents are not in the workspace.",) if absent else ()
