"""Late interaction: a passage is scored by how well each word of the question is met by some word of it.

Khattab and Zaharia 2020, "ColBERT: Efficient and effective passage search via contextualized late interaction
over BERT", with the token vectors of an ordinary bi-encoder as they are, untrained. Word vectors of passages
keep one bit a dimension, those of questions stay whole: that loses nothing that could be measured, and a word
takes 48 bytes in place of 1,536 (docs/lab.md). The words are read only of the best passages of a first
ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from searchfit.fusion import DECIMALS, Corpus, Floats, Ranking, Rows, Vectors, gathered, rank
from searchfit.records import Engine

Bits = npt.NDArray[np.uint8]

Tokens = tuple[Vectors, npt.NDArray[np.int64]]
"""The tokens of a question: vectors (t, d), and each one's (start, end) in its text (t, 2)."""

NO_TOKENS: Tokens = (np.empty((0, 0), np.float32), np.empty((0, 2), np.int64))

_RARITY = 0.25
"""A word of the question weighs its idf to this power: rare words count somewhat more than others."""

_PASSAGES = 128  # whose words are unpacked at once


@dataclass(frozen=True, slots=True)
class QuestionWords:
    """The words of a question: unit vectors (t, d), less the corpus's centre and of unit length again, and
    weights (t) that sum to 1. Both are empty for a question without a word."""

    vectors: Vectors
    weights: Floats

    @classmethod
    def of(cls, tokens: Vectors, weights: Floats, centre: Floats) -> QuestionWords:
        """From token vectors (t, d) as the encoder gives them and weights (t) of any sum."""
        kept = weights > 0
        if not kept.any():
            return cls(np.empty((0, len(centre)), np.float32), np.empty(0, np.float32))
        return cls(centred(tokens[kept], centre), weights[kept] / max(float(weights.sum()), 1e-9))


@dataclass(frozen=True, slots=True)
class PassageWords:
    """The words of passages (n) as bits (m, ceil(d / 8)), one after another: bits[offsets[i]:offsets[i + 1]]
    are those of passage i."""

    bits: Bits
    offsets: Rows

    def take(self, rows: Rows) -> PassageWords:
        """Those of these passages, in the order asked."""
        places, offsets = gathered(self.offsets, rows)
        return PassageWords(self.bits[places], offsets)


def joined_words(parts: Sequence[Bits]) -> PassageWords:
    """The words of passages of which each has its own bits (m, size)."""
    offsets = np.cumsum([0, *map(len, parts)]).astype(np.int64)
    return PassageWords(np.concatenate(parts) if parts else np.empty((0, 0), np.uint8), offsets)


class Words(Protocol):
    """Where the words of passages are kept, as `take` gives them by row, and the centre (d) of the corpus."""

    @property
    def centre(self) -> Floats:
        """(d) the mean of the corpus's token vectors."""

    def take(self, rows: Rows) -> PassageWords:
        """The words of these passages, in the order asked."""


class Worded(Protocol):
    """What the keyword index of a corpus knows of the words of questions."""

    def spans(self, text: str) -> Iterable[tuple[str, int, int]]:
        """The index terms of a text, at (term, start, end)."""

    def idf(self, term: str) -> float:
        """Rarity of a term."""


@dataclass(frozen=True, slots=True)
class HeldWords:
    """`Words` in arrays, in memory or mapped."""

    held: PassageWords
    centre: Floats

    def take(self, rows: Rows) -> PassageWords:
        """The words of these passages, in the order asked."""
        return self.held.take(rows)


def centred(vectors: Vectors, centre: Floats) -> Vectors:
    """Vectors (n, d) to unit length, less the centre, to unit length again. Token vectors of an encoder all
    lean one way; without that lean what they differ in counts for more."""
    return _unit(_unit(vectors) - centre)


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-9), np.float32)


def pack(words: Vectors) -> Bits:
    """The signs of centred word vectors (n, d) as bits (n, ceil(d / 8))."""
    return np.packbits(words > 0, axis=1)


