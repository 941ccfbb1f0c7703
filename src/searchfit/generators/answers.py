"""From what a language model answered to queries: bounded plain strings, or the reason why there are none."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from searchfit.generators.prompts import STYLES, Prompt
from searchfit.text import words

LEAST_CHARS, MOST_CHARS = 3, 300
"""Of a query."""

_MOST_REPLY = 40_000
"""Characters that are looked at; an honest answer holds a few thousand."""
_MOST_STARTS = 200
_SHOWN = 80
_RUN = 6
"""Words in a row that no query shares with its instructions by chance."""

_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_TEXT_KEYS = ("text", "query", "question")
_OPENING = re.compile(r"[\[{]")
_ITEM = re.compile(r"\s*(?:\(?\d{1,2}[.):]|[-*•–]\s|Q\d{0,2}[.:])\s*(?P<text>.+)")
_STYLED = re.compile(r"\W{0,3}(?P<style>[a-z]{4,20})\W{0,3}:\s*(?P<text>.+)", re.IGNORECASE)
_REFUSAL = re.compile(
    r"\W*(?:i['’]?m (?:sorry|unable|not able)|i (?:cannot|can['’]?t|am unable|won['’]?t)"
    r"|sorry\b|as an ai\b|i apologi[sz]e)",
    re.IGNORECASE,
)
_FENCE = re.compile(r"^\s*```.*$", re.MULTILINE)
_LINK = re.compile(r"!?\[([^\[\]]{0,300})\]\([^()\s]{0,2000}\)")
_ELEMENT = re.compile(r"<[!?/]?\s*([a-zA-Z][^<>]{0,300})>")
_TAG_START = re.compile(r"<(?=[a-zA-Z/!?|｜])")
_EMPHASIS = re.compile(r"[`*]{1,3}(?=\S)|(?<=\S)[`*]{1,3}(?=\W|$)|^#+\s+")
_QUOTES = ('""', "''", "“”", "‘’", "«»", "„“", "「」")
_DEBRIS = re.compile(r"^[\[{}\]]|[\"']?(?:queries|style|text)[\"']\s*:")

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """(text, style) of each query, or the fault. `final`: asking again would not help."""

    queries: tuple[Pair, ...] = ()
    fault: str = ""
    final: bool = False


def parse(reply: str, prompt: Prompt) -> Answer:
    """The queries of an answer, at most one for each of the prompt's styles.

    Takes JSON wherever it stands in the answer, whole or cut off, else numbered, bulleted or bare lines.
    Each query is one line of 3 to 300 characters without control characters or markup; repetitions,
    what repeats the instructions and what holds the passage's delimiter are left out.
    """
    text = _THOUGHT.sub(" ", reply[:_MOST_REPLY]).strip()
    if not text:
        return Answer(fault="the answer was empty")
    found = _from_json(text)
    if found is None:
        if _REFUSAL.match(text):
            return Answer(fault=f"the model refused: {shown(text)}", final=True)
        found = _from_lines(text, len(prompt.styles))
    kept = _kept(found, prompt)
    return Answer(kept) if kept else Answer(fault=f"no queries in the answer: {shown(text)}")


def shown(text: str) -> str:
    """The beginning of a text on one line, for a fault: at most 80 characters."""
    line = _plain(text[: 4 * _SHOWN])
    return repr(line[:_SHOWN] + ("…" if len(line) > _SHOWN else ""))


def _kept(found: Iterable[Pair], prompt: Prompt) -> tuple[Pair, ...]:
    instructions = _run_of_words(prompt.instructions)
    kept: dict[str, Pair] = {}
    for place, (raw, style) in enumerate(found):
        if len(kept) == len(prompt.styles):
            break
        query = tidy(raw)
        key = query.casefold()
        if (
            LEAST_CHARS <= len(query) <= MOST_CHARS
            and key not in kept
            and any(char.isalnum() for char in query)
            and prompt.tag not in query
            and not _DEBRIS.search(query)
            and not _repeats(query, instructions)
        ):
            slot = prompt.styles[place % len(prompt.styles)]
            kept[key] = (query, style if style in prompt.styles else slot)
    return tuple(kept.values())


def tidy(text: str) -> str:
    """One line without control characters, markup or quotes around it."""
    # Longer than any query even when all the markup is gone.
    line = _plain(text[: 20 * MOST_CHARS])
    line = _EMPHASIS.sub("", _ELEMENT.sub(r" \1 ", _LINK.sub(r"\1", line)))
    line = " ".join(_TAG_START.sub(" ", line).split())
    for pair in _QUOTES:
        if len(line) > 2 and line[0] == pair[0] and line[-1] == pair[1]:
            line = line[1:-1].strip()
    return line


def _plain(text: str) -> str:
    """White space made single; control, format, private and unassigned characters gone, but for the joiners
    that Persian and Indic spelling needs."""
    kept = []
    for char in text:
        kind = unicodedata.category(char)
        if char.isspace() or kind == "Cc":
            kept.append(" ")
        elif kind[0] != "C" or char in "\u200c\u200d":
            kept.append(char)
    return " ".join("".join(kept).split())


@lru_cache(maxsize=64)
def _run_of_words(text: str) -> str:
    return " ".join(["", *(text[a:b].casefold() for a, b in words(text)), ""])


def _repeats(query: str, instructions: str) -> bool:
    """Whether six words in a row, or all of four or five, stand in the instructions."""
    spoken = _run_of_words(query).split()
    size = min(_RUN, len(spoken))
    return size >= 4 and any(
        f" {' '.join(spoken[n : n + size])} " in instructions for n in range(len(spoken) - size + 1)
    )


def _from_json(text: str) -> list[Pair] | None:
    """The first JSON value that holds queries, else the complete items of one that was cut off; None where
    nothing looks like JSON."""
    decoder = json.JSONDecoder()
    items: list[Pair] = []
    at, starts = 0, 0
    while (match := _OPENING.search(text, at)) and starts < _MOST_STARTS:
        starts += 1
        at = match.end()
        try:
            value, end = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and (one := _pair(value)):
            # An item on its own: of an object that was cut off, or one of several objects.
            items.append(one)
            at = end
        elif pairs := _pairs(value):
            return pairs
    if items:
        return items
    return _strings(text, decoder)


def _strings(text: str, decoder: json.JSONDecoder) -> list[Pair] | None:
    """The complete strings of an array that was cut off."""
    match = re.search(r"\[\s*(?=\")", text)
    if not match:
        return [] if re.match(r"\s*(?:```\w*\s*)?[\[{]\s*[\"{\[]", text) else None
    found: list[Pair] = []
    at = match.end()
    while text[at : at + 1] == '"':
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError:
            break
        found.append((value, ""))
        comma = re.compile(r"\s*,\s*").match(text, at)
        at = comma.end() if comma else len(text)
    return found or None


def _pairs(value: Any) -> list[Pair]:
    """The queries of {"queries": [...]}, or of an array of items or strings."""
    if isinstance(value, dict):
        inner = value.get("queries")
        if isinstance(inner, (list, dict)):
            return _pairs(inner)
        return []
    if not isinstance(value, list):
        return []
    found = []
    for item in value:
        if isinstance(item, str):
            found.append((item, ""))
        elif isinstance(item, dict) and (one := _pair(item)):
            found.append(one)
    return found


def _pair(item: dict[str, Any]) -> Pair | None:
    text = next((item[key] for key in _TEXT_KEYS if isinstance(item.get(key), str)), None)
    style = item.get("style")
    return None if text is None else (text, style.strip().lower() if isinstance(style, str) else "")


def _from_lines(text: str, count: int) -> list[Pair]:
    """Numbered or bulleted lines; bare ones only where there are as many as were asked for at most, and not
    one alone for several, which would be prose."""
    lines = [line for line in _FENCE.sub("", text).splitlines() if line.strip()]
    marked = [match["text"] for line in lines if (match := _ITEM.match(line))]
    if marked:
        return list(_styled(marked))
    bare = [line for line in lines if not line.rstrip().endswith((":", "："))]
    return list(_styled(bare)) if min(2, count) <= len(bare) <= count else []


def _styled(lines: Sequence[str]) -> Iterator[Pair]:
    """Lines, each with the style that it names before a colon."""
    for line in lines:
        match = _STYLED.match(line)
        style = match["style"].lower() if match else ""
        yield (match["text"], style) if match and style in STYLES else (line, "")
