"""Re-ranking: a cross-encoder reads the best passages of a first ranking again, each with the query.

An Engine names its re-ranker, how many places it re-orders and how much it weighs. The same few lines
re-order rankings in evaluation and in search, so that both rank alike.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from searchfit.config import RerankSettings
from searchfit.encoders.cross import CrossEncoder, Precision, sigmoid
from searchfit.executors import LOCAL, Executor, Portable
from searchfit.fusion import Floats, Ranking, Rows
from searchfit.interaction import reorder
from searchfit.records import Engine
from searchfit.writing import write_bytes

FOLDER = "reranker"
"""The name of an engine's re-ranker: the folder beside the index that holds its model."""

Texts = Callable[[Rows], list[str]]

_LEAST_SPREAD = 0.01  # of first-stage scores: where they are all alike, the re-ranker still has a say
_PART = 2048  # pairs read between two writes of what is known


class Reranker:
    """A cross-encoder that scores texts for a query."""

    def __init__(self, model: CrossEncoder) -> None:
        self.model = model

    @classmethod
    def load(cls, name: str, device: str = "auto", precision: Precision = "auto") -> Reranker:
        """Load a folder or a hub id in the layout of sentence-transformers' CrossEncoder.

        Raises ModelError when it is absent, damaged, pickled, needs code of its own, or gives more than one
        score for a pair.
        """
        return cls(CrossEncoder.load(name, device, precision))

    def scores(self, query: str, texts: Sequence[str]) -> Floats:
        """(n) float32 in 0..1, higher is better. A passage's text is its `encoded_text`, title included."""
        return sigmoid(self.raw([query] * len(texts), texts))

    def raw(self, queries: Sequence[str], texts: Sequence[str]) -> Floats:
        """(n) float32 the model's outputs for each query with its text."""
        return self.model.raw(queries, texts)


class PairScores:
    """A re-ranker's raw scores of queries with the passages of a corpus. Each pair is read once, however many
    engines ask for it; with a `file`, what was read before a kill is not read again.

    `load` is called where the executor works, when the first pair has to be read; `texts` gives what an
    encoder sees of passage rows. The file must be a new one for another model or corpus. `read` counts the
    pairs read, in `seconds` of whoever read them.
    """

    def __init__(
        self,
        load: Callable[[], Reranker],
        texts: Texts,
        file: Path | None = None,
        executor: Executor = LOCAL,
    ) -> None:
        self._work, self._executor = partial(_raw_scores, Portable(load)), executor
        self._texts, self._file = texts, file
        self._known: dict[tuple[bytes, int], float] = {}
        self.read, self.seconds = 0, 0.0
        if file is not None and file.exists():
            with np.load(file) as held:
                keys = [row.tobytes() for row in held["queries"]]
                rows, scores = held["rows"].tolist(), held["scores"].tolist()
            self._known = dict(zip(zip(keys, rows, strict=True), scores, strict=True))

    def __call__(self, queries: Sequence[str], rows: Rows) -> Floats:
        """(q, c) scores of queries (q) with passages `rows` (q, c), -inf where a row is -1."""
        keys = [hashlib.blake2b(query.encode(), digest_size=8).digest() for query in queries]
        asked: dict[tuple[bytes, int], str] = {}
        for query, key, own in zip(queries, keys, rows.tolist(), strict=True):
            for row in own:
                if row >= 0 and (key, row) not in self._known:
                    asked[key, row] = query
        self._learn(asked)
        return np.array(
            [
                [self._known[key, row] if row >= 0 else -np.inf for row in own]
                for key, own in zip(keys, rows.tolist(), strict=True)
            ],
            np.float32,
        ).reshape(rows.shape)

    def _learn(self, asked: dict[tuple[bytes, int], str]) -> None:
        pairs = list(asked)
        parts = [pairs[start : start + _PART] for start in range(0, len(pairs), _PART)]
        batches = (
            ([asked[pair] for pair in part], self._texts(np.array([row for _, row in part], np.int64)))
            for part in parts
        )
        found = self._executor.map_batches(self._work, batches)
        for part, (scores, seconds) in zip(parts, found, strict=True):
            self.seconds += seconds
            self.read += len(part)
            self._known.update(zip(part, scores.tolist(), strict=True))
            self._keep()

    def _keep(self) -> None:
        if self._file is not None:
            data = io.BytesIO()
            keys = np.frombuffer(b"".join(key for key, _ in self._known), np.uint8).reshape(-1, 8)
            rows = np.array([row for _, row in self._known], np.int64)
            np.savez(data, queries=keys, rows=rows, scores=np.array([*self._known.values()], np.float32))
            write_bytes(self._file, data.getvalue())


def _raw_scores(
    reranker: Portable[Reranker], batches: Iterable[tuple[Sequence[str], Sequence[str]]]
) -> Iterator[tuple[Floats, float]]:
    """Work of an executor: `Reranker.raw` of queries with their texts, and the seconds that it took."""
    for queries, texts in batches:
        model, started = reranker.model, time.perf_counter()
        scores = model.raw(queries, texts)
        yield scores, time.perf_counter() - started


def with_reranker(engine: Engine, settings: RerankSettings) -> list[Engine]:
    """The engine with the re-ranker of the settings, one for each weight; none where no model is named."""
    return [
        replace(
            engine,
            name=f"{engine.name} re-ranked, weight {weight:g}",
            reranker=FOLDER,
            rerank_depth=settings.depth,
            rerank_weight=weight,
        )
        for weight in (settings.weights if settings.model else ())
    ]


def first_stage(engine: Engine) -> Engine:
    """What the engine ranks before its re-ranker; the name, which is that of the whole, is left out."""
    return replace(engine, name="", reranker="", rerank_depth=0, rerank_weight=0.0)


def rerank(engine: Engine, ranking: Ranking, raw: Floats) -> Ranking:
    """A ranking (q, k) by the engine's first stage, its head re-ordered by a re-ranker's raw scores (q, c) of
    the first c places; see `places`. c is min(k, engine.rerank_depth)."""
    scores, order = places(
        engine, ranking.scores, np.where(ranking.rows[:, : raw.shape[1]] >= 0, raw, -np.inf)
    )
    return Ranking(np.take_along_axis(ranking.rows, order, 1), scores)


def places(engine: Engine, first: Floats, raw: Floats) -> tuple[Floats, Rows]:
    """Scores (q, k), falling, and the place in the first ranking that each stands for, see `reorder`.

    `first` (q, k) are first-stage scores, falling, -inf where there is nothing, `raw` (q, c) the re-ranker's
    of the first c places. The head's scores become first + weight * z, where z are the raw scores, shifted
    to the mean 0 and stretched to the spread of the head's first-stage scores: re-rankers differ in scale,
    and so the weight means the same for all.
    """
    heads = np.full(raw.shape, -np.inf)
    for query, own in enumerate(raw):
        head = int(np.isfinite(own).sum())
        model, stage = own[:head].astype(np.float64), first[query, :head].astype(np.float64)
        spread = model.std() if head else 0.0
        if spread > 0:
            z = (model - model.mean()) * (max(stage.std(), _LEAST_SPREAD) / spread)
            stage = stage + engine.rerank_weight * z
        heads[query, :head] = stage
    return reorder(first, heads)
