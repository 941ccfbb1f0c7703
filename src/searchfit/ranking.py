"""Rankings of many queries over corpora that stages left in folders.

An executor works on batches of queries. Whoever does so maps the folders: only queries and what was found for
them travel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from searchfit.executors import LOCAL, Executor, Portable
from searchfit.fusion import Ranking, SharedKeywords, Vectors
from searchfit.interaction import Questions, Tokens, WordScores, rank_words, word_scores
from searchfit.records import Engine

_BATCH = 256
"""Queries, as many as `fusion.rank` takes at once."""


@dataclass(frozen=True, slots=True)
class Round:
    """Engines that read the queries with one tower and rank one corpus, a `search.ArrayCorpus` or, where no
    engine looks at words, any `fusion.Corpus`. `reader` is the document tower that reads words, None where
    nobody does. Several rounds are about the same passages, with other vectors and the same keywords."""

    corpus: Portable[Any]
    engines: tuple[Engine, ...]
    reader: float | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """Queries (q): texts, vectors (q, d) for each round and, for engines that look at words, their tokens
    (q) by the document tower that reads them, `Round.reader`."""

    texts: Sequence[str]
    vectors: Sequence[Vectors]
    tokens: Mapping[float, Sequence[Tokens]] = field(default_factory=dict)

    def part(self, start: int) -> Asked:
        """A batch of them."""
        part = slice(start, start + _BATCH)
        tokens = {reader: own[part] for reader, own in self.tokens.items()}
        return Asked(self.texts[part], [own[part] for own in self.vectors], tokens)


def rank_rounds(
    rounds: Sequence[Round],
    asked: Asked,
    k: int,
    allowed: npt.NDArray[np.bool_] | None = None,
    executor: Executor = LOCAL,
    told: Callable[[int, int], None] | None = None,
) -> list[Ranking]:
    """The rankings of the queries by each engine of the rounds in turn: see `interaction.rank_words`, and
    `fusion.rank` for `k` and `allowed`. `told` learns of (done, all) queries."""
    count = len(asked.texts)
    parts: list[list[Ranking]] = [[_nothing(k)] for own in rounds for _ in own.engines]
    batches = (asked.part(start) for start in range(0, count, _BATCH))
    done = 0
    for found in executor.map_batches(partial(_ranked, tuple(rounds), k, allowed), batches):
        for own, ranking in zip(parts, found, strict=True):
            own.append(ranking)
        done += min(_BATCH, count - done)
        if told is not None:
            told(done, count)
    return [
        Ranking(np.concatenate([one.rows for one in own]), np.concatenate([one.scores for one in own]))
        for own in parts
    ]


def _ranked(
    rounds: Sequence[Round], k: int, allowed: npt.NDArray[np.bool_] | None, batches: Iterable[Asked]
) -> Iterator[list[Ranking]]:
    """Work of an executor. In a batch, keywords and words are looked up once for all rounds."""
    for asked in batches:
        keywords = SharedKeywords(rounds[0].corpus.model.keyword_scores)
        words: dict[float | None, WordScores | None] = {}
        found: list[Ranking] = []
        for own, vectors in zip(rounds, asked.vectors, strict=True):
            corpus, reader = own.corpus.model, own.reader
            if reader is not None and reader not in words:
                words[reader] = word_scores(corpus, corpus.words, asked.texts, asked.tokens[reader])
            read = Questions(asked.texts, vectors, words.get(reader))
            found += rank_words(own.engines, keywords.over(corpus), read, k, allowed)
        yield found


def _nothing(k: int) -> Ranking:
    return Ranking(np.empty((0, k), np.int64), np.empty((0, k), np.float32))
