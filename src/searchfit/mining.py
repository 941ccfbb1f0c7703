"""Negatives: the passages nearest to each query, and which of them it may learn to keep away from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from searchfit.errors import SettingsError
from searchfit.fusion import CHUNK_SCORES, Block, Corpus, Floats, Ranking, Rows, Vectors, rank
from searchfit.records import Drop, Engine

Legs = Literal["dense", "keyword", "both"]
Flags = npt.NDArray[np.bool_]

_DENSE = Engine("nearest", units="passage", keyword_weight=0.0)
_PAIRS = 4096  # pairs scored at once, so that their vectors stay small


class Taking(Corpus, Protocol):
    """A corpus whose passages can also be had by row; `search.ArrayCorpus` is one."""

    def take(self, rows: Rows) -> Block:
        """These passages as one block, in the order asked."""


@dataclass(frozen=True, slots=True)
class VectorCorpus:
    """Plain (n, d) vectors, such as a memory map, as a corpus without keywords and without sentences: each
    passage is a document of its own."""

    vectors: Vectors

    @property
    def count(self) -> int:
        """Number of passages."""
        return len(self.vectors)

    def keyword_scores(self, queries: Sequence[str]) -> Floats:
        """Raises SettingsError: vectors alone hold no words."""
        raise SettingsError(
            f"{self.count} plain vectors have no words for {len(queries)} queries.",
            "Mine by dense scores, or over a corpus with a keyword index.",
        )

    def take(self, rows: Rows) -> Block:
        """These passages as one block, in the order asked."""
        return self._block(0, np.asarray(self.vectors[rows]), rows)

    def blocks(self, rows: int) -> Iterator[Block]:
        """The blocks in row order."""
        for start in range(0, self.count, rows):
            part = self.vectors[start : start + rows]
            yield self._block(start, part, np.arange(start, start + len(part)))

    def _block(self, start: int, vectors: Vectors, rows: Rows) -> Block:
        none = np.empty((0, self.vectors.shape[1]), np.float32)
        return Block(start, rows.astype(np.int32), vectors, none, np.zeros(len(rows) + 1, np.int64))


def nearest(queries: Vectors, passages: Vectors, k: int, allowed: Flags | None = None) -> Ranking:
    """The k passages of highest dot product for each query, best first: exact, reading `passages` (n, d), in
    memory or mapped, in blocks. `queries` (q, d); `allowed` (n) leaves the others out.

    Memory: the rankings and a few score blocks, whatever n. As everywhere, scores are rounded to six decimals
    and ties go to the earlier row.
    """
    everything = np.ones(len(passages), bool) if allowed is None else allowed
    return rank([_DENSE], VectorCorpus(passages), queries, [""] * len(queries), k, everything)[0]


def leg(engine: Engine, legs: Legs) -> Engine:
    """The engine with only its dense or its keyword leg, with the weight that it has there; or as it is.
    Raises SettingsError for a leg that the engine does not use."""
    weights = {"dense": engine.dense_weight, "keyword": engine.keyword_weight, "both": 1.0}
    if not weights[legs]:
        raise SettingsError(f"{legs} scores are asked for, which the engine {engine.name!r} does not use.")
    return replace(
        engine,
        dense_weight=0.0 if legs == "keyword" else engine.dense_weight,
        keyword_weight=0.0 if legs == "dense" else engine.keyword_weight,
    )


def score_rows(engine: Engine, corpus: Taking, vectors: Vectors, texts: Sequence[str], rows: Rows) -> Floats:
    """(q, c) float32 scores of each query with passages of its own, `rows` (q, c); -inf where a row is -1."""
    scores = np.full(rows.shape, -np.inf, np.float32)
    # Keywords are scored over the whole corpus: of a large one for few queries at once.
    step = max(1, min(_PAIRS // max(1, rows.shape[1]), CHUNK_SCORES // (corpus.count + 1)))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        there = rows[part] >= 0
        query = np.nonzero(there)[0]
        asked = rows[part][there]
        pairs = np.zeros(len(asked), np.float32)
        if engine.keyword_weight and len(asked):
            keyword = corpus.keyword_scores(texts[part]).tocsr()
            pairs += engine.keyword_weight * np.asarray(keyword[query, asked]).ravel()
        if engine.dense_weight and len(asked):
            pairs += engine.dense_weight * _pairwise(engine, vectors[part][query], corpus.take(asked))
        scores[part][there] = pairs
    return scores


def _pairwise(engine: Engine, vectors: Vectors, block: Block) -> Floats:
    """(n) similarities of vector i to the units of passage i, as `dense_scores` has them for all pairs."""
    whole: Floats = np.einsum("nd,nd->n", vectors, np.asarray(block.passages, np.float32))
    if engine.units == "passage":
        return whole
    of_sentence = np.repeat(vectors, np.diff(block.offsets), axis=0)
    each = np.einsum("md,md->m", of_sentence, np.asarray(block.sentences, np.float32))
    best: Floats = np.maximum.reduceat(each, block.offsets[:-1])
    return best if engine.units == "sentence" else (whole + best) * np.float32(0.5)


@dataclass(frozen=True, slots=True)
class NegativeOptions:
    """Which candidates become negatives. Rules first leave candidates out; ranks are counted among the rest.

    `count` negatives a query, of them `random_share` (0..1) drawn from all allowed passages and the others
    hard ones from the ranking: after the first `skip`, up to rank `depth` (None: all), the best ("top") or
    any ("random") of these. A candidate is left out when its score is above positive - `absolute_margin`,
    above positive - `relative_margin` * |positive|, above `max_score` or below `min_score`, or when a
    teacher scores it at or above its score of the positive - `guard`. None turns a rule off; margins and
    guard are in the units of the scores. `seed` decides the draws.

    Raises SettingsError for values that contradict each other.
    """

    count: int = 8
    skip: int = 0
    depth: int | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    max_score: float | None = None
    min_score: float | None = None
    guard: float | None = None
    sampling: Literal["top", "random"] = "top"
    random_share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.skip < 0 or not 0 <= self.random_share <= 1:
            raise SettingsError(
                f"negatives: got count {self.count}, skip {self.skip}, random_share {self.random_share}.",
                "Expected are count >= 1, skip >= 0 and random_share from 0 to 1.",
            )
        if self.depth is not None and self.depth - self.skip < self.hard:
            raise SettingsError(
                f"negatives: {self.hard} hard ones cannot come from ranks {self.skip + 1} to {self.depth}.",
                "Raise depth, or lower count or skip.",
            )
        low, high = self.min_score, self.max_score
        if low is not None and high is not None and low > high:
            raise SettingsError(f"negatives: min_score {low} is above max_score {high}.")

    @property
    def hard(self) -> int:
        """How many of a query's negatives come from the ranking."""
        return self.count - int(self.count * self.random_share + 0.5)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of n queries, in the order of their ranking (n, c).

    `keys` (n) are their ids or texts, which seed their draws; `positives` (n, p) the rows that answer them,
    -1 where there are fewer; `scores` (n) the lowest score of a positive by the engine that ranked (see
    `positive_scores`). `teacher` (n, c) holds a teacher's scores of the candidates and `teacher_positives`
    (n) its lowest score of a positive, both from one call of the teacher; only the guard needs them.
    """

    keys: Sequence[str]
    positives: Rows
    scores: Floats
    teacher: Floats | None = None
    teacher_positives: Floats | None = None


@dataclass(frozen=True)
class Pool:
    """The passages that may be negatives: `allowed` (N), and `texts` (N), equal numbers for equal texts (see
    `number_texts`); None when no text comes twice."""

    allowed: Flags
    texts: Rows | None = None

    @cached_property
    def rows(self) -> Rows:
        """The allowed rows, ascending."""
        return np.flatnonzero(self.allowed)

    def text(self, rows: Rows) -> Rows:
        """The number of each row's text, -1 for row -1."""
        return np.where(rows >= 0, rows if self.texts is None else self.texts[rows], -1)


