"""Cleaning: what is mended in the texts that are read, by named steps, each change counted."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from html.entities import html5
from typing import Any

from searchfit.config import CleanSettings
from searchfit.errors import SettingsError

BOILERPLATE = "boilerplate"
LEAST_DOCUMENTS = 5
"""A line that stands in fewer documents is no boilerplate, however large a share they are."""

_ROUNDS = 8
_KEPT_LINES = 1 << 20
_SAMPLES = 5

_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# Page and line breaks of old, and Unicode's own, are line ends; zero-width joiners stay: scripts need them.
_BREAKS = "\v\f\x85\u2028\u2029"
_INVISIBLE = "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff"
_CONTROL = re.compile(f"[{_BREAKS}{_INVISIBLE}]")
_BLANKS = " \t\xa0\u1680\u2000-\u200a\u202f\u205f\u3000"
_UNTIDY = re.compile(f"[{_BLANKS}]{{2}}|[\r\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]|[ \t]$|\n{{4}}", re.M)
_RUN = re.compile(f"[{_BLANKS}]+")
_GAP = re.compile("\n{4,}")
_INDENT = re.compile("[ \t]*")
# Unicode lets a base carry any number of marks, and ordering n of them takes n * n steps.
_MARKED = re.compile(r"[^\w\s!-~]{64}")


def _entities(text: str) -> str:
    return _ENTITY.sub(_character, text) if "&" in text else text


def _character(match: re.Match[str]) -> str:
    found = match.group()
    return html.unescape(found) if found[1] == "#" else html5.get(found[1:], found)


def _normal(text: str, form: Any) -> str:
    if text.isascii() or _MARKED.search(text) or unicodedata.is_normalized(form, text):
        return text
    return unicodedata.normalize(form, text)


def _control(text: str) -> str:
    return _CONTROL.sub(lambda match: "\n" if match.group() in _BREAKS else "", text)


def _spaces(text: str) -> str:
    if not _UNTIDY.search(text):
        return text
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return _GAP.sub("\n\n\n", "\n".join(map(_line, lines)))


def _line(line: str) -> str:
    """Indentation stays, as code and lists need it; other runs of blanks are one space."""
    indent = _INDENT.match(line)
    start = indent.end() if indent else 0
    rest = _RUN.sub(" ", line[start:]).strip(" ")
    return line[:start] + rest if rest else ""


class Cleaner:
    """Runs the steps over documents. `changed` counts those that each step changed, `removed` the characters
    that they became shorter by, and `lines` the documents that boilerplate lines were dropped from, by line.

    A text comes in parts, cut where something is known of it (a page begins): each is cleaned by itself."""

    def __init__(self, settings: CleanSettings, boilerplate: Iterable[str] | None = None) -> None:
        """`boilerplate` are the lines to drop where an earlier fit found them; else `count` is to see every
        text first. Raises SettingsError for a step that is not known, or named twice."""
        self.settings = settings
        known: dict[str, Callable[[str], str]] = {
            "entities": _entities,
            "unicode": lambda text: _normal(text, settings.form),
            "control": _control,
            "spaces": _spaces,
        }
        for place, step in enumerate(settings.steps):
            if step not in (*known, BOILERPLATE) or step in settings.steps[:place]:
                fault = "twice" if step in known or step == BOILERPLATE else "and is not known"
                raise SettingsError(
                    f"clean.steps names {step!r} {fault}.", f"Known: {', '.join((*known, BOILERPLATE))}."
                )
        self.changed: Counter[str] = Counter()
        self.removed = 0
        self.lines: Counter[str] = Counter()
        self.drops_lines = BOILERPLATE in settings.steps
        at = settings.steps.index(BOILERPLATE) if self.drops_lines else len(settings.steps)
        self._before = {step: known[step] for step in settings.steps[:at]}
        self._after = {step: known[step] for step in settings.steps[at + 1 :]}
        self._lines = None if boilerplate is None else {hash(line) for line in boilerplate}
        self._frequent = Frequent(_KEPT_LINES)

    def clean(self, title: str, parts: Sequence[str]) -> list[str]:
        """Title and parts of a document after the steps before `boilerplate`; all where it is not named."""
        return self._run(self._before, [title, *parts])

    def count(self, text: str) -> None:
        """Take note of the lines of a document that `clean` gave."""
        if self.drops_lines and self._lines is None:
            self._frequent.add({hash(line) for line in _countable(text)})

    def finish(self, title: str, parts: Sequence[str]) -> list[str]:
        """Title and parts, as `clean` gave them, after the remaining steps: without boilerplate lines, unless
        nothing would be left of the text."""
        if not self.drops_lines:
            return [title, *parts]
        if self._lines is None:
            share = self.settings.boilerplate_documents
            self._lines = self._frequent.above(max(share * self._frequent.seen, LEAST_DOCUMENTS - 0.5))
        dropped: Counter[str] = Counter()
        kept = [self._without(part, dropped) for part in parts] if self._lines else list(parts)
        if dropped and any(part.strip() for part in kept):
            self.changed[BOILERPLATE] += 1
            self.lines.update(dropped.keys())
            self.removed += sum(map(len, parts)) - sum(map(len, kept))
        else:
            kept = list(parts)
        return self._run(self._after, [title, *kept])

    def _run(self, steps: Mapping[str, Callable[[str], str]], texts: Sequence[str]) -> list[str]:
        touched: set[str] = set()
        made = [_settled(steps, text, touched) for text in texts]
        self.changed.update(touched)
        self.removed += sum(map(len, texts)) - sum(map(len, made))
        return made

    def _without(self, text: str, dropped: Counter[str]) -> str:
        lines = text.split("\n")
        kept = [line for line in lines if not self._is_boilerplate(line, dropped)]
        return "\n".join(kept) if len(kept) < len(lines) else text

    def _is_boilerplate(self, line: str, dropped: Counter[str]) -> bool:
        plain = line.strip()
        found = plain != "" and hash(plain) in (self._lines or ())
        if found:
            dropped[plain] += 1
        return found

    def counts(self) -> dict[str, int]:
        """For the record of a stage: documents that each step changed, lines and characters gone."""
        found = {f"changed by {step}": self.changed[step] for step in self.settings.steps}
        if self.lines:
            found["boilerplate lines"] = len(self.lines)
        return {name: count for name, count in (*found.items(), ("cleaned away", self.removed)) if count}

    def notes(self) -> list[str]:
        """For people: the boilerplate that was dropped."""
        if not self.lines:
            return []
        shown = "; ".join(
            f"{line[:60]!r} ({count} documents)" for line, count in self.lines.most_common(_SAMPLES)
        )
        return [f"{len(self.lines)} lines that many documents share are left out: {shown}"]

    def record(self) -> dict[str, Any]:
        """What `add` needs to clean as this did: the settings, and the boilerplate lines."""
        return {"settings": self.settings.model_dump(mode="json"), "lines": sorted(self.lines)}


def _settled(steps: Mapping[str, Callable[[str], str]], text: str, touched: set[str]) -> str:
    """What one step leaves may be another's work, so all run until nothing changes, or eight times."""
    for _ in range(_ROUNDS):
        start = text
        for name, step in steps.items():
            made = step(text)
            if made is not text and made != text:
                touched.add(name)
                text = made
        if text is start:
            break
    return text


