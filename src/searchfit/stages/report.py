"""The report: one HTML file that says what was made, whether it is better, and how that is known.

Every figure comes from the manifest or the evaluation; one that is not there is shown as "-". All text is
escaped, cleaned of control characters and clipped, since it may be anybody's documents.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from searchfit.config import Settings
from searchfit.errors import WorkspaceError
from searchfit.markup import Markup, figure, number_or_nan, tag, text
from searchfit.metrics import NAMES
from searchfit.plots import Gain, gain_plot, training_curve
from searchfit.records import StageResult
from searchfit.significance import bootstrap_interval
from searchfit.stages import Tools
from searchfit.workspace import write_bytes

VERSION = 1

FEW = 50  # below this many test questions the report says that only large gains can show
SYSTEMS, EXAMPLES, SAMPLES, STYLES, PER_STAGE = 60, 6, 5, 30, 12  # most shown of each
SETTINGS_CHARS = 60_000
Json = Mapping[str, Any]

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>searchfit report</title>
"""
_FLATTERY = (
    " They were generated from your documents and repeat words of the passages they were made from: they"
    " flatter keyword search, and real questions may gain less. Judged questions of your own would tell."
)


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What the report is made from: the manifest, the evaluation's files and the course of training (CSV)."""

    manifest: Json
    systems: Json
    choice: Json
    queries: pa.Table
    course: str = ""

    @property
    def stages(self) -> Mapping[str, Json]:
        return self.manifest.get("stages") or {}

    @property
    def chosen(self) -> str:
        return str(self.choice.get("system", "-"))

    @property
    def untuned(self) -> str:
        return str(self.choice.get("untuned") or "untuned dense")

    @property
    def comparison(self) -> Json:
        """The chosen system against the untuned one on test; empty when there was nothing to compare."""
        found: Json = (self.choice.get("test") or {}).get(self.untuned) or {}
        return found if found.get("n") and self.chosen != self.untuned else {}

    @property
    def proof(self) -> Json:
        """What the headline may claim. On generated questions the whole engine's gain is mostly that of
        keyword search, which they flatter: there it is the gain of the tuned model by itself."""
        alone: Json = self.choice.get("dense_leg") or {}
        return self.comparison if self.systems.get("questions") == "judged" else alone


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Write report.html from `inputs["manifest.json"]` (a JSON file) and the evaluation folder.

    Reads the settings `seed` and `choose.bootstrap`. Raises WorkspaceError for an input that is absent or
    damaged.
    """
    folder = inputs["evaluation/choice.json"].parent
    files = (
        inputs["manifest.json"],
        folder / "systems.json",
        folder / "choice.json",
        folder / "queries.parquet",
    )
    course = inputs["models/trained"] / "course.csv"
    csv = course.read_text(encoding="utf-8") if course.is_file() else ""
    manifest, systems, choice, queries = (_read(file) for file in files)
    evidence = _Evidence(manifest, systems, choice, queries, csv)
    gains = _gains(evidence, settings.choose.bootstrap, settings.seed)
    page = _page(evidence, gains, settings.seed).encode()
    write_bytes(tools.output / "report.html", page)
    return StageResult(counts={"bytes": len(page)})


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path)
        return {**json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError) as error:  # TypeError: JSON that is not an object
        hint = "Make it anew: fit with --force evaluate."
        raise WorkspaceError(f"the report cannot read {path}: {error}.", hint) from error


def _gains(evidence: _Evidence, samples: int, seed: int) -> dict[str, Gain]:
    """By system, the mean per-query gain in nDCG@10 over the untuned one on test, and its interval."""
    gains: dict[str, Gain] = {}
    test = evidence.queries.filter(pc.field("split") == "test")
    names = [str(system.get("name")) for system in evidence.systems.get("systems") or []]
    measured = [name for name in names if {name, evidence.untuned} <= set(test.column_names)]
    for name in measured[:SYSTEMS]:
        scores, base = (np.array(test[key].to_pylist(), dtype=float) for key in (name, evidence.untuned))
        difference = (scores - base)[np.isfinite(scores - base)]
        if name != evidence.untuned and difference.size:
            interval = bootstrap_interval(difference, samples=samples, seed=seed)
            gains[name] = (float(difference.mean()), *interval)
    if evidence.comparison:  # the figure that the choice was made with, so that the page never shows two
        gains[evidence.chosen] = _gain(evidence.comparison)
    return gains


def _count(value: object) -> str:
    if not math.isfinite(number_or_nan(value)):
        return "-" if value is None or isinstance(value, float) else str(value)
    return format(value, ",.6g" if isinstance(value, float) else ",")


def _gain(comparison: Json) -> Gain:
    gain, low, high = (number_or_nan(comparison.get(name)) for name in ("gain", "low", "high"))
    return gain, low, high


def _interval(gain: Gain) -> str:
    return f"{figure(gain[1], '+.3f')} to {figure(gain[2], '+.3f')}"


def _measure(comparison: Json) -> str:
    gain, p = _gain(comparison), number_or_nan(comparison.get("p"))
    chance = "p < 0.001" if p < 0.001 else f"p = {figure(p)}"
    return f"{figure(gain[0], '+.3f')} nDCG@10 (95% interval {_interval(gain)}, {chance})"


def _more(shown: int, total: int, what: str) -> Markup:
    return tag("p.soft", f"and {total - shown:,} more {what}") if total > shown else Markup()


def _page(evidence: _Evidence, gains: Mapping[str, Gain], seed: int) -> str:
    css = resources.files("searchfit.stages").joinpath("report.css").read_text(encoding="utf-8")
    stages = [part for item in evidence.stages.items() for part in _stage(*item)]
    sections = {
        "systems": ("Before and after", [*_table(evidence, gains), *_plots(evidence, gains)]),
        "examples": ("Question by question", _examples(evidence.choice)),
        "made": ("What went in, what was made", [tag("dl", *stages), *_samples(evidence.queries)]),
        "cost": ("Time, memory and settings", _costs(evidence, seed)),
    }
    links = [tag("a", title, href=f"#{name}") for name, (title, _) in sections.items()]
    body = [tag("section", tag("h2", title), *parts, id=name) for name, (title, parts) in sections.items()]
    header = tag("header", *_header(evidence), tag("nav", *links))
    main = tag("main", *body)
    return f"{_HEAD}<style>\n{css}</style></head>\n<body>\n{header}\n{main}\n</body></html>\n"


def _header(evidence: _Evidence) -> list[Markup]:
    finished = max((str(stage.get("finished") or "") for stage in evidence.stages.values()), default="")
    found = evidence.proof
    facts = {
        f"nDCG@10, {str(found.get('before', 'untuned'))[:60]} → chosen": " → ".join(
            figure(found.get(key)) for key in ("mean_a", "mean_b")
        ),
        "better / equal / worse": " / ".join(_count(found.get(key)) for key in ("wins", "ties", "losses")),
        "test questions": _count(found.get("n")),
    }
    tiles = [tag("div", tag("b", value), tag("small", name)) for name, value in facts.items()]
    return [
        tag("p.brand", f"searchfit {evidence.manifest.get('searchfit', '-')} · report · {finished or '-'}"),
        tag("h1", _verdict(evidence)),
        tag("div.tiles", *tiles) if found else Markup(),
        tag("p", text(evidence.choice.get("reason") or "", 1000)),
        tag("p", text(_provenance(evidence.systems), 1000)),
    ]


def _verdict(evidence: _Evidence) -> Markup:
    if evidence.chosen == evidence.untuned:
        return text("Nothing beat the untuned model; it was kept.")
    name = f"“{evidence.chosen[:120]}”"
    kept = f"No tuned model was better: the untuned one was kept and searches as {name}"
    lead = f"{name} was chosen" if evidence.choice.get("tuned") else kept
    if not evidence.comparison:
        return text(f"{lead}. No test questions measure its gain.")
    if not evidence.proof:
        return text(f"{lead}.")
    _, low, high = _gain(evidence.proof)
    doubt = " It is worse on these questions." if high < 0 else " The gain is not certain."
    judged = evidence.systems.get("questions") == "judged"
    what = (
        "over the untuned model on your test questions" if judged else "for the tuned model by itself on test"
    )
    said = f"{lead}: {_measure(evidence.proof)} {what}."
    return text(said + ("" if low > 0 else doubt), 600)


def _provenance(systems: Json) -> str:
    """Where the test questions came from, and what that does to the figures."""
    test, origin = (systems.get("counts") or {}).get("test") or 0, systems.get("questions")
    if not test:
        return "There were too few questions to hold any out for a test, so no figure here proves a gain."
    few = f" {test:,} are few: none but a large gain can show." if test < FEW else ""
    if origin == "judged":
        return f"The {test:,} test questions are your own, with your judgements.{few}"
    flattery = _FLATTERY if origin == "generated" else f" Their origin: {origin or '-'}."
    return f"The {test:,} test questions were held out of the tuning.{flattery}{few}"


def _grid(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    head = tag("tr", *(tag("th", name) for name in heads))
    body = (tag("tr", *(tag("td", cell) for cell in row)) for row in rows)
    return tag("div.scroll", tag("table", tag("thead", head), tag("tbody", *body)), tabindex="0")


def _comparisons(choice: Json) -> list[Markup]:
    on_test = [*(choice.get("test") or {}).values(), choice.get("dense_leg")]
    found = [("dev", choice.get("dev")), *(("test", each) for each in on_test)]
    said = "{} against {} on {}: {}."
    return [
        tag(
            "p.soft",
            said.format(*(str(each.get(x, "-"))[:120] for x in ("after", "before")), split, _measure(each)),
        )
        for split, each in found
        if each
    ]


def _table(evidence: _Evidence, gains: Mapping[str, Gain]) -> list[Markup]:
    systems = evidence.systems.get("systems", [])
    gain = f"Gain over {evidence.untuned}"
    heads = ("System", "nDCG@10", gain, "MRR@10", "MAP", "Recall@10", "Recall@100", "nDCG@10 on dev")
    said = "All systems on the test questions, with 95% intervals. The choice was made on dev alone."
    return [
        tag("p.soft", said),
        _grid(heads, (_system(evidence, system, gains) for system in systems[:SYSTEMS])),
        _more(SYSTEMS, len(systems), "systems"),
        *_comparisons(evidence.choice),
    ]


def _system(evidence: _Evidence, system: Json, gains: Mapping[str, Gain]) -> list[Markup | str]:
    name, test, dev = str(system.get("name", "-")), system.get("test") or {}, system.get("dev") or {}
    badge = tag("span.badge", "chosen") if name == evidence.chosen else ""
    engine = (system.get("engine") or {}).items()
    parts = ", ".join(f"{key.replace('_', ' ')} {_count(value)}" for key, value in engine if key != "name")
    gain = gains.get(name, (math.nan,) * 3)
    return [
        Markup(text(name, 120) + badge + tag("small", parts)),
        figure(test.get("ndcg@10")),
        Markup(figure(gain[0], "+.3f") + tag("small", _interval(gain) if name in gains else "")),
        *(figure(test.get(metric)) for metric in NAMES[1:]),
        figure(dev.get("ndcg@10")),
    ]


def _plots(evidence: _Evidence, gains: Mapping[str, Gain]) -> list[Markup]:
    rows = [(name, gain, _interval(gain)) for name, gain in gains.items()]
    return [gain_plot(rows, evidence.chosen, evidence.untuned), training_curve(evidence.course)]


def _examples(choice: Json) -> list[Markup]:
    examples = choice.get("examples") or {}
    lists = {
        "Largest gains": examples.get("gains"),
        "Largest losses": examples.get("losses"),
        "Your own questions, without judgements": choice.get("user_queries"),
    }
    parts = [part for title, cards in lists.items() if cards for part in _cards(title, cards)]
    return parts or [tag("p", "No question changed its score, or none was there to compare.")]


def _cards(title: str, examples: Sequence[Json]) -> list[Markup]:
    cards = [_card(example) for example in examples[:EXAMPLES]]
    return [tag("h3", title), *cards, _more(EXAMPLES, len(examples), "in evaluation/choice.json")]


def _card(example: Json) -> Markup:
    before, after = number_or_nan(example.get("before")), number_or_nan(example.get("after"))
    scores = f"nDCG@10 {figure(before, '.2f')} → {figure(after, '.2f')}"
    way = "span.up" if after > before else "span.down"
    wanted = [_name(document) for document in (example.get("relevant") or [])[:SAMPLES]]
    sides = (("Before", example.get("top_before")), ("After", example.get("top_after")))
    return tag(
        "article.example",
        tag("h3", text(example.get("query", "-")), dir="auto"),
        tag("p", tag(way, scores), f" {example.get('style') or ''}") if "after" in example else Markup(),
        tag("p.soft", "Wanted: ", Markup("; ".join(wanted))) if wanted else Markup(),
        tag("div.pair", *(_ranking(side, hits or []) for side, hits in sides)),
    )


def _ranking(side: str, hits: Sequence[Json]) -> Markup:
    items = [tag("li.relevant" if hit.get("relevant") else "li", _name(hit)) for hit in hits[:SAMPLES]]
    return tag("div", tag("h4", side), tag("ol", *items) if items else tag("p", "-"))


def _name(document: Json) -> Markup:
    title, identity = str(document.get("title") or ""), str(document.get("id", "-"))
    aside = tag("small", text(identity, 60)) if title not in ("", identity) else Markup()
    return Markup(tag("bdi", text(title or identity, 140)) + " " + aside)


def _stage(name: str, stage: Json) -> list[Markup]:
    counts, drops, notes = stage.get("counts") or {}, stage.get("drops") or [], stage.get("notes") or []
    parts = [
        _facts({key.replace("_", " "): _count(value) for key, value in counts.items()}),
        tag("ul", *(_drop(drop) for drop in drops[:PER_STAGE])),
        _more(PER_STAGE, len(drops), "reasons to drop"),
        *(tag("p.note", text(note, 400)) for note in notes[:PER_STAGE]),
        _more(PER_STAGE, len(notes), "notes"),
    ]
    return [tag("dt", text(name, 40)), tag("dd", *parts)]


def _facts(facts: Mapping[str, object]) -> Markup:
    pairs = [tag("span", text(key, 60), " ", tag("b", text(value, 60))) for key, value in facts.items()]
    return Markup(tag("div.facts", *pairs[:SYSTEMS]) + _more(SYSTEMS, len(pairs), "figures"))


def _drop(drop: Json) -> Markup:
    samples = [tag("bdi", text(sample, 120)) for sample in (drop.get("samples") or [])[:SAMPLES]]
    said = f"{_count(drop.get('count'))} dropped: {drop.get('reason', '-')}"
    return tag("li", said, tag("small.block", Markup("; ".join(samples))))


def _samples(queries: pa.Table) -> list[Markup]:
    """Kept questions of each style, spread evenly over the table."""
    by_style: dict[str, list[str]] = {}
    for style, question in zip(queries["style"].to_pylist(), queries["text"].to_pylist(), strict=True):
        by_style.setdefault(style or "-", []).append(question or "")
    rows = []
    for style, questions in list(by_style.items())[:STYLES]:
        spread = list(dict.fromkeys(questions[:: max(1, len(questions) // SAMPLES)]))[:SAMPLES]
        items = [tag("li", text(question, 200), dir="auto") for question in spread]
        label = tag("dt", text(style, 60), tag("small.block", f"{len(questions):,} on dev and test"))
        rows += [label, tag("dd", tag("ul", *items))]
    return [tag("h3", "Questions by style"), tag("dl", *rows), _more(STYLES, len(by_style), "styles")]


def _costs(evidence: _Evidence, seed: int) -> list[Markup]:
    manifest, stages = evidence.manifest, evidence.stages
    toml = str(manifest.get("settings_toml") or "-")
    lines = [text(line, 2000) for line in toml[:SETTINGS_CHARS].splitlines()]
    figures = {name: (stage.get("seconds"), stage.get("peak_memory_mb")) for name, stage in stages.items()}
    rows = [(name, figure(time, ",.1f"), figure(peak, ",.0f")) for name, (time, peak) in figures.items()]
    seconds = filter(math.isfinite, (number_or_nan(time) for time, _ in figures.values()))
    return [
        _grid(("Stage", "Seconds", "Peak memory, MB"), rows),
        _facts({"seconds in all": figure(math.fsum(seconds), ",.1f")}),
        tag("h3", "Run it again"),
        tag("pre", text(manifest.get("command") or "-", 4000)),
        _facts({"seed": seed, **(manifest.get("versions") or {})}),
        tag("details", tag("summary", "Settings"), tag("pre", Markup("\n".join(lines)))),
        _more(SETTINGS_CHARS, len(toml), "characters in searchfit.toml"),
    ]
