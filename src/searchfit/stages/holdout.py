"""Holdout: documents into train, dev and test, near-duplicates together.

Near-duplicates are found by MinHash over word shingles, so that no test passage, or a near copy of one, is
trained on; the evaluate stage checks that by another way (leaks.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.config import Settings
from searchfit.records import HOLDOUT, StageResult
from searchfit.shingles import alike, signatures
from searchfit.splits import JUDGE, divide, judging_generator
from searchfit.stages import Tools
from searchfit.workspace import write_table

VERSION = 1


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Write holdout.parquet: one row a document, its near-duplicate cluster and its split."""
    ids = pq.read_table(inputs["documents.parquet"], columns=["id"])["id"]
    passages = pq.ParquetFile(inputs["passages.parquet"])
    documents = passages.read(columns=["document"])["document"].to_numpy()
    signed = signatures(_texts(passages), passages.metadata.num_rows, settings.seed)
    clusters = _clusters(signed, documents, len(ids), settings.holdout.near_duplicate)
    found, place, members = np.unique(clusters, return_inverse=True, return_counts=True)
    order = np.random.default_rng(settings.seed).permutation(len(found))
    splits = divide(members, order, settings.holdout)[place]
    columns = [np.arange(len(ids), dtype=np.int32), ids, clusters, splits]
    table, judge = pa.table(columns, schema=HOLDOUT), judging_generator(settings)
    if judge:
        table = table.replace_schema_metadata({JUDGE: judge})
    write_table(tools.output / "holdout.parquet", table)
    sizes = {name: int((splits == name).sum()) for name in ("train", "dev", "test")}
    note = f"Questions of {judge} judge; those of the other generators train (holdout.judge)."
    return StageResult(
        counts={**sizes, "near-duplicate documents": len(ids) - len(found)},
        notes=(note,) if judge else (),
    )


def _texts(file: pq.ParquetFile) -> Iterator[str]:
    for batch in file.iter_batches(512, columns=["text"]):
        yield from batch["text"].to_pylist()


def _clusters(
    signed: npt.NDArray[np.uint32], documents: npt.NDArray[np.int32], count: int, threshold: float
) -> npt.NDArray[np.int32]:
    """For each document the smallest row among its near-duplicates: documents that share a near-duplicate
    passage, followed transitively."""
    parent = np.arange(count, dtype=np.int32)

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    for left, right in alike(signed, threshold):
        one, other = root(int(documents[left])), root(int(documents[right]))
        if one != other:
            parent[max(one, other)] = min(one, other)
    return np.array([root(i) for i in range(count)], np.int32)
