"""Training a re-ranker: each query's own passage against what the teacher ranks high and does not answer.

The objectives: listwise, a softmax over the own passage and its negatives (Gao, Dai and Callan 2021, "Rethink
training of BERT rerankers in multi-stage retrieval pipeline"); bce, binary cross-entropy of single pairs
(Nogueira and Cho 2019, "Passage re-ranking with BERT"); margin-mse, the teacher's margins (Hofstaetter et al.
2020, "Improving efficient neural ranking models with cross-architecture knowledge distillation").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from searchfit.config import MineSettings, RerankTrainingSettings
from searchfit.encoders.cross import CrossEncoder
from searchfit.encoders.device import on_device
from searchfit.fusion import Floats, Rows

if TYPE_CHECKING:
    import torch

Texts = Callable[[Rows], list[str]]

_TEXTS = 10  # in one forward pass on a CPU, beside whose caches a larger one gains nothing


@dataclass(frozen=True, slots=True)
class Contrasts:
    """Queries (n) with their own passages (n), the teacher's scores of those (n), and the passages that are
    taken for wrong answers (n, d; -1 where there are fewer) with the teacher's scores of them."""

    queries: list[str]
    own: Rows
    own_scores: Floats
    wrong: Rows
    wrong_scores: Floats

    @classmethod
    def load(
        cls,
        mined: Path,
        documents: npt.NDArray[np.int32],
        settings: RerankTrainingSettings,
        mine: MineSettings,
        seed: int,
    ) -> Contrasts:
        """From the artefact of the mine stage; `documents` are those of the passages.

        A candidate of the teacher's first ranks is taken for wrong when it is of another document and scores
        below the own passage by the margins of the mine stage. Queries without any are left out.
        """
        table = pq.read_table(mined / "queries.parquet")
        names = ("passages", "scores", "own_scores")
        candidates, scores, own_scores = (np.load(mined / f"{name}.npy") for name in names)
        own = table["passage"].to_numpy().astype(np.int64)
        # A labelled answer was lifted above all others among the candidates.
        is_own = candidates == own[:, None]
        lifted = np.where(is_own, scores, -np.inf).max(axis=1, initial=-np.inf)
        own_scores = np.maximum(own_scores, lifted).astype(np.float32)
        limit = own_scores - mine.absolute_margin - mine.relative_margin * np.abs(own_scores)
        wrong, wrong_scores = candidates[:, : settings.depth], scores[:, : settings.depth]
        fine = (documents[wrong] != documents[own][:, None]) & (wrong_scores <= limit[:, None]) & (wrong >= 0)
        some = np.flatnonzero(fine.any(axis=1))
        some = np.sort(np.random.default_rng(seed).permutation(some)[: settings.max_queries])
        return cls(
            table["text"].take(some).to_pylist(),
            own[some],
            own_scores[some],
            np.where(fine, wrong, -1)[some],
            wrong_scores[some],
        )

    def __len__(self) -> int:
        """How many queries."""
        return len(self.queries)

    def lists(self, batch: Rows, count: int, random: np.random.Generator) -> tuple[Rows, Floats]:
        """(b, 1 + count) passages and the teacher's scores: the own one, then wrong ones drawn by chance,
        some more than once where there are fewer."""
        rows, scores = (
            np.empty((len(batch), 1 + count), np.int64),
            np.empty((len(batch), 1 + count), np.float32),
        )
        rows[:, 0], scores[:, 0] = self.own[batch], self.own_scores[batch]
        for place, query in enumerate(batch.tolist()):
            there = random.permutation(np.flatnonzero(self.wrong[query] >= 0))
            drawn = np.resize(there, count)
            rows[place, 1:], scores[place, 1:] = self.wrong[query, drawn], self.wrong_scores[query, drawn]
        return rows, scores


class RerankCourse:
    """The steps over the contrasts: each epoch shuffles the queries and draws new negatives, by the seed."""

    def __init__(
        self, settings: RerankTrainingSettings, seed: int, model: CrossEncoder, data: Contrasts, texts: Texts
    ) -> None:
        self.settings, self.seed, self.model, self.data, self.texts = settings, seed, model, data, texts
        self.per_epoch = -(-len(data) // settings.batch_size)

    @property
    def steps(self) -> int:
        """Steps in all epochs."""
        return self.per_epoch * self.settings.epochs

    @property
    def parts(self) -> int:
        """In how many forward passes a step is taken: a few texts at a time where memory is a computer's."""
        queries = max(1, _TEXTS // (1 + self.settings.negatives))
        return 1 if self.model.model.device.type == "cuda" else -(-self.settings.batch_size // queries)

    def loss(self, step: int, part: int) -> torch.Tensor:
        """The loss of one part of a step's queries; the mean over the parts is that over the queries."""
        size = self.settings.batch_size
        epoch, place = divmod(step, self.per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.data))
        # The last batch is filled up from the first one.
        batch = np.resize(order, self.per_epoch * size)[place * size :][:size]
        own = np.array_split(batch, self.parts)[part]
        random = np.random.default_rng([self.seed, epoch, place, part])
        rows, teacher = self.data.lists(own, self.settings.negatives, random)
        queries = [self.data.queries[query] for query in np.repeat(own, rows.shape[1]).tolist()]
        scores = self.scores(queries, self.texts(rows.ravel())).reshape(rows.shape)
        return rerank_loss(self.settings.objective, scores, teacher) * (len(own) * self.parts / size)

    def scores(self, queries: list[str], texts: list[str]) -> torch.Tensor:
        """(n) raw scores of pairs, differentiable."""
        model = self.model.model
        features = model.preprocess(list(zip(queries, texts, strict=True)))
        features = {key: on_device(value, model.device) for key, value in features.items()}
        found: torch.Tensor = model(features)["scores"].float()
        return found


def rerank_loss(objective: str, scores: torch.Tensor, teacher: Floats) -> torch.Tensor:
    """The mean loss of raw scores (b, 1 + n), the own passage first, of which the teacher's scores are
    `teacher` (b, 1 + n)."""
    import torch
    from torch.nn import functional

    if objective == "listwise":
        return functional.cross_entropy(
            scores, torch.zeros(len(scores), dtype=torch.long, device=scores.device)
        )
    if objective == "bce":
        right, wrong = scores[:, 0], scores[:, 1:]
        # Right and wrong weigh the same, however many negatives there are.
        return (functional.softplus(-right).mean() + functional.softplus(wrong).mean()) / 2
    taught = torch.from_numpy(teacher).to(scores.device)
    return functional.mse_loss(scores[:, :1] - scores[:, 1:], taught[:, :1] - taught[:, 1:])
