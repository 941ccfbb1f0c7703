"""Vectors that are compared by their dot product, from encoding to search."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pipeline_tools import one_thread

from searchfit.config import Settings, load_settings
from searchfit.encoders import load_encoder
from searchfit.encoders.corpus import Encoding
from searchfit.fusion import rank
from searchfit.keyword import Analyzer, KeywordIndex
from searchfit.legs import Asked, rank_one
from searchfit.pipeline import Fit
from searchfit.records import Engine
from searchfit.search import ArrayCorpus, open_searcher
from searchfit.stages import choose
from searchfit.stores.bm25 import Bm25
from searchfit.stores.building import build
from searchfit.stores.lancedb import LanceStore
from searchfit.training.dev import DevScore
from searchfit.workspace import Workspace

QUESTIONS = ["pruning the old rose hedge", "glacier", "who repaired the locomotive signal", "???", "oven"]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A finished workspace and its settings."""

    folder: Path
    settings: Settings


def the_last(evidence: Any, *_: Any) -> tuple[dict[str, Any], None, str]:
    """Stands for a choice: the engine that is tuned the most, better or not."""
    return [system for system in evidence["systems"] if system["kind"] == "candidate"][-1], None, "the last"


@pytest.fixture(scope="module", params=["query", "shared"])
def fitted(request: Any, tmp_path_factory: pytest.TempPathFactory, small_settings: Any) -> Fitted:
    """A whole fit of a model whose vectors are not of unit length, and serves what was tuned."""
    values = {
        "model.similarity": "dot",
        "model.normalize": False,
        "generate.max_queries": 150,
        "train.towers": request.param,
        "train.epochs": 4,
        "split.max_chars": 120,
        "split.overlap_chars": 0,
    }
    settings = load_settings(base=small_settings, values=values)
    folder = tmp_path_factory.mktemp("dot") / "ws"
    with one_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "_choose", the_last)
        patch.setattr(DevScore, "__call__", lambda _self, step: float(step))
        list(Fit(Workspace(folder), settings).run())
    return Fitted(folder, settings)


def test_raw_vectors_are_kept_and_weighed(fitted: Fitted) -> None:
    passages = np.load(fitted.folder / "encoded" / "passages.npy")
    texts = pq.read_table(fitted.folder / "passages.parquet", columns=["title", "text"]).to_pylist()
    encoder = load_encoder(fitted.settings.model)
    alone = encoder.encode_documents([f"{row['title']}. {row['text']}" for row in texts])
    np.testing.assert_allclose(passages, alone, atol=1e-4)
    lengths = np.linalg.norm(passages, axis=1)
    assert lengths.min() > 1.5
    encoding = Encoding.load(fitted.folder / "encoded")
    assert encoding.similarity == "dot"
    assert encoding.dense_weight == pytest.approx(1 / (lengths.astype(float) ** 2).mean(), rel=1e-6)


def test_the_weight_is_one_for_cosine() -> None:
    assert Encoding.of("cosine", np.full((3, 2), 7, np.float32)) == Encoding("cosine", 1.0)
    assert Encoding.of("dot", np.full((3, 2), 7, np.float32)).dense_weight == pytest.approx(1 / 98)
    assert Encoding.of("dot", np.zeros((3, 2), np.float32)).dense_weight == 1.0


def test_what_is_evaluated_is_what_is_served(fitted: Fitted) -> None:
    served = open_searcher(fitted.folder)
    assert served.engine.query_tower == 1
    assert served.engine.dense_weight < 0.5
    assert served.encoder.similarity == "dot"
    assert not np.allclose(np.linalg.norm(served.encoder.encode_queries(QUESTIONS), axis=1), 1)
    ids = pq.read_table(fitted.folder / "documents.parquet", columns=["id"])["id"].to_pylist()
    asked = pq.read_table(fitted.folder / "evaluation" / "queries.parquet")["text"].to_pylist()
    top = pq.read_table(fitted.folder / "evaluation" / "top.parquet")[served.engine.name].to_pylist()
    assert len(asked) >= 10
    for text, expected in list(zip(asked, top, strict=False))[:25]:
        hits = {hit.document_id: hit.score for hit in served.search(text, 20)}
        # Sums in another order may fall on the other side of the sixth decimal, and only there.
        assert [hits[ids[row]] for row in expected] == pytest.approx(list(hits.values())[:10], abs=2e-6)


