"""Mine: what each training query learns from: the best passages, some random ones, and hard negatives, with
the teacher's scores.

The teacher is the untuned engine, a blend of dense and keyword scores, or one that the user names and that
is better on dev. Only training documents are candidates: a dev or test passage, or a near copy of one, is
never trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.config import Settings
from searchfit.encoders import load_encoder
from searchfit.encoders.batched import BatchedEncoder
from searchfit.executors import Portable
from searchfit.fusion import Floats, Ranking, Rows, Vectors, dense_scores
from searchfit.mining import (
    Flags,
    Known,
    NegativeOptions,
    Negatives,
    Pool,
    choose_negatives,
    leg,
    number_texts,
    score_rows,
)
from searchfit.prior import blend_engine
from searchfit.ranking import Asked, Round, rank_rounds
from searchfit.records import Engine, StageResult
from searchfit.search import ArrayCorpus
from searchfit.splits import document_splits, pair_splits
from searchfit.stages import Tools
from searchfit.teachers import Materials, PassageTexts, judge, load_teacher
from searchfit.training.lessons import ANSWERS
from searchfit.trust import Trust
from searchfit.writing import write_table

VERSION = 2

_DEV_QUERIES = 300
"""By which a teacher is judged."""

MINED = pa.schema([("text", pa.string()), ("passage", pa.int32()), ("origin", pa.string())])
"""mined/queries.parquet: the training queries, the row of the passage that answers, and whether the pair was
"generated" or "labelled" by the user."""


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Write mined/: queries.parquet (n), passages.npy and scores.npy (n, c): the candidates and the teacher's
    scores of them, own_scores.npy (n): of the own passages, hard.npy and hard_scores.npy (n, h): negatives,
    -1 where there are fewer, and for all queries negatives.npy (r) and negative_scores.npy (n, r), -inf where
    the negative is a candidate too. The own passage of a labelled query is always a candidate.

    Raises SettingsError for a teacher that is no better than the student on dev, unless forced.
    """
    folder = tools.output / "mined"
    folder.mkdir(parents=True, exist_ok=True)
    held = Portable(partial(ArrayCorpus.load, inputs["encoded"], inputs["keyword"]))
    allowed = (document_splits(inputs["holdout.parquet"]) == "train")[held.model.documents]
    of_pair = pair_splits(inputs["pairs.parquet"], inputs["holdout.parquet"])
    school = _School(settings, inputs, tools, held, allowed)
    queries, vectors = _queries(settings, inputs, of_pair, school.encoder)
    texts, own = queries["text"].to_pylist(), queries["passage"].to_numpy().astype(np.int64)
    tools.progress("mine", 0, len(texts))
    notes = school.examine(of_pair)
    ranking, negatives = school.candidates(vectors, texts), school.random()
    scores, own_scores, negative_scores = school.scores(vectors, texts, ranking, own, negatives)
    hard = school.hard(vectors, texts, own, (ranking, scores), own_scores)
    own_scores, hard_scores = school.beside(vectors, texts, own, hard.rows)
    labelled = queries["origin"].to_numpy() == "labelled"
    candidates, lifted = _lift(ranking.rows, scores, own, labelled, settings.mine.label_margin)
    negative_scores[_among(candidates, negatives)] = -np.inf
    arrays: dict[str, npt.NDArray[Any]] = {
        "passages": candidates,
        "scores": lifted,
        "own_scores": own_scores,
        "hard": hard.rows,
        "hard_scores": hard_scores,
        "negatives": negatives,
        "negative_scores": negative_scores,
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    write_table(folder / "queries.parquet", queries)
    used = [ranking.rows, negatives, hard.rows[hard.rows >= 0]]
    return StageResult(
        counts={
            "training queries": len(texts),
            "labelled ones": int(labelled.sum()),
            "candidates": ranking.rows.shape[1],
            "negatives": len(negatives),
            "hard negatives": int((hard.rows >= 0).sum()),
            "held-out passages among them": int(sum((~allowed[rows]).sum() for rows in used)),
        },
        notes=notes,
    )


class _School:
    """The teacher and what it teaches from."""

    def __init__(
        self,
        settings: Settings,
        inputs: Mapping[str, Path],
        tools: Tools,
        held: Portable[ArrayCorpus],
        allowed: Flags,
    ) -> None:
        self.mine, self.seed, self.inputs = settings.mine, settings.seed, inputs
        self.corpus, self.allowed = held.model, allowed
        self.held, self.tools = held, tools
        self.engine = blend_engine(
            settings.engine, self.corpus.encoding, Trust.load(inputs["trust.json"]), "teacher"
        )
        self.texts = PassageTexts(inputs["passages.parquet"])
        self.blend = settings.mine.teacher == "blend"
        self.encoder = BatchedEncoder.of(Portable(partial(load_encoder, settings.model)), tools.executor)
        self.teacher = load_teacher(
            settings.mine.teacher,
            Materials(
                self.corpus,
                inputs["passages.parquet"],
                inputs["keyword"],
                self.engine,
                settings.model,
                self.encoder.encode_queries,
                tools.output / "teachers",
                tools.executor,
            ),
        )

    def rank(self, engine: Engine, vectors: Vectors, texts: list[str], k: int, allowed: Flags) -> Ranking:
        """The best of the allowed passages of each query."""
        asked, told = Asked(texts, [vectors]), partial(self.tools.progress, "mine")
        (found,) = rank_rounds([Round(self.held, (engine,))], asked, k, allowed, self.tools.executor, told)
        return found

    def examine(self, of_pair: npt.NDArray[np.str_]) -> tuple[str, ...]:
        """Compare a teacher that the user named with the student, the untuned vectors, on dev questions."""
        if self.blend:
            return ()
        pairs = pq.read_table(self.inputs["pairs.parquet"], columns=["text", "passage"])
        dev = np.flatnonzero(of_pair == "dev")
        dev = np.sort(np.random.default_rng(self.seed).permutation(dev)[:_DEV_QUERIES])
        texts, own = pairs["text"].take(dev).to_pylist(), pairs["passage"].to_numpy()[dev]
        self.tools.progress("examine the teacher", 0, len(texts))
        vectors = np.load(self.inputs["pair_vectors.npy"])[dev]
        width = min(self.mine.candidates, self.corpus.count)
        everything = np.ones(self.corpus.count, bool)
        rows = self.rank(self.engine, vectors, texts, width, everything).rows
        student = replace(self.engine, keyword_weight=0.0)
        scores = score_rows(student, self.corpus, vectors, texts, rows)
        verdict = judge(self.teacher, texts, rows, scores, rows == own[:, None], self.seed)
        verdict.require(self.mine.force_teacher)
        return (verdict.message,)

    def candidates(self, vectors: Vectors, texts: list[str]) -> Ranking:
        """The best training passages of each query by the blend."""
        width = min(self.mine.candidates, int(self.allowed.sum()))
        return self.rank(self.engine, vectors, texts, width, self.allowed)

    def random(self) -> Rows:
        """Training passages drawn by chance. Only the blend can score so many for every query."""
        pool = np.flatnonzero(self.allowed)
        count = min(self.mine.negatives if self.blend else 0, len(pool))
        return np.sort(np.random.default_rng(self.seed).choice(pool, count, replace=False))

    def scores(
        self, vectors: Vectors, texts: list[str], ranking: Ranking, own: Rows, negatives: Rows
    ) -> tuple[Floats, Floats, Floats]:
        """The teacher's scores of candidates (n, c), own passages (n) and random negatives (n, r)."""
        if not self.blend:
            own_scores, scores = self.beside(vectors, texts, own, ranking.rows)
            return scores, own_scores, np.empty((len(texts), 0), np.float32)
        own_scores = self.score(vectors, texts, own[:, None])[:, 0]
        keyword = self.corpus.keyword_scores(texts, negatives).toarray()
        dense = dense_scores(self.engine, vectors, self.corpus.take(negatives))
        random = self.engine.dense_weight * dense + self.engine.keyword_weight * keyword
        return ranking.scores, own_scores, np.asarray(random, np.float32)

    def score(self, vectors: Vectors, texts: list[str], rows: Rows) -> Floats:
        """(n, c) the teacher's scores of some passages, -inf where a row is -1."""
        if self.blend:
            return score_rows(self.engine, self.corpus, vectors, texts, rows)
        return self.teacher.scores(texts, rows)

    def beside(self, vectors: Vectors, texts: list[str], own: Rows, rows: Rows) -> tuple[Floats, Floats]:
        """The scores of own passages (n) and of others (n, c), to be compared: an ensemble's can only be
        where they were given in one call."""
        scores = self.score(vectors, texts, np.concatenate([own[:, None], rows], axis=1))
        return scores[:, 0], scores[:, 1:]

    def hard(
        self,
        vectors: Vectors,
        texts: list[str],
        own: Rows,
        taught: tuple[Ranking, Floats],
        own_scores: Floats,
    ) -> Negatives:
        """Negatives near the answer that are most likely none themselves; `taught` is the blend's ranking
        with the teacher's scores."""
        mine = self.mine
        engine = leg(self.engine, mine.legs)
        width = min(mine.depth + 1, int(self.allowed.sum()))
        ranking, scores = taught
        if mine.legs != "both" or width > ranking.rows.shape[1]:
            ranking = self.rank(engine, vectors, texts, width, self.allowed)
            own_scores, scores = self.beside(vectors, texts, own, ranking.rows)
        own_ranked = score_rows(engine, self.corpus, vectors, texts, own[:, None])[:, 0]
        known = Known(texts, own[:, None], own_ranked, scores, own_scores)
        options = NegativeOptions(
            count=mine.hard,
            skip=mine.skip,
            depth=mine.depth,
            absolute_margin=mine.absolute_margin,
            relative_margin=mine.relative_margin,
            guard=mine.guard,
            sampling=mine.sampling,
            random_share=mine.random_share,
            seed=self.seed,
        )
        everything = (text for _, batch in self.texts.batches() for text in batch)
        return choose_negatives(ranking, known, Pool(self.allowed, number_texts(everything)), options)


def _queries(
    settings: Settings, inputs: Mapping[str, Path], of_pair: npt.NDArray[np.str_], encoder: BatchedEncoder
) -> tuple[pa.Table, Vectors]:
    """The training queries (MINED) and their untuned vectors: generated ones, at most `mine.max_queries`, and
    all of the user's whose answer is in the corpus."""
    pairs = pq.read_table(inputs["pairs.parquet"], columns=["text", "style", "passage"])
    rows = _sample(pairs, of_pair, settings)
    labelled = pq.read_table(inputs["labelled.parquet"], columns=["query", "passage", "label", "split"])
    answers = np.flatnonzero(
        (labelled["split"].to_numpy() == "train")
        & (labelled["passage"].to_numpy() >= 0)
        & (labelled["label"].to_numpy() >= ANSWERS)
    )
    mine, theirs = pairs.take(rows), labelled.take(answers)
    origin = ["generated"] * len(mine) + ["labelled"] * len(theirs)
    columns = [
        pa.array(mine["text"].to_pylist() + theirs["query"].to_pylist(), pa.string()),
        pa.array(mine["passage"].to_pylist() + theirs["passage"].to_pylist(), pa.int32()),
        pa.array(origin, pa.string()),
    ]
    vectors = np.load(inputs["pair_vectors.npy"])[rows]
    if len(theirs):
        asked = encoder.encode_queries(theirs["query"].to_pylist())
        vectors = np.concatenate([vectors, asked])
    return pa.table(columns, schema=MINED), vectors


def _lift(
    rows: Rows,
    scores: npt.NDArray[np.float32],
    own: Rows,
    labelled: npt.NDArray[np.bool_],
    margin: float,
) -> tuple[Rows, npt.NDArray[np.float32]]:
    """Candidates and scores in which the own passage of a labelled query stands `margin` above all others:
    the user knows better than the teacher. Where it is not among them, it takes the last place."""
    rows, scores = rows.copy(), scores.copy()
    for query in np.flatnonzero(labelled):
        place = np.flatnonzero(rows[query] == own[query])
        if not len(place):
            rows[query, -1], place = own[query], np.array([rows.shape[1] - 1])
        others = np.delete(scores[query], place[0])
        scores[query, place[0]] = (others.max() if len(others) else 0.0) + margin
    return rows, scores


def _sample(pairs: pa.Table, of_pair: npt.NDArray[np.str_], settings: Settings) -> npt.NDArray[np.int64]:
    """Rows of the training pairs, at most max_queries, the same share of each style."""
    rows = np.flatnonzero(of_pair == "train")
    rows = np.random.default_rng(settings.seed).permutation(rows)
    _, styles = np.unique(pairs["style"].take(rows).to_numpy(), return_inverse=True)
    order = np.argsort(styles, kind="stable")
    share = np.concatenate([np.arange(n) / n for n in np.bincount(styles)]) if len(rows) else np.empty(0)
    return np.sort(rows[order[np.argsort(share, kind="stable")[: settings.mine.max_queries]]])


def _among(candidates: Rows, negatives: Rows) -> npt.NDArray[np.bool_]:
    """(n, r): whether negative j is among the candidates of query i."""
    place = np.searchsorted(negatives, candidates).clip(max=max(0, len(negatives) - 1))
    found = np.zeros((len(candidates), len(negatives)), bool)
    if len(negatives):
        query, column = np.nonzero(negatives[place] == candidates)
        found[query, place[query, column]] = True
    return found
