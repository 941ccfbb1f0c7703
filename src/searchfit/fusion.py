"""An Engine's scores: over blocks of vectors (evaluation, batches) and over a store (serving), ranking alike.

Scores are rounded to six decimals and ties go to the earlier passage, so that both ways, which sum floats
in different orders, give one ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from searchfit.records import Engine

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Vectors = npt.NDArray[np.float32]

_DECIMALS = 1e6
_BLOCK_ROWS = 8192
_CHUNK_QUERIES = 256


@dataclass(frozen=True, slots=True)
class Block:
    """Passages `start` to `start + len(passages)`, whole documents. `sentences[offsets[i]:offsets[i + 1]]`
    belong to passage `start + i`; `documents[i]` is its document."""

    start: int
    documents: npt.NDArray[np.int32]
    passages: Vectors
    sentences: Vectors
    offsets: Rows


class Corpus(Protocol):
    """What an Engine ranks: vectors in blocks of whole documents, and keyword scores of the same rows."""

    @property
    def count(self) -> int:
        """Number of passages."""

    def keyword_scores(self, queries: Sequence[str]) -> Any:
        """The keyword leg, a sparse (len(queries), count) matrix."""

    def blocks(self, rows: int) -> Iterator[Block]:
        """The blocks in row order, of about `rows` passages."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The best k rows of each query, best first: (q, k) passage rows and scores, -1 and -inf where there
    are fewer than k. Ranked by document, each row is the best passage of its document."""

    rows: Rows
    scores: Floats


def dense_scores(engine: Engine, queries: Vectors, block: Block) -> Floats:
    """The dense leg: (q, n) similarities of queries to the units of a block's passages."""
    if engine.units == "passage":
        return np.asarray(queries @ block.passages.T, np.float32)
    each = queries @ block.sentences.T
    best: Floats = np.maximum.reduceat(each, block.offsets[:-1], axis=1)
    if engine.units == "sentence":
        return best
    both: Floats = (np.asarray(queries @ block.passages.T, np.float32) + best) * np.float32(0.5)
    return both


def rank(
    engines: Sequence[Engine],
    corpus: Corpus,
    vectors: Vectors,
    queries: Sequence[str],
    k: int,
    allowed: npt.NDArray[np.bool_] | None = None,
) -> list[Ranking]:
    """Exact rankings of all queries by each engine; `vectors` (q, d) are the queries under the engines'
    common query tower. Memory is bounded by blocks on both sides, whatever the corpus.

    Documents are ranked by their best passage; with `allowed` (n), passages are ranked, and only those.
    """
    done: list[list[Ranking]] = [[] for _ in engines]
    # Without keywords and sentences a query holds little, and more at once read the passages less often.
    lean = all(engine.units == "passage" and not engine.keyword_weight for engine in engines)
    step = _CHUNK_QUERIES * (4 if lean else 1)
    for begin in range(0, len(queries), step):
        chunk = slice(begin, begin + step)
        for out, ranking in zip(
            done, _rank_chunk(engines, corpus, vectors[chunk], queries[chunk], k, allowed), strict=True
        ):
            out.append(ranking)
    empty = Ranking(np.empty((0, k), np.int64), np.empty((0, k), np.float32))
    return [
        Ranking(
            np.concatenate([r.rows for r in (empty, *parts)]),
            np.concatenate([r.scores for r in (empty, *parts)]),
        )
        for parts in done
    ]


def _rank_chunk(
    engines: Sequence[Engine],
    corpus: Corpus,
    vectors: Vectors,
    queries: Sequence[str],
    k: int,
    allowed: npt.NDArray[np.bool_] | None,
) -> list[Ranking]:
    wanted = any(engine.keyword_weight for engine in engines)
    keyword = corpus.keyword_scores(queries).tocsc() if wanted else None
    best = [np.full((len(queries), k), -np.inf) for _ in engines]
    count = corpus.count
    for block in corpus.blocks(_BLOCK_ROWS):
        stop = block.start + len(block.passages)
        lexical = keyword[:, block.start : stop].toarray() if keyword is not None else None
        dense: dict[str, Floats] = {}
        for number, engine in enumerate(engines):
            if engine.dense_weight and engine.units not in dense:
                dense[engine.units] = dense_scores(engine, vectors, block)
            scores = _blend(engine, dense.get(engine.units), lexical, (len(queries), stop - block.start))
            mask = None if allowed is None else allowed[block.start : stop]
            best[number] = _merge(best[number], scores, block, mask, count)
    return [_unpack(keys, count) for keys in best]


