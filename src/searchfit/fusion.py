"""An Engine's ranking over blocks of vectors, for evaluation and batches. `legs` ranks alike.

Scores are rounded to six decimals and ties go to the earlier passage, so that both ways, which sum floats
in different orders, give one ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from searchfit.records import Engine

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Vectors = npt.NDArray[np.float32]

DECIMALS = 1e6
"""Scores are rounded to one over this."""

_BLOCK_ROWS = 8192
_CHUNK_QUERIES = 256
CHUNK_SCORES = 32_000_000
"""Keyword scores held at once: fewer queries over a large corpus."""

RRF_DEPTH = 100
"""How many passages of each leg count when legs are joined by reciprocal ranks."""


@dataclass(frozen=True, slots=True)
class Block:
    """Passages `start` to `start + len(passages)`, whole documents. `sentences[offsets[i]:offsets[i + 1]]`
    belong to passage `start + i`; `documents[i]` is its document."""

    start: int
    documents: npt.NDArray[np.int32]
    passages: Vectors
    sentences: Vectors
    offsets: Rows


def gathered(offsets: Rows, rows: Rows) -> tuple[Rows, Rows]:
    """Where the parts of rows lie, of which row i has offsets[i] to offsets[i + 1], and the borders of each
    row's among them, in the order asked."""
    lengths = offsets[rows + 1] - offsets[rows]
    borders = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    within = np.arange(borders[-1]) - np.repeat(borders[:-1], lengths)
    return np.repeat(offsets[rows], lengths) + within, borders


class Corpus(Protocol):
    """What an Engine ranks: vectors in blocks of whole documents, and keyword scores of the same rows."""

    @property
    def count(self) -> int:
        """Number of passages."""

    def keyword_scores(self, queries: Sequence[str]) -> Any:
        """The keyword leg, a sparse (len(queries), count) matrix."""

    def blocks(self, rows: int) -> Iterator[Block]:
        """The blocks in row order, of about `rows` passages."""


class SharedKeywords:
    """The keyword leg of questions that are ranked several times, by other vectors of the same passages: what
    it scores is kept, up to 32 million scores (256 MB), and beyond that scored again."""

    def __init__(self, scores: Callable[[Sequence[str]], Any]) -> None:
        self._scores = scores
        self._kept: dict[tuple[str, ...], Any] = {}
        self._room = CHUNK_SCORES

    def __call__(self, queries: Sequence[str]) -> Any:
        """The scores, a sparse (len(queries), passages) matrix."""
        found = self._kept.get(asked := tuple(queries))
        if found is None:
            found = self._scores(queries).tocsc()
            if found.nnz <= self._room:
                self._kept[asked] = found
                self._room -= found.nnz
        return found

    def over(self, corpus: Corpus) -> Corpus:
        """A corpus of these passages with this keyword leg."""
        return _Shared(corpus, self)


@dataclass(frozen=True, slots=True)
class _Shared:
    corpus: Corpus
    keyword_scores: SharedKeywords

    @property
    def count(self) -> int:
        return self.corpus.count

    def blocks(self, rows: int) -> Iterator[Block]:
        return self.corpus.blocks(rows)


@dataclass(frozen=True, slots=True)
class Ranking:
    """The best k rows of each query, best first: (q, k) passage rows and scores, -1 and -inf where there
    are fewer than k. Ranked by document, each row is the best passage of its document."""

    rows: Rows
    scores: Floats


def dense_scores(engine: Engine, queries: Vectors, block: Block) -> Floats:
    """The dense leg: (q, n) similarities of queries to the units of a block's passages."""
    if engine.units == "passage":
        return _products(queries, block.passages)
    each = _products(queries, block.sentences)
    best: Floats = np.maximum.reduceat(each, block.offsets[:-1], axis=1)
    if engine.units == "sentence":
        return best
    both: Floats = (_products(queries, block.passages) + best) * np.float32(0.5)
    return both


def _products(queries: Vectors, vectors: Vectors) -> Floats:
    """(q, n) inner products. One query wakes no threads: they would spin for longer than it takes."""
    if len(queries) == 1:
        return np.asarray(np.vecdot(vectors, queries), np.float32)[None]
    return np.asarray(queries @ vectors.T, np.float32)


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
    plain = [engine for engine in engines if engine.fusion == "scores"]
    done = dict(zip(plain, _rank_plain(plain, corpus, vectors, queries, k, allowed), strict=True))
    return [
        done[engine] if engine in done else _rank_fused(engine, corpus, vectors, queries, k, allowed)
        for engine in engines
    ]