def word_weights(
    spans: Sequence[tuple[int, int]], terms: Sequence[tuple[str, int, int]], idf: Callable[[str], float]
) -> Floats:
    """(t) weights of a question's tokens, at (start, end) of its text, by the idf of the index terms, at
    (term, start, end), that they stand in; 0 for punctuation."""
    weights = np.zeros(len(spans), np.float32)
    for place, (start, end) in enumerate(spans):
        found = [idf(term) for term, a, b in terms if a <= start and end <= b]
        if found:
            weights[place] = max(sum(found) / len(found), 1e-6) ** _RARITY
    return weights


def interaction(questions: Sequence[QuestionWords], words: Words, query: Rows, rows: Rows) -> Floats:
    """(p) scores of questions `query` (p, numbers of them) with passages `rows` (p): over the words of the
    question the weighted mean of the best cosine with a word of the passage; 0 where either has none."""
    scores = np.zeros(len(rows), np.float32)
    order = np.argsort(rows, kind="stable")
    distinct, starts = np.unique(rows[order], return_index=True)
    borders = np.append(starts, len(rows))
    for first in range(0, len(distinct), _PASSAGES):
        taken = words.take(distinct[first : first + _PASSAGES])
        bits = np.unpackbits(taken.bits, axis=1, count=len(words.centre)).astype(np.float32)
        own = order[borders[first] : borders[first + len(taken.offsets) - 1]]
        asked = np.unique(query[own])
        if len(own) == len(asked) * (len(taken.offsets) - 1) and len(bits):
            # Every question with every passage: one product, as when one question is searched for.
            found = _met([questions[number] for number in asked], bits, taken.offsets)
            scores[own] = found[
                np.searchsorted(distinct, rows[own]) - first, np.searchsorted(asked, query[own])
            ]
            continue
        for place, (begin, end) in enumerate(pairwise(taken.offsets)):
            own = order[borders[first + place] : borders[first + place + 1]]
            if end > begin:
                alone = np.array([0, end - begin])
                scores[own] = _met([questions[number] for number in query[own]], bits[begin:end], alone)[0]
    return scores


def _met(questions: Sequence[QuestionWords], bits: Floats, offsets: Rows) -> Floats:
    """(n, q) scores of questions with passages, whose words are bits of 0 and 1 (m, d); 0 for one without."""
    import torch

    vectors = np.concatenate([question.vectors for question in questions])
    if not len(vectors):
        return np.zeros((len(offsets) - 1, len(questions)), np.float32)
    # By torch, whose threads do not spin when they wait.
    products = (torch.from_numpy(bits) @ torch.from_numpy(vectors).T).numpy()
    there = offsets[1:] > offsets[:-1]
    best = np.zeros((len(there), len(vectors)), np.float32)
    best[there] = np.maximum.reduceat(products, offsets[:-1][there], axis=0)
    # With signs s = 2b - 1 of length sqrt(d), the cosine of q and s is (2 q.b - sum of q) / sqrt(d).
    cosines = (2 * best - vectors.sum(axis=1)) / np.float32(np.sqrt(bits.shape[1]))
    weighted = np.concatenate([question.weights for question in questions]) * cosines
    sums = np.zeros((len(there), len(vectors) + 1))
    np.cumsum(weighted, axis=1, dtype=np.float64, out=sums[:, 1:])
    lengths = np.array([len(question.weights) for question in questions])
    ends = np.cumsum(lengths)
    return np.asarray((sums[:, ends] - sums[:, ends - lengths]) * there[:, None], np.float32)


class WordScores:
    """The scores of some questions with passages. Each pair is scored once, however many engines ask."""

    def __init__(self, questions: Sequence[QuestionWords], words: Words) -> None:
        self._questions, self._words = questions, words
        self._keys: Rows = np.empty(0, np.int64)
        self._values: Floats = np.empty(0, np.float32)

    def __call__(self, rows: Rows) -> Floats:
        """(q, c) scores of the questions (q) with passages `rows` (q, c), -inf where a row is -1."""
        numbers = np.broadcast_to(np.arange(len(rows))[:, None], rows.shape)
        there = rows >= 0
        keys = rows[there] * len(self._questions) + numbers[there]
        new = np.setdiff1d(keys, self._keys)
        if len(new):
            row, query = np.divmod(new, len(self._questions))
            found = interaction(self._questions, self._words, query, row)
            every = np.concatenate([self._keys, new])
            order = np.argsort(every, kind="stable")
            self._keys, self._values = every[order], np.concatenate([self._values, found])[order]
        scores = np.full(rows.shape, -np.inf, np.float32)
        scores[there] = self._values[np.searchsorted(self._keys, keys)]
        return scores