def _blend(
    engine: Engine, dense: Floats | None, lexical: Floats | None, shape: tuple[int, int]
) -> npt.NDArray[Any]:
    legs: list[npt.NDArray[Any]] = []
    if engine.keyword_weight and lexical is not None:
        legs.append(engine.keyword_weight * lexical)
    if engine.dense_weight and dense is not None:
        legs.append(dense if engine.dense_weight == 1 else engine.dense_weight * dense)
    return sum(legs[1:], start=legs[0]) if legs else np.zeros(shape, np.float32)


def _merge(
    best: npt.NDArray[np.float64],
    scores: npt.NDArray[Any],
    block: Block,
    allowed: npt.NDArray[np.bool_] | None,
    count: int,
) -> npt.NDArray[np.float64]:
    """The best k keys (q, k) of a ranking so far and a block's scores (q, n).

    Exact keys are made only for the few scores that can be among the best k.
    """
    passing = scores >= _limits(best, scores, block, allowed)
    if allowed is not None:
        passing &= allowed
    query, column = np.divmod(np.flatnonzero(passing), scores.shape[1])
    if not len(query):
        return best
    keys = _keys(scores[query, column], block.start + column, count)
    if allowed is None:
        # A document's best passage stands for it; whole documents lie in a block, their passages adjacent.
        borders = np.flatnonzero(np.diff(query, prepend=-1) | np.diff(block.documents[column], prepend=-1))
        keys, query = np.maximum.reduceat(keys, borders), query[borders]
    counts = np.bincount(query, minlength=len(best))
    place = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    found = np.full((len(best), int(counts.max())), -np.inf)
    found[query, place] = keys
    return _top(np.concatenate([best, found], axis=1), best.shape[1])


def _limits(
    best: npt.NDArray[np.float64],
    scores: npt.NDArray[Any],
    block: Block,
    allowed: npt.NDArray[np.bool_] | None,
) -> Floats:
    """(q, 1) what no score of a block that is among the best k lies below: the k-th best so far, to be beaten
    as ties go to the earlier passage, or, while there are fewer than k, the block's own k-th best."""
    k = best.shape[1]
    bar = np.ceil(best[:, -1:]) + 0.5
    if np.isneginf(bar).any():
        if allowed is None:
            scores = np.maximum.reduceat(scores, _borders(block.documents), axis=1)
        elif not allowed.all():
            scores = scores[:, allowed]
        last = scores.shape[1] - k
        if last > 0:
            own = np.partition(scores, last, axis=1)[:, last, None].astype(np.float64)
            bar = np.maximum(bar, np.rint(own * _DECIMALS) - 0.5)
    # One step of single precision lower, so that no rounding puts it above the exact limit.
    limits: Floats = np.nextafter((bar / _DECIMALS).astype(np.float32), np.float32(-np.inf))
    return limits


def _borders(documents: npt.NDArray[Any]) -> Rows:
    return np.flatnonzero(np.diff(documents, prepend=-1))


def _keys(scores: npt.NDArray[Any], rows: Rows, count: int) -> npt.NDArray[np.float64]:
    """One number for score and row: whole part the rounded score, fraction the row, so that the larger key
    is the better score or, in a tie, the earlier passage. Exact below 2**29 passages."""
    return np.rint(scores.astype(np.float64) * _DECIMALS) - rows / (count + 1)


def _unpack(keys: npt.NDArray[np.float64], count: int) -> Ranking:
    whole = np.ceil(keys)
    there = np.isfinite(keys)
    fractions = np.subtract(whole, keys, out=np.zeros_like(keys), where=there)
    rows = np.rint(fractions * (count + 1)).astype(np.int64)
    return Ranking(np.where(there, rows, -1), (whole / _DECIMALS).astype(np.float32))


