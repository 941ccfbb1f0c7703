"""Filters as JSON objects, for programs that would otherwise have to quote.

    {"column": "price", "op": "<", "value": 300000}       = != < <= > >= contains, starts with
    {"column": "city", "op": "in", "value": ["Huesca"]}
    {"column": "sold", "op": "is null"}
    {"and": [...]}  {"or": [...]}  {"not": {...}}

An object is spelled in the filter language and parsed, so that both forms have one meaning and one set of
errors; values are quoted here, in one place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date
from typing import Any

from searchfit.errors import FilterError
from searchfit.filters.parser import MAX_DEPTH, parse, quoted
from searchfit.filters.tree import COMPARE, Either, Every, Filter, Member, Missing, Not, Scalar

_HINT = (
    'A filter is {"column": "price", "op": "<", "value": 3}, {"and": [...]}, {"or": [...]} or {"not": {...}}.'
)
_OPERATORS = (*COMPARE, "in", "is null")


def from_json(value: Any, columns: Mapping[str, str]) -> Filter:
    """The filter that a JSON object (as `json.loads` gives it) describes, over `columns` as `parse` takes
    them; a date or a timestamp is a string as in the language.

    Raises FilterError for an object of another shape and for everything that `parse` refuses.
    """
    return parse(spelled(value), columns)


def spelled(value: Any) -> str:
    """The filter that a JSON object describes, in the filter language. Raises FilterError for an object of
    another shape."""
    return _spelled(value, 0)


def to_json(filter: Filter) -> dict[str, Any]:
    """The JSON object of a filter; `from_json` reads it back."""
    if isinstance(filter, Not):
        return {"not": to_json(filter.part)}
    if isinstance(filter, (Every, Either)):
        return {"and" if isinstance(filter, Every) else "or": [to_json(part) for part in filter.parts]}
    if isinstance(filter, Missing):
        return {"column": filter.column, "op": "is null"}
    if isinstance(filter, Member):
        return {"column": filter.column, "op": "in", "value": [_json(value) for value in filter.values]}
    return {"column": filter.column, "op": filter.operator, "value": _json(filter.value)}


def _json(value: Scalar) -> Any:
    return value.isoformat() if isinstance(value, date) else value


def _spelled(value: Any, depth: int) -> str:
    """The object in the filter language."""
    if depth > MAX_DEPTH:
        raise FilterError(f"the filter is nested more than {MAX_DEPTH} deep.")
    if not isinstance(value, dict):
        raise FilterError(f"a filter is a JSON object, got {_shown(value)}.", _HINT)
    if "column" in value:
        return _comparison(value)
    match value:
        case {"not": part, **rest} if not rest:
            return f"not ({_spelled(part, depth + 1)})"
        case {"and": [_, *_] as parts, **rest} | {"or": [_, *_] as parts, **rest} if not rest:
            spelled = [_spelled(part, depth + 1) for part in parts]
            return f" {next(iter(value))} ".join(f"({part})" for part in spelled)
    raise FilterError(f"cannot read the filter {_shown(value)}.", _HINT)


def _comparison(value: dict[str, Any]) -> str:
    column, sign = value["column"], value.get("op")
    if not isinstance(column, str) or not column or sign not in _OPERATORS:
        operators = ", ".join(_OPERATORS)
        raise FilterError(f"cannot read the filter {_shown(value)}.", f'"op" is one of: {operators}.')
    if set(value) != ({"column", "op"} if sign == "is null" else {"column", "op", "value"}):
        raise FilterError(f"cannot read the filter {_shown(value)}.", _HINT)
    if sign == "is null":
        return f"{quoted(column)} is null"
    if sign == "in":
        values = value["value"]
        if not isinstance(values, list):
            raise FilterError(f'"in" takes a list, got {_shown(values)}.', _HINT)
        return f"{quoted(column)} in ({', '.join(map(_literal, values))})"
    return f"{quoted(column)} {sign} {_literal(value['value'])}"


def _literal(value: Any) -> str:
    """A value as the language writes it."""
    if isinstance(value, str):
        body = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{body}"'
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    raise FilterError(f"a value is text, a number, true or false, got {_shown(value)}.", _HINT)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 100 else f"{text[:100]}..."
