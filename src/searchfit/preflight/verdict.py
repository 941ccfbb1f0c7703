"""Is tuning likely to pay? A stated rule over what was measured, with its reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from searchfit.config import Settings
from searchfit.preflight.corpus import Corpus
from searchfit.preflight.forecast import Work
from searchfit.preflight.headroom import Headroom

ENOUGH = 500
"""Training questions from which on dev and test can tell a gain of the usual size."""

ROOM = 0.05
LEAD = 0.02

_FOREIGN = 0.2

RULE = (
    f"likely: {ENOUGH} training questions or more, room of {ROOM} or more between what the vectors find "
    "among 100 and what they rank well (Recall@100 - nDCG@10), an engine that is better by "
    f"{LEAD} or more than vectors alone, for it is the teacher, and judged questions or pairs to prove a "
    "gain with, where choose.proof asks more than generated questions can tell; unlikely: fewer questions "
    "than train.min_queries, training switched off, or an engine that is no better than vectors alone; "
    "open: all else"
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether tuning is likely to pay, in a word and with reasons; `rule` is how that is decided."""

    tuning: Literal["likely", "open", "unlikely"]
    reasons: tuple[str, ...]
    rule: str = RULE


def judge(settings: Settings, corpus: Corpus, headroom: Headroom | None, work: Work) -> Verdict:
    """By RULE. Tuning never makes the result worse: where it does not pay, the untuned model is kept."""
    train = work.full.train
    reasons = []
    if headroom is None:
        return Verdict("unlikely", ("No question could be made from the documents.",))
    if not settings.train.enabled:
        reasons.append("Training is switched off (train.enabled = false).")
    few = train < settings.train.min_queries
    word = (
        "too few to train on"
        if few
        else "enough"
        if train >= ENOUGH
        else "few: a small gain cannot be proved"
    )
    reasons.append(f"About {train:,} training questions: {word}.")
    enough_room, taught = headroom.room >= ROOM, headroom.lead >= LEAD
    reasons.append(
        f"Vectors alone: Recall@100 {headroom.systems['dense']['recall@100']:.3f} and nDCG@10 "
        f"{headroom.systems['dense']['ndcg@10']:.3f}: room of {headroom.room:.3f} to rank better"
        f"{'' if enough_room else ', which is little'}."
    )
    reasons.append(
        f"The engine, which teaches, is {'better' if headroom.lead > 0 else 'not better'} than vectors alone "
        f"({headroom.lead:+.3f}){'' if taught else ': it has little to teach'}."
    )
    unproven = _unproven(settings)
    if unproven:
        reasons.append(
            "Without questions that you judged (--queries, --pairs), a tuned model is served only where it "
            "finds passages much better without the sentences that were asked for (choose.proof), as one "
            "that was not made for retrieval, or not for this language, may."
        )
    reasons += _languages(settings, corpus)
    if few or not settings.train.enabled or headroom.lead <= 0:
        return Verdict("unlikely", tuple(reasons))
    good = train >= ENOUGH and enough_room and taught and not unproven
    return Verdict("likely" if good else "open", tuple(reasons))


def _unproven(settings: Settings) -> bool:
    """Whether only generated questions will speak for a tuned model where `choose.proof` asks for more."""
    judged = settings.queries.file or settings.pairs.file or settings.feedback.workspace
    asked = settings.engine.token_weight > 0 or settings.train.towers != "query"
    return asked and settings.choose.proof > 0 and not judged


def _languages(settings: Settings, corpus: Corpus) -> list[str]:
    known = {name: share for name, share in corpus.languages.items() if name not in ("english", "not told")}
    other = sum(known.values())
    if settings.model.name != "minilm" or other < _FOREIGN:
        return []
    main = max(known, key=lambda name: known[name])
    return [
        f"{other:.0%} of the documents are not in English ({main} for one), for which the built-in model was "
        "made: a multilingual model (--model) is likely to bring more than tuning this one."
    ]
