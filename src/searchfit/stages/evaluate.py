"""Evaluate: every candidate engine and the baselines on dev and test questions, by the serving code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from searchfit.board import Board
from searchfit.config import RerankSettings, Settings
from searchfit.encoders import load_encoder
from searchfit.encoders.batched import BatchedEncoder
from searchfit.encoders.corpus import Encoding, encoded
from searchfit.encoders.trained import Trained
from searchfit.executors import Portable
from searchfit.fusion import Ranking, Rows, Vectors
from searchfit.interaction import Tokens
from searchfit.leaks import Leak, leaked_documents, leaked_questions, to_dict
from searchfit.metrics import NAMES
from searchfit.overlap import by_band
from searchfit.prior import blend_engine, systems, untuned_engine
from searchfit.questions import Questions, gather, wording
from searchfit.ranking import Asked, Round, rank_rounds
from searchfit.records import Engine, StageResult
from searchfit.rerank import PairScores, Reranker, first_stage, rerank
from searchfit.rivals import DEPTH, Bench, label, read_rankings, training_vectors, whitened
from searchfit.search import ArrayCorpus
from searchfit.stages import Tools
from searchfit.teachers import PassageTexts
from searchfit.trust import Trust, gauge
from searchfit.weighing import weigh
from searchfit.writing import write_json

VERSION = 5


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
    room = _Room.of(settings, inputs, tools)
    prior, weighed = room.prior(questions, document_ids)
    trained = Trained.load(inputs["models/trained"])
    engines = systems(
        settings, trained, lambda tower: Encoding.load(encoded(inputs, tower)), room.trust, prior
    )
    towers = {} if questions.kind == "judged" else room.gauged(engines)
    texts = questions.texts + questions.unjudged
    rivals = _Rivals(settings, inputs, tools, questions, document_ids)
    board = Board(questions, document_ids, _metrics(settings, questions))
    for name, ranked in chain(room.rankings(engines, texts, pairs), rivals.rankings(texts)):
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
        "towers": towers,
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


@dataclass(frozen=True, slots=True)
class _Room:
    """Where engines are looked at: what the stage was given, and the model with its merges, for all looks the
    same one."""

    settings: Settings
    inputs: Mapping[str, Path]
    tools: Tools
    trust: Trust
    encoder: BatchedEncoder

    @classmethod
    def of(cls, settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> _Room:
        untuned = Portable(partial(load_encoder, settings.model))
        encoder = BatchedEncoder.of(untuned, tools.executor, Trained.load(inputs["models/trained"]))
        return cls(settings, inputs, tools, Trust.load(inputs["trust.json"]), encoder)

    def corpus(self, document: float) -> Portable[ArrayCorpus]:
        """The corpus under a share of the tuned document tower."""
        folder = encoded(self.inputs, document)
        return Portable(partial(ArrayCorpus.load, folder, self.inputs["keyword"]))

    def prior(self, questions: Questions, ids: list[str]) -> tuple[Engine, tuple[str, ...]]:
        """The untuned engine, its weights as the judged questions prefer, and what to say of that."""
        corpus = self.corpus(0.0).model
        prior = untuned_engine(self.settings.engine, corpus.encoding, self.trust)
        if not self.settings.engine.adapt:
            return prior, ()
        return weigh(prior, corpus, self.encoder, questions, ids)

    def gauged(self, engines: Sequence[tuple[Engine, str]]) -> dict[str, float]:
        """How many times as well as untuned passages are found without the sentences that were asked for, by
        share of the tuned weights: by what was tuned, the vectors of questions or all, see `trust.gauge`.
        Empty where there are too few to tell."""
        towers = {engine.query_tower: engine.document_tower for engine, _ in engines if engine.query_tower}
        if not towers or not self.trust.told:
            return {}
        found = {}
        for done, (query, document) in enumerate(sorted(towers.items())):
            self.tools.progress("gauge", done, len(towers))
            corpus, passages = self.corpus(document).model, self.inputs["passages.parquet"]
            own = gauge(self.encoder.tower(query), corpus, passages, self.settings.seed)
            now, before = (own.model, self.trust.model) if document else (own.vectors, self.trust.vectors)
            found[f"{query:g}"] = round(now / before, 4)
        return found

    def rankings(
        self, engines: Sequence[tuple[Engine, str]], texts: list[str], pairs: PairScores
    ) -> Iterator[tuple[str, Rows]]:
        """(system, (questions, DEPTH) documents, -1 where there are fewer) of the engines, those with the
        same towers together, and of whitened vectors."""
        by_towers: dict[tuple[float, float], list[Engine]] = {}
        for engine, _ in engines:
            by_towers.setdefault((engine.query_tower, engine.document_tower), []).append(engine)
        rounds, asked = self._rounds(by_towers, texts)
        told = partial(self.tools.progress, "evaluate")
        ranked = rank_rounds(rounds, asked, DEPTH, None, self.tools.executor, told)
        names = [engine for own in rounds for engine in own.engines]
        plain = sum(not engine.reranker for engine, _ in engines)
        found = dict(zip(map(first_stage, names[:plain]), ranked, strict=False))
        for engine in chain(*by_towers.values()):
            ranking = found[first_stage(engine)]
            if engine.reranker:
                ranking = rerank(engine, ranking, pairs(texts, ranking.rows[:, : engine.rerank_depth]))
            yield engine.name, _documents(self.inputs, ranking)
        for engine, ranking in zip(names[plain:], ranked[plain:], strict=True):
            yield engine.name, _documents(self.inputs, ranking)

    def _rounds(
        self, by_towers: Mapping[tuple[float, float], Sequence[Engine]], texts: list[str]
    ) -> tuple[list[Round], Asked]:
        """What is ranked, one pair of towers after another, and the questions as each reads them."""
        corpora: dict[float, Portable[ArrayCorpus]] = {}
        rounds: list[Round] = []
        vectors: list[Vectors] = []
        tokens: dict[float, list[Tokens]] = {}
        for done, ((query, document), engines) in enumerate(by_towers.items()):
            self.tools.progress("read questions", done, len(by_towers))
            held = corpora.setdefault(document, self.corpus(document))
            first = tuple(engine for engine in engines if not engine.reranker)
            own, worded = self.encoder.tower(query), any(engine.token_weight for engine in first)
            if worded and document not in tokens:
                read, tokens[document] = own.encode_questions(texts)
            else:
                read = own.encode_queries(texts)
            vectors.append(read)
            rounds.append(Round(held, first, document if worded else None))
        if self.settings.evaluate.whiten:
            held = corpora[0.0]
            blend = blend_engine(self.settings.engine, held.model.encoding, self.trust, "")
            learnt = training_vectors(self.inputs.__getitem__)
            own_round, read = whitened(
                held, learnt, vectors[0], blend.keyword_weight
            )  # untuned ones are first
            rounds.append(own_round)
            vectors.append(read)
        return rounds, Asked(texts, vectors, tokens)


def _pairs(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> PairScores:
    """The scores of the re-ranker that competes, kept beside the stage's output."""
    options, model = settings.rerank, settings.model
    return PairScores(
        partial(Reranker.load, options.model, model.device, model.precision),
        PassageTexts(inputs["passages.parquet"]).take,
        tools.output / "reranked.npz",
        tools.executor,
    )


