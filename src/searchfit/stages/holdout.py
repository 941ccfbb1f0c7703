"""Holdout: documents into train, dev and test, near-duplicates together.

Near-duplicates are found by MinHash over word shingles (Broder 1997, "On the resemblance and containment of
documents"), so that no test passage, or a near copy of one, is trained on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.config import HoldoutSettings, Settings
from searchfit.records import HOLDOUT, StageResult
from searchfit.stages import Tools
from searchfit.workspace import write_table

VERSION = 1

_SHINGLE = 4
_BANDS, _BAND_ROWS = 32, 4  # documents of Jaccard .7 share a band with probability .9999, of .3 with .23
_UNIT = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Write holdout.parquet: one row a document, its near-duplicate cluster and its split."""
    ids = pq.read_table(inputs["documents.parquet"], columns=["id"])["id"]
    passages = pq.ParquetFile(inputs["passages.parquet"])
    documents = passages.read(columns=["document"])["document"].to_numpy()
    signatures = _signatures(passages, settings.seed)
    clusters = _clusters(signatures, documents, len(ids), settings.holdout.near_duplicate)
    splits = _splits(clusters, settings.holdout, settings.seed)
    columns = [np.arange(len(ids), dtype=np.int32), ids, clusters, splits]
    write_table(tools.output / "holdout.parquet", pa.table(columns, schema=HOLDOUT))
    sizes = {name: int((splits == name).sum()) for name in ("train", "dev", "test")}
    return StageResult(counts={**sizes, "near-duplicate documents": len(ids) - len(np.unique(clusters))})


def _signatures(file: pq.ParquetFile, seed: int) -> npt.NDArray[np.uint32]:
    """(passages, bands * rows) MinHash values."""
    random = np.random.default_rng(seed)
    size = _BANDS * _BAND_ROWS
    # Multiply-shift hashing on 64-bit words: odd multipliers, wrap-around, the high bits.
    a = random.integers(1, 1 << 63, size, dtype=np.uint64) | np.uint64(1)
    b = random.integers(0, 1 << 63, size, dtype=np.uint64)
    signatures = np.empty((file.metadata.num_rows, size), np.uint32)
    row = 0
    for batch in file.iter_batches(512, columns=["text"]):
        for text in batch["text"].to_pylist():
            hashes = (_shingles(text)[:, None] * a + b) >> np.uint64(32)
            signatures[row] = hashes.min(axis=0)
            row += 1
    return signatures


def _shingles(text: str, limit: int = 5000) -> npt.NDArray[np.uint64]:
    """Hashes of the distinct word 4-grams of a text's first `limit` words."""
    words = _UNIT.findall(text.casefold())[:limit] or [text]
    grams = {" ".join(words[i : i + _SHINGLE]) for i in range(max(1, len(words) - _SHINGLE + 1))}
    digests = b"".join(
        hashlib.blake2b(gram.encode("utf-8", "replace"), digest_size=8).digest() for gram in grams
    )
    return np.frombuffer(digests, np.uint64)


def _clusters(
    signatures: npt.NDArray[np.uint32], documents: npt.NDArray[np.int32], count: int, threshold: float
) -> npt.NDArray[np.int32]:
    """For each document the smallest row among its near-duplicates: documents that share a near-duplicate
    passage, followed transitively."""
    parent = np.arange(count, dtype=np.int32)

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    for band in range(_BANDS):
        part = np.ascontiguousarray(signatures[:, band * _BAND_ROWS : (band + 1) * _BAND_ROWS])
        keys = part.view(f"V{part.itemsize * _BAND_ROWS}").ravel()
        _, number = np.unique(keys, return_inverse=True)
        order = np.argsort(number, kind="stable")
        same = np.flatnonzero(number[order[1:]] == number[order[:-1]])
        for left, right in zip(order[same], order[same + 1], strict=True):
            one, other = root(int(documents[left])), root(int(documents[right]))
            if one != other and np.mean(signatures[left] == signatures[right]) >= threshold:
                parent[max(one, other)] = min(one, other)
    return np.array([root(i) for i in range(count)], np.int32)


def _splits(clusters: npt.NDArray[np.int32], settings: HoldoutSettings, seed: int) -> npt.NDArray[np.str_]:
    """A split for each document, whole clusters at a time, in an order drawn from the seed."""
    names, sizes = np.unique(clusters, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    room = {"test": settings.test * len(clusters), "dev": settings.dev * len(clusters)}
    split = np.full(len(names), "train", dtype="<U5")
    for place in order:
        # A cluster too large for what is left goes to train, and the next ones still fill test and dev.
        name = next((name for name in room if sizes[place] <= room[name] + 1e-9), "train")
        if name in room:
            room[name] -= sizes[place]
            split[place] = name
    return split[np.searchsorted(names, clusters)]
