from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from searchfit.config import ModelSettings
from searchfit.encoders import load_encoder
from searchfit.encoders.words import word_vectors
from searchfit.interaction import centred, pack

TEXTS = ["The rose is old. Visitors who ask for the Übergröße wait!", "violin", "?!", "東京 x"]


def spans(*pairs: tuple[int, int]) -> np.ndarray:
    return np.array(pairs, np.int64)


@pytest.mark.parametrize(
    ("text", "tokens", "words"),
    [
        ("rosebud, old", [(0, 4), (4, 7), (7, 8), (9, 12)], [[0, 1], [3]]),  # pieces joined, comma left out
        ("don't", [(0, 3), (3, 4), (4, 5)], [[0], [2]]),
        ("東京", [(0, 1), (1, 2)], [[0], [1]]),  # no blanks between words
        ("a bc", [(0, 1), (1, 4)], [[0], [1]]),  # the blank counted to the word
        ("x", [(0, 0), (0, 1), (0, 0)], [[1]]),  # special tokens
        ("?!", [(0, 1), (1, 2)], []),
        ("", [], []),
    ],
)
def test_pieces_become_words(text: str, tokens: list[tuple[int, int]], words: list[list[int]]) -> None:
    vectors = np.random.default_rng(1).normal(size=(len(tokens), 8)).astype(np.float32)
    centre = np.full(8, 0.1, np.float32)
    found = word_vectors(vectors, spans(*tokens).reshape(-1, 2), text, centre)
    assert found.shape == (len(words), 8)
    for vector, own in zip(found, words, strict=True):
        np.testing.assert_allclose(vector, centred(vectors[own], centre).sum(axis=0), atol=1e-6)


def test_an_encoder_gives_the_words_of_passages(tiny_model: Path) -> None:
    encoder = load_encoder(ModelSettings(name=str(tiny_model), device="cpu", precision="fp32"))
    centre = encoder.token_centre(TEXTS)
    assert centre is not None
    assert np.linalg.norm(centre) < 1
    vectors, _, words = encoder.encode_passages(TEXTS, [[]] * len(TEXTS), centre)
    assert words is not None
    assert np.diff(words.offsets).tolist() == [11, 1, 0, 3]
    np.testing.assert_array_equal(vectors, encoder.encode_passages(TEXTS, [[]] * len(TEXTS))[0])
    alone = encoder.encode_passages(TEXTS[1:2], [[]], centre)[2]
    assert alone is not None
    np.testing.assert_array_equal(alone.bits, words.bits[11:12])
    _, tokens, found = encoder._tokens(TEXTS[1:2])
    own = word_vectors(tokens[0], found[0], TEXTS[1], centre)
    np.testing.assert_array_equal(alone.bits, pack(own))


def test_words_of_another_language_are_many_pieces(tiny_model: Path) -> None:
    encoder = load_encoder(ModelSettings(name=str(tiny_model), device="cpu"))
    known = encoder.pieces(["the rose", "rose the!"])
    assert 1 <= known < 2
    assert encoder.pieces(["zqxj wvkq", "qqzz"]) > known + 0.5
    assert encoder.pieces(["?!", ""]) == 0


def test_questions_are_read_by_the_document_tower(tiny_model: Path) -> None:
    encoder = load_encoder(ModelSettings(name=str(tiny_model), device="cpu", query_prompt="ask: "))
    vectors, tokens = encoder.encode_questions(TEXTS)
    np.testing.assert_allclose(vectors, encoder.encode_queries(TEXTS), atol=2e-6)
    assert [len(one) for one, _ in tokens] == [len(where) for _, where in tokens]
    assert all(0 <= a < b <= len(TEXTS[i]) for i, (_, where) in enumerate(tokens) for a, b in where)
    state = {
        name: value + 1 for name, value in encoder.query_modules().state_dict().items() if "dense" in name
    }
    tuned = encoder.with_query_weights(state, 0.5)
    moved, same = tuned.encode_questions(TEXTS)
    assert np.abs(moved - vectors).max() > 1e-3
    np.testing.assert_allclose(moved, tuned.encode_queries(TEXTS), atol=2e-6)
    for (one, _), (other, _) in zip(tokens, same, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_other_poolings_have_no_words(tiny_model: Path) -> None:
    encoder = load_encoder(ModelSettings(name=str(tiny_model), device="cpu", pooling="cls"))
    assert encoder.token_centre(TEXTS) is None
    assert encoder.encode_passages(TEXTS, [[]] * len(TEXTS))[2] is None
    vectors, tokens = encoder.encode_questions(TEXTS)
    np.testing.assert_array_equal(vectors, encoder.encode_queries(TEXTS))
    assert all(one.size == 0 for one, _ in tokens)
