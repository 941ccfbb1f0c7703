"""The filter language: `price < 300000 and (city in ("Zaragoza", "Huesca") or not sold)`.

A filter is parsed against the columns that there are and their types, so that a wrong name or value is an
error with its place rather than an empty result.

    comparison   column  = == != <> < <= > >=  value
    membership   column [not] in (value, ...)
    text         column [not] contains "part"     column [not] starts with "part"     (case counts)
    absence      column is [not] null
    yes or no    column                            (a bool column by itself)
    together     and, or, not, parentheses; `not` binds closest, then `and`, then `or`

Words of the language may be in any case. A column whose name has spaces or odd characters, or is a word of
the language, goes between backticks (a backtick in it is doubled). Text goes between single or double
quotes; in it, a doubled quote stands for a quote, and \\\\ \\' \\" \\n \\r \\t for what they usually mean.
Dates are "2024-12-31"; timestamps may go on "2024-12-31T23:59:59.5+01:00", are UTC where no offset is
given, and a timestamp without a time is midnight.

Nulls follow SQL: a comparison with a null is neither true nor false, so that on a row without a price
neither `price < 3` nor `not price < 3` matches. NaN counts as null.

The same filter may come as a JSON object, see `from_json`: {"column": "price", "op": "<", "value": 300000}.
"""

from __future__ import annotations

from searchfit.filters.objects import from_json, spelled, to_json
from searchfit.filters.parser import MAX_CHARS, parse
from searchfit.filters.tree import (
    TYPES,
    Compare,
    Either,
    Every,
    Filter,
    Member,
    Missing,
    Not,
    Scalar,
    matches,
    named,
)
from searchfit.filters.types import type_name

__all__ = [
    "MAX_CHARS",
    "TYPES",
    "Compare",
    "Either",
    "Every",
    "Filter",
    "Member",
    "Missing",
    "Not",
    "Scalar",
    "from_json",
    "matches",
    "named",
    "parse",
    "spelled",
    "to_json",
    "type_name",
]
