from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from searchfit import ranking
from searchfit.encoders import load_encoder
from searchfit.executors import Portable
from searchfit.fusion import Ranking, rank
from searchfit.interaction import Questions, rank_words, word_scores
from searchfit.ranking import Asked, Round, rank_rounds
from searchfit.records import Engine
from searchfit.search import ArrayCorpus

BLEND, DENSE = Engine("blend", keyword_weight=0.7), Engine("dense", units="passage", keyword_weight=0.0)
WORDS = Engine("words", token_weight=2.0, token_depth=9)


@pytest.fixture
def held(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Portable[ArrayCorpus]:
    monkeypatch.setattr(ranking, "_BATCH", 8)
    return Portable(partial(ArrayCorpus.load, bench.path("encoded"), bench.path("keyword")))


@pytest.fixture
def texts(bench: Any) -> list[str]:
    found: list[str] = pq.read_table(bench.path("pairs.parquet"))["text"].to_pylist()[:50]
    return found


def same(found: Ranking, expected: Ranking) -> bool:
    return np.array_equal(found.rows, expected.rows) and np.allclose(found.scores, expected.scores, atol=2e-6)


def test_batches_rank_as_all_questions_together(
    bench: Any, held: Portable[ArrayCorpus], texts: list[str]
) -> None:
    """Two pairs of towers over the same passages, one of them with words."""
    corpus = held.model
    vectors, tokens = load_encoder(bench.settings.model).encode_questions(texts)
    told: list[tuple[int, int]] = []
    rounds = [Round(held, (WORDS, BLEND), 0.0), Round(held, (DENSE, BLEND))]
    found = rank_rounds(
        rounds,
        Asked(texts, [vectors, -vectors], {0.0: tokens}),
        12,
        told=lambda done, count: told.append((done, count)),
    )
    asked = Questions(texts, vectors, word_scores(corpus, corpus.words, texts, tokens))
    expected = rank_words([WORDS, BLEND], corpus, asked, 12)
    expected += rank([DENSE, BLEND], corpus, -vectors, texts, 12)
    assert len(found) == 4
    for one, other in zip(found, expected, strict=True):
        assert one.rows.shape == (50, 12)
        assert same(one, other)
    assert not same(found[0], found[1])
    assert not same(found[1], found[3])
    assert told == [*((done, 50) for done in range(8, 49, 8)), (50, 50)]


def test_only_passages_that_are_allowed_are_ranked(
    bench: Any, held: Portable[ArrayCorpus], texts: list[str]
) -> None:
    vectors = load_encoder(bench.settings.model).encode_queries(texts)
    allowed = np.arange(held.model.count) % 3 == 0
    (found,) = rank_rounds([Round(held, (BLEND,))], Asked(texts, [vectors]), 5, allowed)
    assert same(found, rank([BLEND], held.model, vectors, texts, 5, allowed)[0])
    assert allowed[found.rows].all()


def test_no_question_has_an_empty_ranking_and_opens_nothing() -> None:
    def never() -> ArrayCorpus:
        raise AssertionError("nothing is asked")

    (found,) = rank_rounds([Round(Portable(never), (BLEND,))], Asked([], [np.empty((0, 4), np.float32)]), 5)
    assert found.rows.shape == found.scores.shape == (0, 5)
