"""Evaluate: every candidate engine and the baselines on dev and test questions, by the serving code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.config import RerankSettings, Settings
from searchfit.encoders import load_encoder
from searchfit.encoders.corpus import Encoding, encoded
from searchfit.encoders.sentence import SentenceEncoder
from searchfit.encoders.trained import Trained
from searchfit.fusion import Ranking, Rows, SharedKeywords, Vectors
from searchfit.interaction import Questions as Read
from searchfit.interaction import WordScores, rank_words, word_scores
from searchfit.keyword import KeywordIndex
from searchfit.leaks import Leak, leaked_documents, leaked_questions, to_dict
from searchfit.metrics import NAMES, means, score_ranking
from searchfit.overlap import by_band
from searchfit.prior import blend_engine, systems, untuned_engine
from searchfit.questions import Questions, gather, wording
from searchfit.records import Engine, StageResult
from searchfit.rerank import PairScores, Reranker, first_stage, rerank
from searchfit.rivals import DEPTH, Bench, label, read_rankings, training_vectors, whitened
from searchfit.search import ArrayCorpus
from searchfit.stages import Tools
from searchfit.teachers import PassageTexts
from searchfit.trust import Trust
from searchfit.weighing import weigh
from searchfit.workspace import write_json, write_table

VERSION = 4


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Write evaluation/{systems.json,queries.parquet,metrics.parquet,top.parquet,places.parquet}.

    Questions that training has seen, or whose passages it has, are left out and named. Raises SourceError for
    a run file that does not fit the questions, ModelError for a model that cannot be loaded.
    """
    document_ids: list[str] = pq.read_table(inputs["documents.parquet"], columns=["id"])["id"].to_pylist()
    questions, leaks = _without_leaks(settings, inputs, gather(settings, inputs, document_ids), document_ids)
    if settings.rerank.model:
        questions = questions.at_most(settings.rerank.max_queries, settings.seed)
    pairs = _pairs(settings, inputs, tools)
    trained = Trained.load(inputs["models/trained"])
    trust = Trust.load(inputs["trust.json"])
    prior, weighed = _prior(settings, inputs, trust, questions, document_ids)
    engines = systems(settings, trained, lambda tower: Encoding.load(encoded(inputs, tower)), trust, prior)
    asked = _Asked(
        questions.texts + questions.unjudged, SharedKeywords(KeywordIndex.load(inputs["keyword"]).scores)
    )
    rivals = _Rivals(settings, inputs, tools, questions, document_ids)
    board = _Board(questions, document_ids, _metrics(settings, questions))
    for name, ranked in chain(
        _rankings(settings, inputs, engines, asked, pairs, tools), rivals.rankings(asked)
    ):
        board.add(name, ranked)
    known = {engine.name: (engine.to_dict(), kind) for engine, kind in engines}
    overlap = wording(inputs, questions)
    folder = tools.output / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    board.write(folder, overlap)
    counts = {split: questions.splits.count(split) for split in ("dev", "test")}
    evidence = {
        "questions": questions.kind,
        "counts": counts,
        "metrics": list(board.metrics),
        "systems": [board.row(name, *known.get(name, ({}, "rival"))) for name in board.scores],
        "overlap": {"split": "test", "bands": by_band(*board.on_test(overlap))},
        "leaks": leaks,
        "unjudged": questions.unjudged,
    }
    write_json(folder / "systems.json", evidence)
    left_out = leaks["documents"] + leaks["questions"]
    return StageResult(
        counts={"questions": questions.kind, **counts, "systems": len(board.scores), "leaks": left_out},
        notes=(
            *_kinds(questions),
            *weighed,
            *rivals.notes,
            *_leak_notes(leaks),
            *_rerank_notes(settings.rerank, pairs),
        ),
    )


