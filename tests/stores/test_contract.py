from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores.pinecone_stand_in import StandIn
from stores.postgres import Postgres
from stores.worlds import FILTERS, World

from searchfit.filters import parse
from searchfit.keyword import Analyzer, KeywordIndex
from searchfit.legs import Asked, rank_one
from searchfit.records import Engine, encoded_text
from searchfit.stores import Store
from searchfit.stores.lancedb import LanceStore
from searchfit.stores.push import open_remote, push

COUNT = 5000
STORES = ["lancedb", "pgvector", "qdrant", "pinecone"]


@pytest.fixture(scope="module")
def world() -> World:
    return World(COUNT)


@pytest.fixture(scope="module")
def local(world: World, tmp_path_factory: pytest.TempPathFactory) -> LanceStore:
    return world.local(tmp_path_factory.mktemp("local") / "v1")


@pytest.fixture(scope="module", params=STORES)
def store(request: pytest.FixtureRequest, local: LanceStore, memory_folder: Path) -> Iterator[Store]:
    """The same index in each store."""
    if request.param == "lancedb":
        yield local
        return
    with pytest.MonkeyPatch.context() as patch:
        server = None
        if request.param == "pgvector":
            postgres: Postgres = request.getfixturevalue("postgres")
            url = f"{postgres.url}?table=contract"
        elif request.param == "qdrant":
            url = f"qdrant://{memory_folder}"
        else:
            server = StandIn()
            patch.setenv("PINECONE_API_KEY", "secret")
            patch.setenv("PINECONE_CONTROLLER_HOST", server.host)
            url = "pinecone://docs"
        assert push(url, local).sent == COUNT
        remote = open_remote(url, local)
        yield remote
        remote.close()
        if server is not None:
            server.stop()


@pytest.mark.parametrize(
    ("column", "text"),
    [("vector", text) for text in (None, *FILTERS)]
    + [("sentence_vectors", text) for text in (None, *FILTERS[1:3], FILTERS[5])],
)
def test_nearest_is_brute_force(world: World, store: Store, column: Any, text: str | None) -> None:
    where = parse(text, store.columns) if text else None
    rows, scores = store.nearest(world.query, column, 10, where)
    expected, expected_scores = world.best(world.query, column, 10, text)
    assert rows.tolist() == expected
    np.testing.assert_allclose(scores, expected_scores, atol=1e-4)
    assert (rows.dtype, scores.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("text", FILTERS)
def test_matching(world: World, store: Store, text: str) -> None:
    assert store.matching(parse(text, store.columns)).tolist() == world.rows[world.passing(text)].tolist()


def test_what_is_stored_comes_back(world: World, store: Store, local: LanceStore) -> None:
    assert store.count() == COUNT
    assert store.columns == local.columns
    places = [31, 2, 31, 0, 4999]
    rows = world.rows[places]
    assert store.fetch(rows) == local.fetch(rows)
    assert store.fetch([]) == []
    vectors, sentences, offsets = store.vectors(rows)
    np.testing.assert_allclose(vectors, world.vectors[places], atol=1e-6)
    assert offsets.tolist() == np.cumsum([0, *(len(world.sentences[place]) for place in places)]).tolist()
    np.testing.assert_allclose(
        sentences, np.concatenate([world.sentences[place] for place in places]), atol=1e-6
    )
    for wrong in ([1], [-2], [2 * COUNT]):
        with pytest.raises(IndexError):
            store.fetch(wrong)


def test_postings(store: Store, local: LanceStore) -> None:
    terms = ["anchor", "run", "grosse", "海辺", "absent", "' | 'anchor"]
    found, expected = store.postings(terms), local.postings(terms)
    assert found.keys() == expected.keys()
    assert len(found) >= 3
    for term, (rows, counts) in found.items():
        assert rows.tolist() == expected[term][0].tolist()
        assert counts.tolist() == expected[term][1].tolist()


def test_scan(world: World, store: Store) -> None:
    rows = [batch["row"].to_numpy() for batch in store.scan(["row", "vector"])]
    assert np.concatenate(rows).tolist() == world.rows.tolist()


class Leg:
    """The keyword leg of a query as `legs.rank_one` takes it, over scores of every place."""

    def __init__(self, world: World, scores: np.ndarray, places: np.ndarray) -> None:
        self._rows, self._scores = world.rows[places], scores[places]
        self.total = len(places)

    def top(self, depth: int) -> tuple[np.ndarray, np.ndarray]:
        best = np.lexsort((self._rows, -self._scores))[:depth]
        best = best[self._scores[best] > 0]
        return self._rows[best], self._scores[best]

    def of(self, rows: np.ndarray) -> np.ndarray:
        return self._scores[np.searchsorted(self._rows, rows)]

    def first(self, count: int) -> np.ndarray:
        return self._rows[:count]


def keyword_scores(world: World, store: Store, query: str) -> np.ndarray:
    """BM25 of every place by the postings that a store gives."""
    analyzer = Analyzer("english")
    found = store.postings(analyzer.terms(query))
    texts = [encoded_text(f"title {place}", text) for place, text in enumerate(world.texts)]
    arrays = {
        "starts": np.cumsum([0, *(len(rows) for rows, _ in found.values())]),
        "rows": np.concatenate([rows // 2 for rows, _ in found.values()]),
        "frequencies": np.concatenate([counts for _, counts in found.values()]),
        "lengths": np.array([len(analyzer.terms(text)) for text in texts], np.float32),
    }
    return KeywordIndex(analyzer, arrays, list(found), 1.2, 0.75).scores([query]).toarray()[0]


@pytest.mark.parametrize("text", [None, FILTERS[1]])
def test_hybrid(world: World, store: Store, text: str | None) -> None:
    query, engine = "running anchors and a mast", Engine("hybrid", units="both", keyword_weight=1.0)
    places = world.passing(text)
    scores = keyword_scores(world, store, query)
    where = parse(text, store.columns) if text else None
    asked = Asked(world.query, Leg(world, scores, places), where)
    found = rank_one(engine, store, asked, lambda rows: len(rows) >= 10)
    texts = (encoded_text(f"title {place}", each) for place, each in enumerate(world.texts))
    keyword = KeywordIndex.build(texts, Analyzer("english")).scores([query]).toarray()[0]
    dense = world.vectors @ world.query
    best = np.array([max(own @ world.query) for own in world.sentences])
    expected = (dense + best) / 2 + keyword
    order = places[np.argsort(-expected[places], kind="stable")[:10]]
    assert found.rows[:10].tolist() == world.rows[order].tolist()
    np.testing.assert_allclose(found.scores[:10], expected[order], atol=1e-4)
