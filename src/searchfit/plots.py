"""The report's plots, as inline SVG."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from searchfit.markup import Markup, figure, tag, text

Gain = tuple[float, float, float]
"""The mean and the bounds of its interval; NaN where unknown."""

Point = tuple[float, float]


def gain_plot(rows: Sequence[tuple[str, Gain, str]], chosen: str, untuned: str) -> Markup:
    """Gains over the untuned system with their intervals, (name, gain, interval in words), best first."""
    known = sorted((row for row in rows if math.isfinite(row[1][0])), key=lambda row: -row[1][0])
    if not known:
        return Markup()
    ends = [0.0, *(value for _, gain, _ in known for value in gain if math.isfinite(value))]
    room = 0.06 * (max(ends) - min(ends)) or 0.01
    scale = (min(ends) - room, max(ends) + room)
    bars = [_bar(row, scale, "bar chosen" if row[0] == chosen else "bar") for row in known]
    return tag(
        "figure",
        tag("h3", f"Gain in nDCG@10 over {untuned}, on test"),
        tag("div.plot", *bars),
        tag("figcaption", "Dot: mean gain. Line: 95% interval. Right of zero is better."),
    )


def _bar(row: tuple[str, Gain, str], scale: tuple[float, float], kind: str) -> Markup:
    name, gain, interval = row
    low, mean, high = (_at(value, scale) for value in (gain[1], gain[0], gain[2]))
    span = tag("line.span", x1=low, x2=high, y1="50%", y2="50%") if math.isfinite(gain[1]) else Markup()
    zero = tag("line.zero", x1=_at(0, scale), x2=_at(0, scale), y1="0%", y2="100%")
    svg = tag("svg", zero, span, tag("circle", cx=mean, cy="50%", r="4.5"), role="presentation")
    value = tag("span", f"{figure(gain[0], '+.3f')} ({interval})")
    return tag(f"div.{kind}", tag("span", text(name, 80)), svg, value)


def _at(value: float, scale: tuple[float, float]) -> str:
    return f"{100 * (value - scale[0]) / (scale[1] - scale[0]):.2f}%"


def training_curve(course: str) -> Markup:
    """Loss and dev score by step, from the CSV that training writes (epoch, step, loss, score); nothing where
    no step was taken."""
    rows = list(csv.DictReader(io.StringIO(course)))
    parts = []
    for name, title, form in (("score", "nDCG@10 on dev questions", ".4f"), ("loss", "loss", ".3f")):
        points = [(float(row["step"]), float(row[name])) for row in rows if row.get(name)]
        if len(points) > 1:
            parts.append(_curve(title, points, form))
    if not parts:
        return Markup()
    said = "By step. The weights with the best score on dev are kept; step 0 is untuned."
    return tag("figure", tag("h3", "Training"), tag("div.curves", *parts), tag("figcaption", said))


def _curve(title: str, points: Sequence[Point], form: str) -> Markup:
    values = [value for _, value in points]
    last, low, high = points[-1][0] or 1.0, min(values), max(values)
    height = (high - low) or 1.0
    places = " ".join(
        f"{100 * step / last:.2f},{38 - 36 * (value - low) / height:.2f}" for step, value in points
    )
    line = tag("polyline", points=places, fill="none", **{"vector-effect": "non-scaling-stroke"})
    first, end = figure(values[0], form), figure(values[-1], form)
    words = f"{title}: {first} at step {points[0][0]:.0f}, {end} at the end"
    svg = tag(
        "svg", line, viewBox="0 0 100 40", preserveAspectRatio="none", role="img", **{"aria-label": words}
    )
    return tag("div.curve", tag("h4", title), svg, tag("small", f"{words}; from {low:.4g} to {high:.4g}"))
