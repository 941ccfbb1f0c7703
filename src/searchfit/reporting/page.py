"""The report as one HTML file, from the value that `tell` made. It runs no script and loads nothing; all text
is escaped, cleaned of control characters and clipped, since it may be anybody's documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

from searchfit.markup import Markup, figure, number_or_nan, tag, text
from searchfit.metrics import NAMES
from searchfit.reporting import plots
from searchfit.reporting.facts import Facts

SAMPLES, PER_STAGE, FIGURES = 5, 12, 60  # most shown of each
SETTINGS_CHARS = 60_000

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>searchfit report</title>
"""


def page(told: dict[str, Any]) -> str:
    """The whole file."""
    folder = resources.files("searchfit.reporting")
    css = "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in ("palette.css", "report.css"))
    facts = Facts(told)
    sections = {
        "better": ("Is it better?", _better(facts)),
        "vectors": ("What the vectors did", [plots.scores_plot(facts), plots.map_plot(facts), _twins(facts)]),
        "examples": ("Question by question", _examples(facts)),
        "systems": ("All systems", [_systems(facts), plots.gains_plot(facts)]),
        "made": ("What went in, what was made", _made(facts)),
        "cost": ("Time, memory and settings", _costs(facts)),
    }
    shown = {name: part for name, part in sections.items() if any(part[1])}
    links = [tag("a", title, href=f"#{name}") for name, (title, _) in shown.items()]
    body = [tag("section", tag("h2", title), *parts, id=name) for name, (title, parts) in shown.items()]
    header = tag("header", *_header(facts), tag("nav", *links))
    return f"{_HEAD}<style>\n{css}</style></head>\n<body>\n{header}\n{tag('main', *body)}\n</body></html>\n"


def _header(told: Facts) -> list[Markup]:
    proof = told.at("proof")
    arrow = Markup(proof.at("mean_a").show() + " → " + proof.at("mean_b").show())
    p = proof.at("p")
    tiles = [
        (arrow, "nDCG@10, before → after"),
        (proof.at("gain").show("+.3f"), Markup("95% interval " + proof.interval())),
        (Markup("&lt; 0.001") if p.number < 0.001 else p.show(), "p of the randomization test"),
        (proof.at("n").show(","), "test questions"),
    ]
    ended = told.at("finished").words or "-"
    return [
        tag("p.brand", f"searchfit {told.at('searchfit').words} · report · {ended}"),
        tag("h1", text(told.at("verdict").words, 700), **{"data-key": "verdict"}),
        tag("div.tiles", *(tag("div", tag("b", value), tag("small", name)) for value, name in tiles))
        if proof.value
        else Markup(),
        tag("p", text(told.at("reason").words, 1000)),
        tag("p", text(told.at("provenance").words, 1000)),
    ]


def _better(told: Facts) -> list[Markup]:
    names = told.at("pair").all()
    if not names:
        return [plots.training_plot(told)]
    said = (
        "Before is ", tag("b", text(names[0].words, 120)), ", after is ", tag("b", text(names[1].words, 120)),
        ", on test questions that the tuning has not seen.",
        "" if told.at("proof").value else " The second was not better for sure on dev and is not in use.",
    )  # fmt: skip
    return [
        tag("p", *said),
        plots.metrics_plot(told),
        plots.outcome_plot(told),
        plots.bands_plot(told),
        plots.recall_plot(told),
        plots.training_plot(told),
    ]


def _twins(told: Facts) -> Markup:
    twins = told.at("portrait", "twins")
    if not twins.value:
        return Markup()
    parts = (
        twins.at("answers").show(","), " of ", twins.at("of").show(","),
        " right passages have a near-duplicate (cosine ", twins.at("cosine").show(".2f"),
        " or more) in another document: there a wrong answer may be right.",
    )  # fmt: skip
    return tag("p.soft", *parts)


