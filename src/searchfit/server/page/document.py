"""A whole document, opened at the passage that was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from searchfit.markup import Markup, tag, text
from searchfit.search import Searcher
from searchfit.server.errors import NotThereError
from searchfit.server.page.address import Asked
from searchfit.server.page.html import marked
from searchfit.server.page.search import form, mark_form, shown_value
from searchfit.server.page.words import spans, telling
from searchfit.snippets import stitched

MOST_CHARS = 200_000


@dataclass(frozen=True, slots=True)
class Opened:
    """A document of the index: its text, where the query's words (`marks`) and the passage that was found
    (`match`) stand in it."""

    id: str
    title: str
    text: str
    metadata: Mapping[str, Any]
    marks: tuple[tuple[int, int], ...]
    match: tuple[int, int]


def read(searcher: Searcher, id_: str, passage: str, query: str) -> Opened:
    """A document by its id. Raises NotThereError where the index has none."""
    corpus = searcher.corpus
    rows = corpus.store.rows_of(id_)
    if not len(rows):
        raise NotThereError(f"there is no document {id_[:100]!r} in the index.", "It may have been removed.")
    passages = sorted(corpus.store.fetch(rows), key=lambda each: int(each["start"]))
    whole, places = stitched(passages)
    found = {each["id"]: span for each, span in zip(passages, places, strict=True)}
    marks = spans(corpus, whole, telling(corpus, query))
    first = passages[0]
    # The page and the heading are those of a passage.
    placed = {column["name"] for column in corpus.info["metadata"] if column.get("placed")}
    metadata = {name: value for name, value in first["metadata"].items() if name not in placed}
    return Opened(id_, first["title"], whole, metadata, marks, found.get(passage, (0, 0)))


def view(asked: Asked, found: Opened, grade: int | None, at: int | None = None) -> list[Markup]:
    """The page of a document; of a long one from the character `at`, where one is asked for."""
    back = tag("a.back", "← Results", href=asked.link("/")) if asked.query or asked.like else Markup()
    like = replace(asked, like=found.id, first=0)
    name = found.title or found.id
    rows = [
        part
        for key, value in found.metadata.items()
        if value not in (None, "")
        for part in (tag("dt", text(key, 60)), tag("dd", tag("bdi", text(shown_value(value), 300))))
    ]
    here = asked.link("/document", ("id", found.id))
    return [
        form(asked),
        back,
        tag(
            "article.document",
            tag("h1", text(name, 400), dir="auto"),
            tag("dl.metadata", *rows) if rows else Markup(),
            tag(
                "div.actions",
                tag("a.like", "More like this", href=like.link("/")),
                mark_form(asked, found.id, name, grade, here) if asked.query else "",
            ),
            *_text(asked, found, at),
            dir="auto",
        ),
    ]


def _text(asked: Asked, found: Opened, at: int | None) -> list[Markup]:
    """The text; of a very long one a stretch around the passage, with links to the rest."""
    begin = _window(found, at)
    end = min(len(found.text), begin + MOST_CHARS)
    a, b = (min(max(place, begin), end) for place in found.match)
    parts = [(begin, a), (a, b), (b, end)]
    shown = [marked(found.text[i:j], found.marks, i) for i, j in parts]
    match = tag("div.match", shown[1], id="match") if a < b else Markup()
    body = [tag("div.prose", shown[0], match, shown[2])]

    def link(said: str, place: int) -> Markup:
        address = asked.link("/document", ("id", found.id), ("at", str(place)))
        return tag("p", tag("a", said, href=address))

    if begin:
        body.insert(0, link("Earlier text", max(0, begin - MOST_CHARS)))
    if end < len(found.text):
        body.append(link("Later text", end))
    return body


def _window(found: Opened, at: int | None) -> int:
    """Where the part that is shown begins."""
    if len(found.text) <= MOST_CHARS:
        return 0
    wanted = found.match[0] - MOST_CHARS // 4 if at is None else at
    return max(0, min(wanted, len(found.text) - 1))
