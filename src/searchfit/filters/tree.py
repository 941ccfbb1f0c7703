"""A parsed filter as a tree, and what it means: `matches` is the measure for every store."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timezone
from typing import Any, Literal, TypeAlias

TYPES = {
    "int": "whole numbers such as 3",
    "float": "numbers such as 2.5",
    "bool": "true or false",
    "string": 'text such as "Huesca"',
    "date": 'dates such as "2024-12-31"',
    "timestamp": 'timestamps such as "2024-12-31T23:59:59"',
}
"""The types of columns that can be filtered on, in words."""

Operator = Literal["=", "!=", "<", "<=", ">", ">=", "contains", "starts with"]
Scalar: TypeAlias = bool | int | float | str | date | datetime


@dataclass(frozen=True, slots=True)
class Compare:
    """`column operator value`; the value has the column's type, a timestamp is naive UTC."""

    column: str
    operator: Operator
    value: Scalar


@dataclass(frozen=True, slots=True)
class Member:
    """`column in (values)`; never empty."""

    column: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Missing:
    """`column is null`."""

    column: str


@dataclass(frozen=True, slots=True)
class Not:
    """`not part`."""

    part: Filter


@dataclass(frozen=True, slots=True)
class Every:
    """`part and part ...`; two parts or more."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """`part or part ...`; two parts or more."""

    parts: tuple[Filter, ...]


Filter: TypeAlias = "Compare | Member | Missing | Not | Every | Either"


def named(filter: Filter) -> set[str]:
    """The columns that a filter asks for."""
    if isinstance(filter, Not):
        return named(filter.part)
    if isinstance(filter, (Every, Either)):
        return set().union(*map(named, filter.parts))
    return {filter.column}


def matches(filter: Filter, row: Mapping[str, Any]) -> bool:
    """Whether the filter is true of a row, given as column name -> value; an absent column is null."""
    return _truth(filter, row) is True


COMPARE: dict[Operator, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "contains": operator.contains,
    "starts with": str.startswith,
}


def _truth(filter: Filter, row: Mapping[str, Any]) -> bool | None:
    """True, false, or None where a null leaves it open."""
    if isinstance(filter, Not):
        truth = _truth(filter.part, row)
        return None if truth is None else not truth
    if isinstance(filter, (Every, Either)):
        decisive = isinstance(filter, Either)
        truths = [_truth(part, row) for part in filter.parts]
        return decisive if decisive in truths else None if None in truths else not decisive
    value = plain(row.get(filter.column))
    if isinstance(filter, Missing):
        return value is None
    if value is None:
        return None
    if isinstance(filter, Member):
        return value in filter.values
    return COMPARE[filter.operator](value, filter.value)


def plain(value: Any) -> Any:
    """A row's value as filters hold values: NaN is null, timestamps are naive UTC."""
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(timezone.utc).replace(tzinfo=None)
    return None if value != value else value  # noqa: PLR0124
