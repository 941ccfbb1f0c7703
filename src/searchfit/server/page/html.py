"""The frame of every page, and pieces that several of them show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from searchfit.markup import Markup, tag, text
from searchfit.server.page.address import Asked

TABS = (
    ("/", "Search"),
    ("/compare", "Compare"),
    ("/judge", "Judge"),
    ("/queries", "Queries"),
    ("/report", "Report"),
)
KEYS = (
    ("/", "to the search field"),
    ("j k or ↓ ↑", "next and previous result"),
    ("Enter", "open the result"),
    ("m", "more like the result"),
    ("r w", "mark the result right or wrong"),
    ("c", "compare engines on this query"),
    ("Esc", "leave the field, close this"),
    ("?", "this help"),
)


@dataclass(frozen=True, slots=True)
class View:
    """A page: its title, the path of its tab, what stands in it, and the HTTP status. `refresh` asks the
    browser to load it again after so many seconds."""

    title: str
    tab: str
    body: Sequence[Markup]
    status: int = 200
    refresh: int = 0


def frame(view: View, asked: Asked, workspaces: Sequence[str]) -> str:
    """The whole HTML of a page; `workspaces` are the names that are served, the first the default."""
    head = [
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", text(view.title, 120), " · searchfit"),
        tag("link", rel="icon", href="/assets/icon.svg", type="image/svg+xml"),
        tag("link", rel="stylesheet", href="/assets/page.css"),
        tag("script", src="/assets/page.js", defer=""),
    ]
    if view.refresh:
        head.append(tag("meta", **{"http-equiv": "refresh", "content": str(view.refresh)}))
    carried = Asked(workspace=asked.workspace, query=asked.query)
    links = [
        tag("a", name, href=carried.link(path), **({"aria-current": "page"} if path == view.tab else {}))
        for path, name in TABS
    ]
    header = tag(
        "header",
        tag("a.brand", "searchfit", href=Asked(workspace=asked.workspace).link("/")),
        tag("nav", *links, id="tabs", **{"data-live": "", "aria-label": "Views"}),
        _switch(asked, view.tab, workspaces),
        tag("button.keys", "?", type="button", id="help-open", hidden="", **{"aria-label": "Keyboard help"}),
    )
    skip = tag("a.skip", "Skip to content", href="#content")
    main = tag("main", *view.body, id="content", tabindex="-1")
    body = tag("body", skip, header, main, _help(), **{"data-tab": view.tab})
    return f'<!doctype html>\n<html lang="en"><head>{"".join(head)}</head>\n{body}</html>\n'


def _switch(asked: Asked, path: str, workspaces: Sequence[str]) -> Markup:
    """The choice of a workspace where there are several."""
    if len(workspaces) < 2:
        return Markup()
    chosen = asked.workspace or workspaces[0]
    choice = select("workspace", [(name, name) for name in workspaces], chosen, "Workspace")
    query = hidden([("q", asked.query)] if asked.query else [])
    return tag("form.switch", choice, query, tag("button", "Go"), action=path, method="get")


def _help() -> Markup:
    rows = [part for keys, said in KEYS for part in (tag("dt", _keys(keys)), tag("dd", said))]
    close = tag("form", tag("button", "Close"), method="dialog")
    return tag(
        "dialog",
        tag("h2", "Keyboard", id="help-title"),
        tag("dl", *rows),
        close,
        id="help",
        **{"aria-labelledby": "help-title"},
    )


def _keys(keys: str) -> Markup:
    return Markup(" ".join(text(key) if key == "or" else tag("kbd", key) for key in keys.split(" ")))


def hidden(pairs: Iterable[tuple[str, str]]) -> Markup:
    """Fields of a form that are not shown."""
    return Markup("".join(tag("input", type="hidden", name=name, value=value) for name, value in pairs))


def select(name: str, options: Iterable[tuple[str, str]], chosen: str, label: str) -> Markup:
    """A list to choose from: (value, what is shown)."""
    items = [
        tag("option", text(shown, 80), value=value, **({"selected": ""} if value == chosen else {}))
        for value, shown in options
    ]
    return tag("label", tag("span", label), tag("select", *items, name=name))


def query_field(query: str, placeholder: str, **more: str) -> Markup:
    """The field of a form for what is looked for."""
    named = {"type": "search", "name": "q", "id": "q", "value": query, "placeholder": placeholder}
    return tag("input", **named, dir="auto", **more)


def turn(before: str, after: str) -> Markup:
    """Links to the pages before and after; an empty address is no page."""
    pages = ((before, "← Previous", "prev"), (after, "Next →", "next"))
    links = [tag("a", said, href=address, rel=rel) for address, said, rel in pages if address]
    return tag("nav.turn", *links, **{"aria-label": "Pages"}) if links else Markup()


def marked(raw: str, spans: Sequence[tuple[int, int]], start: int = 0) -> Markup:
    """A text with its lines as they are, and <mark> over the (start, end) of `spans`, which are in order;
    `start` is where `raw` begins in the text that they are counted in."""
    parts, place = [], 0
    for a, b in spans:
        begin, end = max(a - start, place), min(b - start, len(raw))
        if begin < end:
            parts += [_plain(raw[place:begin]), tag("mark", _plain(raw[begin:end]))]
            place = end
    return Markup("".join([*parts, _plain(raw[place:])]))


def _plain(raw: str) -> Markup:
    return Markup("\n".join(text(line, len(line) + 1) for line in raw.split("\n")))


def failure(message: str, hint: str) -> Markup:
    """An error for people, in the place of what they asked for."""
    return tag("div.failure", tag("p", text(message, 600)), tag("p.soft", text(hint, 600)), role="alert")