def _rerank_notes(settings: RerankSettings, pairs: PairScores) -> Iterator[str]:
    if settings.model:
        yield f"With a re-ranker, at most {settings.max_queries} dev and test questions each are compared on."
    if pairs.read:
        cost = 1000 * settings.depth * pairs.seconds / pairs.read
        yield f"Re-ranking the first {settings.depth} results takes about {cost:.0f} ms a question here."


def _documents(inputs: Mapping[str, Path], ranking: Ranking) -> Rows:
    """The documents of passages, -1 where there is none."""
    documents = np.load(inputs["encoded"] / "documents.npy", mmap_mode="r")
    return np.where(ranking.rows >= 0, documents[np.maximum(ranking.rows, 0)], -1)


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
    """Rankings by other models and of runs; `notes` are for people, complete in the end."""

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

    def rankings(self, texts: list[str]) -> Iterator[tuple[str, Rows]]:
        """(system, (questions, DEPTH) documents), -1 where there are fewer."""
        options, inputs = self._settings.evaluate, self._inputs
        cache = self._tools.cache or self._tools.output / "cache"
        bench = Bench(
            inputs["passages.parquet"],
            inputs["keyword"],
            cache,
            self._settings,
            self._tools.progress,
            self._tools.executor,
        )
        for model in options.models:
            for name, ranking in bench.rankings(model, texts):
                yield name, _documents(inputs, ranking)
        known = {id_: row for row, id_ in enumerate(self._ids)}
        for file in options.runs:
            path = Path(file).expanduser()
            rows, notes = read_rankings(path, self._questions.ids, known)
            self.notes += notes
            none = np.full((len(self._questions.unjudged), rows.shape[1]), -1, np.int64)
            yield f"run {label(file)}", np.concatenate([rows, none])
