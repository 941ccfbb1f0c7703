"""A model that is asked in batches, which an executor works on: in this process or on a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from searchfit.encoders.trained import Trained
from searchfit.executors import LOCAL, Executor, Portable, Work
from searchfit.fusion import Floats, Vectors
from searchfit.interaction import PassageWords, Tokens

if TYPE_CHECKING:
    from searchfit.encoders.sentence import SentenceEncoder

_BATCH = 512  # queries

_Call = tuple[float, str, tuple[Any, ...]]
"""A share of the trained weights, and what the encoder of that merge is asked: a method and its arguments."""


class _Towers:
    """The encoders that shares of trained weights make, of which the last one is kept; pickled as the way to
    load them."""

    def __init__(self, untuned: Portable[SentenceEncoder], trained: Trained | None) -> None:
        self._untuned, self._trained = untuned, trained
        self._last: tuple[float, SentenceEncoder] | None = None

    def __reduce__(self) -> tuple[type[_Towers], tuple[Portable[SentenceEncoder], Trained | None]]:
        return _Towers, (self._untuned, self._trained)

    def __call__(self, share: float) -> SentenceEncoder:
        if self._last is None or self._last[0] != share:
            own = self._untuned.model
            self._last = None  # before the next one takes as much memory
            self._last = share, own if self._trained is None else self._trained.encoder(own, share)
        return self._last[1]


def _answered(towers: _Towers, calls: Iterable[_Call]) -> Iterator[Any]:
    """Work of an executor."""
    for share, method, arguments in calls:
        yield getattr(towers(share), method)(*arguments)


@dataclass(frozen=True, slots=True)
class BatchedEncoder:
    """What `SentenceEncoder` gives, by an executor. Batches are the same whoever works on them, and so are
    the vectors. The model loads where it is asked, at the first question; see `of`."""

    work: Work[_Call, Any]
    executor: Executor
    share: float = 0.0

    @classmethod
    def of(
        cls, untuned: Portable[SentenceEncoder], executor: Executor = LOCAL, trained: Trained | None = None
    ) -> BatchedEncoder:
        """From the model as it is; `trained` are weights for `tower`."""
        return cls(partial(_answered, _Towers(untuned, trained)), executor)

    def tower(self, share: float) -> BatchedEncoder:
        """The model with `share` of the trained weights, by the same workers."""
        return replace(self, share=share)

    @property
    def dimension(self) -> int:
        """Of the vectors."""
        return int(self.encode_queries([]).shape[1])

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """See `SentenceEncoder.encode_queries`."""
        return np.concatenate([*self._each("encode_queries", ((part,) for part in _parts(texts)))])

    def encode_questions(self, texts: Sequence[str]) -> tuple[Vectors, list[Tokens]]:
        """See `SentenceEncoder.encode_questions`."""
        found = list(self._each("encode_questions", ((part,) for part in _parts(texts))))
        return np.concatenate([vectors for vectors, _ in found]), list(
            chain(*(tokens for _, tokens in found))
        )

    def encode_documents(self, batches: Iterable[Sequence[str]]) -> Iterator[Vectors]:
        """The vectors (n, d) of each batch of n texts by the document tower, as it is done."""
        return self._each("encode_documents", ((texts,) for texts in batches))

    def encode_passages(
        self, texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]], centre: Floats | None
    ) -> tuple[Vectors, Vectors, PassageWords | None]:
        """See `SentenceEncoder.encode_passages`: of so few that they are one batch."""
        ((vectors, units, words),) = self._each("encode_passages", [(texts, spans, centre)])
        return vectors, units, words

    def pieces(self, texts: Sequence[str]) -> float:
        """See `SentenceEncoder.pieces`."""
        (found,) = self._each("pieces", [(texts,)])
        return float(found)

    def _each(self, method: str, calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        asked = ((self.share, method, arguments) for arguments in calls)
        return self.executor.map_batches(self.work, asked)


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """At least one part, an empty one where there is nothing: its vectors have a dimension too."""
    for start in range(0, max(1, len(texts)), _BATCH):
        yield texts[start : start + _BATCH]
