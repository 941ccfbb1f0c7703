"""Filters as Pinecone's metadata filters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from searchfit.filters import Either, Every, Filter, Member, Missing, Not
from searchfit.stores.remote import negations_inside
from searchfit.stores.values import flat

_SIGNS = {"=": "$eq", "!=": "$ne", "<": "$lt", "<=": "$lte", ">": "$gt", ">=": "$gte"}


def condition(where: Filter, names: Mapping[str, str]) -> dict[str, Any]:
    """The filter over a record's metadata; `names` maps the user's column to the stored one."""

    def compiled(part: Filter) -> dict[str, Any]:
        if isinstance(part, (Every, Either)):
            return {"$and" if isinstance(part, Every) else "$or": [compiled(each) for each in part.parts]}
        atom, negated = (part.part, True) if isinstance(part, Not) else (part, False)
        if isinstance(atom, (Every, Either, Not)):
            raise TypeError(f"a negation stands on comparisons only, got {part}")
        column = names[atom.column]
        if isinstance(atom, Missing):
            return {column: {"$exists": negated}}
        if isinstance(atom, Member):
            sign, value = "$nin" if negated else "$in", [flat(each) for each in atom.values]
            return _there(column, {column: {sign: value}})
        sign = _NEGATED[_SIGNS[atom.operator]] if negated else _SIGNS[atom.operator]
        return _there(column, {column: {sign: flat(atom.value)}})

    return compiled(negations_inside(where))


_NEGATED = {"$eq": "$ne", "$ne": "$eq", "$lt": "$gte", "$gte": "$lt", "$lte": "$gt", "$gt": "$lte"}


def _there(column: str, condition: dict[str, Any]) -> dict[str, Any]:
    """Only for records with a value: what $ne and $nin say of others is not written down."""
    return {"$and": [{column: {"$exists": True}}, condition]}
