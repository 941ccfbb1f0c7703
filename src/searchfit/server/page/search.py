"""The search page: the form, the results, the filters, and the marks that people give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from searchfit.markup import Markup, figure, tag, text
from searchfit.records import Hit
from searchfit.server.page.address import Asked
from searchfit.server.page.facets import Counted, Facet
from searchfit.server.page.html import failure, hidden, marked, query_field, turn

PAGE = 10
VALUE_CHARS = 80
OPEN = 3  # filters that are unfolded
FEW = 8  # values of a filter that are shown at once


@dataclass(frozen=True, slots=True)
class Results:
    """What was found, in `seconds`, and whether there is `more`; `marks` are this judge's grades by document
    id; `like` is the title of the document that others are like."""

    hits: Sequence[Hit]
    counted: Counted
    seconds: float
    more: bool
    marks: Mapping[str, int]
    like: str = ""


def form(asked: Asked, action: str = "/", label: str = "Search") -> Markup:
    """The search field; the conditions of the address go with it."""
    kept = replace(asked, query="", like="", first=0).pairs()
    field = query_field(
        asked.query,
        "Ask or describe what you look for",
        autocomplete="off",
        maxlength="2000",
        enterkeyhint="search",
        **{"aria-label": "Search query"},
    )
    button = tag("button.main", label)
    return tag(
        "form.search", hidden(kept), field, button, action=action, method="get", role="search", id="search"
    )


def start(asked: Asked, told: str, examples: Sequence[str]) -> list[Markup]:
    """The page before anything is asked: what there is, and questions to begin with."""
    links = [
        tag("li", tag("a", text(each, 160), href=replace(asked, query=each).link("/"), dir="auto"))
        for each in examples
    ]
    tried = [tag("h2.small", "For example"), tag("ul.examples", *links)] if links else []
    welcome = tag("section.welcome", tag("p.soft", text(told)), *tried)
    return [tag("h1.hide", "Search"), form(asked), _live(Markup(), welcome)]


def view(asked: Asked, found: Results) -> list[Markup]:
    """The page with results."""
    listed = tag("ol.hits", *(_hit(asked, hit, found.marks) for hit in found.hits), id="hits")
    side = _side(asked, found.counted)
    body = tag("section.results", _said(asked, found), _chips(asked), listed, _turn(asked, found))
    return [tag("h1.hide", "Search results"), form(asked), _live(side, body)]


def refused(asked: Asked, message: str, hint: str) -> list[Markup]:
    """The page where the query or a condition cannot be read."""
    body = tag("section.results", failure(message, hint), _chips(asked))
    return [tag("h1.hide", "Search"), form(asked), _live(_where(asked), body)]


def _live(side: Markup, body: Markup) -> Markup:
    """What changes as people type."""
    return tag("div.columns" if side else "div.column", body, side, id="live", **{"data-live": ""})


def _said(asked: Asked, found: Results) -> Markup:
    """How many, and how long it took."""
    total, first = found.counted.documents, asked.first
    place = f"{first + 1:,}–{first + len(found.hits):,}"
    said: list[object] = [
        f"{place} of {total:,} documents" if found.hits else f"None of {total:,} documents fits"
    ]
    if found.like:
        said = ["Most like ", tag("b", text(found.like, 120))]
        if asked.query:
            said += [" · ", tag("a", "back to the query", href=replace(asked, like="").link("/"))]
    took = tag("span.took", f" · {1000 * found.seconds:,.0f} ms")
    return tag("p.said", *said, took, id="status", role="status")


def _hit(asked: Asked, hit: Hit, marks: Mapping[str, int]) -> Markup:
    name = hit.title or hit.document_id
    more = (("id", hit.document_id), ("passage", hit.passage_id), ("rank", str(hit.rank)))
    link = tag(
        "a.open", text(name, 200), href=asked.link("/document", *more, part="match"), id=f"hit-{hit.rank}"
    )
    shown, marks_in = (hit.snippet, hit.highlights) if hit.snippet else (hit.text[:240], ())
    before, after = "… " if hit.text[:20] != shown[:20] else "", " …" if hit.text[-20:] != shown[-20:] else ""
    snippet = tag("p.snippet", before, marked(shown, marks_in), after, dir="auto")
    like = replace(asked, like=hit.document_id, first=0)
    actions = tag(
        "div.actions",
        tag("a.like", "More like this", href=like.link("/"), **{"aria-label": f"More like {name[:120]}"}),
        _why(hit) if not asked.like else "",
        mark_form(asked, hit.document_id, name, marks.get(hit.document_id)) if asked.query else "",
    )
    return tag("li", tag("article", tag("h2", link, dir="auto"), snippet, facts(hit.metadata), actions))


def facts(metadata: Mapping[str, Any], most: int = 8) -> Markup:
    """The metadata of a document in a line."""
    pairs = [(key, value) for key, value in metadata.items() if value not in (None, "")]
    spans = [
        tag("span", tag("span.key", text(key, 40)), " ", tag("bdi", text(shown_value(value), VALUE_CHARS)))
        for key, value in pairs[:most]
    ]
    return tag("p.facts", *spans) if spans else Markup()


def shown_value(value: object) -> str:
    """A value of the metadata for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.6g}"
    return str(value)