@dataclass(frozen=True, slots=True)
class Negatives:
    """The negatives of n queries: `rows` (n, m), the hard ones first, best first, then the random ones; -1
    where there are too few. `scores` (n, m) are those of the ranking, NaN for random and absent ones. `drops`
    says which rule left out how many candidates, each counted once."""

    rows: Rows
    scores: Floats
    drops: tuple[Drop, ...]


def positive_scores(scores: Floats) -> Floats:
    """(n) the lowest finite score of each query's positives, (n, p) as `score_rows` gives them; NaN where
    a query has none."""
    lowest = np.where(np.isfinite(scores), scores, np.inf).min(axis=1, initial=np.inf)
    return np.where(np.isfinite(lowest), lowest, np.nan).astype(np.float32)


def number_texts(texts: Iterable[str]) -> Rows:
    """(N) equal numbers for equal texts, by hashes of 8 bytes, so that the texts need not be held."""
    hashes = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.unique(np.frombuffer(hashes, np.int64), return_inverse=True)[1].astype(np.int64)


def choose_negatives(ranking: Ranking, known: Known, pool: Pool, options: NegativeOptions) -> Negatives:
    """Choose each query's negatives from its ranking (n, c) and, for the random ones, from the whole pool.

    Never taken are passages outside the pool, known positives, passages whose text equals theirs, and a text
    twice. With `random_share` 0 and "top" the choice is that of sentence-transformers' `mine_hard_negatives`
    over rankings of depth + p candidates, where p is the largest number of positives of a query. What a rule
    left out, or `skip`, is not drawn as a random negative either. A query's draws depend on the seed and its
    key alone. Raises SettingsError when the options need scores that `known` does not hold.
    """
    fine, drops = _apply_rules(ranking, known, pool, options)
    place = np.cumsum(fine, axis=1) - 1
    late = place >= (ranking.rows.shape[1] if options.depth is None else options.depth)
    for reason, out in (("before the rank window", place < options.skip), ("after the rank window", late)):
        drops[reason] = int((fine & out).sum())
    near = fine & (place >= options.skip)
    rows = np.full((len(ranking.rows), options.count), -1, np.int64)
    scores = np.full(rows.shape, np.nan, np.float32)
    for query in range(len(rows)):
        random = np.random.default_rng([options.seed, _number(known.keys[query])])
        columns = np.flatnonzero(near[query] & ~late[query])
        if options.sampling == "random" and len(columns) > options.hard:
            columns = np.sort(random.choice(columns, options.hard, replace=False))
        columns = columns[: options.hard]
        rows[query, : len(columns)] = ranking.rows[query, columns]
        scores[query, : len(columns)] = ranking.scores[query, columns]
        if options.hard < options.count:
            suspects = [known.positives[query], ranking.rows[query, ~near[query]], rows[query]]
            drawn = _draw(random, pool, options.count - options.hard, np.concatenate(suspects))
            rows[query, options.hard : options.hard + len(drawn)] = drawn
    return Negatives(rows, scores, tuple(Drop(why, count) for why, count in drops.items() if count))


