"""The score by which checkpoints are told apart: nDCG@10 of the dense leg on dev questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from searchfit.config import ModelSettings, TrainSettings
from searchfit.encoders.sentence import SentenceEncoder
from searchfit.fusion import Block, Floats, Rows, dense_scores
from searchfit.mining import Taking
from searchfit.records import Engine
from searchfit.similarity import log_scores, score_pairs
from searchfit.training.towers import Towers

_POOL = 20_000
"""Passages ranked at most where their vectors are known."""


@dataclass(frozen=True, slots=True)
class DevQueries:
    """Dev questions and the row of the passage that answers each."""

    texts: list[str]
    own: Rows


class DevScore:
    """Ranks a pool of passages, those that answer and others drawn by chance, for each dev question.

    With frozen passages the engine's units are scored as they are served; passages that are tuned too are
    encoded anew each time, whole, so their pool is smaller.
    """

    def __init__(
        self,
        towers: Towers,
        model: ModelSettings,
        engine: Engine,
        corpus: Taking,
        texts: Callable[[Rows], Sequence[str]],
    ) -> None:
        self._towers, self._model, self._engine = towers, model, engine
        self._corpus, self._texts = corpus, texts
        self._queries = DevQueries([], np.empty(0, np.int64))
        self._pool: Rows = np.empty(0, np.int64)

    def ask(self, queries: DevQueries, settings: TrainSettings, seed: int) -> DevScore:
        """Draw the questions and the pool."""
        random = np.random.default_rng(seed)
        chosen = np.sort(random.permutation(len(queries.texts))[: settings.dev_queries])
        own = queries.own[chosen]
        self._queries = DevQueries([queries.texts[i] for i in chosen], own)
        most = settings.dev_passages if self._towers.document is not None else _POOL
        others = random.permutation(self._corpus.count)[:most]
        self._pool = np.union1d(own, others)[: max(most, len(own))]
        self._pool = np.union1d(self._pool, own)
        return self

    def __len__(self) -> int:
        """How many questions."""
        return len(self._queries.texts)

    def __call__(self, step: int) -> float:  # noqa: ARG002 - the weights are what they are
        """Mean nDCG@10 after a step; each question has one right answer."""
        queries = self.encoder("query").encode_queries(self._queries.texts)
        scores = dense_scores(self._scored, queries, self._block())
        right = np.searchsorted(self._pool, self._queries.own)
        own = scores[np.arange(len(scores)), right]
        # An equal score counts as better, so that a model which tells nothing apart gains nothing by it.
        ranks = (scores >= own[:, None]).sum(axis=1)
        return float(_gain(ranks).mean())

    @property
    def _scored(self) -> Engine:
        if self._towers.document is None:
            return self._engine
        return Engine("dev", units="passage", keyword_weight=0)

    def _block(self) -> Block:
        if self._towers.document is None:
            return self._corpus.take(self._pool)
        vectors: Floats = self.encoder("document").encode_documents(list(self._texts(self._pool)))
        none = np.empty((0, vectors.shape[1]), np.float32)
        rows = np.zeros(len(vectors), np.int32)
        return Block(0, rows, vectors, none, np.zeros(len(vectors) + 1, np.int64))

    @property
    def frozen(self) -> bool:
        """Whether passages keep their vectors."""
        return self._towers.document is None

    def encoder(self, task: str) -> SentenceEncoder:
        """The tower of "query" or, where passages are not frozen, "document", as it is now."""
        return SentenceEncoder(self._towers.part("query" if task == "query" else "document"), self._model)


class DevPairs:
    """Measures as a DevScore does, and logs how the cosines of labelled dev pairs (query, text, label) agree
    with their labels: a row of `file` each time, see `similarity.score_pairs`. `untuned` reads the texts
    where passages are frozen."""

    def __init__(
        self,
        dev: DevScore,
        pairs: Sequence[tuple[str, str, float]],
        untuned: SentenceEncoder,
        file: Path,
        per_epoch: int,
    ) -> None:
        self._dev, self._file, self._per_epoch = dev, file, per_epoch
        self._queries = [query for query, _, _ in pairs]
        self._texts = [text for _, text, _ in pairs]
        self._labels = np.array([label for _, _, label in pairs])
        self._known = untuned.encode_documents(self._texts) if dev.frozen else None

    def __call__(self, step: int) -> float:
        """The DevScore after a step; the log has one row more."""
        asked = self._dev.encoder("query").encode_queries(self._queries)
        known = self._known
        answers = self._dev.encoder("document").encode_documents(self._texts) if known is None else known
        lengths = np.linalg.norm(asked, axis=1) * np.linalg.norm(answers, axis=1)
        cosines = (asked * answers).sum(axis=1) / np.maximum(lengths, 1e-12)
        place = {"epoch": step / self._per_epoch, "step": step}
        log_scores(self._file, place, score_pairs(cosines, self._labels))
        return self._dev(step)


def _gain(ranks: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0)
