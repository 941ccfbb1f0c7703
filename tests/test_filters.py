from __future__ import annotations

import contextlib
from datetime import date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchfit.errors import FilterError
from searchfit.filters import MAX_CHARS, Compare, Either, Every, Filter, Member, Missing, Not, matches, parse

COLUMNS = {
    "price": "float",
    "rooms": "int",
    "city": "string",
    "sold": "bool",
    "built": "date",
    "seen": "timestamp",
    "a b": "string",
    "x`y": "int",
    "not": "bool",
    "sélect": "int",
    "名前": "string",
    "photos": "list",
}


def test_the_forms() -> None:
    forms: dict[str, Filter] = {
        "price < 300000": Compare("price", "<", 300000.0),
        "price<.5": Compare("price", "<", 0.5),
        "price >= -1.5e3": Compare("price", ">=", -1500.0),
        "rooms >= 3.0": Compare("rooms", ">=", 3),
        "rooms == +3": Compare("rooms", "=", 3),
        "rooms <> 3": Compare("rooms", "!=", 3),
        "rooms IN (3, 1,3)": Member("rooms", (3, 1)),
        "rooms not in (3)": Not(Member("rooms", (3,))),
        "sold": Compare("sold", "=", True),
        "not sold": Not(Compare("sold", "=", True)),
        "not not sold": Compare("sold", "=", True),
        "sold != FALSE": Compare("sold", "!=", False),
        'city = "Palma"': Compare("city", "=", "Palma"),
        "city CONTAINS 'sea'": Compare("city", "contains", "sea"),
        "city not contains 'sea'": Not(Compare("city", "contains", "sea")),
        'city starts\nwith "Ca"': Compare("city", "starts with", "Ca"),
        "price is null": Missing("price"),
        "price is not null": Not(Missing("price")),
        'built > "2024-12-31"': Compare("built", ">", date(2024, 12, 31)),
        'seen = "2024-12-31"': Compare("seen", "=", datetime(2024, 12, 31)),
        'seen = "2024-12-31T23:59"': Compare("seen", "=", datetime(2024, 12, 31, 23, 59)),
        'seen = "2024-12-31 23:59:59.5Z"': Compare("seen", "=", datetime(2024, 12, 31, 23, 59, 59, 500000)),
        'seen = "2024-12-31T23:59:59+01:00"': Compare("seen", "=", datetime(2024, 12, 31, 22, 59, 59)),
        '`a b` = "x"': Compare("a b", "=", "x"),
        "`x``y` = 1": Compare("x`y", "=", 1),
        "not `not`": Not(Compare("not", "=", True)),
        "sélect = 1": Compare("sélect", "=", 1),
        "名前='海'": Compare("名前", "=", "海"),
    }
    assert {text: parse(text, COLUMNS) for text in forms} == forms


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ('"it\'s"', "it's"),
        ("'it''s'", "it's"),
        (r"'it\'s'", "it's"),
        ('"say ""hi"""', 'say "hi"'),
        (r'"C:\\new\n\t"', "C:\\new\n\t"),
        ("''", ""),
        ("' OR 1=1 --'", " OR 1=1 --"),
        ("'100%_'", "100%_"),
    ],
)
def test_strings(written: str, value: str) -> None:
    assert parse(f"city = {written}", COLUMNS) == Compare("city", "=", value)


def test_precedence() -> None:
    sold, rooms, price = Compare("sold", "=", True), Compare("rooms", "=", 1), Compare("price", "=", 2.0)
    assert parse("sold or rooms = 1 and price = 2", COLUMNS) == Either((sold, Every((rooms, price))))
    assert parse("(sold or rooms = 1) and price = 2", COLUMNS) == Every((Either((sold, rooms)), price))
    assert parse("not sold and rooms = 1", COLUMNS) == Every((Not(sold), rooms))
    assert parse("not (sold and rooms = 1)", COLUMNS) == Not(Every((sold, rooms)))


@given(st.sampled_from(["<", "<=", ">", ">="]), st.integers(-5, 5), st.sampled_from([".0", ".25", ".5"]))
def test_a_fraction_among_whole_numbers(sign: str, whole: int, fraction: str) -> None:
    where = parse(f"rooms {sign} {whole}{fraction}", COLUMNS)
    as_float = parse(f"price {sign} {whole}{fraction}", COLUMNS)
    for rooms in range(-7, 8):
        assert matches(where, {"rooms": rooms}) == matches(as_float, {"price": float(rooms)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the filter is empty"),
        ("   ", "the filter is empty"),
        ("price <", "got the end"),
        ("price < and sold", "numbers such as 2.5, got 'and'"),
        ("price", "expected a comparison"),
        ("price not", "expected a comparison"),
        ("price 3", "expected a comparison"),
        ("price < 3 rooms", "expected 'and', 'or' or the end, got 'rooms'"),
        ("price < 3 and", "expected a column, got the end"),
        ("3 < price", "expected a column, got '3'"),
        ('"a b" = "x"', "expected a column"),
        ("(sold", "expected '[)]', got the end"),
        ("sold)", "expected 'and', 'or' or the end, got '[)]'"),
        ("rooms in ()", "whole numbers such as 3, got '[)]'"),
        ("rooms in (1, null)", "got 'null'"),
        ("rooms in 1", "expected '[(]', got '1'"),
        ("city starts 'a'", "expected a comparison"),
        ("price is 3", "expected 'null', got '3'"),
        ("price = null", "write: is null"),
        ("city = 3", "'city' holds text such as \"Huesca\", got '3'"),
        ("city = Palma", "holds text such as \"Huesca\", got 'Palma'"),
        ('rooms = "3"', "'rooms' holds whole numbers such as 3, got \"3\""),
        ("rooms = 2.5", "never equal '2.5'"),
        ("rooms in (2.5)", "never equal '2.5'"),
        ("rooms < 9223372036854775808", "64-bit"),
        ("price < 1e999", "beyond"),
        ("price < 3rooms", "'3rooms' is not part"),
        ("price < 300,000", "expected 'and', 'or' or the end, got ','"),
        ("sold = 1", "true or false, got '1'"),
        ("sold < true", "'<' does not go with column 'sold'"),
        ("price contains 'a'", "'contains' does not go with column 'price'"),
        ("built starts with '2024'", "'starts with' does not go with column 'built'"),
        ("built = '2024-13-01'", "holds dates such as"),
        ("built = '2024-01-01T00:00'", "holds dates such as"),
        ("built = '20240101'", "holds dates such as"),
        ("seen = '2024-01-01T25:00'", "holds timestamps such as"),
        ("seen = '0001-01-01T00:00+10:00'", "holds timestamps such as"),
        ("city = 'abc", "is never closed"),
        ("`a b = 1", "is never closed"),
        (r"city = 'a\qb'", "unknown escape"),
        ("city = 'a\ud800'", "half of a character"),
        ("sold & sold", "'&' is not part of the filter language"),
        ("sold; drop", "';' is not part"),
        ("photos is null", "type list cannot be filtered on"),
    ],
)
def test_errors_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        parse(text, COLUMNS)