@pytest.mark.parametrize("units", ["passage", "sentence", "both"])
@pytest.mark.parametrize("keyword", [0.0, 1.0])
def test_arrays_and_store_rank_alike(fitted: Fitted, units: Any, keyword: float) -> None:
    served = open_searcher(fitted.folder)
    chosen = served.engine
    folder = fitted.folder / "encoded"
    if chosen.document_tower:
        folder = fitted.folder / "encoded_tuned" / f"{chosen.document_tower:g}"
    corpus = ArrayCorpus.load(folder, fitted.folder / "keyword")
    assert chosen.dense_weight == corpus.encoding.dense_weight
    served.engine = Engine(
        "e", units=units, dense_weight=chosen.dense_weight, keyword_weight=keyword, query_tower=1.0
    )
    vectors = served.encoder.encode_queries(QUESTIONS)
    expected = rank([served.engine], corpus, vectors, QUESTIONS, 10)[0]
    for query, question in enumerate(QUESTIONS):
        hits = served.search(question, 10)
        assert [hit.document_id for hit in hits] == served.document_ids(expected.rows[query])
        np.testing.assert_allclose([hit.score for hit in hits], expected.scores[query], atol=1e-5)


def made_up(folder: Path, size: float) -> tuple[LanceStore, ArrayCorpus, np.ndarray]:
    """An index of 3,000 passages whose vectors are of many lengths around `size`, and the same in arrays."""
    random = np.random.default_rng(4)
    count, width = 3000, 8
    offsets = np.concatenate([[0], np.cumsum(random.integers(1, 4, count))]).astype(np.int64)
    spread = size * np.exp(random.normal(0, 0.7, (count + int(offsets[-1]), 1)))
    vectors = (random.normal(size=(len(spread), width)) * spread).astype(np.float32)
    passages, sentences = vectors[:count], vectors[count:]

    def fixed(array: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), width)

    rows = pa.RecordBatch.from_pydict(
        {
            "row": pa.array(np.arange(count, dtype=np.int32)),
            "id": pa.array([str(row) for row in range(count)]),
            "vector": fixed(passages),
            "sentence_vectors": pa.ListArray.from_arrays(
                pa.array(offsets.astype(np.int32)), fixed(sentences)
            ),
        }
    )
    build(folder, [rows], [], {"similarity": "dot"})
    empty = {
        "starts": np.zeros(1, np.int64),
        "rows": np.empty(0, np.int64),
        "frequencies": np.empty(0, np.float32),
        "lengths": np.ones(count, np.float32),
    }
    keyword = KeywordIndex(Analyzer("none"), empty, [], 1.2, 0.75)
    encoding = Encoding.of("dot", passages)
    corpus = ArrayCorpus(passages, sentences, offsets, np.arange(count, dtype=np.int32), keyword, encoding)
    return LanceStore(folder), corpus, (random.normal(size=(6, width)) * size).astype(np.float32)


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_the_bounds_hold_for_vectors_of_any_length(tmp_path: Path, size: float) -> None:
    store, corpus, queries = made_up(tmp_path, size)
    for units in ("passage", "sentence", "both"):
        engine = Engine("e", units=units, dense_weight=corpus.encoding.dense_weight, keyword_weight=0)  # type: ignore[arg-type]
        expected = rank([engine], corpus, queries, [""] * len(queries), 10)[0]
        assert 0.1 < np.abs(expected.scores).max() < 100
        for vector, rows in zip(queries, expected.rows, strict=True):
            asked = Asked(vector, Bm25(store, Analyzer("none"), 1.2, 0.75).leg(""))
            found = rank_one(engine, store, asked, lambda certain: len(certain) >= 10)
            assert len(found.rows) < corpus.count  # the bound has ended the search before
            np.testing.assert_array_equal(found.rows[:10], rows)


def test_nearest_by_dot_products(tmp_path: Path) -> None:
    store, corpus, queries = made_up(tmp_path, 1e-3)
    for vector in queries:
        exact = corpus.passages @ vector
        rows, similarities = store.nearest(vector, "vector", 20)
        np.testing.assert_array_equal(rows, np.argsort(-exact, kind="stable")[:20])
        np.testing.assert_allclose(similarities, exact[rows], rtol=1e-5)
        best = np.maximum.reduceat(corpus.sentences @ vector, corpus.offsets[:-1])
        rows, similarities = store.nearest(vector, "sentence_vectors", 20)
        np.testing.assert_array_equal(rows, np.argsort(-best, kind="stable")[:20])
        np.testing.assert_allclose(similarities, best[rows], rtol=1e-5)
