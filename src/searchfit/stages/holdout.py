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
from searchfit.writing import table_writer

VERSION = 1

_READ = 512  # passages read at a time
_ROWS = 1 << 20  # documents written at a time


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Write holdout.parquet: one row a document, its near-duplicate cluster and its split."""
    documents = pq.ParquetFile(inputs["documents.parquet"])
    count = documents.metadata.num_rows
    clusters = _clusters(inputs["passages.parquet"], count, settings, tools)
    found, place, members = np.unique(clusters, return_inverse=True, return_counts=True)
    order = np.random.default_rng(settings.seed).permutation(len(found))
    splits = divide(members, order, settings.holdout)
    judge = judging_generator(settings)
    schema = HOLDOUT.with_metadata({JUDGE: judge}) if judge else HOLDOUT
    with table_writer(tools.output / "holdout.parquet", schema) as writer:
        start = 0
        for batch in documents.iter_batches(_ROWS, columns=["id"]):
            own = slice(start, start + batch.num_rows)
            numbers = np.arange(own.start, own.stop, dtype=np.int32)
            columns = [numbers, batch["id"], clusters[own], splits[place[own]]]
            writer.write_table(pa.table(columns, schema=schema))
            start = own.stop
    sizes = {name: int(members[splits == name].sum()) for name in ("train", "dev", "test")}
    note = f"Questions of {judge} judge; those of the other generators train (holdout.judge)."
    return StageResult(
        counts={**sizes, "near-duplicate documents": count - len(found)},
        notes=(note,) if judge else (),
    )


def _texts(file: pq.ParquetFile) -> Iterator[str]:
    for batch in file.iter_batches(_READ, columns=["text"]):
        yield from batch["text"].to_pylist()


def _clusters(passages: Path, count: int, settings: Settings, tools: Tools) -> npt.NDArray[np.int32]:
    """For each document the smallest row among its near-duplicates: documents that share a near-duplicate
    passage, followed transitively."""
    scratch = tools.output / "signatures.tmp"
    with pq.ParquetFile(passages) as file:
        documents = file.read(columns=["document"])["document"].to_numpy()
        signed = signatures(_texts(file), file.metadata.num_rows, settings.seed, scratch)
    parent = np.arange(count, dtype=np.int32)

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    for left, right in alike(signed, settings.holdout.near_duplicate):
        one, other = root(int(documents[left])), root(int(documents[right]))
        if one != other:
            parent[max(one, other)] = min(one, other)
    del signed
    scratch.unlink(missing_ok=True)
    while not np.array_equal(above := parent[parent], parent):
        parent = above
    return parent
