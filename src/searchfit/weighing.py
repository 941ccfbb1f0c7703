"""What judged questions tell of an engine's weights.

Twenty questions tell little and two hundred much. So the weights that are known without labels stand until
questions speak against them, the louder the further away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from searchfit.encoders.batched import BatchedEncoder
from searchfit.encoders.sentence import SentenceEncoder
from searchfit.fusion import Floats, SharedKeywords
from searchfit.interaction import Questions as Read
from searchfit.interaction import rank_words, word_scores
from searchfit.metrics import score_ranking
from searchfit.questions import Questions
from searchfit.records import Engine
from searchfit.search import ArrayCorpus

_DEPTH = 10  # documents that nDCG@10 looks at

_KEYWORDS = (0.5, 2.0, 4.0)
_WORDS = (0.0, 0.5, 1.5)
"""Multiples of the prior's weights that judged questions may prefer."""

_LEAST = 20  # of fewer questions it is chance what they prefer
_UNSURE = 0.5  # standard errors that a gain counts less
_DOUBT = 100  # a mean over so many questions counts half
_FAR = (
    0.004,
    0.008,
)  # nDCG@10 that a step away is expected to lose: a factor e in keywords, all of the words


def weigh(
    prior: Engine,
    corpus: ArrayCorpus,
    encoder: SentenceEncoder | BatchedEncoder,
    questions: Questions,
    ids: Sequence[str],
) -> tuple[Engine, tuple[str, ...]]:
    """The prior with the weights that the judged dev questions prefer, under its name, and what to say of it.
    `ids` are those of the documents. Fewer than twenty of them, and questions that nobody judged, leave the
    prior as it was."""
    dev = [place for place, split in enumerate(questions.splits) if split == "dev"]
    engines = weightings(prior)
    if questions.kind != "judged" or len(dev) < _LEAST or len(engines) == 1:
        return prior, ()
    texts = [questions.texts[place] for place in dev]
    vectors, tokens = encoder.encode_questions(texts)
    read = Read(texts, vectors, word_scores(corpus, corpus.words, texts, tokens))
    scores = []
    for ranking in rank_words(engines, SharedKeywords(corpus.keyword_scores).over(corpus), read, _DEPTH):
        found = np.where(ranking.rows >= 0, corpus.documents[np.maximum(ranking.rows, 0)], -1)
        scores.append(
            [
                score_ranking([ids[row] for row in own if row >= 0], questions.relevant[place], ("ndcg@10",))
                for place, own in zip(dev, found.tolist(), strict=True)
            ]
        )
    by_engine = np.array([[score["ndcg@10"] for score in own] for own in scores], np.float32)
    best = preferred(engines, by_engine)
    means = by_engine.mean(axis=1)
    told = f"nDCG@10 {means[0]:.4f} -> {means[engines.index(best)]:.4f}"
    kept = f"weigh keywords by {prior.keyword_weight:.3g} and words by {prior.token_weight:.3g}"
    if best is prior:
        return prior, (f"{len(dev)} judged dev questions say nothing against the prior: {kept}.",)
    said = f"keywords by {best.keyword_weight:.3g} and words by {best.token_weight:.3g}"
    return replace(best, name=prior.name), (
        f"{len(dev)} judged dev questions prefer to weigh {said} ({told}) to the prior, which is to {kept}.",
    )


def weightings(prior: Engine) -> list[Engine]:
    """The prior, and it with other weights of keywords or of words."""
    found = [prior]
    if prior.fusion == "scores" and prior.keyword_weight:
        found += [_weighing(prior, prior.keyword_weight * by, prior.token_weight) for by in _KEYWORDS]
    if prior.token_weight:
        found += [_weighing(prior, prior.keyword_weight, prior.token_weight * by) for by in _WORDS]
    return found


def _weighing(prior: Engine, keyword: float, words: float) -> Engine:
    name = f"{prior.name}, keywords {keyword:.3g}, words {words:.3g}"
    depth = prior.token_depth if words else 0
    return replace(prior, name=name, keyword_weight=keyword, token_weight=words, token_depth=depth)


def preferred(engines: Sequence[Engine], scores: Floats) -> Engine:
    """Of `weightings`, by nDCG@10 on judged questions (engines, q), the one to begin from.

    The gain over the first, less half its standard error, is shrunk as a mean of few questions has to be, and
    what is further from the prior has to gain more: with 20 questions the prior mostly stands, with 200 the
    questions decide. The constants are from 21 tasks of three collections (docs/lab.md).
    """
    prior, count = engines[0], scores.shape[1]
    gained = scores - scores[0]
    unsure = _UNSURE * gained.std(axis=1, ddof=1) / math.sqrt(count)
    gains = (gained.mean(axis=1) - unsure) * count / (count + _DOUBT)
    return engines[
        int(np.argmax([gain - _far(prior, one) for gain, one in zip(gains, engines, strict=True)]))
    ]


def _far(prior: Engine, engine: Engine) -> float:
    keywords, words = _FAR
    lost = 0.0
    if engine.keyword_weight != prior.keyword_weight:
        lost += keywords * math.log(engine.keyword_weight / prior.keyword_weight) ** 2
    if engine.token_weight != prior.token_weight:
        lost += words * (engine.token_weight / prior.token_weight - 1) ** 2
    return lost