def _prior(
    settings: Settings, inputs: Mapping[str, Path], trust: Trust, questions: Questions, ids: list[str]
) -> tuple[Engine, tuple[str, ...]]:
    """The untuned engine, its weights as the judged questions prefer, and what to say of that."""
    prior = untuned_engine(settings.engine, Encoding.load(inputs["encoded"]), trust)
    if not settings.engine.adapt:
        return prior, ()
    corpus = ArrayCorpus.load(inputs["encoded"], inputs["keyword"])
    return weigh(prior, corpus, load_encoder(settings.model), questions, ids)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What every system answers, and its keyword leg, which is the same for all."""

    texts: list[str]
    keywords: SharedKeywords


def _rankings(
    settings: Settings,
    inputs: Mapping[str, Path],
    engines: Sequence[tuple[Engine, str]],
    asked: _Asked,
    pairs: PairScores,
    tools: Tools,
) -> Iterator[tuple[str, Rows]]:
    """(system, (questions, DEPTH) documents, -1 where there are fewer), one pair of towers after another."""
    encoder, texts = load_encoder(settings.model), asked.texts
    trained = Trained.load(inputs["models/trained"])
    towers = list(dict.fromkeys((engine.query_tower, engine.document_tower) for engine, _ in engines))
    words: dict[float, WordScores | None] = {}
    for done, pair in enumerate(towers):
        tools.progress("evaluate", done, len(towers))
        own = trained.encoder(encoder, pair[0])
        corpus = ArrayCorpus.load(encoded(inputs, pair[1]), inputs["keyword"])
        mine = [engine for engine, _ in engines if (engine.query_tower, engine.document_tower) == pair]
        first = [engine for engine in mine if not engine.reranker]
        if pair[1] not in words and any(engine.token_weight for engine in first):
            vectors, words[pair[1]] = _read(own, corpus, texts)
        else:
            vectors = own.encode_queries(texts)
        read = Read(texts, vectors, words.get(pair[1]))
        ranked = rank_words(first, asked.keywords.over(corpus), read, DEPTH)
        found = dict(zip(map(first_stage, first), ranked, strict=True))
        for engine in mine:
            ranking = found[first_stage(engine)]
            if engine.reranker:
                ranking = rerank(engine, ranking, pairs(texts, ranking.rows[:, : engine.rerank_depth]))
            yield engine.name, _documents(corpus, ranking)


def _read(
    encoder: SentenceEncoder, corpus: ArrayCorpus, texts: list[str]
) -> tuple[Vectors, WordScores | None]:
    """The vectors (q, d) of questions, and the scores of their words."""
    vectors, tokens = encoder.encode_questions(texts)
    return vectors, word_scores(corpus, corpus.words, texts, tokens)


def _pairs(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> PairScores:
    """The scores of the re-ranker that competes, kept beside the stage's output."""
    options, model = settings.rerank, settings.model
    return PairScores(
        lambda: Reranker.load(options.model, model.device, model.precision),
        PassageTexts(inputs["passages.parquet"]).take,
        tools.output / "reranked.npz",
    )


def _rerank_notes(settings: RerankSettings, pairs: PairScores) -> Iterator[str]:
    if settings.model:
        yield f"With a re-ranker, at most {settings.max_queries} dev and test questions each are compared on."
    if pairs.read:
        cost = 1000 * settings.depth * pairs.seconds / pairs.read
        yield f"Re-ranking the first {settings.depth} results takes about {cost:.0f} ms a question here."


def _documents(corpus: ArrayCorpus, ranking: Ranking) -> Rows:
    """The documents of passages, -1 where there is none."""
    documents = corpus.documents[np.maximum(ranking.rows, 0)]
    return np.where(ranking.rows >= 0, documents, -1)


def _metrics(settings: Settings, questions: Questions) -> tuple[str, ...]:
    """What is measured: on generated questions nearly nothing is judged, which says nothing."""
    judged = ("unjudged@10",) if questions.kind == "judged" else ()
    return tuple(dict.fromkeys((*NAMES, *judged, *settings.evaluate.metrics)))


