"""The stretch of a passage that is shown for a query, and what is marked in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from searchfit.keyword import Analyzer

_SNIPPET_CHARS = 240


def make_snippet(
    text: str, sentences: Sequence[int], terms: set[str], analyzer: Analyzer
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The stretch of a passage that holds most distinct query terms, from a sentence's start, and where the
    terms stand in it."""
    matches = [span for span in analyzer.spans(text) if span[0] in terms]
    starts = list(sentences[::2]) or [0]

    def found(start: int) -> int:
        return len({term for term, a, b in matches if a >= start and b <= start + _SNIPPET_CHARS})

    start = max(starts, key=lambda s: (found(s), -s))
    end = min(len(text), start + _SNIPPET_CHARS)
    if end < len(text):
        space = text.rfind(" ", start, end)
        end = space if space > start + _SNIPPET_CHARS // 2 else end
    marks = merged_spans([(a - start, b - start) for _, a, b in matches if a >= start and b <= end])
    return text[start:end], marks


def merged_spans(spans: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The spans in order; those that overlap, as pairs of characters and parts of identifiers do, are one."""
    marks: list[tuple[int, int]] = []
    for a, b in sorted(set(spans)):
        if marks and a < marks[-1][1]:
            marks[-1] = marks[-1][0], max(b, marks[-1][1])
        else:
            marks.append((a, b))
    return tuple(marks)


def stitched(passages: Sequence[Mapping[str, Any]]) -> tuple[str, list[tuple[int, int]]]:
    """Passages of one document (their text, start and end), in order, as one text in which what overlaps
    stands once, and the (start, end) of each in it."""
    text, end = "", 0
    spans: list[tuple[int, int]] = []
    for number, passage in enumerate(passages):
        if number and passage["start"] > end:
            text += "\n"
        begun = len(text) - max(0, end - passage["start"]) if number else 0
        text += passage["text"][max(0, end - passage["start"]) if number else 0 :]
        end = max(end, passage["end"])
        spans.append((begun, begun + len(passage["text"])))
    return text, spans
