"""Filters as LanceDB expressions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

from searchfit.filters import Compare, Either, Every, Filter, Member, Missing, Not
from searchfit.filters.tree import COMPARE


def expression(where: Filter, names: Mapping[str, str], negated: bool = False) -> Any:
    """The filter as a LanceDB expression, over stored columns: `names` maps the user's column to its own.

    Values only ever become literals, never text of a query.
    """
    if isinstance(where, Not):
        return expression(where.part, names, not negated)
    if isinstance(where, (Every, Either)):
        # Negation goes down to the comparisons: LanceDB's optimiser takes `x in (1) and x in (2)` for false
        # where x is null, and the negation of that, which is unknown, for true.
        join = operator.and_ if isinstance(where, Every) != negated else operator.or_
        return _balanced(join, [expression(part, names, negated) for part in where.parts])
    if not negated:
        return _atom(where, names)
    if isinstance(where, Missing):
        return ~_atom(where, names)
    # For the same reason a negation asks for a value: `not x in (1) or not x in (2)` is not true of null.
    return ~_atom(Missing(where.column), names) & ~_atom(where, names)


def _atom(where: Compare | Member | Missing, names: Mapping[str, str]) -> Any:
    from lancedb.expr import col, func, lit

    column = col(names[where.column])
    if isinstance(where, Missing):
        # There is no IS NULL among the expressions, but concat reads a null as "".
        length = func("octet_length", column.cast("string"))
        return func("concat", length.cast("string"), lit("")) == lit("")
    if isinstance(where, Member):
        return column.isin(where.values)
    if where.operator == "starts with":
        return _starts_with(column, str(where.value))
    if where.operator == "contains":
        return column.contains(lit(where.value))
    return COMPARE[where.operator](column, lit(where.value))


def _balanced(join: Callable[[Any, Any], Any], parts: Sequence[Any]) -> Any:
    """Joined as a tree: a chain of thousands would overflow LanceDB's stack, which ends the process."""
    if len(parts) < 3:
        return reduce(join, parts)
    middle = len(parts) // 2
    return join(_balanced(join, parts[:middle]), _balanced(join, parts[middle:]))


def _starts_with(column: Any, prefix: str) -> Any:
    """There is no such operator: the range from the prefix to the first text after all that start so."""
    from lancedb.expr import lit

    body = prefix.rstrip("\U0010ffff")
    if not body:
        return column >= lit(prefix)
    after = ord(body[-1]) + 1
    # UTF-8 has no surrogates: the next character after U+D7FF is U+E000.
    end = body[:-1] + chr(0xE000 if after == 0xD800 else after)
    return (column >= lit(prefix)) & (column < lit(end))
