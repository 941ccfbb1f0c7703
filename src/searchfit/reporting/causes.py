"""Named rules for the likely cause of a low score, or of a high one. Each looks at one question, the right
passage and the best wrong one; the first that holds is named. They are hints: what they rest on is said with
them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

TWIN = 0.9
"""Cosine from which on two passages are near-duplicates."""

FEW, MANY = 2, 5
SHARED = 1 / 3
RARE = 3
LONG_WORDS, LONG_TIMES = 100, 2.0
FAR = 0.5
"""Cosine below which nothing else is like the right passage."""


@dataclass(frozen=True, slots=True)
class Case:
    """A question that a system answered badly, or well, in figures.

    `terms` counts its distinct content words; `shared` and `shared_wrong` are the shares of them in the right
    passage and in the best wrong document's passage; `holders` counts the passages that hold all of them;
    `twin` is the cosine of right and wrong passage; `words` the right passage's length and `usual` the
    corpus's median; `tokens` its length in tokens and `window` the most that the encoder reads (0: unknown).
    """

    terms: int = 0
    shared: float = 1.0
    shared_wrong: float = 0.0
    holders: int = 0
    twin: float = 0.0
    words: int = 0
    usual: float = 0.0
    tokens: int = 0
    window: int = 0
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class Cause:
    """A likely cause: the rule's name, and what it rests on in a sentence."""

    name: str
    why: str


def likely_cause(case: Case) -> Cause:
    """The first rule that holds, in the order of how sure it is; "unclear" when none does."""
    for name, rule in RULES.items():
        if why := rule(case):
            return Cause(name, why)
    return Cause("unclear", "No rule fits: the words are there, and the model judges the meaning otherwise.")


def likely_help(case: Case) -> Cause:
    """What made a question easy: the first rule of HELPS that holds, "unclear" when none does."""
    for name, rule in HELPS.items():
        if why := rule(case):
            return Cause(name, why)
    return Cause("unclear", "No rule fits: words and meaning each point to the right passage a little.")


def _wrong_language(case: Case) -> str:
    return "The question is in another language than the right passage." if case.foreign else ""


def _near_duplicate_answers(case: Case) -> str:
    said = f"The best wrong result says nearly the same as the right one (cosine {case.twin:.2f})."
    return said if case.twin >= TWIN else ""


def _too_long_passage(case: Case) -> str:
    if 0 < case.window < case.tokens:
        return f"The right passage has {case.tokens} tokens, and the model reads the first {case.window}."
    if case.words >= LONG_WORDS and case.words >= LONG_TIMES * case.usual > 0:
        times = case.words / case.usual
        return (
            f"The right passage has {case.words} words, {times:.1f} times the median: one vector holds much."
        )
    return ""


def _vocabulary_mismatch(case: Case) -> str:
    if case.terms and case.shared <= SHARED:
        return f"{case.shared:.0%} of the question's content words stand in the right passage."
    return ""


def _wrong_by_judgement(case: Case) -> str:
    if case.terms > FEW and case.shared_wrong == 1 and case.shared < 1:
        found = "All content words of the question stand in the best wrong result,"
        return f"{found} {case.shared:.0%} in the right one: perhaps it answers too."
    return ""


def _ambiguous_query(case: Case) -> str:
    if case.holders >= MANY:
        return f"{case.holders:,} passages hold all content words of the question."
    if case.terms <= FEW:
        return f"The question has {case.terms} content word{'' if case.terms == 1 else 's'}: it says little."
    return ""


def _known_by_its_words(case: Case) -> str:
    if case.shared == 1 and case.terms >= FEW and 0 < case.holders <= RARE:
        return f"The words point to the right passage ({_few_hold(case)}), but the vectors do not."
    return ""


RULES: dict[str, Callable[[Case], str]] = {
    "wrong language": _wrong_language,
    "near-duplicate answers": _near_duplicate_answers,
    "ambiguous query": _ambiguous_query,
    "vocabulary mismatch": _vocabulary_mismatch,
    "too long passage": _too_long_passage,
    "wrong by judgement": _wrong_by_judgement,
    "known by its words": _known_by_its_words,
}
"""The rules by name, in their order."""


def _rare_words(case: Case) -> str:
    if case.terms and case.shared == 1 and 0 < case.holders <= RARE:
        return f"The words point to the right passage: {_few_hold(case)}."
    return ""


def _few_hold(case: Case) -> str:
    alone = "it alone holds" if case.holders == 1 else f"it is one of {case.holders} passages that hold"
    return f"{alone} all of them"


def _by_meaning(case: Case) -> str:
    if case.terms and case.shared <= SHARED:
        return f"Only {case.shared:.0%} of the question's content words stand in the right passage."
    return ""


def _more_words(case: Case) -> str:
    if case.terms and case.shared > case.shared_wrong:
        there = f"{case.shared:.0%} of the question's content words stand in the right passage"
        return f"{there}, {case.shared_wrong:.0%} in the best wrong result."
    return ""


def _nothing_like_it(case: Case) -> str:
    if case.twin < FAR:
        return f"The best wrong result is of another matter (cosine {case.twin:.2f} with the right passage)."
    return ""


HELPS: dict[str, Callable[[Case], str]] = {
    "rare words": _rare_words,
    "found by meaning": _by_meaning,
    "more of its words": _more_words,
    "nothing like it": _nothing_like_it,
}
"""The rules for high scores by name, in their order."""