def _rank_plain(
    engines: Sequence[Engine],
    corpus: Corpus,
    vectors: Vectors,
    queries: Sequence[str],
    k: int,
    allowed: npt.NDArray[np.bool_] | None,
) -> list[Ranking]:
    done: list[list[Ranking]] = [[] for _ in engines]
    # Without keywords and sentences a query holds little, and more at once read the passages less often.
    lean = all(engine.units == "passage" and not engine.keyword_weight for engine in engines)
    step = _CHUNK_QUERIES * 4 if lean else max(8, min(_CHUNK_QUERIES, CHUNK_SCORES // (corpus.count + 1)))
    for begin in range(0, len(queries) if engines else 0, step):
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
            bar = np.maximum(bar, np.rint(own * DECIMALS) - 0.5)
    # One step of single precision lower, so that no rounding puts it above the exact limit.
    limits: Floats = np.nextafter((bar / DECIMALS).astype(np.float32), np.float32(-np.inf))
    return limits


def _borders(documents: npt.NDArray[Any]) -> Rows:
    return np.flatnonzero(np.diff(documents, prepend=-1))


def _keys(scores: npt.NDArray[Any], rows: Rows, count: int) -> npt.NDArray[np.float64]:
    """One number for score and row: whole part the rounded score, fraction the row, so that the larger key
    is the better score or, in a tie, the earlier passage. Exact below 2**29 passages."""
    return np.rint(scores.astype(np.float64) * DECIMALS) - rows / (count + 1)


def _unpack(keys: npt.NDArray[np.float64], count: int) -> Ranking:
    whole = np.ceil(keys)
    there = np.isfinite(keys)
    fractions = np.subtract(whole, keys, out=np.zeros_like(keys), where=there)
    rows = np.rint(fractions * (count + 1)).astype(np.int64)
    return Ranking(np.where(there, rows, -1), (whole / DECIMALS).astype(np.float32))


def _top(keys: npt.NDArray[np.float64], k: int) -> npt.NDArray[np.float64]:
    if keys.shape[1] > k:
        keys = np.partition(keys, keys.shape[1] - k, axis=1)[:, -k:]
    return -np.sort(-keys, axis=1)


def rank_legs(engine: Engine) -> dict[str, tuple[Engine, float]]:
    """The legs of an engine that joins them by reciprocal ranks, as engines of their own with their weights:
    "dense", "keyword"."""
    dense = replace(engine, fusion="scores", keyword_weight=0.0)
    keyword = replace(engine, fusion="scores", dense_weight=0.0, keyword_weight=1.0)
    legs = {"dense": (dense, float(engine.dense_weight > 0)), "keyword": (keyword, engine.keyword_weight)}
    return {name: (leg, weight) for name, (leg, weight) in legs.items() if weight}


def reciprocal_sums(
    lists: Mapping[str, Rows], weights: Mapping[str, float]
) -> tuple[Rows, npt.NDArray[np.float64]]:
    """Rows in ascending order and their scores: the sum over the legs of weight * 61 / (60 + rank), so that
    the first of a leg gets its weight (Cormack, Clarke and Büttcher 2009, "Reciprocal rank fusion outperforms
    Condorcet and individual rank learning methods")."""
    rows = np.unique(np.concatenate([np.empty(0, np.int64), *lists.values()]))
    scores = np.zeros(len(rows))
    for name, found in lists.items():
        scores[np.searchsorted(rows, found)] += weights[name] * 61 / (60 + np.arange(1, len(found) + 1))
    return rows, scores


def _rank_fused(
    engine: Engine,
    corpus: Corpus,
    vectors: Vectors,
    queries: Sequence[str],
    k: int,
    allowed: npt.NDArray[np.bool_] | None,
) -> Ranking:
    legs = rank_legs(engine)
    engines = [leg for leg, _ in legs.values()]
    among = np.ones(corpus.count, np.bool_) if allowed is None else allowed
    found = _rank_plain(engines, corpus, vectors, queries, RRF_DEPTH, among)
    documents = np.concatenate(
        [np.empty(0, np.int32), *(block.documents for block in corpus.blocks(_BLOCK_ROWS))]
    )
    weights = {name: weight for name, (_, weight) in legs.items()}
    best = np.full((len(queries), k), -np.inf)
    for query in range(len(queries)):
        lists = {}
        for name, ranking in zip(legs, found, strict=True):
            there = ranking.rows[query] >= 0
            lists[name] = ranking.rows[query][there & ((name != "keyword") | (ranking.scores[query] > 0))]
        rows, scores = reciprocal_sums(lists, weights)
        keys = _keys(scores, rows, corpus.count)
        if allowed is None and len(rows):
            keys = np.maximum.reduceat(keys, _borders(documents[rows]))
        best[query, : min(k, len(keys))] = _top(keys[None, :], k)[0][:k]
    return _unpack(best, corpus.count)
