from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from searchfit.config import RerankSettings
from searchfit.fusion import Floats, Ranking, Rows
from searchfit.records import Engine
from searchfit.rerank import PairScores, Reranker, first_stage, places, rerank, with_reranker

QUERY = "rose soil"
TEXTS = ["garden notes. The rose and the soil were checked.", "harbour", "oven dough saffron skillet"]


def engine(weight: float, depth: int = 4) -> Engine:
    return Engine("e", reranker="reranker", rerank_depth=depth, rerank_weight=weight)


class Counting:
    """Stands in for a re-ranker: a text's score is its number, and what is read is noted."""

    def __init__(self) -> None:
        self.pairs: list[tuple[str, str]] = []

    def raw(self, queries: list[str], texts: list[str]) -> Floats:
        self.pairs += zip(queries, texts, strict=True)
        return np.array(
            [float(text) + 100 * len(query) for query, text in self.pairs[-len(texts) :]], np.float32
        )


def numbers(rows: Rows) -> list[str]:
    return [str(row) for row in rows.tolist()]


def test_scores_are_those_of_sentence_transformers(tiny_reranker: Path) -> None:
    from sentence_transformers import CrossEncoder

    scores = Reranker.load(str(tiny_reranker), "cpu", "fp32").scores(QUERY, TEXTS)
    expected = CrossEncoder(str(tiny_reranker), device="cpu").predict([(QUERY, text) for text in TEXTS])
    assert scores.shape == (3,)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_places_by_hand() -> None:
    """First 4 3 2 1: their spread is sqrt(1.25). The raw scores 0 0 0 8 have the mean 2 and the spread
    sqrt(12), so that z is -2 and 6 times sqrt(1.25 / 12)."""
    first = np.array([[4.0, 3.0, 2.0, 1.0, 0.5, -np.inf]], np.float32)
    raw = np.array([[0.0, 0.0, 0.0, 8.0]], np.float32)
    scores, order = places(engine(1.0), first, raw)
    step = (1.25 / 12) ** 0.5
    expected = [4 - 2 * step, 3 - 2 * step, 1 + 6 * step, 2 - 2 * step]
    assert expected[2] > expected[1]
    assert order[0].tolist() == [0, 3, 1, 2, 4, 5]
    np.testing.assert_allclose(scores[0, :4], sorted(expected, reverse=True), atol=1e-6)
    assert scores[0, 4] == pytest.approx(0.5)
    assert scores[0, 5] == -np.inf


def test_places_like_a_sort_in_plain_python() -> None:
    random = np.random.default_rng(3)
    for _ in range(200):
        count, depth = int(random.integers(1, 12)), int(random.integers(1, 12))
        there = int(random.integers(0, count + 1))
        first = np.sort(random.integers(0, 5, count) / 2)[::-1].astype(np.float32)
        first[there:] = -np.inf
        raw = random.integers(-3, 4, min(depth, count)).astype(np.float32)
        raw[there:] = -np.inf
        weight = float(random.choice([0.3, 1.0, 7.0]))
        scores, order = places(engine(weight), first[None], raw[None])
        head = min(there, depth)
        some, model = first[:head].tolist(), raw[:head].tolist()
        mixed = dict(enumerate(some))
        if head > 1 and len(set(model)) > 1:
            stretch = max(float(np.std(some)), 0.01) / float(np.std(model))
            mixed = {i: round(some[i] + weight * (model[i] - np.mean(model)) * stretch, 6) for i in mixed}
        expected = sorted(mixed, key=lambda i: (-mixed[i], i))
        assert order[0].tolist() == [*expected, *range(head, count)]
        assert sorted(order[0].tolist()) == list(range(count))
        falling = scores[0][np.isfinite(scores[0])]
        assert (np.diff(falling) <= 1e-6).all()
        assert np.isfinite(scores[0]).sum() == there


def test_the_scale_of_a_re_ranker_does_not_matter() -> None:
    random = np.random.default_rng(5)
    first = -np.sort(-random.random((6, 10))).astype(np.float32)
    raw = random.normal(size=(6, 7)).astype(np.float32)
    scores, order = places(engine(2.0, 7), first, raw)
    other, again = places(engine(2.0, 7), first, 40 * raw - 300)
    np.testing.assert_array_equal(order, again)
    np.testing.assert_allclose(scores, other, atol=1e-4)
    assert (order != np.arange(10)).any()


def test_a_heavy_re_ranker_decides_alone_and_a_silent_one_changes_nothing() -> None:
    first = np.array([[0.9, 0.8, 0.7, 0.1]], np.float32)
    raw = np.array([[-3.0, 1.0, 5.0, 4.0]], np.float32)
    assert places(engine(1e4), first, raw)[1][0].tolist() == [2, 3, 1, 0]
    scores, order = places(engine(1e4), first, np.ones_like(raw))
    assert order[0].tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(scores, first)


def test_rankings_are_re_ordered_and_missing_rows_stay_last() -> None:
    ranking = Ranking(np.array([[7, 3, -1]]), np.array([[0.5, 0.4, -np.inf]], np.float32))
    found = rerank(engine(50.0), ranking, np.array([[0.0, 1.0, 9.0]], np.float32))
    assert found.rows.tolist() == [[3, 7, -1]]
    assert found.scores[0, 2] == -np.inf


def test_each_pair_is_read_once_and_kept(tmp_path: Path) -> None:
    model = Counting()
    pairs = PairScores(lambda: model, numbers, tmp_path / "pairs.npz")  # type: ignore[arg-type, return-value]
    rows = np.array([[4, 2, -1], [2, 9, 4]])
    found = pairs(["a", "bb"], rows)
    assert found.tolist() == [[104, 102, -np.inf], [202, 209, 204]]
    assert found.dtype == np.float32
    assert pairs(["bb", "a"], rows[::-1]).tolist() == found.tolist()[::-1]
    pairs(["a", "a"], np.array([[5, 4], [4, 5]]))
    assert len(model.pairs) == len(set(model.pairs)) == pairs.read == 6

    def fail() -> Reranker:
        raise AssertionError("the model is not needed")

    again = PairScores(fail, numbers, tmp_path / "pairs.npz")
    np.testing.assert_array_equal(again(["a", "bb"], rows), found)
    assert again(["a"], np.empty((1, 0), np.int64)).shape == (1, 0)
    assert again([], np.empty((0, 3), np.int64)).shape == (0, 3)
    with pytest.raises(AssertionError, match="not needed"):
        again(["c"], rows[:1])


def test_engines_with_a_re_ranker_differ_by_weight_and_lead_back_to_their_first_stage() -> None:
    plain = Engine("plain", units="passage", keyword_weight=0.3)
    made = with_reranker(plain, RerankSettings(model="some/model", depth=7, weights=(0.5, 3.0)))
    assert [one.rerank_weight for one in made] == [0.5, 3.0]
    assert {one.rerank_depth for one in made} == {7}
    assert {first_stage(one) for one in made} == {first_stage(plain)}
    assert first_stage(Engine("other")) != first_stage(plain)
    assert with_reranker(plain, RerankSettings()) == []