def _grid(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    head = tag("tr", *(tag("th", name) for name in heads))
    body = (tag("tr", *(tag("td", cell) for cell in row)) for row in rows)
    return tag("div.scroll", tag("table", tag("thead", head), tag("tbody", *body)), tabindex="0")


def _systems(told: Facts) -> Markup:
    gain = f"Gain over {told.at('untuned').words[:60]}"
    heads = (
        "System",
        "nDCG@10",
        gain,
        *(plots.metric_name(name) for name in NAMES[1:]),
        "nDCG@10 on dev",
        "p",
    )
    said = (
        "All systems on the test questions, with 95% intervals. p is that of the difference to the untuned"
        " engine, corrected for so many comparisons (Holm). The choice was made on dev alone."
    )
    table = _grid(heads, (_system(row) for row in told.at("systems").all()))
    return Markup(tag("p.soft", said) + table + Markup("").join(_comparisons(told)))


def _system(row: Facts) -> list[Markup]:
    badge = tag("span.badge", "chosen") if row.at("chosen").value else Markup()
    engine = [
        (key, value) for key, value in (row.at("engine").value or {}).items() if value and key != "name"
    ]
    parts = [
        part
        for key, _ in engine
        for part in (f"{key.replace('_', ' ')} ", row.at("engine", key).count(), ", ")
    ]
    return [
        Markup(text(row.at("name").words, 120) + badge + tag("small", *parts[:-1])),
        row.at("test", "ndcg@10").show(),
        Markup(row.at("gain", "mean").show("+.3f") + tag("small", row.at("gain").interval())),
        *(row.at("test", metric).show() for metric in NAMES[1:]),
        row.at("dev", "ndcg@10").show(),
        row.at("p_holm").show(),
    ]


def _comparisons(told: Facts) -> list[Markup]:
    lines = []
    for each in told.at("comparisons").all():
        after, before = (each.at(name).words[:120] for name in ("after", "before"))
        p = each.at("p")
        chance = Markup(" (95% interval " + each.interval() + ", p = " + p.show(".3g") + ").")
        parts = (
            f"{after} against {before} on {each.at('split').words}: ",
            each.at("gain").show("+.3f"),
            " nDCG@10",
            chance,
        )
        lines.append(tag("p.soft", *parts))
    return lines


def _examples(told: Facts) -> list[Markup]:
    lists = {
        "gains": "Largest gains",
        "losses": "Largest losses",
        "hardest": "Hardest questions",
        "easiest": "Easiest questions",
        "yours": "Your own questions, without judgements",
    }
    parts = []
    for kind, title in lists.items():
        if cards := told.at("examples", kind).all():
            parts += [tag("h3", title), *(_card(card) for card in cards[:2])]
            if len(cards) > 2:
                more = tag("summary", f"{len(cards) - 2} more")
                parts.append(tag("details", more, *(_card(card) for card in cards[2:])))
    return parts or [tag("p", "No question changed its score, or none was there to compare.")]


def _card(card: Facts) -> Markup:
    before, after = card.at("before"), card.at("after")
    way = (
        "span.up"
        if after.number > before.number
        else "span.down"
        if after.number < before.number
        else "span.even"
    )
    scores = tag(way, "nDCG@10 ", before.show(".2f"), " → ", after.show(".2f"))
    wanted = [_name(document) for document in card.at("relevant").all()]
    cause = tag("p.cause", tag("b", text(card.at("cause").words, 60)), " ", text(card.at("why").words, 300))
    sides = (("Before", "rank_before", "top_before"), ("After", "rank_after", "top_after"))
    return tag(
        "article.example",
        tag("h4.query", text(card.at("query").words or "-"), dir="auto"),
        tag("p", scores, " ", tag("small", text(card.at("style").words, 60)))
        if after.value is not None
        else Markup(),
        tag("p.soft", "Wanted: ", Markup("; ".join(wanted))) if wanted else Markup(),
        cause if card.at("cause").value else Markup(),
        tag("div.pair", *(_ranking(side, card, card.at(rank), card.at(top)) for side, rank, top in sides)),
    )


def _ranking(side: str, card: Facts, rank: Facts, top: Facts) -> Markup:
    items = [
        tag("li.relevant" if hit.at("relevant").value else "li", _name(hit)) for hit in top.all()[:SAMPLES]
    ]
    place: object = ""
    if card.at("after").value is not None:
        place = (
            Markup(" · right answer at rank " + rank.show(",")) if rank.value else " · right answer not found"
        )
    return tag("div", tag("h5", side, place), tag("ol", *items) if items else tag("p", "-"))


def _name(document: Facts) -> Markup:
    title, identity = document.at("title").words, document.at("id").words or "-"
    aside = tag("small", text(identity, 60)) if title not in ("", identity) else Markup()
    return Markup(tag("bdi", text(title or identity, 140)) + " " + aside)


def _made(told: Facts) -> list[Markup]:
    stages = [part for stage in told.at("stages").all() for part in _stage(stage)]
    return [tag("dl", *stages), *_asked(told.at("queries"))]


def _stage(stage: Facts) -> list[Markup]:
    drops, notes = stage.at("drops").all(), stage.at("notes").all()
    pairs = [
        (text(each.at("name").words.replace("_", " "), 60), each.at("value").count())
        for each in stage.at("counts").all()
    ]
    parts = [
        _named(pairs),
        tag("ul", *(_drop(drop) for drop in drops[:PER_STAGE])),
        _more(PER_STAGE, len(drops), "reasons to drop"),
        *(tag("p.note", text(note.words, 400)) for note in notes[:PER_STAGE]),
        _more(PER_STAGE, len(notes), "notes"),
    ]
    return [tag("dt", text(stage.at("stage").words, 40)), tag("dd", *parts)]


def _named(pairs: Sequence[tuple[object, object]]) -> Markup:
    shown = [tag("span", name, " ", tag("b", value)) for name, value in pairs[:FIGURES]]
    return Markup(tag("div.facts", *shown) + _more(FIGURES, len(pairs), "figures"))


def _drop(drop: Facts) -> Markup:
    samples = [tag("bdi", text(sample.words, 120)) for sample in drop.at("samples").all()[:SAMPLES]]
    said = f" dropped: {drop.at('reason').words[:300]}"
    return tag("li", drop.at("count").count(), said, tag("small.block", Markup("; ".join(samples))))


def _more(shown: int, total: int, what: str) -> Markup:
    return tag("p.soft", f"and {total - shown:,} more {what}") if total > shown else Markup()


def _asked(queries: Facts) -> list[Markup]:
    """Generated queries: kept ones of each style, dropped ones of each reason."""
    parts = []
    for key, total, title in (
        ("styles", "kept", "Queries that were kept"),
        ("reasons", "dropped", "Queries that were dropped"),
    ):
        rows: list[Markup] = []
        for group in queries.at(key).all():
            items = [tag("li", text(sample.words, 200), dir="auto") for sample in group.at("samples").all()]
            name = text(group.at("name").words or "-", 60)
            rows += [
                tag("dt", name, tag("small.block", group.at("count").show(","))),
                tag("dd", tag("ul", *items)),
            ]
        if rows:
            parts += [tag("h3", title, " (", queries.at(total).show(","), ")"), tag("dl", *rows)]
    return parts


def _costs(told: Facts) -> list[Markup]:
    toml = told.at("settings").words
    lines = [text(line, 2000) for line in toml[:SETTINGS_CHARS].splitlines()]
    stages = told.at("stages").all()
    rows = [
        (
            text(stage.at("stage").words, 40),
            stage.at("seconds").show(",.1f"),
            _share(stage, told),
            stage.at("peak_memory_mb").show(",.0f"),
        )
        for stage in stages
    ]
    versions = [
        (text(each.at("name").words, 60), text(each.at("version").words, 60))
        for each in told.at("versions").all()
    ]
    keys = "\n".join(
        f"{stage.at('stage').words[:40]:<12}{stage.at('key').words[:64] or '-'}" for stage in stages
    )
    return [
        _grid(("Stage", "Seconds", "", "Peak memory, MB"), rows),
        _named([("seconds in all", told.at("seconds").show(",.1f"))]),
        tag("h3", "Run it again"),
        tag("pre", text(told.at("command").words, 4000)),
        _named([("seed", told.at("seed").count()), *versions]),
        tag(
            "details", tag("summary", "Hashes of each stage's inputs and settings"), tag("pre", _lines(keys))
        ),
        tag("details", tag("summary", "Settings"), tag("pre", Markup("\n".join(lines)))),
        _more(SETTINGS_CHARS, len(toml), "characters in searchfit.toml"),
    ]


def _lines(raw: str) -> Markup:
    return Markup("\n".join(text(line, 200) for line in raw.splitlines()))


def _share(stage: Facts, told: Facts) -> Markup:
    """The stage's part of the time as a bar."""
    part, whole = number_or_nan(stage.at("seconds").value), number_or_nan(told.at("seconds").value)
    width = figure(100 * part / whole, ".2f") if whole > 0 else "-"
    return tag("svg.share", tag("rect", width=f"{width}%", height="100%")) if width != "-" else Markup()
