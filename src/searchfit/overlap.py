"""How much of a question's wording stands in the passage that answers it.

A question that copies its passage flatters keyword search, and generated ones often do: figures by band of
overlap show whether a gain is one in meaning or in wording.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from searchfit.keyword import Analyzer
from searchfit.screening import common_words

BANDS = (("low", 0.0, 1 / 3), ("middle", 1 / 3, 2 / 3), ("high", 2 / 3, 1.0))
"""Name, lower bound and upper bound; the upper one belongs to a band where no other begins with it."""


def overlaps(
    questions: Sequence[str], answers: Sequence[Sequence[int]], texts: Mapping[int, str], analyzer: Analyzer
) -> npt.NDArray[np.float64]:
    """For each question (n) the largest share of its distinct content terms that stand in one of its answers,
    given as keys of `texts`; NaN where it has no content term or no answer."""
    terms = {key: frozenset(analyzer.terms(text)) for key, text in texts.items()}
    common = frozenset(term for word in common_words(analyzer.language) for term in analyzer.terms(word))
    shares = np.full(len(questions), np.nan)
    for place, (question, keys) in enumerate(zip(questions, answers, strict=True)):
        asked = set(analyzer.terms(question)) - common
        if asked and keys:
            shares[place] = max(len(asked & terms[key]) for key in keys) / len(asked)
    return shares


def by_band(
    overlap: npt.NDArray[np.float64], scores: Mapping[str, npt.NDArray[np.float64]]
) -> list[dict[str, Any]]:
    """For each band: its name and bounds, how many questions lie in it, and the mean score of each system
    over them (none where there is no question)."""
    found = []
    for name, low, high in BANDS:
        mine = (overlap >= low) & ((overlap < high) | (high == 1.0))
        means = (
            {system: float(values[mine].mean()) for system, values in scores.items()} if mine.any() else {}
        )
        found.append({"band": name, "from": low, "to": high, "questions": int(mine.sum()), "means": means})
    return found
