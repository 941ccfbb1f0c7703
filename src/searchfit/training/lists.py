"""Learning a teacher's ranking by the query tower alone, over frozen passages and sentences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from searchfit.fusion import Floats, Rows
from searchfit.mining import Taking

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Lists:
    """For each training query its candidate passages and the teacher's scores, with the vectors to score.

    The student's score is the engine's own dense leg (passage, best sentence, or the mean of both), so what
    is trained is what is served.
    """

    corpus: Taking
    units: str
    similarity: str
    candidates: Rows
    scores: Floats
    negatives: Rows
    negative_scores: Floats
    weight: float = 1.0

    @classmethod
    def load(
        cls, mined: Path, corpus: Taking, units: str, similarity: str, queries: Rows, weight: float = 1.0
    ) -> Lists:
        """The lists of some of the mined queries; "cosine" takes query vectors of any length. `weight` is
        that of the engine's dense leg: student and teacher score on one scale."""
        names = ("passages", "scores", "negatives", "negative_scores")
        candidates, scores, negatives, negative_scores = (np.load(mined / f"{name}.npy") for name in names)
        return cls(
            corpus,
            units,
            similarity,
            candidates[queries],
            scores[queries],
            negatives,
            negative_scores[queries],
            weight,
        )

    def teacher(self, batch: Rows) -> torch.Tensor:
        """(batch, candidates + negatives) teacher scores."""
        import torch

        return torch.from_numpy(np.concatenate([self.scores[batch], self.negative_scores[batch]], axis=1))

    def student(self, batch: Rows, queries: torch.Tensor) -> torch.Tensor:
        """(batch, candidates + negatives) dense scores of the query vectors, differentiable."""
        import torch

        if self.similarity == "cosine":
            queries = torch.nn.functional.normalize(queries, dim=-1)
        queries = queries * self.weight
        # Each passage of the batch is read and scored once, for every query of the batch.
        rows, place = np.unique(
            np.concatenate([self.candidates[batch].ravel(), self.negatives]), return_inverse=True
        )
        block = self.corpus.take(rows)
        scores = torch.zeros(len(batch), len(rows))
        if self.units != "sentence":
            scores = queries @ torch.from_numpy(block.passages).T
        if self.units != "passage":
            each = queries @ torch.from_numpy(block.sentences).T
            owner = torch.from_numpy(np.repeat(np.arange(len(rows)), np.diff(block.offsets)))
            best = torch.full((len(batch), len(rows)), -torch.inf)
            best = best.scatter_reduce(1, owner.expand_as(each), each, "amax")
            scores = best if self.units == "sentence" else (scores + best) / 2
        split = self.candidates[batch].size
        own = torch.from_numpy(place[:split].reshape(len(batch), -1))
        shared = torch.from_numpy(place[split:])
        return torch.cat([scores.gather(1, own), scores[:, shared]], dim=1)
