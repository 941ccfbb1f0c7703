from __future__ import annotations

import numpy as np
import pytest

from searchfit.keyword import Analyzer
from searchfit.overlap import BANDS, by_band, overlaps

ENGLISH = Analyzer("english")


@pytest.mark.parametrize(
    ("question", "share"),
    [
        ("red houses by the sea", 1.0),  # "by" and "the" are no content; "houses" is "house"
        ("a red house and the moon", 2 / 3),
        ("what is the price of boats", 0.0),
        ("red red red moon", 0.5),  # words count once
    ],
)
def test_share_of_content_words(question: str, share: float) -> None:
    found = overlaps([question], [[0]], {0: "A red house stands near the sea."}, ENGLISH)
    assert found[0] == pytest.approx(share)


def test_the_best_of_several_answers_counts() -> None:
    texts = {3: "boats and nets", 8: "red boats in the sea"}
    assert overlaps(["red boats"], [[3, 8]], texts, ENGLISH)[0] == 1.0


def test_without_content_or_answer_nothing_can_be_said() -> None:
    found = overlaps(["the of and", "red", "???"], [[0], [], [0]], {0: "red"}, ENGLISH)
    assert np.isnan(found).all()


def test_scripts_without_spaces_have_an_overlap_too() -> None:
    assert 0 < overlaps(["日本語の検索"], [[0]], {0: "日本語で書かれた文書"}, Analyzer("none"))[0] < 1


def test_every_question_lies_in_one_band() -> None:
    overlap = np.array([0.0, 0.2, 1 / 3, 0.5, 2 / 3, 1.0, np.nan])
    scores = {"a": np.array([1.0, 0.0, 0.5, 0.5, 1.0, 0.0, 1.0])}
    bands = by_band(overlap, scores)
    assert [(row["band"], row["questions"], row["means"]) for row in bands] == [
        ("low", 2, {"a": 0.5}),
        ("middle", 2, {"a": 0.5}),
        ("high", 2, {"a": 0.5}),
    ]
    assert [(row["from"], row["to"]) for row in bands] == [(low, high) for _, low, high in BANDS]
    assert by_band(np.array([0.9]), scores={"a": np.array([1.0])})[0] == {
        "band": "low", "from": 0.0, "to": 1 / 3, "questions": 0, "means": {},
    }  # fmt: skip
