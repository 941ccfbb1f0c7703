"""Index: vectors, text, metadata and keyword postings into one new index version, with its model beside it.

A version is a folder of its own, so building one never disturbs a reader of another; engine.json, written
last, points to the one that is served.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.config import Settings
from searchfit.encoders.corpus import encoded
from searchfit.filters import type_name
from searchfit.indexing import Material, seen, write_segment
from searchfit.records import CLEANED, METADATA_PREFIX, Engine, StageResult
from searchfit.search import ArrayCorpus
from searchfit.stages import Tools
from searchfit.writing import digest, link_tree, write_json

VERSION = 4

_QUESTIONS = 500


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Write index/VERSION/ and engine.json."""
    version = f"index/{tools.key}"
    folder = tools.output / version
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    engine = json.loads(inputs["evaluation/choice.json"].read_text(encoding="utf-8"))["chosen"]
    tower = Engine(**engine).document_tower
    corpus = ArrayCorpus.load(encoded(inputs, tower), inputs["keyword"])
    documents = pq.ParquetFile(inputs["documents.parquet"])
    metadata = _metadata(documents.schema_arrow, pq.read_schema(inputs["passages.parquet"]))
    link_tree(inputs["models/tuned"], folder / "model")
    if engine["reranker"]:
        link_tree(inputs["models/reranker"], folder / engine["reranker"])
    info: dict[str, Any] = {
        "lineage": uuid.uuid4().hex,
        "documents": documents.metadata.num_rows,
        "model_digest": digest(folder / "model"),
        "engine": engine,
        "model": settings.model.model_dump(exclude={"name"}),
        "dimension": corpus.passages.shape[1],
        "similarity": corpus.encoding.similarity,
        "keyword": {
            "language": corpus.keyword.analyzer.language,
            "k1": corpus.keyword.k1,
            "b": corpus.keyword.b,
        },
        "metadata": metadata,
        "seen": seen(documents.schema_arrow),
        "index": settings.index.model_dump(),
        "split": settings.split.model_dump(),
    }
    if corpus.words is not None:
        info["centre"] = corpus.words.centre.tolist()
    if record := documents.metadata.metadata.get(CLEANED):
        write_json(folder / "clean.json", json.loads(record))  # what is added is cleaned alike
    _questions(folder, np.load(inputs["pair_vectors.npy"], mmap_mode="r"))
    material = Material(inputs["documents.parquet"], inputs["passages.parquet"], corpus)
    write_segment(folder, material, info, tools.progress)
    write_json(tools.output / "engine.json", {"engine": engine, "index": version})
    return StageResult(
        counts={"passages": corpus.count, "terms": len(corpus.keyword.vocabulary), "version": tools.key}
    )


def _questions(folder: Path, vectors: Any) -> None:
    """Keep a sample of the question vectors (n, d): what an approximate index is tuned on."""
    some = np.sort(
        np.random.default_rng(0).choice(len(vectors), min(len(vectors), _QUESTIONS), replace=False)
    )
    if len(some):
        np.save(folder / "questions.npy", np.asarray(vectors[some], np.float32))


def _metadata(documents: pa.Schema, passages: pa.Schema) -> list[dict[str, Any]]:
    """The user's columns by number: their names may hold anything, stored names are m0, m1, ... Page and
    heading, which passages tell (`placed`), are two more."""
    fields = [
        (field, placed)
        for schema, placed in ((documents, False), (passages, True))
        for field in schema
        if field.name.startswith(METADATA_PREFIX)
    ]
    found: list[dict[str, Any]] = []
    for i, (field, placed) in enumerate(fields):
        name, kind = field.name.removeprefix(METADATA_PREFIX), type_name(field.type)
        found.append({"name": name, "column": f"m{i}", "type": kind} | ({"placed": True} if placed else {}))
    return found
