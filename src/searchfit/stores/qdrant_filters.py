"""Filters as Qdrant's own conditions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from searchfit.filters import Either, Every, Filter, Member, Missing, Not
from searchfit.stores.remote import Atom, negations_inside
from searchfit.stores.values import flat

# Which of Qdrant's condition models it is does not matter to anybody here.
Condition: TypeAlias = Any

_BOUNDS = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}


def key(column: str) -> str:
    """Where a stored column stands in the payload of a point."""
    return f"values.{column}"


def condition(where: Filter, names: Mapping[str, str]) -> Condition:
    """The filter over the payload; `names` maps the user's column to the stored one."""
    from qdrant_client import models

    def compiled(part: Filter) -> Condition:
        if isinstance(part, Every):
            return models.Filter(must=[compiled(each) for each in part.parts])
        if isinstance(part, Either):
            return models.Filter(should=[compiled(each) for each in part.parts])
        if not isinstance(part, Not):
            return _atom(part, names[part.column])
        if isinstance(part.part, (Every, Either, Not)):
            raise TypeError(f"a negation stands on comparisons only, got {part}")
        # A comparison with a null is not true, nor is its negation; absence itself is true or not.
        column = names[part.part.column]
        absent = [] if isinstance(part.part, Missing) else [_missing(column)]
        return models.Filter(must_not=[_atom(part.part, column), *absent])

    return compiled(negations_inside(where))


def _atom(atom: Atom, column: str) -> Condition:
    from qdrant_client import models

    if isinstance(atom, Missing):
        return _missing(column)
    if isinstance(atom, Member):
        texts = [value for value in atom.values if isinstance(value, str)]
        if texts:
            return models.FieldCondition(key=key(column), match=models.MatchAny(any=texts))
        return models.Filter(should=[_equal(column, flat(value)) for value in atom.values])
    value = flat(atom.value)
    if atom.operator == "=":
        return _equal(column, value)
    if atom.operator == "!=":
        return models.Filter(must_not=[_equal(column, value), _missing(column)])
    bound = models.Range(**{_BOUNDS[atom.operator]: float(value)})
    return models.FieldCondition(key=key(column), range=bound)


def _missing(column: str) -> Condition:
    from qdrant_client import models

    return models.IsEmptyCondition(is_empty=models.PayloadField(key=key(column)))


def _equal(column: str, value: bool | int | float | str) -> Condition:
    from qdrant_client import models

    if isinstance(value, (bool, str)):
        return models.FieldCondition(key=key(column), match=models.MatchValue(value=value))
    return models.FieldCondition(key=key(column), range=models.Range(gte=float(value), lte=float(value)))
