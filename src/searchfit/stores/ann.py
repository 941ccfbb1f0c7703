"""An index of passage vectors for segments where comparing them one by one takes too long: LanceDB's IVF_RQ.

It names candidates, from quantized vectors; they are compared by the vectors themselves, through the memory
map. How many are named, from how many partitions, is tuned by the share of the true ten nearest that it
finds for questions (questions.npy beside the index), or for sentences of the corpus where there are none.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from searchfit.config import IndexSettings
from searchfit.mapped import let_go, rows_of
from searchfit.stores import Floats, Rows

_TABLE = "vectors"
_DEPTHS = (200, 400, 800, 1600)
_SAMPLE = 100  # questions that it is tuned on
_BATCH = 8192
_ROUND = 8  # lengths of vectors that IVF_RQ takes are its multiples
_FEW = 20_000  # places that are compared one by one faster than they are picked from candidates


@dataclass(frozen=True, slots=True)
class Tuned:
    """How many candidates are named from how many partitions, and the share of the true ten nearest that was
    found so."""

    depth: int
    probes: int
    recall: float


class Ann:
    """The index of a segment's passage vectors."""

    def __init__(self, table: Any, tuned: Tuned) -> None:
        self._table, self.tuned = table, tuned

    @classmethod
    def build(
        cls, folder: Path, vectors: Floats, sentences: Floats, info: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Build and tune an index of (n, d) vectors; what is to be kept of it. None below the size that asks
        for one, and where it does not find enough."""
        settings = IndexSettings.model_validate(info.get("index", {}))
        shutil.rmtree(folder / f"{_TABLE}.lance", ignore_errors=True)
        if len(vectors) <= settings.exact_passages:
            return None
        import lancedb
        from lancedb.index import IvfRq

        table = lancedb.connect(str(folder)).create_table(_TABLE, _batches(vectors))
        table.create_index("vector", config=IvfRq(distance_type="dot", sample_rate=64, max_iterations=20))
        questions = folder / "questions.npy"
        sample = np.load(questions) if questions.exists() else sentences
        tuned = _tune(table, vectors, sample if len(sample) else vectors, settings.recall)
        if tuned is None:
            shutil.rmtree(folder / f"{_TABLE}.lance", ignore_errors=True)  # a copy of the vectors, for nobody
            return None
        return asdict(tuned)

    @classmethod
    def open(cls, folder: Path, kept: Mapping[str, Any] | None) -> Ann | None:
        """The index of a segment, if it has one."""
        import lancedb

        return cls(lancedb.connect(str(folder)).open_table(_TABLE), Tuned(**kept)) if kept else None

    def nearest(self, vector: Floats, k: int, among: Rows | None, count: int) -> Rows | None:
        """Places that nearly always hold the k nearest, of `count` or of those `among` them; None where
        comparing one by one is better."""
        if among is None:
            return _candidates(self._table, vector, max(self.tuned.depth, k), self.tuned.probes)
        share = len(among) / max(1, count)
        if len(among) <= _FEW or share < 0.01:
            return None
        probes = int(self.tuned.probes * min(8.0, 1 / share))
        found = np.sort(_candidates(self._table, vector, int(1.5 * max(self.tuned.depth, k) / share), probes))
        at = np.minimum(np.searchsorted(among, found), len(among) - 1)
        found = found[among[at] == found]
        return found if len(found) >= k else None


def _batches(vectors: Floats) -> pa.RecordBatchReader:
    size = -(-vectors.shape[1] // _ROUND) * _ROUND
    schema = pa.schema([("place", pa.int64()), ("vector", pa.list_(pa.float32(), size))])

    def batch(start: int) -> pa.RecordBatch:
        let_go(vectors)
        part = _padded(vectors[start : start + _BATCH])
        numbers = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), size)
        places = pa.array(np.arange(start, start + len(part)))
        return pa.RecordBatch.from_arrays([places, numbers], schema=schema)

    starts = range(0, len(vectors), _BATCH)
    return pa.RecordBatchReader.from_batches(schema, map(batch, starts))


def _padded(vectors: Floats) -> Floats:
    """Vectors (n, d) with zeros to the length that the index asks for, which changes no dot product."""
    missing = -vectors.shape[1] % _ROUND
    return np.pad(vectors, ((0, 0), (0, missing))) if missing else np.ascontiguousarray(vectors)


def _candidates(table: Any, vector: Floats, depth: int, probes: int) -> Rows:
    query = (
        table.search(_padded(vector[None])[0], vector_column_name="vector")
        .distance_type("dot")
        .nprobes(probes)
    )
    # Without its distance, which nobody reads, LanceDB complains.
    found = query.limit(depth).select(["place", "_distance"]).to_arrow()
    places: Rows = found["place"].to_numpy()
    return places


def _tune(table: Any, vectors: Floats, sample: Floats, recall: float) -> Tuned | None:
    """The cheapest reading that finds enough; None when none does."""
    rng = np.random.default_rng(0)
    queries = sample[np.sort(rng.choice(len(sample), min(_SAMPLE, len(sample)), replace=False))]
    truth = _exact(queries, vectors)
    most = max(8, int(len(vectors) ** 0.5))
    every = [(depth, probes) for depth in _DEPTHS for probes in (8, 16, 32, 64, 128, 256) if probes <= most]
    for depth, probes in sorted(every, key=lambda one: one[0] + 10 * one[1]):
        hits = 0
        for vector, true in zip(queries, truth, strict=True):
            places = _candidates(table, vector, depth, probes)
            best = places[np.argsort(-(rows_of(vectors, places) @ vector))[:10]]
            hits += len(np.intersect1d(best, true))
        found = hits / (10 * len(queries))
        if found >= recall + (1 - recall) / 4:  # a sample may flatter
            return Tuned(depth, probes, round(found, 4))
    return None


def _exact(queries: Floats, vectors: Floats) -> Rows:
    """The ten nearest places of each query (q, 10)."""
    names = np.empty((len(queries), 0), np.int64)
    scores = np.empty((len(queries), 0), np.float32)
    for start in range(0, len(vectors), 8 * _BATCH):
        let_go(vectors)
        found = queries @ vectors[start : start + 8 * _BATCH].T
        names = np.concatenate(
            [names, np.arange(start, start + found.shape[1])[None].repeat(len(found), 0)], 1
        )
        scores = np.concatenate([scores, found], 1)
        best = np.argpartition(-scores, min(10, scores.shape[1] - 1), axis=1)[:, :10]
        names, scores = np.take_along_axis(names, best, 1), np.take_along_axis(scores, best, 1)
    return names
