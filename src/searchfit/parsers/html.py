"""HTML and XHTML as text, by the events of the standard library's parser: no tree is built, so that neither
depth nor entities cost anything."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from typing import NamedTuple

from searchfit.parsers import TOO_LONG, Draft, Parsed, UnparsableError
from searchfit.parsers.text import decode

_VOID = frozenset(
    ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track")
) | {"wbr"}
_SKIPPED = frozenset(
    ("script", "style", "noscript", "template", "head", "nav", "footer", "aside", "svg", "math", "canvas")
) | {"object", "iframe", "form", "button", "select", "textarea", "audio", "video", "dialog"}
_SKIPPED_ROLES = frozenset(
    ("navigation", "search", "banner", "contentinfo", "complementary", "dialog", "menu")
)
_SKIPPED_CLASSES = frozenset(("headerlink",))
_BLOCKS = frozenset(
    (
        "address",
        "article",
        "blockquote",
        "body",
        "caption",
        "center",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "li",
    )
) | {
    *("fieldset", "figcaption", "figure", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hgroup", "html"),
    *("main", "ol", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul"),
}
_LINES = frozenset(("li", "tr", "dt", "dd"))
_CELLS = frozenset(("td", "th"))
_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_CHARSET = re.compile(
    rb"<(?:meta\b[^>]{0,300}?charset|\?xml\b[^>]{0,100}?encoding)\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE
)
_HEAD_BYTES = 4096
_CHUNK = 1 << 16


class _Block(NamedTuple):
    text: str
    joint: str
    heading: bool
    main: bool


class _Open(NamedTuple):
    tag: str
    skipped: bool
    main: bool


class _Page(HTMLParser):
    """Collects the blocks of text and what they are."""

    def __init__(self, max_chars: int) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[_Block] = []
        self.title, self.author = "", ""
        self._room = max_chars
        self._buffer: list[str] = []
        self._open: list[_Open] = []
        self._tags: Counter[str] = Counter()
        self._skipped = self._main = 0
        self._joint = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        if tag in _VOID:
            self._void(tag, named)
            return
        if tag in _BLOCKS:
            self._flush()
        if tag in _LINES:
            self._joint = "\n"
        if tag == "li":
            self._buffer.append("- ")
        if tag in _CELLS and self._said():
            self._buffer.append(" | ")
        opened = _Open(tag, _is_skipped(tag, named), tag == "main" or named.get("role") == "main")
        self._open.append(opened)
        self._tags[tag] += 1
        self._skipped += opened.skipped
        self._main += opened.main

    def handle_endtag(self, tag: str) -> None:
        if not self._tags[tag]:
            return
        if tag in _BLOCKS:
            self._flush(heading=tag in _HEADINGS)
        # What was left open inside ends here as well.
        ended = ""
        while ended != tag:
            ended, skipped, main = self._open.pop()
            self._tags[ended] -= 1
            self._skipped -= skipped
            self._main -= main

    def handle_data(self, data: str) -> None:
        if self._tags["title"] and not self._tags["svg"]:
            self.title += data[:1000] if len(self.title) < 1000 else ""
        elif not self._skipped:
            self._buffer.append(data if self._tags["pre"] else re.sub(r"\s+", " ", data))

    def _void(self, tag: str, named: dict[str, str]) -> None:
        if tag == "br":
            self._buffer.append("\n")
        elif tag == "hr":
            self._flush()
        elif tag == "meta" and named.get("name", "").lower() == "author":
            self.author = self.author or named.get("content", "")[:1000]

    def _said(self) -> bool:
        return any(part.strip(" \n-") for part in self._buffer)

    def _flush(self, heading: bool = False) -> None:
        """The text so far is a block of its own."""
        whole = "".join(self._buffer)
        self._buffer.clear()
        if self._tags["pre"]:
            text = whole.strip("\r\n").rstrip()
        else:
            text = "\n".join(" ".join(line.split()) for line in whole.split("\n")).strip()
        joint, self._joint = self._joint or "\n\n", ""
        if text.strip(" -|\n"):
            self.blocks.append(_Block(text, joint, heading, self._main > 0))
            self._room -= len(text)
            if self._room < 0:
                raise UnparsableError(TOO_LONG)

    def close(self) -> None:
        super().close()
        self._flush()


def _is_skipped(tag: str, named: dict[str, str]) -> bool:
    return (
        tag in _SKIPPED
        or named.get("role", "") in _SKIPPED_ROLES
        or "hidden" in named
        or named.get("aria-hidden") == "true"
        or not _SKIPPED_CLASSES.isdisjoint(named.get("class", "").split())
    )


def parse(data: bytes, max_chars: int) -> Parsed:
    """The text of a page without navigation and scripts: what stands in its `main`, where it has one. List
    items and table rows are lines, the cells of a row stand side by side, headings are marks; the title is
    that of the page or else its first heading. Raises UnparsableError."""
    charset = _CHARSET.search(data[:_HEAD_BYTES])
    text, _ = decode(data, charset[1].decode("ascii", "replace") if charset else "")
    return of_text(text, max_chars)


def of_text(text: str, max_chars: int) -> Parsed:
    """The same for HTML that is decoded already."""
    page = _Page(max_chars)
    for start in range(0, len(text), _CHUNK):
        page.feed(text[start : start + _CHUNK])
    page.close()
    main = [block for block in page.blocks if block.main]
    draft = Draft(max_chars)
    first = ""
    for block in main or page.blocks:
        if block.heading:
            draft.mark(heading=block.text)
            first = first or block.text
        draft.add(block.text, block.joint)
    return draft.parsed(page.title.strip() or first, {"author": page.author})