def _why(hit: Hit) -> Markup:
    """How the engine came to this place."""
    lines = []
    for leg, said in (("dense", "meaning"), ("keyword", "words")):
        place = hit.scores.get(f"{leg}_rank")
        where = f", place {place:,.0f} by it alone" if place else ""
        lines.append(tag("li", f"{said}: ", tag("b", figure(hit.scores.get(leg))), where))
    if "reranker" in hit.scores:
        lines.append(tag("li", "read again: ", tag("b", figure(hit.scores["reranker"]))))
    return tag("details.why", tag("summary", "Why here"), tag("ul", *lines))


def mark_form(asked: Asked, document: str, name: str, grade: int | None, path: str = "/") -> Markup:
    """Right and wrong, as two buttons; the one that holds takes the mark back."""
    buttons = []
    for said, value in (("Right", 1), ("Wrong", 0)):
        held = grade is not None and (grade > 0) == (value > 0)
        label = {"aria-pressed": str(held).lower(), "aria-label": f"{said}: {name[:120]}"}
        place = f"mark-{value}-{document}"
        given = "" if held else str(value)
        buttons.append(tag("button.mark", said, name="grade", value=given, id=place, **label))
    carried = hidden([*asked.pairs(), ("document", document), ("back", path)])
    return tag("form.marks", carried, *buttons, action="/mark", method="post")


def _chips(asked: Asked) -> Markup:
    """The conditions that hold; a click takes one away."""
    chips = [
        (f"{column}: {shown_value(_yes(value))}", asked.toggled(column, value))
        for column, value in asked.values
    ]
    for column in dict.fromkeys(column for column, _, _ in asked.bounds):
        ends = {kind: value for name, kind, value in asked.bounds if name == column}
        span = f"{ends.get('min', '')}–{ends.get('max', '')}" if len(ends) == 2 else ""
        said = span or next(f"{'from' if kind == 'min' else 'to'} {value}" for kind, value in ends.items())
        chips.append((f"{column}: {said}", asked.unbound(column)))
    if asked.where:
        chips.append((asked.where, replace(asked, where="", first=0)))
    links = [
        tag("a.chip", tag("bdi", text(said, 80)), tag("span", " ×"), href=left.link("/"), **_label(said))
        for said, left in chips
    ]
    return tag("div.chips", *links) if links else Markup()


def _label(said: str) -> dict[str, str]:
    return {"aria-label": f"Remove the filter {said[:120]}"}


def _yes(value: str) -> object:
    return {"true": True, "false": False}.get(value, value)


def _side(asked: Asked, counted: Counted) -> Markup:
    """The filters."""
    held = {column for column, _ in asked.values} | {column for column, _, _ in asked.bounds}
    parts = []
    for number, facet in enumerate(counted.facets):
        opened = {"open": ""} if number < OPEN or facet.column in held else {}
        inside = _values(asked, facet) if facet.values else _bounds(asked, facet)
        parts.append(tag("details.facet", tag("summary", text(facet.column, 60)), inside, **opened))
    title = tag("h2.small", "Filters")
    return tag(
        "aside.side", tag("details.fold", tag("summary", "Filters"), id="fold"), title, *parts, _where(asked)
    )


def _values(asked: Asked, facet: Facet) -> Markup:
    items = []
    for value, count in facet.values:
        held = (facet.column, value) in asked.values
        said = shown_value(_yes(value)) if facet.kind == "bool" else value
        label = tag("bdi", text(said or "(empty)", 60))
        where = asked.toggled(facet.column, value).link("/")
        pressed = {"aria-current": "true"} if held else {}
        items.append(tag("li", tag("a", label, tag("span.count", f"{count:,}"), href=where, **pressed)))
    few, rest = items[:FEW], items[FEW:]
    more: list[object] = []
    if rest:
        note = tag("p.soft", f"and {facet.more:,} more values") if facet.more else ""
        more = [tag("details", tag("summary", f"{len(rest) + facet.more:,} more"), tag("ul", *rest), note)]
    return Markup(tag("ul", *few) + "".join(Markup(each) for each in more))


def _bounds(asked: Asked, facet: Facet) -> Markup:
    ends = {kind: value for column, kind, value in asked.bounds if column == facet.column}
    kind = "date" if facet.kind == "date" else "number"
    fields = [
        tag(
            "input",
            type=kind,
            name=f"{end}.{facet.column}",
            value=ends.get(end, ""),
            placeholder=said,
            **{"aria-label": f"{facet.column[:60]} {said}", **({"step": "any"} if kind == "number" else {})},
        )
        for end, said in (("min", "from"), ("max", "to"))
    ]
    rest = hidden(asked.unbound(facet.column).pairs())
    return tag("form.bounds", rest, *fields, tag("button", "Set"), action="/", method="get")


def _where(asked: Asked) -> Markup:
    """The filter language, for who knows it."""
    field = tag(
        "input",
        name="where",
        value=asked.where,
        placeholder="rooms >= 3 and not sold",
        spellcheck="false",
        autocomplete="off",
        **{"aria-label": "Filter in the filter language"},
    )
    rest = hidden(replace(asked, where="", first=0).pairs())
    inside = tag("form.bounds.wide", rest, field, tag("button", "Set"), action="/", method="get")
    return tag("details.facet", tag("summary", "As text"), inside, **({"open": ""} if asked.where else {}))


def _turn(asked: Asked, found: Results) -> Markup:
    """To the pages before and after."""
    before, after = (replace(asked, first=max(0, asked.first + by)).link("/") for by in (-PAGE, PAGE))
    return turn(before if asked.first else "", after if found.more else "")