def read_words(
    corpus: Worded, words: Words, texts: Sequence[str], tokens: Sequence[Tokens]
) -> list[QuestionWords]:
    """The words of questions (q), by their tokens, as those of a corpus's passages are compared with them."""
    questions = []
    for text, (vectors, spans) in zip(texts, tokens, strict=True):
        weights = word_weights(spans.tolist(), list(corpus.spans(text)), corpus.idf)
        questions.append(QuestionWords.of(vectors, weights, words.centre))
    return questions


def word_scores(
    corpus: Worded, words: Words | None, texts: Sequence[str], tokens: Sequence[Tokens]
) -> WordScores | None:
    """The scores of questions (q), by their tokens, with the passages of a corpus whose words are `words`;
    None where there are none."""
    return None if words is None else WordScores(read_words(corpus, words, texts, tokens), words)


@dataclass(frozen=True, slots=True)
class Questions:
    """Questions (q) as an engine reads them: texts, vectors (q, d), and the scores of their words; None where
    the corpus or the engines have none."""

    texts: Sequence[str]
    vectors: Vectors
    words: WordScores | None = None


def by_vectors(engine: Engine) -> Engine:
    """What an engine ranks before it looks at words; the name, which is that of the whole, is left out."""
    return replace(engine, name="", token_weight=0.0, token_depth=0)


def rank_words(
    engines: Sequence[Engine],
    corpus: Corpus,
    asked: Questions,
    k: int,
    allowed: npt.NDArray[np.bool_] | None = None,
) -> list[Ranking]:
    """`fusion.rank`, with the words of the first results where engines look at them. Raises ValueError where
    they do and none were read."""
    bases = list(dict.fromkeys(by_vectors(engine) for engine in engines))
    deep = max([k, *(engine.token_depth for engine in engines)])
    ranked = rank(bases, corpus, asked.vectors, asked.texts, deep, allowed)
    first = dict(zip(bases, ranked, strict=True))
    found = []
    for engine in engines:
        ranking = first[by_vectors(engine)]
        if engine.token_weight:
            if asked.words is None:
                raise ValueError(f"{engine.name} looks at words, and there are none.")
            ranking = interact(engine, ranking, asked.words(ranking.rows[:, : engine.token_depth]))
        found.append(Ranking(ranking.rows[:, :k], ranking.scores[:, :k]))
    return found


def interact(engine: Engine, ranking: Ranking, words: Floats) -> Ranking:
    """A ranking (q, k) by the engine's first stage, its head re-ordered by the scores of words (q, c) of the
    first c places, -inf where there is nothing; see `reorder`."""
    there = np.isfinite(words)
    head = ranking.scores[:, : words.shape[1]] + engine.token_weight * np.where(there, words, 0.0)
    scores, order = reorder(ranking.scores, np.where(there, head, -np.inf))
    return Ranking(np.take_along_axis(ranking.rows, order, 1), scores)


def reorder(first: Floats, heads: Floats) -> tuple[Floats, Rows]:
    """Scores (q, k), falling, and the place in the first ranking that each stands for.

    `first` (q, k) are first-stage scores, falling, -inf where there is nothing; `heads` (q, c) the new scores
    of the first c places. What follows the head keeps its order, below it. Rounded to six decimals, as
    first-stage scores are; ties keep the first order.
    """
    scores = first.astype(np.float64)
    order = np.tile(np.arange(first.shape[1]), (len(first), 1))
    for query, own in enumerate(heads):
        head = int(np.isfinite(own).sum())
        if not head:
            continue
        stage = np.rint(own[:head].astype(np.float64) * DECIMALS) / DECIMALS
        own_order = np.argsort(-stage, kind="stable")
        order[query, :head], scores[query, :head] = own_order, stage[own_order]
        tail = scores[query, head:]
        if len(tail) and np.isfinite(tail[0]):
            tail -= max(0.0, float(tail[0] - scores[query, head - 1]))
    return scores.astype(np.float32), order
