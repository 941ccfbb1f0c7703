"""Memory stays flat: four times the passages cost a stage a few numbers each, not their rows."""

from __future__ import annotations

import csv
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from searchfit import indexing, inversion, shingles
from searchfit.config import Settings, load_settings
from searchfit.encoders import corpus
from searchfit.indexing import Material, write_segment
from searchfit.recipe import STAGES
from searchfit.search import ArrayCorpus
from searchfit.splits import document_splits
from searchfit.stages import Tools, holdout, ingest, keyword, screen, split

FEW, MANY = 250, 1000
TEXT = " ".join(
    letter * 120 for letter in "abcdefghijklmnop"
)  # a token each: the tiny model knows no such words
LIMIT = 300
"""Bytes a passage more; each passage has two thousand characters."""


@pytest.fixture
def in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches small beside FEW: what is held of a batch is then in both measurements."""
    for module, name, size in (
        (ingest, "BATCH_ROWS", 64),
        (split, "_BATCH_DOCUMENTS", 64),
        (split, "_GROUP_ROWS", 64),
        (keyword, "_READ", 64),
        (holdout, "_READ", 64),
        (holdout, "_ROWS", 64),
        (inversion, "_READ", 2000),
        (inversion, "_SORTED", 5000),
        (shingles, "_SIGNED", 64),
        (shingles, "_COMPARED", 64),
        (indexing, "_BATCH", 64),
        (indexing, "_ENTRIES", 64),
        (indexing, "_POSTINGS", 5000),
    ):
        monkeypatch.setattr(module, name, size)


def settings(folder: Path, model: Path) -> Settings:
    values: dict[str, Any] = {
        "source.source": str(folder / "source.csv"),
        "source.text": ("text",),
        "source.id": "id",
        "split.max_chars": 4000,
        "model.name": str(model),
        "model.precision": "fp32",
        "clean.steps": ("unicode", "spaces"),
    }
    return load_settings(values=values)


def peak(work: Callable[[], object]) -> int:
    """The most that Python, numpy and Arrow held at once."""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)


def peaks(folder: Path, model: Path, count: int) -> dict[str, int]:
    """Of each stage over so many documents."""
    folder.mkdir()
    with (folder / "source.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "text", "note"])
        rows.writerows([f"d{n}", f"{TEXT} {n % 50}.", f"{n} " * 100] for n in range(count))
    own = settings(folder, model)
    found = {}
    for name in ("ingest", "split", "keyword", "holdout", "label"):
        stage = next(stage for stage in STAGES if stage.name == name)
        inputs = {artefact: folder / artefact for artefact in stage.reads}
        view = own.only(*stage.sections)

        def work(stage: Any = stage, view: Settings = view, inputs: Any = inputs) -> None:
            stage.module.run(view, inputs, Tools(folder))

        found[name] = peak(work)
    offsets, documents = corpus._layout(folder / "passages.parquet")
    (folder / "encoded").mkdir()
    names = {"offsets": offsets, "documents": documents}
    names["passages"] = np.full((count, 8), 8**-0.5, np.float32)
    names["sentences"] = np.full((int(offsets[-1]), 8), 8**-0.5, np.float32)
    for name, array in names.items():
        np.save(folder / "encoded" / f"{name}.npy", array)
    (folder / "encoded" / "info.json").write_text('{"similarity": "cosine", "dense_weight": 1.0}')
    assert len(documents) == count
    found["index"] = peak(lambda: index(folder))
    return found


def index(folder: Path) -> None:
    arrays = ArrayCorpus.load(folder / "encoded", folder / "keyword")
    material = Material(folder / "documents.parquet", folder / "passages.parquet", arrays)
    info = {"metadata": [{"name": "note", "column": "m0", "type": "string"}], "similarity": "cosine"}
    write_segment(folder / "index", material, info, lambda *_: None)


@pytest.mark.slow
@pytest.mark.usefixtures("in_batches")
def test_no_stage_holds_the_passages(tmp_path: Path, tiny_model: Path) -> None:
    few, many = peaks(tmp_path / "few", tiny_model, FEW), peaks(tmp_path / "many", tiny_model, MANY)
    grown = {name: (many[name] - few[name]) / (MANY - FEW) for name in few}
    assert list(grown) == ["ingest", "split", "keyword", "holdout", "label", "index"]
    assert {name: bytes_ for name, bytes_ in grown.items() if bytes_ > LIMIT} == {}


def test_passages_are_found_by_their_ids_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "_READ", 10)
    ids = [f"p{n}" for n in range(95)]
    table = pa.table({"id": ids, "document": pa.array([n // 2 for n in range(95)], pa.int32())})
    pq.write_table(table, tmp_path / "passages.parquet", row_group_size=17)
    asked = [94, 3, 3, 0, 57, 94, 10]
    names = pa.chunked_array([[ids[n] for n in asked[:3]], [ids[n] for n in asked[3:]]])
    rows, documents = screen._places(tmp_path / "passages.parquet", names)
    assert rows.tolist() == asked
    assert documents.tolist() == [n // 2 for n in asked]
    assert [len(part) for part in screen._places(tmp_path / "passages.parquet", names.slice(0, 0))] == [0, 0]


def test_splits_of_documents_are_read_in_parts(tmp_path: Path) -> None:
    splits = ["train", "dev", "test"] * 50
    pq.write_table(pa.table({"split": splits}), tmp_path / "holdout.parquet", row_group_size=7)
    assert document_splits(tmp_path / "holdout.parquet").tolist() == splits
