from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from searchfit.filters import parse
from searchfit.indexing import _postings
from searchfit.keyword import Analyzer, KeywordIndex
from searchfit.stores import bm25
from searchfit.stores.bm25 import Bm25
from searchfit.stores.building import build, vector_array
from searchfit.stores.lancedb import LanceStore
from searchfit.stores.segment import Segment

WORDS = ["a", "b", "c", "d", "e", "f", "g", "rare", "other"]
COUNT = 300
DELETED = np.array([0, 5, 17, 140, 150, 151, 299])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[LanceStore, list[str]]:
    """Two segments with deleted rows, and the text of every row."""
    rng = np.random.default_rng(3)
    odds = np.array([30, 20, 10, 10, 5, 5, 3, 0.3, 0.1])
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 12), p=odds / odds.sum())) for _ in range(COUNT)]
    parts = []
    for start, end in ((0, 150), (150, COUNT)):
        folder = tmp_path_factory.mktemp("segment")
        index = KeywordIndex.build(texts[start:end], Analyzer("none"))
        rows = np.arange(start, end)
        ones = vector_array(np.ones((end - start, 2), np.float32))
        table: dict[str, Any] = {
            "row": pa.array(rows),
            "id": pa.array([str(row) for row in rows]),
            "vector": ones,
            "sentence_vectors": pa.ListArray.from_arrays(pa.array(range(end - start + 1), pa.int32()), ones),
            "m0": pa.array(rows % 7),
        }
        info = {"metadata": [{"name": "rest", "column": "m0", "type": "int"}]}
        build(folder, [pa.RecordBatch.from_pydict(table)], _postings(index, start), info)
        parts.append(Segment(folder))
    return LanceStore(parts, DELETED), texts


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    words=st.lists(st.sampled_from([*WORDS, "unknown"]), max_size=6),
    depth=st.sampled_from([1, 3, 20, 400]),
    long=st.sampled_from([0, 20, 10_000]),
    rest=st.sampled_from([None, 3, 99]),
)
def test_the_leg_scores_as_a_fresh_keyword_index(
    made: tuple[LanceStore, list[str]], words: list[str], depth: int, long: int, rest: int | None
) -> None:
    store, texts = made
    living = np.setdiff1d(np.arange(COUNT), DELETED)
    fresh = KeywordIndex.build([texts[row] for row in living], Analyzer("none"))
    query = " ".join(words)
    scores = np.full(COUNT, -1.0)
    scores[living] = fresh.scores([query]).toarray()[0]
    where = None if rest is None else parse(f"rest = {rest}", store.columns)
    allowed = living if rest is None else living[living % 7 == rest]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bm25, "_LONG", long)
        leg = Bm25(store, Analyzer("none"), 1.2, 0.75).leg(query, where)
        rows, found = leg.top(depth)
    positive = allowed[scores[allowed] > 0]
    expected = np.sort(scores[positive])[::-1][:depth]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(scores[rows], found, atol=1e-6)
    assert len(set(rows.tolist())) == len(rows)
    assert set(rows.tolist()) <= set(allowed.tolist())
    assert leg.total == len(allowed)
    some = living[::7][::-1]
    np.testing.assert_allclose(leg.of(some), scores[some], atol=1e-6)
    assert leg.first(9).tolist() == allowed[:9].tolist()
