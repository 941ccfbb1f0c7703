"""The most similar pairs: against all pairs sorted, over blocks, and by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pipeline_tools import cli, one_thread

from searchfit import similar
from searchfit.config import load_settings, to_toml
from searchfit.encoders import load_encoder
from searchfit.errors import SettingsError, WorkspaceError
from searchfit.records import PASSAGES
from searchfit.similar import Wanted, most_similar, similar_passages, similar_texts, similarity


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similar, "_BLOCK", 64)


def every_pair(vectors: np.ndarray, groups: np.ndarray | None = None) -> list[tuple[float, int, int]]:
    """All pairs, most similar first."""
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit @ unit.T
    return sorted(
        (-float(cosines[a, b]), a, b)
        for a in range(len(unit))
        for b in range(a + 1, len(unit))
        if groups is None or groups[a] != groups[b]
    )


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.usefixtures("small_blocks")
def test_the_best_pairs_are_those_of_a_sort_of_all(grouped: bool) -> None:
    random = np.random.default_rng(1)
    vectors = random.normal(size=(301, 16)).astype(np.float32) * random.uniform(0.1, 9, (301, 1)).astype("f4")
    groups = np.sort(random.integers(0, 60, 301)).astype(np.int32) if grouped else None
    expected = every_pair(vectors, groups)
    for k in (1, 7, 500, 10**6):
        found = most_similar(vectors, Wanted(k), groups)
        rows = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
        assert rows == [(a, b) for _, a, b in expected[:k]]
        assert found.scores == pytest.approx([-score for score, _, _ in expected[:k]], abs=1e-12)
    over = [(a, b) for score, a, b in expected if -score >= 0.5]
    found = most_similar(vectors, Wanted(0, 0.5), groups)
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == over
    assert 20 < len(over) < len(expected) / 4
    assert most_similar(vectors, Wanted(5, 0.5), groups).first.tolist() == [a for a, _ in over[:5]]


@pytest.mark.usefixtures("small_blocks")
def test_equal_rows_and_zeros() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 100, axis=0)
    vectors[-1] = 0
    found = most_similar(vectors, Wanted(40))
    assert found.scores.tolist() == [1.0] * 40
    assert (found.first < found.second).all()
    assert len(set(zip(found.first.tolist(), found.second.tolist(), strict=True))) == 40
    assert len(most_similar(vectors, Wanted(0, 0.5)).scores) == 2 * 4950 + 99 * 98 // 2
    assert len(most_similar(vectors[:1], Wanted(4)).scores) == 0
    assert len(most_similar(vectors[:0], Wanted(4)).scores) == 0


@pytest.mark.parametrize(("k", "threshold"), [(0, None), (-1, 0.5), (3, 1.5), (3, float("nan"))])
def test_bounds_that_make_no_sense(k: int, threshold: float | None) -> None:
    with pytest.raises(SettingsError):
        most_similar(np.eye(3, dtype=np.float32), Wanted(k, threshold))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Four documents of one to three passages, with their vectors, as a fit leaves them."""
    path = tmp_path_factory.mktemp("similar") / "ws"
    texts = ["the rose", "the mast", "the soil", "the oven", "the rose too", "the tide", "the mast too"]
    owners = [0, 1, 1, 1, 2, 3, 3]
    (path / "encoded").mkdir(parents=True)
    vectors = np.eye(7, dtype=np.float32)
    vectors[4] = [3, 0, 0, 0, 4, 0, 0]  # of 0: cosine 0.6
    vectors[2] = [0, 12, 5, 0, 0, 0, 0]  # of 1, in one document: 12/13
    vectors[6] = [0, 1, 0, 0, 0, 0, 2]  # of 1: 1/sqrt(5)
    np.save(path / "encoded" / "passages.npy", vectors)
    np.save(path / "encoded" / "documents.npy", np.array(owners, np.int32))
    (path / "encoded" / "info.json").write_text('{"similarity": "cosine", "dense_weight": 1.0}')
    rows = [
        {"id": f"d{owner}#{n}", "document_id": f"d{owner}", "document": owner, "title": "", "text": text}
        | {"start": 0, "end": len(text), "sentences": [0, len(text)]}
        for n, (owner, text) in enumerate(zip(owners, texts, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=PASSAGES), path / "passages.parquet")
    (path / "manifest.json").write_text('{"format": 1, "stages": {}}')
    settings = load_settings(values={"model.name": str(tiny_model), "model.precision": "fp32"})
    (path / "searchfit.toml").write_text(to_toml(settings))
    return path


def test_passages_and_documents_of_a_workspace(workspace: Path) -> None:
    apart = similar_passages(workspace, 2)
    assert [(pair.id_a, pair.id_b) for pair in apart] == [("d0#0", "d2#4"), ("d1#1", "d3#6")]
    assert apart[0].score == pytest.approx(0.6, abs=1e-6)
    assert apart[1].score == pytest.approx(1 / 5**0.5, abs=1e-6)
    assert (apart[0].text_a, apart[0].text_b) == ("the rose", "the rose too")
    within = similar_passages(workspace, 1, within=True)
    assert (within[0].id_a, within[0].id_b) == ("d1#1", "d1#2")
    vectors = np.load(workspace / "encoded" / "passages.npy").astype(np.float64)
    one, other = vectors[1:4].mean(axis=0), vectors[5:].mean(axis=0)
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    pairs = similar_passages(workspace, 3, documents=True)
    assert [(pair.id_a, pair.id_b) for pair in pairs[:2]] == [("d0", "d2"), ("d1", "d3")]
    assert pairs[1].score == pytest.approx(cosine, abs=1e-6)


def test_texts_are_compared_by_the_model(workspace: Path, tiny_model: Path) -> None:
    texts = ["the rose and the soil", "the violin sonata", "the rose and the hedge", "a locomotive"]
    encoder = load_encoder(load_settings(values={"model.name": str(tiny_model)}).model)
    with one_thread():
        expected = every_pair(encoder.encode_documents(texts))
        pairs = similar_texts(texts, k=2, model=str(tiny_model))
        cosine = similarity(texts[0], texts[2], workspace=workspace)
    assert [(int(p.id_a), int(p.id_b)) for p in pairs] == [(a, b) for _, a, b in expected[:2]]
    by_rows = {(a, b): -score for score, a, b in expected}
    assert cosine == pytest.approx(by_rows[0, 2], abs=0.02)  # the workspace says fp32
    assert similarity(texts[1], texts[1], workspace=workspace) == pytest.approx(1.0, abs=1e-6)


def test_the_command_lists_pairs_and_prints_cosines(workspace: Path) -> None:
    shown = cli("similar", workspace, "-k", "1")
    assert (shown.returncode, shown.stdout.split()[0]) == (0, "0.6000")
    assert "d2#4: the rose too" in shown.stdout
    rows = cli("similar", workspace, "--threshold", "0.5", "-k", "0", "--json").stdout.splitlines()
    assert [json.loads(row)["id_b"] for row in rows] == ["d2#4"]
    two = cli("similar", "the rose", "the rose", "--workspace", workspace)
    assert (two.returncode, two.stdout) == (0, "1.0000\n")
    assert cli("similar", workspace, "--threshold", "0.99").stderr == "no such pairs\n"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("a", "b", "c"), 2, "3 texts"),
        (("nowhere",), 1, "not a searchfit workspace"),
        (("some words", " "), 2, "is empty"),
        (("ws", "-k", "0"), 2, "Ask for k pairs"),
    ],
)
def test_what_cannot_be_compared_is_said(arguments: tuple[str, ...], status: int, said: str) -> None:
    done = cli("similar", *arguments)
    assert done.returncode == status
    assert said in done.stderr


def test_a_workspace_without_vectors(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": 1, "stages": {}}')
    with pytest.raises(WorkspaceError, match="holds no vectors"):
        similar_passages(tmp_path)
