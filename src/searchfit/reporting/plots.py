"""The report's plots, as inline SVG. Axes are honest: differences share one scale around a marked zero, and
means run from 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from searchfit.markup import Markup, figure, tag, text
from searchfit.reporting.facts import Facts

Scale = tuple[float, float]


def metrics_plot(told: Facts) -> Markup:
    """Before and after by metric, on an axis from 0 to 1, with the gain and its interval."""
    rows = told.at("metrics").all()
    if not rows:
        return Markup()
    bars = []
    for row in rows:
        marks = [_whisker(row.at(side), (0.0, 1.0), side) for side in ("before", "after")]
        value = tag("span", row.at("before", "mean").show(), " → ", tag("b", row.at("after", "mean").show()))
        gain = tag("small", row.at("gain", "mean").show("+.3f"), " (", row.at("gain").interval(), ")")
        bars.append(
            tag(
                "div.bar.tall",
                tag("span", metric_name(row.at("metric").words)),
                _svg(*marks),
                tag("span", value, gain),
            )
        )
    said = "Dots: means on the test questions, from 0 (left) to 1. Lines: 95% intervals."
    return _figure("By metric", tag("div.plot", *bars, _axis(("0", "0.5", "1"))), said, legend=True)


def metric_name(name: str) -> str:
    """nDCG@10 for ndcg@10."""
    head, at, depth = name.partition("@")
    known = {
        "ndcg": "nDCG",
        "mrr": "MRR",
        "map": "MAP",
        "recall": "Recall",
        "precision": "Precision",
        "hit": "Hit",
    }
    return known.get(head, head) + at + depth


def outcome_plot(told: Facts) -> Markup:
    """Questions won, tied and lost, as parts of one bar."""
    total = told.at("outcome", "n").number
    if not total > 0:
        return Markup()
    parts, labels, at = [], [], 0.0
    for kind, words in (("wins", "better"), ("ties", "equal"), ("losses", "worse")):
        share = 100 * told.at("outcome", kind).number / total
        parts.append(tag(f"rect.{kind}", x=f"{at:.3f}%", width=f"{share:.3f}%", y="0", height="100%"))
        labels.append(tag(f"span.{kind}", tag("b", told.at("outcome", kind).show(",")), f" {words}"))
        at += share
    svg = tag("svg", *parts, role="img", **{"aria-label": "better, equal and worse questions"})
    said = "Test questions by what happened to their nDCG@10."
    return _figure("Question by question", tag("div.stack", svg, tag("div.key", *labels)), said)


def bands_plot(told: Facts) -> Markup:
    """The gain by what the questions are like, all on one scale."""
    groups = told.at("bands").all()
    every = [row for group in groups for row in group.at("rows").all()]
    if not every:
        return Markup()
    scale = _scale([row.at(end).number for row in every for end in ("mean", "low", "high")])
    parts = [
        tag(
            "div.panel",
            tag("h4", "by " + group.at("title").words),
            *(_band(row, scale) for row in group.at("rows").all()),
        )
        for group in groups
    ]
    said = (
        "Mean gain in nDCG@10 and its 95% interval; n is the number of questions. All panels share one scale."
    )
    return _figure("Where the gain is", tag("div.panels", *parts), said)


def _band(row: Facts, scale: Scale) -> Markup:
    name = tag("span", text(row.at("band").words, 40), " ", tag("small", "n = ", row.at("n").show(",")))
    return tag(
        "div.bar.slim",
        name,
        _svg(_zero(scale), _whisker(row, scale, "after")),
        tag("span", row.at("mean").show("+.3f")),
    )


def gains_plot(told: Facts) -> Markup:
    """Gains of all systems over the untuned one, best first."""
    rows = [row for row in told.at("systems").all() if math.isfinite(row.at("gain", "mean").number)]
    if not rows:
        return Markup()
    rows.sort(key=lambda row: -row.at("gain", "mean").number)
    scale = _scale([row.at("gain", end).number for row in rows for end in ("mean", "low", "high")])
    bars = []
    for row in rows:
        kind, side = ("div.bar.chosen", "after") if row.at("chosen").value else ("div.bar", "before")
        value = tag("span", row.at("gain", "mean").show("+.3f"), " (", row.at("gain").interval(), ")")
        mark = _whisker(row.at("gain"), scale, side)
        bars.append(tag(kind, tag("span", text(row.at("name").words, 80)), _svg(_zero(scale), mark), value))
    title = f"Gain in nDCG@10 over {told.at('untuned').words[:80]}, on test"
    return _figure(
        title, tag("div.plot", *bars), "Dot: mean gain. Line: 95% interval. Right of the zero line is better."
    )


def recall_plot(told: Facts) -> Markup:
    """Recall at k, before and after, k evenly spaced by its place in the list."""
    rows = told.at("recall").all()
    if not rows:
        return Markup()
    places = [8 + 84 * number / (len(rows) - 1) for number in range(len(rows))]
    lines = [_grid_line(level) for level in (0, 0.5, 1)]
    for side in ("before", "after"):
        points = [(x, _up(row.at(side).number)) for x, row in zip(places, rows, strict=True)]
        lines.append(_line(points, side))
    chart = tag(
        "svg.chart.open",
        *lines,
        viewBox="0 0 100 50",
        preserveAspectRatio="none",
        role="img",
        **{"aria-label": "recall at k"},
    )
    cells = [
        tag("tr", tag("th", "k"), *(tag("th", row.at("k").show("d")) for row in rows)),
        *(
            tag("tr", tag(f"th.{side}", side), *(tag("td", row.at(side).show(".2f")) for row in rows))
            for side in ("before", "after")
        ),
    ]
    said = "The mean share of a question's right documents among the first k. Lines at 0, 0.5 and 1."
    table = tag("div.scroll", tag("table.tight", *cells), tabindex="0")
    return _figure("Recall at k", Markup(chart + table), said, legend=True)


def training_plot(told: Facts) -> Markup:
    """Loss and dev score by step."""
    named = (("score", "nDCG@10 on dev questions", ".4f"), ("loss", "loss", ".3f"))
    parts = [_course(told.at("training", name), title, form) for name, title, form in named]
    if not any(parts):
        return Markup()
    said = "By step. The weights with the best score on dev are kept; step 0 is untuned."
    return _figure("Training", tag("div.panels", *parts), said)


def _course(points: Facts, title: str, form: str) -> Markup:
    rows = [(row.at(0), row.at(1)) for row in points.all()]
    if len(rows) < 2:
        return Markup()
    values = [value.number for _, value in rows]
    last, low, high = rows[-1][0].number or 1.0, min(values), max(values)
    height = (high - low) or 1.0
    line = [(100 * step.number / last, 46 - 42 * (value.number - low) / height) for step, value in rows]
    svg = tag(
        "svg.chart",
        _line(line, "after"),
        viewBox="0 0 100 50",
        preserveAspectRatio="none",
        role="img",
        **{"aria-label": title},
    )
    (start, first), (_, end) = rows[0], rows[-1]
    words = tag(
        "small",
        first.show(form),
        " at step ",
        start.show(".0f"),
        ", ",
        end.show(form),
        " at the end; the axis runs from ",
        f"{low:.4g} to {high:.4g}",
    )
    return tag("div.panel", tag("h4", title), svg, words)


def scores_plot(told: Facts) -> Markup:
    """Histograms of the similarity of questions to right and to other passages, before and after."""
    scores = told.at("portrait", "scores")
    if not scores.value:
        return Markup()
    names = [f"{kind}_{side}" for side in ("before", "after") for kind in ("other", "right")]
    most = max((share for name in names for share in scores.at(name).value), default=1.0) or 1.0
    edges = scores.at("edges").all()
    panels = []
    for side in ("before", "after"):
        areas = [
            _steps([share.number / most for share in scores.at(f"{kind}_{side}").all()], kind)
            for kind in ("other", "right")
        ]
        svg = tag(
            "svg.chart",
            *areas,
            viewBox="0 0 100 50",
            preserveAspectRatio="none",
            role="img",
            **{"aria-label": f"scores {side}"},
        )
        ends = tag("div.ends", edges[0].show(".2f"), edges[-1].show(".2f"))
        found = scores.at(side)
        words = tag(
            "small",
            "mean: right ",
            found.at("right").show(),
            ", others ",
            found.at("other").show(),
            "; right above another: ",
            found.at("auc").show(".1%"),
        )
        panels.append(tag("div.panel", tag("h4", side), svg, ends, words))
    key = tag("div.key", tag("span.right", "right passages"), tag("span.other", "other passages"))
    said = (
        "Similarity of ", told.at("portrait", "questions").show(","),
        " test questions to their right passage and to ", told.at("portrait", "others").show(","),
        " others, as shares. Further apart is better.",
    )  # fmt: skip
    return _figure("How near right and wrong passages are", Markup(key + tag("div.panels", *panels)), *said)


def map_plot(told: Facts) -> Markup:
    """Questions tied to their right passages, in the plane of the two main axes, before and after."""
    found = told.at("portrait", "map")
    if not found.value:
        return Markup()
    clouds = {
        name: found.at(name).value
        for name in ("queries_before", "passages_before", "queries_after", "passages_after")
    }
    place = _placer([point for cloud in clouds.values() for point in cloud])
    panels = []
    for side in ("before", "after"):
        ties = zip(clouds[f"queries_{side}"], clouds[f"passages_{side}"], strict=True)
        path = " ".join(f"M{place(query)}L{place(passage)}" for query, passage in ties)
        dots = [
            tag(f"path.{kind}", d=" ".join(f"M{place(point)}h0" for point in clouds[f"{name}_{side}"]))
            for kind, name in (("other", "passages"), ("right", "queries"))
        ]
        svg = tag(
            "svg.map",
            tag("path.tie", d=path),
            *dots,
            viewBox="0 0 400 300",
            role="img",
            **{"aria-label": f"map {side}"},
        )
        words = tag("small", "mean cosine of a question and its passage ", found.at(f"cosine_{side}").show())
        panels.append(tag("div.panel", tag("h4", side), svg, words))
    key = tag("div.key", tag("span.right", "questions"), tag("span.other", "their passages"))
    said = (
        found.at("shown").show(","),
        " test questions, each tied to its right passage. Both pictures share their axes, the two"
        " main ones (PCA) of all these vectors: they show ", found.at("variance").show(".0%"),
        " of the variance, so what looks near may be far.",
    )  # fmt: skip
    return _figure("A map of questions and passages", Markup(key + tag("div.panels", *panels)), *said)


def _placer(points: Sequence[Sequence[float]]) -> Callable[[Sequence[float]], str]:
    """Places in a picture of 400 by 300, both axes to the same scale."""
    columns = [[point[axis] if len(point) > axis else 0.0 for point in points] for axis in (0, 1)]
    middle = [(max(column) + min(column)) / 2 for column in columns]
    spans = [max(column) - min(column) for column in columns]
    size = min(380 / (spans[0] or 1e-9), 280 / (spans[1] or 1e-9), 1e6)

    def place(point: Sequence[float]) -> str:
        x, y = (point[axis] if len(point) > axis else 0.0 for axis in (0, 1))
        return f"{200 + size * (x - middle[0]):.1f} {150 - size * (y - middle[1]):.1f}"

    return place


def _figure(title: str, body: Markup, *said: object, legend: bool = False) -> Markup:
    key = tag("div.key", tag("span.before", "before"), tag("span.after", "after")) if legend else Markup()
    return tag("figure", tag("h3", title), key, body, tag("figcaption", *said))


def _svg(*marks: Markup) -> Markup:
    return tag("svg", *marks, role="presentation")


def _whisker(row: Facts, scale: Scale, side: str) -> Markup:
    """The mean and its interval; before lies above after where both are drawn."""
    mean, low, high = (row.at(name).number for name in ("mean", "low", "high"))
    if not math.isfinite(mean):
        return Markup()
    line = (
        tag("line", x1=_at(low, scale), x2=_at(high, scale), y1="50%", y2="50%")
        if math.isfinite(low)
        else Markup()
    )
    return tag(f"g.{side}", line, tag("circle", cx=_at(mean, scale), cy="50%", r="4.5"))


def _zero(scale: Scale) -> Markup:
    return tag("line.zero", x1=_at(0, scale), x2=_at(0, scale), y1="0%", y2="100%")


def _scale(values: Sequence[float]) -> Scale:
    ends = [0.0, *(value for value in values if math.isfinite(value))]
    room = 0.06 * (max(ends) - min(ends)) or 0.01
    return min(ends) - room, max(ends) + room


def _at(value: float, scale: Scale) -> str:
    return f"{100 * (value - scale[0]) / (scale[1] - scale[0]):.2f}%"


def _axis(labels: Sequence[str]) -> Markup:
    return tag(
        "div.bar.axis", tag("span"), tag("div.ends", *(tag("span", label) for label in labels)), tag("span")
    )


def _up(value: float) -> float:
    return 47 - 44 * (value if math.isfinite(value) else 0.0)


def _grid_line(level: float) -> Markup:
    y = figure(_up(level), ".2f")
    return tag("line.zero", x1="0", x2="100", y1=y, y2=y, **{"vector-effect": "non-scaling-stroke"})


def _line(points: Sequence[tuple[float, float]], side: str) -> Markup:
    places = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
    return tag(f"polyline.{side}", points=places, fill="none", **{"vector-effect": "non-scaling-stroke"})


def _steps(shares: Sequence[float], kind: str) -> Markup:
    """A histogram as one filled outline."""
    width = 100 / max(1, len(shares))
    tops = " ".join(
        f"L{number * width:.2f} {50 - 48 * share:.2f}H{(number + 1) * width:.2f}"
        for number, share in enumerate(shares)
    )
    return tag(f"path.{kind}", d=f"M0 50{tops}V50Z", **{"vector-effect": "non-scaling-stroke"})
