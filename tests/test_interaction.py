from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from searchfit.fusion import Ranking
from searchfit.interaction import (
    HeldWords,
    PassageWords,
    QuestionWords,
    WordScores,
    centred,
    interact,
    interaction,
    joined_words,
    pack,
    reorder,
    word_weights,
)
from searchfit.records import Engine

SIZE = 20  # not a multiple of eight


@pytest.fixture(scope="module")
def random() -> np.random.Generator:
    return np.random.default_rng(5)


def unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def made(random: np.random.Generator, lengths: list[int]) -> tuple[HeldWords, list[Any]]:
    """Words of passages, and the signs that were packed."""
    own = [unit(random.normal(size=(n, SIZE))).astype(np.float32) for n in lengths]
    words = HeldWords(joined_words([pack(one) for one in own]), np.zeros(SIZE, np.float32))
    return words, [np.where(one > 0, 1, -1) / np.sqrt(SIZE) for one in own]


def asked(random: np.random.Generator, lengths: list[int]) -> list[QuestionWords]:
    return [
        QuestionWords(unit(random.normal(size=(n, SIZE))).astype(np.float32), np.full(n, 1 / n, np.float32))
        if n
        else QuestionWords(np.empty((0, SIZE), np.float32), np.empty(0, np.float32))
        for n in lengths
    ]


def slow(question: QuestionWords, signs: Any) -> float:
    if not len(question.weights) or not len(signs):
        return 0.0
    best = [max(float(q @ s) for s in signs) for q in question.vectors]
    return float(np.dot(question.weights, best))


def test_each_word_of_a_question_is_met_by_its_best_word(random: np.random.Generator) -> None:
    words, signs = made(random, [3, 0, 7, 1, 150])
    questions = asked(random, [4, 1, 0, 9])
    query, row = (part.ravel() for part in np.meshgrid(np.arange(4), np.arange(5)))
    found = interaction(questions, words, query, row)
    expected = [slow(questions[q], signs[r]) for q, r in zip(query, row, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_scores_do_not_hang_on_who_else_asks(random: np.random.Generator) -> None:
    words, _ = made(random, [5] * 300)
    questions = asked(random, [6] * 8)
    rows = random.integers(-1, 300, (8, 12))
    scores = WordScores(questions, words)
    first = scores(rows[:, :5])
    every = scores(rows)
    np.testing.assert_array_equal(every[:, :5], first)
    assert (np.isneginf(every) == (rows < 0)).all()
    for number in range(8):
        alone = WordScores(questions[number : number + 1], words)(rows[number : number + 1])
        np.testing.assert_allclose(alone[0], every[number], atol=1e-6)


def test_a_pair_is_scored_once(random: np.random.Generator) -> None:
    words, _ = made(random, [5] * 40)
    taken: list[int] = []

    class Counted:
        centre = words.centre

        def take(self, rows: Any) -> PassageWords:
            taken.extend(rows.tolist())
            return words.take(rows)

    scores = WordScores(asked(random, [3, 3]), Counted())
    scores(np.array([[1, 2], [2, 3]]))
    assert sorted(taken) == [1, 2, 3]
    scores(np.array([[2, 1], [3, 4]]))
    assert sorted(taken) == [1, 2, 3, 4]


def test_words_are_taken_in_the_order_asked(random: np.random.Generator) -> None:
    words, _ = made(random, [2, 0, 3, 1])
    whole = words.held
    own = [whole.bits[a:b] for a, b in pairwise(whole.offsets)]
    taken = words.take(np.array([3, 0, 1, 0]))
    for row, (start, end) in zip([3, 0, 1, 0], pairwise(taken.offsets), strict=True):
        np.testing.assert_array_equal(taken.bits[start:end], own[row])


def test_centred_vectors_lose_the_lean_of_all(random: np.random.Generator) -> None:
    lean = unit(random.normal(size=SIZE)) * 0.8
    vectors = random.normal(size=(500, SIZE)) * 0.1 + lean
    centre = unit(vectors).mean(axis=0)
    found = centred(vectors.astype(np.float32), centre.astype(np.float32))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert np.linalg.norm(unit(vectors).mean(axis=0)) > 0.8
    assert np.linalg.norm(found.mean(axis=0)) < 0.1


def test_rare_words_weigh_more_and_punctuation_nothing() -> None:
    text = "the Kraken?"
    terms = [("the", 0, 3), ("kraken", 4, 10)]
    spans = [(0, 3), (4, 7), (7, 10), (10, 11)]
    weights = word_weights(spans, terms, {"the": 0.0625, "kraken": 16.0}.__getitem__)
    np.testing.assert_allclose(weights, [0.5, 2, 2, 0])
    tokens = np.eye(4, SIZE, dtype=np.float32)
    words = QuestionWords.of(tokens, weights, np.zeros(SIZE, np.float32))
    assert len(words.vectors) == 3
    np.testing.assert_allclose(words.weights.sum(), 1)
    none = QuestionWords.of(tokens, np.zeros(4, np.float32), np.zeros(SIZE, np.float32))
    assert none.vectors.shape == (0, SIZE), text


def test_the_head_is_ordered_by_both_and_the_tail_stays_below() -> None:
    engine = Engine("words", token_weight=2.0, token_depth=3)
    rows = np.array([[7, 5, 3, 1, -1], [2, -1, -1, -1, -1]])
    scores = np.array([[0.9, 0.8, 0.7, 0.65, -np.inf], [0.5, -np.inf, -np.inf, -np.inf, -np.inf]])
    words = np.array([[0.1, -0.2, 0.5], [0.3, -np.inf, -np.inf]], np.float32)
    found = interact(engine, Ranking(rows, scores.astype(np.float32)), words)
    assert found.rows.tolist() == [[3, 7, 5, 1, -1], [2, -1, -1, -1, -1]]
    np.testing.assert_allclose(found.scores[0, :4], [1.7, 1.1, 0.4, 0.4], atol=1e-6)
    assert found.scores[1, 0] == pytest.approx(1.1)
    assert np.isneginf(found.scores[:, 4]).all()


def test_nothing_moves_where_heads_are_empty() -> None:
    first = np.array([[0.5, 0.25]], np.float32)
    scores, order = reorder(first, np.empty((1, 0)))
    np.testing.assert_array_equal(scores, first)
    assert order.tolist() == [[0, 1]]
