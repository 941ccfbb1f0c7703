from __future__ import annotations

import pytest

from searchfit.reporting.causes import HELPS, RULES, Case, likely_cause, likely_help

PLAIN = {
    "terms": 4,
    "shared": 0.75,
    "shared_wrong": 0.5,
    "holders": 0,
    "words": 40,
    "usual": 50.0,
    "window": 256,
}


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("wrong language", {"foreign": True}, "another language"),
        ("near-duplicate answers", {"twin": 0.97}, "cosine 0.97"),
        ("ambiguous query", {"shared": 1.0, "holders": 1200}, "1,200 passages hold all"),
        ("ambiguous query", {"terms": 1, "shared": 1.0}, "1 content word:"),
        ("vocabulary mismatch", {"shared": 0.25}, "25% of"),
        ("too long passage", {"tokens": 300}, "has 300 tokens, and the model reads the first 256"),
        ("too long passage", {"words": 160}, "160 words, 3.2 times the median"),
        ("wrong by judgement", {"shared_wrong": 1.0}, "75% in the right one"),
        ("known by its words", {"shared": 1.0, "holders": 1}, "it alone holds"),
        ("unclear", {}, "No rule fits"),
    ],
)
def test_each_rule_names_its_cause(name: str, change: dict[str, float], said: str) -> None:
    cause = likely_cause(Case(**{**PLAIN, **change}))  # type: ignore[arg-type]
    assert cause.name == name
    assert said in cause.why


def test_every_rule_can_win_and_the_surest_one_does() -> None:
    assert len(RULES) == 7
    everything = Case(terms=1, shared=0.0, holders=900, twin=1.0, words=900, usual=10, foreign=True)
    assert likely_cause(everything).name == "wrong language"


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("rare words", {"shared": 1.0, "holders": 2}, "one of 2 passages"),
        ("found by meaning", {"shared": 0.25}, "Only 25%"),
        ("more of its words", {}, "75% of the question's content words stand in the right passage, 50%"),
        ("nothing like it", {"shared_wrong": 0.75, "twin": 0.2}, "cosine 0.20"),
        ("unclear", {"shared_wrong": 0.75, "twin": 0.7}, "No rule fits"),
    ],
)
def test_each_rule_names_what_helped(name: str, change: dict[str, float], said: str) -> None:
    cause = likely_help(Case(**{**PLAIN, **change}))  # type: ignore[arg-type]
    assert cause.name == name
    assert said in cause.why
    assert name in {*HELPS, "unclear"}
