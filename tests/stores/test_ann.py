from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from searchfit.filters import parse
from searchfit.stores import ann
from searchfit.stores.building import build, vector_array
from searchfit.stores.lancedb import LanceStore

COUNT, SIZE = 6000, 16


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def made(folder: Path, size: int = SIZE) -> tuple[LanceStore, np.ndarray, np.ndarray]:
    """An index that is large enough for its settings, its vectors, and questions."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, size))
    vectors = unit(centres[rng.integers(0, 60, COUNT)] + 0.5 * rng.normal(size=(COUNT, size)))
    questions = unit(centres[rng.integers(0, 60, 120)] + 0.6 * rng.normal(size=(120, size)))
    np.save(folder / "questions.npy", questions[60:])
    table = {
        "row": pa.array(np.arange(COUNT)),
        "id": pa.array([str(row) for row in range(COUNT)]),
        "vector": vector_array(vectors),
        "sentence_vectors": pa.ListArray.from_arrays(
            pa.array(np.arange(COUNT + 1, dtype=np.int32)), vector_array(vectors)
        ),
        "m0": pa.array(np.arange(COUNT) % 10),
    }
    metadata = [{"name": "rest", "column": "m0", "type": "int"}]
    info = {"metadata": metadata, "index": {"exact_passages": 1000, "recall": 0.97}}
    build(folder, [pa.RecordBatch.from_pydict(table)], [], info)
    return LanceStore(folder), vectors, questions[:60]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[LanceStore, np.ndarray, np.ndarray]:
    return made(tmp_path_factory.mktemp("ann"))


@pytest.mark.parametrize("where", [None, "rest < 5", "rest = 3"])
def test_it_finds_what_it_promises(
    world: tuple[LanceStore, np.ndarray, np.ndarray], where: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ann, "_FEW", 100)
    store, vectors, questions = world
    index = store.segments[0].ann
    assert index is not None
    assert index.tuned.recall >= 0.97
    allowed = np.arange(COUNT) if where is None else store.matching(parse(where, store.columns))
    hits = 0
    for question in questions:
        scores = vectors[allowed] @ question
        true = allowed[np.argsort(-scores)[:10]]
        filter_ = parse(where, store.columns) if where else None
        rows, found = store.nearest(question, "vector", 10, filter_)
        assert set(rows.tolist()) <= set(allowed.tolist())
        np.testing.assert_allclose(found, vectors[rows] @ question, atol=1e-6)
        hits += len(np.intersect1d(rows, true))
    assert hits / 600 >= 0.95


def test_deleted_passages_are_not_found(world: tuple[LanceStore, np.ndarray, np.ndarray]) -> None:
    store, vectors, questions = world
    best = np.argsort(-(vectors @ questions[0]))[:5]
    left = LanceStore(store.segments, np.sort(best))
    rows, _ = left.nearest(questions[0], "vector", 10)
    assert len(rows) == 10
    assert not np.intersect1d(rows, best).size


def test_vectors_of_an_odd_length_are_searched_too(tmp_path: Path) -> None:
    store, vectors, questions = made(tmp_path, 13)
    rows, _ = store.nearest(questions[0], "vector", 3)
    assert rows[0] == np.argmax(vectors @ questions[0])


def test_an_index_that_does_not_find_enough_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ann, "_tune", lambda *_: None)
    store, vectors, questions = made(tmp_path)
    assert store.segments[0].ann is None
    assert not (tmp_path / "vectors.lance").exists()
    rows, _ = store.nearest(questions[0], "vector", 3)
    assert rows[0] == np.argmax(vectors @ questions[0])
