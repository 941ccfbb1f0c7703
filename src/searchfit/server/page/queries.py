"""The generated queries, kept and dropped, with the reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from searchfit.markup import Markup, tag, text
from searchfit.screened import Wanted, artefact, screened_queries
from searchfit.server.page.address import MOST_SKIPPED, Asked
from searchfit.server.page.html import hidden, query_field, select, turn

PAGE = 50
_VERDICTS = (("", "kept and dropped"), ("kept", "kept"), ("dropped", "dropped"))


@dataclass(frozen=True, slots=True)
class Listed:
    """One page of queries, whether there are more, and how many there are in all by reason ("": kept) and by
    style."""

    rows: Sequence[Mapping[str, Any]]
    more: bool
    reasons: Mapping[str, int]
    styles: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Narrowed:
    """Which queries to list, as the address says it."""

    verdict: str = ""
    style: str = ""
    reason: str = ""

    def pairs(self) -> list[tuple[str, str]]:
        """For an address."""
        named = (("verdict", self.verdict), ("style", self.style), ("reason", self.reason))
        return [(name, value) for name, value in named if value]


def read(workspace: Path, asked: Asked, narrowed: Narrowed) -> Listed:
    """Raises WorkspaceError where the fit has not come to the screen."""
    import pyarrow.parquet as pq

    kept = {"kept": True, "dropped": False}.get(narrowed.verdict)
    wanted = Wanted(kept, narrowed.reason, narrowed.style, contains=asked.query)
    rows = list(islice(screened_queries(workspace, wanted), asked.first, asked.first + PAGE + 1))
    table = pq.read_table(artefact(workspace, "screened.parquet", "screen"), columns=["reason", "style"])
    reasons, styles = (
        {each["values"]: each["counts"] for each in table[name].value_counts().to_pylist()}
        for name in ("reason", "style")
    )
    return Listed(rows[:PAGE], len(rows) > PAGE and asked.first < MOST_SKIPPED, reasons, styles)


def examples(workspace: Path, count: int = 5) -> list[str]:
    """Some questions that were kept, from places far apart, whole sentences first."""
    for style in ("question", "keyphrases", ""):
        kept = islice(screened_queries(workspace, Wanted(kept=True, style=style)), 4000)
        texts = list(dict.fromkeys(str(row["text"]) for row in kept if 12 <= len(str(row["text"])) <= 90))
        if len(texts) >= count:
            return texts[:: len(texts) // count][:count]
    return []


def view(asked: Asked, narrowed: Narrowed, found: Listed) -> list[Markup]:
    """The page."""
    kept, total = found.reasons.get("", 0), sum(found.reasons.values())
    told = (
        f"{total:,} queries were written for the documents: {kept:,} kept, {total - kept:,} dropped. Kept"
        " ones train the model or test it, never both."
    )
    dropped = [
        tag("li", _reason(asked, reason), tag("span.count", f"{count:,}"))
        for reason, count in Counter(found.reasons).most_common(12)
        if reason
    ]
    why = (
        [tag("details", tag("summary", "Why queries were dropped"), tag("ul.reasons", *dropped))]
        if dropped
        else []
    )
    rows = [_row(asked, row) for row in found.rows]
    listed = tag("ol.queries", *rows) if rows else tag("p.soft", "No such query.")
    return [
        tag("h1", "Generated queries"),
        tag("p.soft", told),
        *why,
        _form(asked, narrowed, found),
        listed,
        _turn(asked, narrowed, found.more),
    ]


def _reason(asked: Asked, reason: str) -> Markup:
    narrowed = Narrowed("dropped", "", reason)
    return tag(
        "a", text(reason, 120), href=replace(asked, query="", first=0).link("/queries", *narrowed.pairs())
    )


def _form(asked: Asked, narrowed: Narrowed, found: Listed) -> Markup:
    styles = [
        ("", "every style"),
        *((name, f"{name} ({count:,})") for name, count in sorted(found.styles.items())),
    ]
    reason = hidden([("reason", narrowed.reason)] if narrowed.reason else [])
    return tag(
        "form.choice",
        hidden(Asked(workspace=asked.workspace).pairs()),
        reason,
        tag("label", tag("span", "Contains"), query_field(asked.query, "with these words")),
        select("verdict", _VERDICTS, narrowed.verdict, "Verdict"),
        select("style", styles, narrowed.style, "Style"),
        tag("button", "Show"),
        *(
            [tag("a.chip", text(narrowed.reason, 60), " ×", href=asked.link("/queries"))]
            if narrowed.reason
            else []
        ),
        action="/queries",
        method="get",
        id="choice",
    )


def _row(asked: Asked, row: Mapping[str, Any]) -> Markup:
    plain = Asked(workspace=asked.workspace, query=str(row["text"]))
    passage = plain.link(
        "/document", ("id", row["document_id"]), ("passage", row["passage_id"]), part="match"
    )
    verdict = tag("span.dropped", text(row["reason"], 160)) if row["reason"] else tag("span.kept", "kept")
    rank = f"its document at rank {row['rank']:,}" if row["rank"] else ""
    facts = (
        verdict,
        tag("span", text(row["style"], 40)),
        tag("span", rank) if rank else Markup(),
        tag("a", "its document", href=passage, **{"aria-label": f"Document of: {str(row['text'])[:120]}"}),
    )
    name = tag("a", text(row["text"], 400), href=plain.link("/"), dir="auto")
    return tag("li", tag("p.name", name), tag("p.facts", *facts))


def _turn(asked: Asked, narrowed: Narrowed, more: bool) -> Markup:
    before, after = (
        replace(asked, first=max(0, asked.first + by)).link("/queries", *narrowed.pairs())
        for by in (-PAGE, PAGE)
    )
    return turn(before if asked.first else "", after if more else "")
