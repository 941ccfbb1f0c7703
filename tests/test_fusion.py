from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import example, given, settings
from hypothesis import strategies as st

from searchfit import fusion
from searchfit.fusion import Block, dense_scores, rank
from searchfit.legs import Asked, rank_one
from searchfit.records import Engine

SIZE = 6
UNITS = ("passage", "sentence", "both")


@dataclass
class Toy:
    """A small corpus of coarse vectors, so that ties are common, that serves as corpus and as store."""

    passages: np.ndarray
    sentences: np.ndarray
    offsets: np.ndarray
    documents: np.ndarray
    keyword: np.ndarray

    @classmethod
    def make(cls, seed: int, count: int, queries: int = 5) -> Toy:
        rng = np.random.default_rng(seed)
        offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 4, count))])
        documents = np.cumsum(rng.random(count) < 0.6).astype(np.int32)
        keyword = rng.choice([0, 0, 0, 0.25, 0.5, 0.9], (queries, count)).astype(np.float32)
        return cls(_unit(rng, count), _unit(rng, int(offsets[-1])), offsets, documents, keyword)

    @property
    def count(self) -> int:
        return len(self.passages)

    def keyword_scores(self, queries: Sequence[str]) -> Any:
        return sp.csr_array(self.keyword[[int(query) for query in queries]])

    def blocks(self, rows: int) -> Iterator[Block]:
        start = 0
        while start < self.count:
            end = min(self.count, start + rows)
            while end < self.count and self.documents[end] == self.documents[end - 1]:
                end += 1
            part = slice(self.offsets[start], self.offsets[end])
            yield Block(
                start,
                self.documents[start:end],
                self.passages[start:end],
                self.sentences[part],
                self.offsets[start : end + 1] - self.offsets[start],
            )
            start = end

    def vectors(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        own = [self.sentences[self.offsets[row] : self.offsets[row + 1]] for row in rows]
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in own])])
        return self.passages[rows], np.concatenate(own), offsets

    def nearest(self, vector: np.ndarray, column: str, k: int, where: Any) -> tuple[np.ndarray, np.ndarray]:
        each = self.leg(vector, column)
        order = np.argsort(-each, kind="stable")
        order = order[where[order]] if where is not None else order
        return order[:k], each[order[:k]].astype(np.float32)

    def leg(self, vector: np.ndarray, column: str) -> np.ndarray:
        if column == "vector":
            return self.passages @ vector
        each = self.sentences @ vector
        return np.array([each[a:b].max() for a, b in zip(self.offsets, self.offsets[1:], strict=False)])

    def score(self, engine: Engine, vector: np.ndarray, query: int) -> list[float]:
        """The definition, one passage at a time, in double precision, rounded as documented."""
        scores = []
        for row in range(self.count):
            own = self.sentences[self.offsets[row] : self.offsets[row + 1]].astype(float)
            whole = float(self.passages[row].astype(float) @ vector)
            best = max(float(sentence @ vector) for sentence in own)
            dense = {"passage": whole, "sentence": best, "both": (whole + best) / 2}[engine.units]
            blend = engine.dense_weight * dense + engine.keyword_weight * float(self.keyword[query, row])
            scores.append(round(blend, 6))
        return scores


def _unit(rng: np.random.Generator, count: int) -> np.ndarray:
    """Vectors whose products are multiples of 1/8, exact in any order of summation."""
    signs = rng.choice([-0.5, 0.5], (count, 4)).astype(np.float32)
    vectors = np.zeros((count, SIZE), np.float32)
    for row, places in enumerate(rng.permuted(np.tile(np.arange(SIZE), (count, 1)), axis=1)[:, :4]):
        vectors[row, places] = signs[row]
    return vectors


def brute(
    toy: Toy, engine: Engine, vector: np.ndarray, query: int, among: Sequence[int], by_document: bool
) -> list[tuple[int, float]]:
    scores = toy.score(engine, vector, query)
    ranked, seen = [], set()
    for row in sorted(among, key=lambda row: (-scores[row], row)):
        if not by_document or toy.documents[row] not in seen:
            ranked.append((row, scores[row]))
            seen.add(toy.documents[row])
    return ranked


