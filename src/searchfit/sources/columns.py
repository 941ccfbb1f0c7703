"""Which columns hold the text, the id, the title: as named, or guessed where only one can be meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from searchfit.config import SourceSettings
from searchfit.errors import SourceError
from searchfit.sources.rows import Columns, Reader

TEXT_NAMES = frozenset(
    {"text", "body", "content", "contents", "description", "abstract", "document", "passage"}
)
ID_NAMES = frozenset({"id", "_id", "doc_id", "docid", "document_id"})
TITLE_NAMES = frozenset({"title", "name", "headline", "heading"})


def choose_columns(reader: Reader, settings: SourceSettings) -> tuple[Columns, tuple[str, ...]]:
    """The columns to use and what was guessed, in words.

    Raises SourceError, listing the columns there are, for a name that is not among them and for a text
    column that cannot be guessed.
    """
    wanted = (*settings.text, *filter(None, (settings.id, settings.title)))
    there = reader.columns()
    if any(name not in there for name in wanted):
        there = reader.columns(everything=True)
    for name in wanted:
        if name not in there:
            raise _absent(reader.name, name, there)
    if reader.known:
        known = reader.known
        return Columns(
            settings.text or known.text, settings.id or known.id, settings.title or known.title
        ), ()
    guess = _Guess(there, set(wanted))
    ident = settings.id or guess.one(ID_NAMES, "id", "documents are numbered by their rows")
    title = settings.title or guess.one(TITLE_NAMES, "title", "documents have no title", set(settings.text))
    text = settings.text or (guess.text(reader.name, {ident, title}),)
    return Columns(text, ident, title), tuple(guess.notes)


class _Guess:
    def __init__(self, there: Sequence[str], taken: set[str]) -> None:
        self._there = there
        self._free = [name for name in there if name not in taken]
        self.notes: list[str] = []

    def one(self, names: frozenset[str], role: str, without: str, used: set[str] | None = None) -> str:
        found = [name for name in self._free if name.lower() in names and name not in (used or ())]
        if len(found) == 1:
            self.notes.append(f"column {found[0]!r} is taken as the {role}")
            return found[0]
        why = (
            f"columns {listed(found)} could all be the {role}"
            if found
            else f"no column is named as the {role}"
        )
        self.notes.append(f"{why}: {without} (name one with source.{role})")
        return ""

    def text(self, source: str, used: set[str]) -> str:
        free = [name for name in self._free if name not in used]
        named = [name for name in free if name.lower() in TEXT_NAMES]
        for found, why in ((named, "by its name"), (free, "the only one left")):
            if len(found) == 1:
                self.notes.append(f"column {found[0]!r} is taken as the text ({why})")
                return found[0]
            if found is named and named:
                break
        several = f": {listed(named)} could all be it" if named else ""
        raise SourceError(
            f"which column of {source} holds the text cannot be told{several}. "
            f"Its columns: {listed(self._there)}.",
            "Name it: --text COLUMN (or source.text in the settings).",
        )


def _absent(source: str, name: str, there: Sequence[str]) -> SourceError:
    near = difflib.get_close_matches(name, there, n=1) or [
        one for one in there if one.lower() == name.lower()
    ]
    hint = f"Did you mean {near[0]!r}?" if near else "Names of columns are taken letter by letter."
    return SourceError(f"{source} has no column {name!r}. Its columns: {listed(there)}.", hint)


def listed(names: Sequence[str]) -> str:
    """Names of columns, for people."""
    shown = ", ".join(repr(name) for name in names[:40])
    return f"{shown} and {len(names) - 40} more" if len(names) > 40 else shown or "none"