def _top(keys: npt.NDArray[np.float64], k: int) -> npt.NDArray[np.float64]:
    if keys.shape[1] > k:
        keys = np.partition(keys, keys.shape[1] - k, axis=1)[:, -k:]
    return -np.sort(-keys, axis=1)


class Legs(Protocol):
    """What serving asks of a store, see `stores.Store`."""

    def nearest(self, vector: Vectors, column: Any, k: int, where: Any) -> tuple[Rows, Floats]:
        """Rows and similarities of the k nearest passages, best first."""

    def vectors(self, rows: Rows) -> tuple[Vectors, Vectors, Rows]:
        """Vectors of passages, of their sentences one after another, and offsets of the latter."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The best passages of one query with the legs of their scores, best first."""

    rows: Rows
    scores: Floats
    dense: Floats
    keyword: Floats


def rank_one(
    engine: Engine,
    store: Legs,
    vector: Vectors,
    keyword: Floats,
    want: Callable[[Rows], bool],
    where: Any = None,
) -> Scored:
    """Exact best passages of one query over a store, without reading every vector.

    `keyword` holds the keyword leg of every row (-inf where the filter `where` excludes it). Each leg gives
    its best rows; the union is scored in full, and rows that no leg gave cannot score above the sum of the
    legs' last scores (Fagin, Lotem and Naor 2003, "Optimal aggregation algorithms for middleware"). The
    legs are read deeper until `want(rows)` is content with the rows that are certain, or all are read.
    """
    depth, total = 64, int(np.isfinite(keyword).sum())
    while True:
        legs = _legs(engine, store, vector, keyword, min(depth, max(1, total)), where)
        rows = np.unique(np.concatenate([leg_rows for leg_rows, _ in legs]))
        scored = _score(engine, store, vector, keyword, rows)
        if depth >= total:
            return scored
        bound = _bound(engine, [last for _, last in legs])
        # Twice the rounding, and what single precision leaves open where scores are large.
        certain = scored.rows[scored.scores > bound + 2e-6 * max(1.0, abs(bound))]
        if want(certain):
            return scored
        depth *= 4


def _legs(
    engine: Engine, store: Legs, vector: Vectors, keyword: Floats, depth: int, where: Any
) -> list[tuple[Rows, float]]:
    """(rows, last score) for the keyword, passage and sentence legs; an unused leg gives nothing and 0."""
    legs: list[tuple[Rows, float]] = []
    if engine.keyword_weight:
        top = (
            np.argpartition(-keyword, depth - 1)[:depth] if depth < len(keyword) else np.arange(len(keyword))
        )
        top = top[np.isfinite(keyword[top])]
        legs.append((top, float(keyword[top].min()) if len(top) else 0.0))
    else:
        legs.append((np.empty(0, np.int64), 0.0))
    for column, unused in (("vector", "sentence"), ("sentence_vectors", "passage")):
        if engine.units == unused or not engine.dense_weight:
            legs.append((np.empty(0, np.int64), 0.0))
        else:
            rows, similarity = store.nearest(vector, column, depth, where)
            legs.append((rows, float(similarity[-1]) if len(rows) else 0.0))
    return legs


def _bound(engine: Engine, last: Sequence[float]) -> float:
    keyword, passage, sentence = last
    dense = {"passage": passage, "sentence": sentence, "both": (passage + sentence) / 2}[engine.units]
    return engine.dense_weight * dense + engine.keyword_weight * keyword


def _score(engine: Engine, store: Legs, vector: Vectors, keyword: Floats, rows: Rows) -> Scored:
    if not len(rows):
        none = np.empty(0, np.float32)
        return Scored(rows, none, none, none)
    dense: Floats = np.zeros(len(rows), np.float32)
    if engine.dense_weight:
        passages, sentences, offsets = store.vectors(rows)
        block = Block(0, np.zeros(len(rows), np.int32), passages, sentences, offsets)
        dense = dense_scores(engine, vector[None, :], block)[0]
    scores = engine.dense_weight * dense + engine.keyword_weight * keyword[rows]
    keys = _keys(scores, rows, len(keyword))
    order = np.argsort(-keys)
    rounded = (np.rint(scores * _DECIMALS) / _DECIMALS).astype(np.float32)
    return Scored(rows[order], rounded[order], dense[order], keyword[rows][order])
