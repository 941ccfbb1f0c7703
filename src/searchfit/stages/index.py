"""Index: vectors, text, metadata and keyword postings into one new index version, with its model beside it.

A version is a folder of its own, so building one never disturbs a reader of another; engine.json, written
last, points to the one that is served.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.config import Settings
from searchfit.keyword import KeywordIndex
from searchfit.records import METADATA_PREFIX, Engine, StageResult
from searchfit.search import ArrayCorpus
from searchfit.stages import Tools
from searchfit.stores.lancedb import build
from searchfit.workspace import link_tree, write_json

VERSION = 2

_BATCH = 1024
_TERMS = 20_000


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Write index/VERSION/ and engine.json."""
    version = f"index/{tools.key}"
    folder = tools.output / version
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    engine = json.loads(inputs["evaluation/choice.json"].read_text(encoding="utf-8"))["chosen"]
    tower = Engine(**engine).document_tower
    encoded = inputs["encoded_tuned"] / f"{tower:g}" if tower else inputs["encoded"]
    corpus = ArrayCorpus.load(encoded, inputs["keyword"])
    metadata = _metadata(pq.ParquetFile(inputs["documents.parquet"]).schema_arrow)
    np.save(folder / "documents.npy", corpus.documents)
    np.save(folder / "lengths.npy", corpus.keyword.lengths)
    link_tree(inputs["models/tuned"], folder / "model")
    info: dict[str, Any] = {
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
    }
    rows = _passages(inputs, corpus, metadata, tools)
    build(folder, rows, _postings(corpus.keyword), info)
    write_json(tools.output / "engine.json", {"engine": engine, "index": version})
    return StageResult(
        counts={"passages": corpus.count, "terms": len(corpus.keyword.vocabulary), "version": tools.key}
    )


def _metadata(schema: pa.Schema) -> list[dict[str, str]]:
    """The user's columns by number: their names may hold anything, stored names are m0, m1, ..."""
    fields = [field for field in schema if field.name.startswith(METADATA_PREFIX)]
    return [
        {"name": field.name.removeprefix(METADATA_PREFIX), "column": f"m{i}", "type": _type_name(field.type)}
        for i, field in enumerate(fields)
    ]


def _type_name(kind: pa.DataType) -> str:
    """The name of a column's type in the filter language; other types are kept but not filtered on."""
    tests = {
        "bool": pa.types.is_boolean,
        "int": pa.types.is_integer,
        "float": pa.types.is_floating,
        "date": pa.types.is_date,
        "timestamp": pa.types.is_timestamp,
    }
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "string"
    return next((name for name, is_type in tests.items() if is_type(kind)), str(kind))


def _passages(
    inputs: Mapping[str, Path], corpus: ArrayCorpus, metadata: list[dict[str, str]], tools: Tools
) -> Iterator[pa.RecordBatch]:
    """The rows of the index in order: passages with their vectors and the metadata of their documents."""
    names = [METADATA_PREFIX + column["name"] for column in metadata]
    documents = pq.read_table(inputs["documents.parquet"], columns=names)
    size = corpus.passages.shape[1]
    start = 0
    for batch in pq.ParquetFile(inputs["passages.parquet"]).iter_batches(_BATCH):
        end = start + batch.num_rows
        first, last = corpus.offsets[start], corpus.offsets[end]
        offsets = (np.asarray(corpus.offsets[start : end + 1]) - first).astype(np.int32)
        columns = {
            "row": pa.array(np.arange(start, end, dtype=np.int32)),
            **{name: batch[name] for name in batch.schema.names},
            "vector": _vectors(corpus.passages[start:end], size),
            "sentence_vectors": pa.ListArray.from_arrays(
                pa.array(offsets), _vectors(corpus.sentences[first:last], size)
            ),
        }
        of_rows = documents.take(batch["document"])
        for column, name in zip(metadata, names, strict=True):
            columns[column["column"]] = of_rows[name].combine_chunks()
        yield pa.RecordBatch.from_pydict(columns)
        start = end
        tools.progress("index", end, corpus.count)


def _vectors(array: Any, size: int) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(array).ravel(), pa.float32()), size
    )


def _postings(keyword: KeywordIndex) -> Iterator[pa.RecordBatch]:
    for begin in range(0, len(keyword.vocabulary), _TERMS):
        terms = keyword.vocabulary[begin : begin + _TERMS]
        starts = np.asarray(keyword.starts[begin : begin + len(terms) + 1])
        part = slice(starts[0], starts[-1])
        offsets = pa.array((starts - starts[0]).astype(np.int32))
        yield pa.RecordBatch.from_pydict(
            {
                "term": pa.array(terms, pa.string()),
                "rows": pa.ListArray.from_arrays(
                    offsets, pa.array(np.asarray(keyword.rows[part]), pa.int32())
                ),
                "frequencies": pa.ListArray.from_arrays(
                    offsets, pa.array(np.asarray(keyword.frequencies[part]))
                ),
            }
        )
