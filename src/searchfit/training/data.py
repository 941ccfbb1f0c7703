"""What is learnt from: queries, texts, which text answers which query, which does not, and how well."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from searchfit.fusion import Rows, Vectors
from searchfit.records import LabelledPair
from searchfit.training.tokens import TokenTable
from searchfit.training.towers import TOWER, Towers

if TYPE_CHECKING:
    import torch

    from searchfit.training.towers import Features

Labels = npt.NDArray[np.float32]

ABSENT = -1
"""In `rows`: no text."""

_SPACE = re.compile(r"\s+")


def normalised(text: str) -> str:
    """A text as duplicates are told by: without case and with single spaces."""
    return _SPACE.sub(" ", text).strip().casefold()


@dataclass(frozen=True)
class TrainingSet:
    """`queries` (n) and `texts` (m); rows (n, 1 + k) are the texts of each query: one, then k that do not
    answer it, -1 where there is none. labels are None (the first text answers), (n) for the first text (1
    answers, 0 does not, or how similar the two are) or (n, 1 + k): a teacher's scores of all of them.

    A negative is dropped (`dropped` says how many) when it is the query's own text, stands twice, or is known
    to answer the same query elsewhere in the set; the rest move left.
    """

    queries: list[str]
    texts: list[str]
    rows: npt.NDArray[np.int64]
    labels: Labels | None = None
    dropped: int = 0

    def __post_init__(self) -> None:
        """Refuse shapes that do not fit (ValueError) and drop negatives that are none."""
        n = len(self.queries)
        if self.rows.ndim != 2 or len(self.rows) != n or self.rows.shape[1] < 1:
            raise ValueError(f"rows have the shape {self.rows.shape}, expected ({n}, 1 + negatives)")
        if self.labels is not None and self.labels.shape not in ((n,), self.rows.shape):
            raise ValueError(
                f"labels have the shape {self.labels.shape}, expected ({n},) or {self.rows.shape}"
            )
        if n and (self.rows[:, 0].min() < 0 or self.rows.max() >= len(self.texts)):
            raise ValueError("rows point outside the texts")
        rows, labels = _without_known(self)
        dropped = int((self.rows != ABSENT).sum() - (rows != ABSENT).sum())
        for name, value in (("rows", rows), ("labels", labels), ("dropped", self.dropped + dropped)):
            object.__setattr__(self, name, value)

    @classmethod
    def from_pairs(cls, pairs: Iterable[LabelledPair]) -> TrainingSet:
        """From labelled pairs; texts that stand several times are kept once. Pairs that all have the label 1
        make a set without labels."""
        pairs = list(pairs)
        numbers: dict[str, int] = {}
        found = [
            [numbers.setdefault(text, len(numbers)) for text in (pair.text, *pair.negatives)]
            for pair in pairs
        ]
        width = max(map(len, found), default=1)
        rows = np.array([own + [ABSENT] * (width - len(own)) for own in found], np.int64).reshape(-1, width)
        labels = np.array([pair.label for pair in pairs], np.float32)
        return cls(
            [pair.query for pair in pairs], list(numbers), rows, None if (labels == 1).all() else labels
        )

    @classmethod
    def from_mined(
        cls,
        queries: Sequence[str],
        texts: Sequence[str],
        positives: Rows,
        negatives: Rows,
        scores: Labels | None = None,
    ) -> TrainingSet:
        """From mined arrays: positives (n), negatives (n, k) with -1 for none, both rows of `texts`, and the
        teacher's scores (n, 1 + k). Only the texts that are pointed to are kept."""
        rows = np.concatenate([np.reshape(positives, (-1, 1)), negatives], axis=1).astype(np.int64)
        used, place = np.unique(rows[rows != ABSENT], return_inverse=True)
        compact = np.full(rows.shape, ABSENT, np.int64)
        compact[rows != ABSENT] = place
        return cls(list(queries), [texts[i] for i in used], compact, scores)

    def __len__(self) -> int:
        """How many queries."""
        return len(self.queries)

    @property
    def negatives(self) -> int:
        """How many negatives a query has at most."""
        return int(self.rows.shape[1]) - 1

    @cached_property
    def widths(self) -> npt.NDArray[np.int64]:
        """(n) how many texts each query has: 1 and its negatives."""
        return np.asarray((self.rows != ABSENT).sum(axis=1), np.int64)

    @cached_property
    def query_keys(self) -> npt.NDArray[np.int64]:
        """(n) numbers that are equal where queries are, but for case and spaces."""
        return _keys(self.queries)

    @cached_property
    def text_keys(self) -> npt.NDArray[np.int64]:
        """(m) numbers that are equal where texts are, but for case and spaces."""
        return _keys(self.texts)

    @cached_property
    def positives(self) -> list[frozenset[int]]:
        """By query key: the keys of all texts that are known to answer the query."""
        sure = np.ones(len(self), bool)
        if self.labels is not None and self.labels.ndim == 1:
            sure = self.labels > 0
        found: list[set[int]] = [set() for _ in range(int(self.query_keys.max(initial=-1)) + 1)]
        texts = self.text_keys[self.rows[:, 0]]
        for query, text in zip(self.query_keys[sure].tolist(), texts[sure].tolist(), strict=True):
            found[query].add(text)
        return [frozenset(own) for own in found]

    def as_labelled(self) -> TrainingSet:
        """The same as pairs: each query's text with its label or 1, each of its negatives with 0."""
        row, column = np.nonzero(self.rows != ABSENT)
        own = self.labels if self.labels is not None and self.labels.ndim == 1 else np.ones(len(self))
        labels = np.where(column == 0, own[row], 0).astype(np.float32)
        queries = [self.queries[i] for i in row]
        return TrainingSet(queries, self.texts, self.rows[row, column][:, None], labels, self.dropped)

    def take(self, rows: Rows) -> TrainingSet:
        """Some of the queries, all texts."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, queries=[self.queries[i] for i in rows], rows=self.rows[rows], labels=labels)


class Feed:
    """Turns rows of a training set into what a loss reads; every text is tokenised once, for its tower.

    `vectors` (m, d) are the frozen vectors of the set's texts, for towers that learn queries only.
    """

    def __init__(self, data: TrainingSet, towers: Towers, vectors: Vectors | None = None) -> None:
        if (vectors is None) != (towers.document is not None):
            raise ValueError("vectors are for towers with a frozen document side, and those need them")
        if vectors is not None and len(vectors) != len(data.texts):
            raise ValueError(f"{len(vectors)} vectors for {len(data.texts)} texts")
        self.data, self.device, self.vectors = data, towers.device, vectors
        self.queries = TokenTable.build(towers.query, data.queries, "query")
        self.texts = (
            TokenTable.build(towers.part("document"), data.texts, "document") if vectors is None else None
        )

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(n) tokens that each query's texts cost at most, by which like batches are made."""
        if self.texts is None:
            return self.queries.lengths
        own = np.where(self.data.rows == ABSENT, 0, self.texts.lengths[self.data.rows])
        return np.asarray(own.max(axis=1) * 512 + self.queries.lengths)

    def batch(self, rows: Rows) -> tuple[list[Features], torch.Tensor | None]:
        """Features of the queries and of each column of texts, and the labels (b) or (b, columns).

        Queries of one batch have equally many texts (`Batches` sees to that).
        """
        import torch

        columns = int(self.data.widths[rows].min())
        features = [self.queries.collate(rows, self.device) | {TOWER: "query"}]
        features += [self._texts(self.data.rows[rows, column]) for column in range(columns)]
        if self.data.labels is None:
            return features, None
        labels = self.data.labels[rows]
        return features, torch.from_numpy(labels[:, :columns] if labels.ndim == 2 else labels).to(self.device)

    def _texts(self, rows: Rows) -> dict[str, Any]:
        import torch

        if self.texts is None:
            return {"sentence_embedding": torch.from_numpy(np.asarray(self.vectors)[rows]).to(self.device)}
        return self.texts.collate(rows, self.device) | {TOWER: "document"}


def _keys(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(normalised(text), len(numbers)) for text in texts], np.int64)


def _without_known(data: TrainingSet) -> tuple[npt.NDArray[np.int64], Labels | None]:
    """Rows and labels without negatives that are known positives or stand twice, the rest moved left."""
    rows = data.rows.copy()
    keys, positives = data.text_keys, data.positives
    for place, query in enumerate(data.query_keys.tolist() if data.negatives else ()):
        seen = {int(keys[rows[place, 0]]), *positives[query]}
        for column in range(1, rows.shape[1]):
            if rows[place, column] != ABSENT:
                key = int(keys[rows[place, column]])
                if key in seen:
                    rows[place, column] = ABSENT
                seen.add(key)
    order = np.argsort(rows == ABSENT, axis=1, kind="stable")
    labels = data.labels
    if labels is not None and labels.ndim == 2:
        labels = np.take_along_axis(labels, order, axis=1)
    return np.take_along_axis(rows, order, axis=1), labels