def cut(text: str, starts: Sequence[int]) -> list[str]:
    """The parts of a text: what is before the first start, then what begins at each."""
    ends = [*starts, len(text)]
    return [text[a:b] for a, b in zip([0, *starts], ends, strict=True)]


class Frequent:
    """Counts in a bounded memory which keys stand in many of the sets that are added: after J. Misra and
    D. Gries (1982), "Finding repeated elements". Exact as long as there are at most `size` different keys;
    beyond that counts may be too low by the keys added / `size`."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._counts: Counter[int] = Counter()
        self.seen = 0

    def add(self, keys: set[int]) -> None:
        """Count each key once."""
        self.seen += 1
        self._counts.update(keys)
        if len(self._counts) > 2 * self._size:
            cut = sorted(self._counts.values(), reverse=True)[self._size]
            self._counts = Counter({key: n - cut for key, n in self._counts.items() if n > cut})

    def above(self, least: float) -> set[int]:
        """The keys that stand in more than `least` sets."""
        return {key for key, count in self._counts.items() if count > least}


def _countable(text: str) -> Iterable[str]:
    """The lines that may be boilerplate: those with a letter. Rules, fences and brackets are structure."""
    for line in text.split("\n"):
        plain = line.strip()
        if plain and (plain[0].isalpha() or any(map(str.isalpha, plain))):
            yield plain
