"""What a page's address says: all that a view shows is in it, so that every view can be linked to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from searchfit.errors import FilterError
from searchfit.filters import parse, spelled

_BOUNDS = {"min": ">=", "max": "<="}
MOST_SKIPPED = 10_000


@dataclass(frozen=True, slots=True)
class Asked:
    """A view's address. `values` are (column, value) that were clicked, values of one column being
    alternatives; `bounds` are (column, "min" or "max", value); `where` is in the filter language; `like` is a
    document to find others like it."""

    workspace: str = ""
    query: str = ""
    values: tuple[tuple[str, str], ...] = ()
    bounds: tuple[tuple[str, str, str], ...] = ()
    where: str = ""
    first: int = 0
    like: str = ""

    @classmethod
    def read(cls, pairs: Iterable[tuple[str, str]]) -> Asked:
        """From the (name, value) of an address; names that are not ours are left alone."""
        own: dict[str, Any] = {}
        values: list[tuple[str, str]] = []
        bounds: list[tuple[str, str, str]] = []
        for name, value in pairs:
            kind, dot, column = name.partition(".")
            if dot and kind == "is":
                values.append((column, value))
            elif dot and kind in _BOUNDS and value.strip():
                bounds.append((column, kind, value.strip()))
            elif name in {"workspace", "like"}:
                own[name] = value
            elif name == "where":
                own["where"] = value.strip()
            elif name == "q":
                own["query"] = value
            elif name == "first":
                with contextlib.suppress(ValueError):
                    own["first"] = min(MOST_SKIPPED, max(0, int(value[:9])))
        return cls(values=tuple(dict.fromkeys(values)), bounds=tuple(bounds), **own)

    def pairs(self) -> list[tuple[str, str]]:
        """As `read` takes them; what is empty is left out."""
        plain = [
            ("workspace", self.workspace),
            ("q", self.query),
            ("like", self.like),
            *((f"is.{column}", value) for column, value in self.values),
            *((f"{kind}.{column}", value) for column, kind, value in self.bounds),
            ("where", self.where),
            ("first", str(self.first) if self.first else ""),
        ]
        return [(name, value) for name, value in plain if value or name.startswith("is.")]

    def link(self, path: str, *more: tuple[str, str], part: str = "") -> str:
        """The address of a path with this state and more in it."""
        query = urlencode([*self.pairs(), *more])
        return f"{path}{'?' if query else ''}{query}{'#' if part else ''}{part}"

    def toggled(self, column: str, value: str) -> Asked:
        """With a value of a column, or without it where it is there; from the first result on."""
        own = (column, value)
        kept = tuple(each for each in self.values if each != own)
        return replace(self, values=kept if own in self.values else (*kept, own), first=0)

    def unbound(self, column: str) -> Asked:
        """Without the bounds of a column."""
        return replace(self, bounds=tuple(each for each in self.bounds if each[0] != column), first=0)

    def without(self, column: str) -> Asked:
        """Without the values of a column."""
        return replace(self, values=tuple(each for each in self.values if each[0] != column))

    def condition(self, columns: Mapping[str, str]) -> str:
        """All conditions together in the filter language, over `columns` (name -> type); "" where there are
        none. Raises FilterError for a column or a value that does not fit."""
        parts: list[str] = []
        for column in dict.fromkeys(name for name, _ in self.values):
            own = [_typed(value, columns.get(column, "")) for name, value in self.values if name == column]
            parts.append(spelled({"column": column, "op": "in", "value": own}))
        for column, kind, value in self.bounds:
            typed = _typed(value, columns.get(column, ""))
            parts.append(spelled({"column": column, "op": _BOUNDS[kind], "value": typed}))
        if self.where:
            parse(self.where, columns)  # alone first: an error then tells a place in what was written
            parts.append(f"({self.where})")
        together = " and ".join(parts)
        if together:
            parse(together, columns)
        return together


def _typed(value: str, kind: str) -> Any:
    """A value of an address as JSON would hold it."""
    if kind == "bool" and value in {"true", "false"}:
        return value == "true"
    if kind in {"int", "float"}:
        try:
            return int(value) if kind == "int" else float(value)
        except ValueError as error:
            raise FilterError(f"{value[:40]!r} is not a number.", "Write a number such as 3.") from error
    return value