def test_an_unknown_column_names_those_there_are() -> None:
    with pytest.raises(FilterError, match=r"no column 'Pirce'.*\n.*\n.*\nDid you mean: price\?"):
        parse("Pirce < 3", COLUMNS)
    with pytest.raises(FilterError, match=r"The columns are: price \(float\).*`a b` \(string\), `x``y`"):
        parse("zzz < 3", COLUMNS)
    with pytest.raises(FilterError, match="no columns to filter on"):
        parse("zzz < 3", {})


@pytest.mark.parametrize("before", ["", "名前 = '海' and ", "sold and\n\t", "sold and " * 30])
def test_the_caret_stands_under_the_place(before: str) -> None:
    with pytest.raises(FilterError) as raised:
        parse(f"{before}rooms < sold and sold", COLUMNS)
    _, line, caret = raised.value.message.split("\n")
    wide = sum(sign in "名前海" for sign in line)
    assert line[caret.index("^") - wide :].startswith("sold and sold")


def test_size_has_limits() -> None:
    for deep in ("(" * 10_000 + "sold" + ")" * 10_000, "not (" * 10_000, "(" * 51 + "sold" + ")" * 51):
        with pytest.raises(FilterError, match="nested more than 50 deep"):
            parse(deep, COLUMNS)
    assert parse("(" * 50 + "sold" + ")" * 50, COLUMNS) == Compare("sold", "=", True)
    assert parse("not " * 20_001 + "sold", COLUMNS) == Not(Compare("sold", "=", True))
    with pytest.raises(FilterError, match="at most 100,000"):
        parse(" " * MAX_CHARS + "sold", COLUMNS)
    with pytest.raises(FilterError, match="64-bit"):
        parse("rooms < " + "9" * 90_000, COLUMNS)
    with pytest.raises(FilterError, match="is never closed"):
        parse("city = '" + r"\'" * 40_000, COLUMNS)


NULLS: dict[str, tuple[bool, bool]] = {
    "price < 3": (False, False),
    "price != 3": (False, False),
    "price in (1, 2)": (False, False),
    "price is null": (True, False),
    "price < 3 or sold": (True, False),
    "price < 3 and sold": (False, False),
    "price < 3 and not sold": (False, True),
    "price < 3 or not sold": (False, False),
    "city contains ''": (False, False),
}


@pytest.mark.parametrize("text", NULLS)
@pytest.mark.parametrize("null", [{"price": None, "city": None}, {"price": float("nan")}, {}])
def test_nulls_leave_it_open(text: str, null: dict[str, Any]) -> None:
    row = {"sold": True, **null}
    found = matches(parse(text, COLUMNS), row), matches(parse(f"not ({text})", COLUMNS), row)
    assert found == NULLS[text]


def test_zoned_timestamps_are_compared_in_utc() -> None:
    where = parse('seen = "2024-12-31T23:00"', COLUMNS)
    assert matches(where, {"seen": datetime(2025, 1, 1, 0, 0, tzinfo=timezone(timedelta(hours=1)))})
    assert matches(where, {"seen": datetime(2024, 12, 31, 23)})


def written(text: str, quote: str) -> str:
    return quote + text.replace("\\", "\\\\").replace(quote, quote * 2) + quote


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=3), st.sampled_from("'\""))
def test_no_text_changes_the_meaning(texts: list[str], quote: str) -> None:
    values = ", ".join(written(text, quote) for text in texts)
    last = texts[-1]
    where = parse(f"city in ({values}) and not city starts with {written(last, quote)}", COLUMNS)
    member = Member("city", tuple(dict.fromkeys(texts)))
    assert where == Every((member, Not(Compare("city", "starts with", last))))


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_name_can_be_written(name: str) -> None:
    quoted = "`" + name.replace("`", "``") + "`"
    assert parse(f"{quoted} = 1", {name: "int"}) == Compare(name, "=", 1)


WORDS = ["price", "city", "sold", "and", "or", "not", "(", ")", "in", "is", "null", "<", "=", "3", "'a", "''"]


@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=12).map(" ".join))
def test_any_text_is_a_filter_or_a_filter_error(text: str) -> None:
    with contextlib.suppress(FilterError):
        assert matches(parse(text, COLUMNS), {}) in {True, False}
