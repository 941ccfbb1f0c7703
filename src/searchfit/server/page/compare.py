"""Systems side by side for one query: what fitting changed, with the changes of rank drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from searchfit.judged import steady_rankings
from searchfit.markup import Markup, tag, text
from searchfit.records import Engine
from searchfit.search import Searcher
from searchfit.server.page.address import Asked
from searchfit.server.page.html import hidden, select
from searchfit.server.page.search import form
from searchfit.workspace import Workspace

DEPTH = 10
ROW = 60  # pixels of a row, as page.css has them
SAID = {
    "untuned dense": "Untuned vectors alone",
    "keyword": "Keyword search (BM25)",
    "untuned blend": "Untuned, passages and keywords",
    "untuned engine": "Untuned engine",
    "chosen dense alone": "Served vectors alone",
    "chosen, not re-ranked": "Served engine, not re-ranked",
}


@dataclass(frozen=True, slots=True)
class Ranked:
    """The best documents of a system, best first: (id, title), and the rank of each by id as far down as it
    was ranked."""

    name: str
    best: tuple[tuple[str, str], ...]
    ranks: Mapping[str, int]


def compare(searcher: Searcher, workspace: Workspace, query: str) -> list[Ranked]:
    """The rankings of the systems of a workspace for one query, the served engine last. Raises WorkspaceError
    for a workspace that has no more than its index."""
    corpus, rankings = steady_rankings(searcher, workspace, [query], whiten=False)
    found = []
    for name, ranking in rankings:
        places = [place for place in ranking.rows[0].tolist() if place >= 0]
        rows = corpus.store.rows[np.array(places, np.int64)]
        fields = corpus.store.fetch(rows[:DEPTH])
        ids = corpus.store.document_ids(rows)
        best = tuple((str(each["document_id"]), str(each["title"])) for each in fields)
        found.append(Ranked(name, best, {id_: rank for rank, id_ in enumerate(ids, start=1)}))
    return found


def view(
    asked: Asked, engine: Engine, found: Sequence[Ranked], wanted: Sequence[str], marks: Mapping[str, int]
) -> list[Markup]:
    """The page; `wanted` are the systems to show, as the address names them."""
    top = [tag("h1", "What fitting changed" if tuned(engine) else "The parts of the engine"), _told(engine)]
    searched = form(asked, "/compare", "Compare")
    if not found:
        return [*top, searched]
    by_name = {each.name: each for each in found}
    left, middle, right = (by_name[name] for name in chosen(engine, list(by_name), wanted))
    columns = [
        _column(asked, left, None, marks, left.name == middle.name),
        _slopes(left, middle),
        _column(asked, middle, left, marks, False),
        _slopes(middle, right),
        _column(asked, right, None, marks, right.name == middle.name),
    ]
    return [
        *top,
        searched,
        tag("p.said", _summary(left, middle), role="status"),
        tag("div.compare", *columns),
        _key(bool(marks)),
        _choice(asked, list(by_name), (left.name, middle.name, right.name)),
    ]


def tuned(engine: Engine) -> bool:
    """Whether the engine searches with tuned weights."""
    return bool(engine.query_tower or engine.document_tower)


def chosen(engine: Engine, names: Sequence[str], wanted: Sequence[str]) -> tuple[str, str, str]:
    """The systems on the left, in the middle and on the right. Of a tuned engine these are the untuned one,
    itself, and keyword search; where the untuned model was kept, its vectors alone, itself, and keywords."""
    usual = ("untuned engine" if tuned(engine) else "untuned dense", names[-1], "keyword")
    own = [name if name in names else "" for name in wanted[:3]]
    filled = [*own, *[""] * (3 - len(own))]
    left, middle, right = (name or other for name, other in zip(filled, usual, strict=True))
    return left, middle, right


def said(name: str) -> str:
    """The name of a system for people."""
    if name.startswith("chosen engine ("):
        return f"Served engine: {name.removeprefix('chosen engine (').removesuffix(')')}"
    return SAID.get(name, name)


def _told(engine: Engine) -> Markup:
    if tuned(engine):
        told = (
            "The engine before and after tuning on your documents, and plain keyword search, on one query."
            " The report has the figures over all test questions."
        )
    else:
        told = (
            "Nothing beat the untuned model here, so that it was kept: before and after are the same. What is"
            " compared are its parts: vectors alone, the blend that is served, and keywords alone."
        )
    return tag("p.soft", told)


def _choice(asked: Asked, names: Sequence[str], shown: Sequence[str]) -> Markup:
    options = [(name, said(name)) for name in names]
    lists = [
        select("system", options, name, label)
        for name, label in zip(shown, ("Left", "Middle", "Right"), strict=True)
    ]
    plain = hidden(Asked(workspace=asked.workspace, query=asked.query).pairs())
    return tag(
        "form.choice", plain, *lists, tag("button", "Show"), action="/compare", method="get", id="choice"
    )


def _column(
    asked: Asked, shown: Ranked, before: Ranked | None, marks: Mapping[str, int], same: bool
) -> Markup:
    """A ranking; with `before`, what changed from that."""
    kind = "div.ranking.served" if before is not None else "div.ranking"
    items = []
    for rank, (id_, title) in enumerate(shown.best, start=1):
        link = asked.link("/document", ("id", id_))
        mark = "right" if marks.get(id_) else "wrong"
        state = tag(f"span.judged.{mark}", mark) if id_ in marks else Markup()
        change = _change(rank, before.ranks.get(id_)) if before is not None else Markup()
        name = tag("a", text(title or id_, 110), href=link, dir="auto")
        items.append(
            tag("li", tag("span.rank", str(rank)), tag("span.name", name), tag("span.state", state, change))
        )
    head = tag("h2", said(shown.name))
    note = tag("p.soft", "The same on both sides.") if same else Markup()
    return tag(kind, head, note, tag("ol", *items) if items else tag("p.soft", "found nothing"))


def _change(rank: int, before: int | None) -> Markup:
    """How a place moved, in words that a screen reader says too."""
    if before is None or before > DEPTH:
        was = f"was {before}" if before else "new"
        return tag("span.up", was)
    if before == rank:
        return tag("span.same", "=", **{"aria-label": "same place"})
    way, sign = ("up", "▲") if before > rank else ("down", "▼")
    steps = abs(before - rank)
    return tag(f"span.{way}", f"{sign}{steps}", role="img", **{"aria-label": f"{way} {steps}"})


def _summary(left: Ranked, middle: Ranked) -> str:
    """The difference of two rankings in a sentence."""
    if left.name == middle.name:
        return "The left and the middle are the same system."
    own, other = ([id_ for id_, _ in each.best] for each in (middle, left))
    if own == other:
        return f"{said(middle.name)} ranks the best {len(own)} as {said(left.name)} does."
    fresh = len(set(own) - set(other))
    moved = sum(id_ in other and other.index(id_) != place for place, id_ in enumerate(own))
    first = "another first result" if own[:1] != other[:1] else "the same first result"
    came = f"{fresh or 'none'} {'is' if fresh < 2 else 'are'} new"
    return f"Against the left, {first}; of the best {len(own)}, {came} and {moved or 'none'} moved."


def _slopes(left: Ranked, right: Ranked) -> Markup:
    """Lines from places on the left to places on the right; a stub for what leaves or comes."""
    places = {id_: place for place, (id_, _) in enumerate(right.best)}
    came = dict(places)
    lines = []
    for place, (id_, _) in enumerate(left.best):
        to = came.pop(id_, None)
        kind = "gone" if to is None else "up" if to < place else "down" if to > place else "same"
        lines.append(_line(kind, place, place if to is None else to, 0, 18 if to is None else 100))
    lines += [_line("came", place, place, 82, 100) for place in came.values()]
    height = str(ROW * max(len(left.best), len(right.best), 1))
    return tag(
        "svg.slopes",
        *lines,
        width="100",
        height=height,
        viewBox=f"0 0 100 {height}",
        preserveAspectRatio="none",
        **{"aria-hidden": "true"},
    )


def _line(kind: str, a: int, b: int, start: int, end: int) -> Markup:
    ya, yb = (ROW * place + ROW // 2 for place in (a, b))
    bend = (start + end) // 2
    return tag("path", d=f"M{start} {ya}C{bend} {ya} {bend} {yb} {end} {yb}", **{"class": kind})


def _key(judged: bool) -> Markup:
    parts = [
        tag("span.up", "▲ rises"), " ", tag("span.down", "▼ falls"), " ", tag("span.same", "= stays"), " ",
        "new: among the best 100 of the left nowhere; was 23: its place there",
    ]  # fmt: skip
    if judged:
        parts += ["; right and wrong are your marks"]
    return tag("p.soft.key", *parts)


def without_filters(asked: Asked) -> Asked:
    """Comparisons are over the whole corpus."""
    return replace(asked, values=(), bounds=(), where="", like="", first=0)