ENGINES = [
    Engine(f"{units} {dense} {lexical}", units=units, dense_weight=dense, keyword_weight=lexical)
    for units in UNITS
    for dense, lexical in ((1, 1), (1, 0), (0, 1), (0.5, 1.5))
]


@pytest.mark.parametrize("rows", [1, 3, 8192])
@pytest.mark.parametrize("k", [1, 4, 50])
def test_ranking_is_that_of_brute_force(monkeypatch: pytest.MonkeyPatch, rows: int, k: int) -> None:
    monkeypatch.setattr(fusion, "_BLOCK_ROWS", rows)
    monkeypatch.setattr(fusion, "_CHUNK_QUERIES", 2)
    toy = Toy.make(3, 23)
    vectors = _unit(np.random.default_rng(9), 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rankings = rank(ENGINES, toy, vectors, ["0", "1", "2", "3", "4"], k)
    for engine, ranking in zip(ENGINES, rankings, strict=True):
        assert ranking.rows.shape == ranking.scores.shape == (5, k)
        for query in range(5):
            expected = brute(toy, engine, vectors[query], query, range(23), by_document=True)[:k]
            there = ranking.rows[query] >= 0
            assert ranking.rows[query][there].tolist() == [row for row, _ in expected]
            np.testing.assert_allclose(ranking.scores[query][there], [s for _, s in expected], atol=1e-6)
            assert (ranking.rows[query][~there] == -1).all()
            assert np.isneginf(ranking.scores[query][~there]).all()


def test_ties_go_to_the_earlier_passage() -> None:
    toy = Toy.make(1, 6, 1)
    toy.passages[:] = toy.passages[0]
    toy.documents[:] = [0, 0, 1, 2, 2, 3]
    toy.keyword[:] = [[0, 0.5, 0.5, 0, 0, 0.5]]
    engine = Engine("e", units="passage")
    assert rank([engine], toy, toy.passages[:1], ["0"], 4)[0].rows.tolist() == [[1, 2, 5, 3]]


@pytest.mark.parametrize("rows", [2, 8192])
def test_with_allowed_passages_are_ranked_and_only_those(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(fusion, "_BLOCK_ROWS", rows)
    toy = Toy.make(8, 20, 3)
    allowed = np.random.default_rng(0).random(20) < 0.4
    vectors = _unit(np.random.default_rng(2), 3)
    ranking = rank(ENGINES[:1], toy, vectors, ["0", "1", "2"], 20, allowed)[0]
    for query in range(3):
        expected = brute(toy, ENGINES[0], vectors[query], query, np.flatnonzero(allowed), by_document=False)
        found = ranking.rows[query]
        assert found[found >= 0].tolist() == [row for row, _ in expected]
    assert (ranking.rows >= 0).sum() == 3 * allowed.sum()


@pytest.mark.parametrize(("room", "scored"), [(330, 11), (239, 19), (0, 22)])
def test_shared_keywords_are_scored_once(monkeypatch: pytest.MonkeyPatch, room: int, scored: int) -> None:
    """Two rankings of eleven questions, in chunks of eight and three, where so many scores are kept."""
    toy = Toy.make(3, 30, queries=11)
    toy.keyword[:] = np.maximum(toy.keyword, 0.25)  # 240 scores in the first chunk, 90 in the second
    asked: list[str] = []

    def scores(queries: Sequence[str]) -> Any:
        asked.extend(queries)
        return toy.keyword_scores(queries)

    queries, vectors = [str(number) for number in range(11)], _unit(np.random.default_rng(4), 11)
    engines = [Engine("mixed"), Engine("keyword", dense_weight=0)]
    monkeypatch.setattr(fusion, "_CHUNK_QUERIES", 8)
    monkeypatch.setattr(fusion, "CHUNK_SCORES", room)
    expected = rank(engines, toy, vectors, queries, 5), rank(engines, toy, -vectors, queries, 5)
    shared = fusion.SharedKeywords(scores)
    found = [rank(engines, shared.over(toy), sign * vectors, queries, 5) for sign in (1, -1)]
    assert len(asked) == scored
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert np.array_equal(one.rows, other.rows)
            assert np.array_equal(one.scores, other.scores)


def test_no_queries_give_empty_rankings() -> None:
    ranking = rank(ENGINES[:2], Toy.make(0, 4), np.empty((0, SIZE), np.float32), [], 3)[1]
    assert ranking.rows.shape == ranking.scores.shape == (0, 3)


def test_rows_survive_in_large_corpora() -> None:
    rows = np.array([0, 1, 99_999_998, 99_999_999])
    for scores in ([3.5, -2.0, 0.0, 1e-6], [0.1234565, 0.1234565, -0.7, 0.0]):
        keys = fusion._keys(np.array([scores]), rows, 100_000_000)
        unpacked = fusion._unpack(keys, 100_000_000)
        assert unpacked.rows.tolist() == [rows.tolist()]
        np.testing.assert_allclose(unpacked.scores, [scores], atol=6e-7)


class Leg:
    """A keyword leg over an array of scores, -inf where a filter keeps a row out."""

    def __init__(self, scores: np.ndarray) -> None:
        self.scores = scores
        self.allowed = np.flatnonzero(np.isfinite(scores))
        self.total = len(self.allowed)

    def top(self, depth: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self.allowed[self.scores[self.allowed] > 0]
        best = rows[np.argsort(-self.scores[rows], kind="stable")[:depth]]
        return best, self.scores[best]

    def of(self, rows: np.ndarray) -> np.ndarray:
        return self.scores[rows]

    def first(self, count: int) -> np.ndarray:
        return self.allowed[:count]


@settings(max_examples=150, deadline=None)
@example(seed=0, count=300, engine=1, k=3, share=0.0)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 400),
    engine=st.integers(0, len(ENGINES) - 1),
    k=st.sampled_from([1, 2, 5, 10, 40, 80]),
    share=st.sampled_from([None, 0.0, 0.05, 0.5, 1.0]),
)
def test_serving_ranks_as_brute_force(
    seed: int, count: int, engine: int, k: int, share: float | None
) -> None:
    toy = Toy.make(seed, count, 1)
    chosen = ENGINES[engine]
    rng = np.random.default_rng(seed + 1)
    vector = _unit(rng, 1)[0]
    where = None if share is None else rng.random(count) < share
    keyword = toy.keyword[0] if where is None else np.where(where, toy.keyword[0], -np.inf).astype(np.float32)
    asked = vector if chosen.dense_weight else np.empty(0, np.float32)
    scored = rank_one(chosen, toy, Asked(asked, Leg(keyword), where), lambda rows: len(rows) >= k)
    among = np.arange(count) if where is None else np.flatnonzero(where)
    expected = brute(toy, chosen, vector, 0, among, by_document=False)[:k]
    found = np.isfinite(scored.keyword)
    assert scored.rows[found][:k].tolist() == [row for row, _ in expected]
    np.testing.assert_allclose(scored.scores[found][:k], [score for _, score in expected], atol=1e-6)
    assert len(set(scored.rows.tolist())) == len(scored.rows)


def test_serving_does_not_read_all_when_the_best_are_clear() -> None:
    rng = np.random.default_rng(4)
    toy = Toy.make(4, 3000, 1)
    vectors = rng.standard_normal((3000, SIZE)).astype(np.float32)
    toy.passages = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    toy.keyword[:] = 0
    read: list[int] = []

    class Counting(Toy):
        def vectors(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            read.append(len(rows))
            return super().vectors(rows)

    store = Counting(**vars(toy))
    engine = Engine("e", units="passage", keyword_weight=0)
    asked = Asked(toy.passages[0], Leg(toy.keyword[0]))
    scored = rank_one(engine, store, asked, lambda rows: len(rows) >= 5)
    assert scored.rows[0] == 0
    assert sum(read) < 300


@pytest.mark.parametrize("units", UNITS)
def test_dense_scores_take_the_mean_of_passage_and_best_sentence(units: str) -> None:
    block = Block(
        0,
        np.zeros(2, np.int32),
        np.eye(2, dtype=np.float32),
        np.array([[0, 1], [1, 0], [0.6, 0.8]], np.float32),
        np.array([0, 2, 3]),
    )
    query = np.array([[1, 0]], np.float32)
    expected = {"passage": [1, 0], "sentence": [1, 0.6], "both": [1, 0.3]}[units]
    np.testing.assert_allclose(dense_scores(Engine("e", units=units), query, block), [expected], atol=1e-6)  # type: ignore[arg-type]
