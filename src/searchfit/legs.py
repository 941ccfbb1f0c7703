"""An Engine's ranking for one query over a store, by legs that are read no deeper than they have to be.

Scores are rounded and ties broken as in `fusion`, so that evaluation and serving give one ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from searchfit.fusion import (
    DECIMALS,
    RRF_DEPTH,
    Block,
    Floats,
    Rows,
    Vectors,
    dense_scores,
    rank_legs,
    reciprocal_sums,
)
from searchfit.records import Engine


class Legs(Protocol):
    """What serving asks of a store, see `stores.Store`."""

    def nearest(self, vector: Vectors, column: Any, k: int, where: Any) -> tuple[Rows, Floats]:
        """Rows and similarities of the k nearest passages, best first."""

    def vectors(self, rows: Rows) -> tuple[Vectors, Vectors, Rows]:
        """Vectors of passages, of their sentences one after another, and offsets of the latter."""


class KeywordLeg(Protocol):
    """The keyword scores of one query over the passages that its filter lets through, 0 or more."""

    @property
    def total(self) -> int:
        """How many passages are let through."""

    def top(self, depth: int) -> tuple[Rows, Floats]:
        """Rows and scores of the best passages that score above 0, best first."""

    def of(self, rows: Rows) -> Floats:
        """The scores of passages that are let through."""

    def first(self, count: int) -> Rows:
        """The first rows that are let through."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One query for serving: its vector (d,) under the engine's query tower (empty where the engine has no
    dense leg), its keyword leg, and the filter that both legs keep to. Without `by_sentence` the sentences
    of the passages that the other legs found are compared, not those of all."""

    vector: Vectors
    keyword: KeywordLeg
    where: Any = None
    by_sentence: bool = True
    depth: int = 64


@dataclass(frozen=True, slots=True)
class Scored:
    """The best passages of one query with the legs of their scores, best first. `ranks` has the 1-based
    place of a row in the legs that found it, by leg ("keyword", "passage", "sentence")."""

    rows: Rows
    scores: Floats
    dense: Floats
    keyword: Floats
    ranks: Mapping[str, Mapping[int, int]]


def rank_one(engine: Engine, store: Legs, asked: Asked, want: Callable[[Rows], bool]) -> Scored:
    """The best passages of one query over a store, without reading every vector.

    Each leg gives its best rows; the union is scored in full, and rows that no leg gave cannot score above
    the sum of the legs' last scores (Fagin, Lotem and Naor 2003, "Optimal aggregation algorithms for
    middleware"). The legs are read deeper until `want(rows)` is content with the rows that are certain, or
    all are read. Where sentences have no leg of their own, the rows that were found are taken as they are.
    """
    if engine.fusion == "rrf":
        return _fuse_one(engine, store, asked)
    depth = asked.depth
    while True:
        legs = _legs(engine, store, asked, min(depth, max(1, asked.keyword.total)))
        rows = np.unique(np.concatenate([leg_rows for leg_rows, _ in legs.values()]))
        scored = _score(engine, store, asked, rows, legs)
        if depth >= asked.keyword.total:
            return scored
        certain = scored.rows
        bounded = asked.by_sentence or engine.units == "passage"
        # By keywords alone nothing is left to read once the words of the query are used up.
        if bounded and (engine.dense_weight or legs["keyword"][1]):
            bound = _bound(engine, {name: last for name, (_, last) in legs.items()})
            # Twice the rounding, and what single precision leaves open where scores are large.
            certain = certain[scored.scores > bound + 2e-6 * max(1.0, abs(bound))]
        if want(certain):
            return scored
        depth *= 4


def _legs(engine: Engine, store: Legs, asked: Asked, depth: int) -> dict[str, tuple[Rows, float]]:
    """(rows, last score) for the keyword, passage and sentence legs; an unused leg gives nothing and 0."""
    legs: dict[str, tuple[Rows, float]] = dict.fromkeys(
        ("keyword", "passage", "sentence"), (np.empty(0, np.int64), 0.0)
    )
    if engine.keyword_weight:
        rows, scores = asked.keyword.top(depth)
        legs["keyword"] = (rows, float(scores[-1]) if len(rows) == depth else 0.0)
    if not engine.dense_weight:
        # What holds no word of the query scores 0, and of those the first come first.
        missing = depth - len(legs["keyword"][0])
        if missing > 0:
            found = legs["keyword"][0]
            more = asked.keyword.first(depth)
            legs["keyword"] = (np.concatenate([found, more[~np.isin(more, found)]]), 0.0)
        return legs
    by_passage = engine.units != "sentence" or not asked.by_sentence
    by_sentence = engine.units != "passage" and asked.by_sentence
    for name, column, used in (
        ("passage", "vector", by_passage),
        ("sentence", "sentence_vectors", by_sentence),
    ):
        if used:
            rows, similarities = store.nearest(asked.vector, column, depth, asked.where)
            legs[name] = (rows, float(similarities[-1]) if len(rows) else 0.0)
    return legs


def _bound(engine: Engine, last: Mapping[str, float]) -> float:
    passage, sentence = last["passage"], last["sentence"]
    dense = {"passage": passage, "sentence": sentence, "both": (passage + sentence) / 2}[engine.units]
    return engine.dense_weight * dense + engine.keyword_weight * last["keyword"]


def _score(
    engine: Engine, store: Legs, asked: Asked, rows: Rows, legs: Mapping[str, tuple[Rows, float]]
) -> Scored:
    dense, keyword = _parts(engine, store, asked, rows)
    scores = engine.dense_weight * dense + engine.keyword_weight * keyword
    return _ordered(
        Scored(rows, scores, dense, keyword, _ranks({name: found for name, (found, _) in legs.items()}))
    )


def _parts(engine: Engine, store: Legs, asked: Asked, rows: Rows) -> tuple[Floats, Floats]:
    """The dense and the keyword scores of rows."""
    dense: Floats = np.zeros(len(rows), np.float32)
    if engine.dense_weight and len(rows):
        passages, sentences, offsets = store.vectors(rows)
        block = Block(0, np.zeros(len(rows), np.int32), passages, sentences, offsets)
        dense = dense_scores(engine, asked.vector[None, :], block)[0]
    return dense, asked.keyword.of(rows)


def _ranks(lists: Mapping[str, Rows]) -> dict[str, dict[int, int]]:
    return {
        name: dict(zip(found.tolist(), range(1, len(found) + 1), strict=True))
        for name, found in lists.items()
    }


def _ordered(scored: Scored) -> Scored:
    """Best first, as `rank` orders: rounded, and in a tie the earlier passage first."""
    rounded = np.rint(scored.scores.astype(np.float64) * DECIMALS) / DECIMALS
    order = np.lexsort((scored.rows, -rounded))
    return Scored(
        scored.rows[order],
        rounded[order].astype(np.float32),
        scored.dense[order],
        scored.keyword[order],
        scored.ranks,
    )


def _fuse_one(engine: Engine, store: Legs, asked: Asked) -> Scored:
    """`rank_one` by reciprocal ranks."""
    legs = rank_legs(engine)
    lists: dict[str, Rows] = {}
    for name, (leg, _) in legs.items():
        found = rank_one(leg, store, asked, lambda rows: len(rows) >= RRF_DEPTH)
        rows = found.rows[found.keyword > 0] if name == "keyword" else found.rows
        lists[name] = rows[:RRF_DEPTH]
    rows, scores = reciprocal_sums(lists, {name: weight for name, (_, weight) in legs.items()})
    dense, keyword = _parts(engine, store, asked, rows)
    return _ordered(Scored(rows, scores.astype(np.float32), dense, keyword, _ranks(lists)))
