"""The verdict in words: what was chosen, how much better, how sure; and what the questions can tell."""

from __future__ import annotations

from typing import Any

import numpy as np

from searchfit.markup import figure, number_or_nan
from searchfit.reporting.evidence import Evidence, Json
from searchfit.significance import detectable_gain

FEW = 50  # below this many test questions the report says that only large gains can show
_FLATTERY = (
    " They were generated from your documents and repeat words of the passages they were made from: they"
    " flatter keyword search, and real questions may gain less. Judged questions of your own would tell."
)


def verdict(evidence: Evidence) -> str:
    """One or two sentences."""
    if evidence.chosen == evidence.untuned:
        return f"Not better: nothing beat the untuned model, and it was kept.{_limit(evidence)}"
    name = f"“{evidence.chosen[:120]}”"
    kept = f"Not better: no tuned model won, and the untuned one was kept; it searches as {name}"
    if not evidence.choice.get("tuned"):
        return f"{kept}.{_limit(evidence)}"
    if not evidence.proof:
        return f"{name} was chosen. No test questions measure its gain."
    _, low, high = gain_of(evidence.proof)
    doubt = " It is worse on these questions." if high < 0 else " The gain is not certain."
    judged = "over the untuned model on your test questions"
    what = judged if evidence.judged else "for the tuned model by itself on test"
    said = f"{name} was chosen: {measure(evidence.proof)} {what}."
    return said + ("" if low > 0 else doubt + _limit(evidence))


def detectable(evidence: Evidence) -> float | None:
    """The smallest mean gain in nDCG@10 that the test questions would show, with a probability of 80% at the
    5% level (see `significance.detectable_gain`); None where it cannot be told."""
    if not evidence.pair:
        return None
    before, after = (evidence.scores(name)[evidence.test] for name in evidence.pair)
    gains = after - before
    least = detectable_gain(gains[np.isfinite(gains)])
    return least if least > 0 else None


def _limit(evidence: Evidence) -> str:
    least = detectable(evidence)
    if least is None:
        return ""
    return f" These {len(evidence.test):,} test questions would have shown a gain of {least:.3f} or more."


def provenance(systems: Json) -> str:
    """Where the test questions came from, and what that does to the figures."""
    test, origin = (systems.get("counts") or {}).get("test") or 0, systems.get("questions")
    if not test:
        return "There were too few questions to hold any out for a test, so no figure here proves a gain."
    few = f" {test:,} are few: none but a large gain can show." if test < FEW else ""
    if origin == "judged":
        return f"The {test:,} test questions are your own, with your judgements.{few}"
    flattery = _FLATTERY if origin == "generated" else f" Their origin: {origin or '-'}."
    return f"The {test:,} test questions were held out of the tuning.{flattery}{few}"


def measure(comparison: Json) -> str:
    """A comparison in words: gain, interval and p."""
    gain, p = gain_of(comparison), number_or_nan(comparison.get("p"))
    chance = "p < 0.001" if p < 0.001 else f"p = {figure(p)}"
    interval = f"{figure(gain[1], '+.3f')} to {figure(gain[2], '+.3f')}"
    return f"{figure(gain[0], '+.3f')} nDCG@10 (95% interval {interval}, {chance})"


def gain_of(comparison: Json) -> tuple[float, float, float]:
    """The gain and the bounds of its interval; NaN where unknown."""
    values: Any = (number_or_nan(comparison.get(name)) for name in ("gain", "low", "high"))
    gain, low, high = values
    return gain, low, high
