from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest

from searchfit.encoders import batched, load_encoder
from searchfit.encoders.batched import BatchedEncoder
from searchfit.encoders.sentence import SentenceEncoder
from searchfit.encoders.trained import Trained
from searchfit.executors import Portable

WORDS = ("anchor", "mast", "keel", "tide", "rudder", "violin", "sonata")
TEXTS = [f"the {word} near the harbour" for word in WORDS]


@pytest.fixture(scope="module")
def untuned(small_settings: Any) -> Portable[SentenceEncoder]:
    return Portable(partial(load_encoder, small_settings.model))


def test_batches_give_what_the_model_gives(
    untuned: Portable[SentenceEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batched, "_BATCH", 3)
    encoder, model = BatchedEncoder.of(untuned), untuned.model
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), model.encode_queries(TEXTS), atol=1e-6)
    vectors, tokens = encoder.encode_questions(TEXTS)
    expected, read = model.encode_questions(TEXTS)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert len(tokens) == len(TEXTS)
    for (own, spans), (other, places) in zip(tokens, read, strict=True):
        np.testing.assert_allclose(own, other, atol=1e-5)
        np.testing.assert_array_equal(spans, places)
    parts = list(encoder.encode_documents([TEXTS[:5], TEXTS[5:]]))
    assert [len(part) for part in parts] == [5, 2]
    np.testing.assert_allclose(np.concatenate(parts), model.encode_documents(TEXTS), atol=1e-6)
    assert encoder.pieces(TEXTS) == model.pieces(TEXTS)


def test_of_nothing_there_are_no_vectors_of_the_right_length(untuned: Portable[SentenceEncoder]) -> None:
    encoder = BatchedEncoder.of(untuned)
    assert encoder.dimension == untuned.model.dimension
    vectors, tokens = encoder.encode_questions([])
    assert vectors.shape == (0, encoder.dimension)
    assert tokens == []


def test_a_merge_is_made_once_where_the_work_is_done(
    bench: Any, untuned: Portable[SentenceEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batched, "_BATCH", 3)
    trained = Trained.load(bench.path("models/trained"))
    half = trained.encoder(untuned.model, 0.5)
    merge, made = Trained.encoder, []

    def counting(self: Trained, model: SentenceEncoder, share: float) -> SentenceEncoder:
        made.append(share)
        return merge(self, model, share)

    monkeypatch.setattr(Trained, "encoder", counting)
    encoder = BatchedEncoder.of(untuned, trained=trained)
    assert encoder.tower(0.5).work is encoder.work
    np.testing.assert_allclose(
        encoder.tower(0.5).encode_queries(TEXTS), half.encode_queries(TEXTS), atol=1e-6
    )
    assert made == [0.5]
    plain = encoder.encode_queries(TEXTS)
    assert np.abs(plain - half.encode_queries(TEXTS)).max() > 1e-4
    travelled = pickle.loads(pickle.dumps(encoder.work))
    (there,) = travelled([(0.5, "encode_queries", (TEXTS[:3],))])
    np.testing.assert_array_equal(there, half.encode_queries(TEXTS[:3]))