def _without_leaks(
    settings: Settings, inputs: Mapping[str, Path], questions: Questions, document_ids: list[str]
) -> tuple[Questions, dict[str, Any]]:
    """The questions without those that training has seen, and what systems.json tells of them. The documents
    of the user's own questions, and any that holdout gives to training, may be trained on: there only the
    questions are to be new."""
    number = {id_: row for row, id_ in enumerate(document_ids)}
    asked = leaked_questions(inputs, questions.texts)
    leaks: list[Leak] = []
    compared = 0
    if questions.held_out:
        split = pq.read_table(inputs["holdout.parquet"], columns=["split"])["split"].to_pylist()
        rows = {number[id_] for relevant in questions.relevant for id_ in relevant}
        held_out = np.array(sorted(row for row in rows if split[row] != "train"), np.int64)
        leaks, compared = leaked_documents(inputs, held_out, settings.evaluate.leak_share)
    seen = {document_ids[leak.document] for leak in leaks}
    out = [place for place, relevant in enumerate(questions.relevant) if seen & relevant.keys()]
    told = to_dict(leaks, [questions.texts[place] for place in asked], document_ids, compared)
    return questions.without(sorted({*asked, *out})), told


def _kinds(questions: Questions) -> Iterator[str]:
    """How many labelled questions there are of each style."""
    if questions.kind == "judged" and questions.held_out:
        count = Counter(zip(questions.styles, questions.splits, strict=True))
        for style in sorted(set(questions.styles)):
            yield f"{style}: {count[style, 'dev']} dev and {count[style, 'test']} test questions."


def _leak_notes(leaks: Mapping[str, Any]) -> Iterator[str]:
    for leak in leaks["named"][:3]:
        yield (
            f"Left out: {leak['share']:.0%} of passage {leak['passage']} stands in {leak['training']}, "
            "which was trained on."
        )
    if leaks["named_questions"]:
        one = leaks["named_questions"][0]
        yield f"Left out: {leaks['questions']} questions that were trained on, {one!r} for one."


class _Rivals:
    """Rankings of what is compared but never served; `notes` are for people, complete in the end."""

    def __init__(
        self,
        settings: Settings,
        inputs: Mapping[str, Path],
        tools: Tools,
        questions: Questions,
        document_ids: list[str],
    ) -> None:
        self._settings, self._inputs, self._tools = settings, inputs, tools
        self._questions, self._ids = questions, document_ids
        self.notes: list[str] = []

    def rankings(self, asked: _Asked) -> Iterator[tuple[str, Rows]]:
        """(system, (questions, DEPTH) documents), -1 where there are fewer."""
        options, inputs = self._settings.evaluate, self._inputs
        texts = asked.texts
        corpus = ArrayCorpus.load(inputs["encoded"], inputs["keyword"])
        if options.whiten:
            learnt = training_vectors(inputs.__getitem__)
            vectors = load_encoder(self._settings.model).encode_queries(texts)
            weight = blend_engine(
                self._settings.engine, corpus.encoding, Trust.load(inputs["trust.json"]), ""
            ).keyword_weight
            for name, ranking in whitened(asked.keywords.over(corpus), learnt, texts, vectors, weight):
                yield name, _documents(corpus, ranking)
        cache = self._tools.cache or self._tools.output / "cache"
        bench = Bench(
            inputs["passages.parquet"],
            inputs["keyword"],
            asked.keywords,
            cache,
            self._settings,
            self._tools.progress,
        )
        for model in options.models:
            for name, ranking in bench.rankings(model, texts):
                yield name, _documents(corpus, ranking)
        known = {id_: row for row, id_ in enumerate(self._ids)}
        for file in options.runs:
            path = Path(file).expanduser()
            rows, notes = read_rankings(path, self._questions.ids, known)
            self.notes += notes
            none = np.full((len(self._questions.unjudged), rows.shape[1]), -1, np.int64)
            yield f"run {label(file)}", np.concatenate([rows, none])


