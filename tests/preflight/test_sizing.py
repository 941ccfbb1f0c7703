"""Bytes by artefact: all of a real workspace is counted, once, and grows as it should."""

from __future__ import annotations

import shutil

import pytest
from pipeline_tools import Corpus, fit, tiny_model, write_corpus

from searchfit.config import IndexSettings
from searchfit.preflight.sizing import ARTEFACTS, Sizes, sizes
from searchfit.workspace import Workspace


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("sizing")
    corpus = Corpus(write_corpus(folder / "corpus.csv"), str(tiny_model(folder)))
    fit(folder / "ws", corpus, train__enabled=False)
    return Workspace(folder / "ws")


def test_every_byte_is_counted_once(space: Workspace) -> None:
    found = sizes(space)
    files = {file.stat().st_ino: file.stat().st_size for file in space.path.rglob("*") if file.is_file()}
    assert found.total == sum(files.values())
    assert found.passages == space.manifest()["stages"]["split"]["counts"]["passages"]
    # Four bytes for each number, in the fit and in the index, where rows and documents have twelve more.
    plain = 4 * found.dimension * found.passages
    assert found.fit["passage vectors"] - plain in range(4 * found.passages, 4 * found.passages + 400)
    assert found.index["passage vectors"] == plain + 12 * found.passages
    spoken = space.manifest()["stages"]["split"]["counts"]["sentences"]
    assert found.index["sentence vectors"] == 4 * found.dimension * spoken + 8 * (found.passages + 1)
    assert found.fit["words"] > 0
    assert abs(found.index["keywords"] - 8 * found.postings) < 0.5 * found.index["keywords"]
    assert found.index["approximate index"] == 0


def test_an_index_that_is_not_served_does_not_grow(space: Workspace) -> None:
    before = sizes(space)
    other = space.artefact("index/older")
    other.mkdir()
    (other / "vectors.bin").write_bytes(b"1234")
    after = sizes(space)
    shutil.rmtree(other)
    assert (after.index, after.fixed) == (before.index, before.fixed + 4)


def test_what_grows_and_what_does_not() -> None:
    held = dict.fromkeys(ARTEFACTS, 0) | {"texts": 500, "keywords": 80}
    ten = Sizes(10, 384, 700, held, dict.fromkeys(ARTEFACTS, 0) | {"texts": 300}, 9_999)
    settings = IndexSettings(exact_passages=1000)
    more = ten.at(1000, settings)
    assert (more.fit["texts"], more.fit["keywords"], more.index["texts"]) == (50_000, 8_000, 30_000)
    assert (more.postings, more.fixed, more.total) == (70_000, 9_999, 88_000 + 9_999)
    assert ten.at(1001, settings).index["approximate index"] == round(1001 * (4 * 384 + 384 / 8 + 17))