def _apply_rules(
    ranking: Ranking, known: Known, pool: Pool, options: NegativeOptions
) -> tuple[Flags, dict[str, int]]:
    """(n, c) the candidates that no rule leaves out, and how many each rule did."""
    texts = pool.text(ranking.rows)
    fine: Flags = ranking.rows >= 0
    drops: dict[str, int] = {}
    for reason, out in _rules(ranking, known, pool, options):
        drops[reason] = int((fine & out).sum())
        fine = fine & ~out
    again = _repeated(np.where(fine, texts, -1))
    drops["the text of a better candidate"] = int((fine & again).sum())
    return fine & ~again, drops


def _rules(
    ranking: Ranking, known: Known, pool: Pool, options: NegativeOptions
) -> Iterator[tuple[str, Flags]]:
    yield "not a passage that may be taken", ~pool.allowed[ranking.rows]
    texts = pool.text(ranking.rows)
    same = np.zeros(texts.shape, bool)
    for positive in known.positives.T:
        same |= (texts == pool.text(positive)[:, None]) & (positive >= 0)[:, None]
    yield "a known positive, or its text", same
    own = known.scores[:, None]
    if options.absolute_margin is not None or options.relative_margin is not None:
        _require(own, "a margin", "the scores of the positives")
    if options.absolute_margin is not None:
        yield "within the margin of the positive", ranking.scores > own - options.absolute_margin
    if options.relative_margin is not None:
        out = ranking.scores > own - np.abs(own) * options.relative_margin
        yield "within the relative margin of the positive", out
    if options.max_score is not None:
        yield "above the highest score", ranking.scores > options.max_score
    if options.min_score is not None:
        yield "below the lowest score", ranking.scores < options.min_score
    if options.guard is not None:
        teacher = _require(known.teacher, "the guard", "a teacher's scores")
        bar = _require(known.teacher_positives, "the guard", "a teacher's scores of the positives")
        yield "the teacher takes it for a positive", teacher >= bar[:, None] - options.guard


def _require(values: Floats | None, rule: str, what: str) -> Floats:
    if values is None or np.isnan(values).any():
        raise SettingsError(f"negatives: {rule} needs {what}, which are not known for every query.")
    return values


def _repeated(numbers: Rows) -> Flags:
    """(n, c) whether a number, -1 aside, stands earlier in its line."""
    order = np.argsort(numbers, axis=1, kind="stable")
    ordered = np.take_along_axis(numbers, order, axis=1)
    again = np.zeros(numbers.shape, bool)
    np.put_along_axis(
        again, order[:, 1:], (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0), axis=1
    )
    return again


def _number(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def _draw(random: np.random.Generator, pool: Pool, count: int, suspects: Rows) -> list[int]:
    """Up to `count` allowed rows of different texts, none of them a suspect's."""
    allowed = pool.rows
    drawn: list[int] = []
    # A few more than needed are nearly always enough; where texts repeat often, all are looked through.
    for size in (2 * count + len(suspects), len(allowed)):
        seen, drawn = set(pool.text(suspects).tolist()), []
        for row in allowed[random.choice(len(allowed), min(size, len(allowed)), replace=False)].tolist():
            text = row if pool.texts is None else int(pool.texts[row])
            if len(drawn) < count and text not in seen:
                seen.add(text)
                drawn.append(row)
        if len(drawn) == count:
            break
    return drawn