class _Board:
    """What each system scored on each question, as it comes in."""

    def __init__(self, questions: Questions, document_ids: list[str], metrics: tuple[str, ...]) -> None:
        self.questions, self.metrics = questions, metrics
        # Documents of a run file that are not in the corpus hold their places, see `rivals.read_rankings`.
        self._ids = [*document_ids, *(f"\0{n}" for n in range(DEPTH))]
        self._count = len(document_ids)
        self.scores: dict[str, list[dict[str, float]]] = {}
        self._top: dict[str, Rows] = {}
        self._places: dict[str, list[list[int]]] = {}

    def add(self, name: str, ranked: Rows) -> None:
        """Score a system's ranking (questions, DEPTH) of documents."""
        scores, places = [], []
        for row, relevant in zip(ranked.tolist(), self.questions.relevant, strict=False):
            ids = [self._ids[i] for i in row if i >= 0]
            scores.append(score_ranking(ids, relevant, self.metrics))
            places.append([place for place, id_ in enumerate(ids, 1) if relevant.get(id_, 0) > 0])
        self.scores[name], self._places[name] = scores, places
        top = ranked[:, :10]
        self._top[name] = np.where(top < self._count, top, -1)

    def row(self, name: str, engine: Mapping[str, Any], kind: str) -> dict[str, Any]:
        """What systems.json tells of a system: its means on dev and on test."""
        row: dict[str, Any] = {"name": name, "kind": kind, "engine": engine}
        for split in ("dev", "test"):
            pairs = zip(self.scores[name], self.questions.splits, strict=True)
            row[split] = means({str(n): score for n, (score, own) in enumerate(pairs) if own == split})
        return row

    def on_test(
        self, overlap: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.float64], dict[str, npt.NDArray[np.float64]]]:
        """The overlap and every system's nDCG@10 of the test questions."""
        mine = np.array([split == "test" for split in self.questions.splits], bool)
        every = {name: np.array([row["ndcg@10"] for row in rows]) for name, rows in self.scores.items()}
        return overlap[mine], {name: values[mine] for name, values in every.items()}

    def write(self, folder: Path, overlap: npt.NDArray[np.float64]) -> None:
        """Write the tables."""
        write_table(folder / "queries.parquet", self._by_query(overlap))
        write_table(folder / "metrics.parquet", self._by_query_and_system())
        lists = {name: pa.array(list(rows), pa.list_(pa.int32())) for name, rows in self._top.items()}
        write_table(folder / "top.parquet", pa.table(lists))
        found = {name: pa.array(rows, pa.list_(pa.int32())) for name, rows in self._places.items()}
        write_table(folder / "places.parquet", pa.table(found))

    def _by_query_and_system(self) -> pa.Table:
        """Every metric of every system on every question, one row each."""
        asked, count = self.questions, len(self.questions.ids)
        columns: dict[str, Any] = {
            "query_id": pa.array(asked.ids * len(self.scores), pa.string()),
            "split": pa.array(asked.splits * len(self.scores), pa.string()),
            "system": pa.array([name for name in self.scores for _ in range(count)], pa.string()),
        }
        for metric in self.metrics:
            values = [row[metric] for rows in self.scores.values() for row in rows]
            columns[metric] = pa.array(values, pa.float64())
        return pa.table(columns)

    def _by_query(self, overlap: npt.NDArray[np.float64]) -> pa.Table:
        asked = self.questions
        relevant = [[id_ for id_, grade in judged.items() if grade > 0] for judged in asked.relevant]
        columns: dict[str, Any] = {
            "query_id": pa.array(asked.ids, pa.string()),
            "split": pa.array(asked.splits, pa.string()),
            "text": pa.array(asked.texts, pa.string()),
            "style": pa.array(asked.styles, pa.string()),
            "relevant": pa.array(relevant, pa.list_(pa.string())),
            "overlap": pa.array(overlap, pa.float64(), from_pandas=True),
        }
        for name, rows in self.scores.items():
            columns[name] = pa.array([row["ndcg@10"] for row in rows], pa.float64())
        return pa.table(columns)
