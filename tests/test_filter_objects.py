from __future__ import annotations

import json
import string
from datetime import date, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchfit.errors import FilterError
from searchfit.filters import Compare, Either, Every, Filter, Member, Missing, Not, from_json, parse, to_json

COLUMNS = {"price": "float", "rooms": "int", "city": "string", "sold": "bool", "and": "string", "not": "date"}


def one(column: str, op: str, *value: Any) -> dict[str, Any]:
    return {"column": column, "op": op} | ({"value": value[0]} if value else {})


FORMS: dict[str, dict[str, Any]] = {
    "price < 300000": one("price", "<", 300000),
    'city in ("Zaragoza", "Huesca") and not sold': {
        "and": [one("city", "in", ["Zaragoza", "Huesca"]), {"not": one("sold", "=", True)}]
    },
    'rooms is null or city starts with "P"': {
        "or": [one("rooms", "is null"), one("city", "starts with", "P")]
    },
    '`and` contains "x" or `not` = "2024-12-31"': {
        "or": [one("and", "contains", "x"), one("not", "=", "2024-12-31")]
    },
}


@pytest.mark.parametrize("text", FORMS)
def test_both_forms_mean_the_same(text: str) -> None:
    assert from_json(FORMS[text], COLUMNS) == parse(text, COLUMNS)
    written = json.loads(json.dumps(to_json(parse(text, COLUMNS))))
    assert from_json(written, COLUMNS) == parse(text, COLUMNS)


def test_one_part_and_one_member() -> None:
    assert from_json({"and": [one("rooms", ">", 2.5)]}, COLUMNS) == Compare("rooms", ">", 2)
    assert from_json({"not": {"not": one("rooms", "is null")}}, COLUMNS) == Not(Not(Missing("rooms")))


WRONG: list[tuple[Any, str]] = [
    ([], "a JSON object"),
    ("price < 3", "a JSON object"),
    ({}, "cannot read the filter"),
    ({"and": []}, "cannot read the filter"),
    ({"and": {"price": 3}}, "cannot read the filter"),
    ({"and": [one("sold", "is null")], "or": [one("sold", "is null")]}, "cannot read the filter"),
    ({"price": {"<": 3}}, "cannot read the filter"),
    (one("price", "lt", 3), "is one of"),
    (one("price", "<"), "cannot read the filter"),
    (one("price", "is null", True), "cannot read the filter"),
    (one("", "=", 3), "cannot read the filter"),
    (one("city", "in", "Huesca"), "takes a list"),
    (one("city", "in", []), "got"),
    (one("price", "<", float("nan")), "a value is"),
    (one("price", "<", {"a": 1}), "a value is"),
    (one("price", "<", "3"), "holds numbers"),
    (one("price", "=", None), "is null"),
    (one("sold", "=", 1), "true or false"),
    (one("prize", "<", 3), "Did you mean: price"),
    (one("city", "=", "\ud800"), "half of a character"),
]


@pytest.mark.parametrize(("value", "message"), WRONG, ids=str)
def test_errors_say_what_is_wrong(value: Any, message: str) -> None:
    with pytest.raises(FilterError) as caught:
        from_json(value, COLUMNS)
    assert message in str(caught.value)


def test_depth_has_a_limit() -> None:
    value: dict[str, Any] = one("sold", "is null")
    for _ in range(100):
        value = {"not": value}
    with pytest.raises(FilterError, match="deep"):
        from_json(value, COLUMNS)


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6) | st.sampled_from(
    ["column", "op", "value", "or", "null", "`", 'a"b', "1"]
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number + 0.0),
    "bool": st.booleans(),
    "string": st.text(st.characters(codec="utf-8")) | st.text(string.punctuation),
    "date": st.dates(date(1000, 1, 1)),
    "timestamp": st.datetimes(datetime(1000, 1, 1)),
}


@st.composite
def trees(draw: st.DrawFn) -> tuple[Filter, dict[str, str]]:
    names = draw(st.lists(NAMES, min_size=len(VALUES), max_size=len(VALUES), unique=True))
    columns = dict(zip(names, VALUES, strict=True))

    def atom(name: str) -> st.SearchStrategy[Filter]:
        values = VALUES[columns[name]]
        signs = ["=", "!="] + ["contains", "starts with"] * (columns[name] == "string")
        compare: st.SearchStrategy[Filter] = st.builds(Compare, st.just(name), st.sampled_from(signs), values)
        members = st.lists(values, min_size=1, max_size=3, unique=True).map(tuple)
        return compare | st.builds(Member, st.just(name), members) | st.just(Missing(name))

    def joined(parts: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
        several = st.lists(parts, min_size=2, max_size=3).map(tuple)
        return parts.map(Not) | several.map(Every) | several.map(Either)

    return draw(st.recursive(st.sampled_from(names).flatmap(atom), joined, max_leaves=6)), columns


@settings(max_examples=40, deadline=None)
@given(trees())
def test_any_filter_survives_the_round_trip(tree: tuple[Filter, dict[str, str]]) -> None:
    filter, columns = tree
    assert from_json(json.loads(json.dumps(to_json(filter))), columns) == filter
