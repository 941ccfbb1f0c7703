from __future__ import annotations

from datetime import date, datetime, timezone
from pathlib import Path

import pytest

from searchfit.config import Settings, SourceSettings
from searchfit.errors import SourceError
from searchfit.sources import BadRow, Row, Source, open_source
from searchfit.sources.values import Kind, from_text, kind_of_text, widen


def source(file: Path, content: str, **options: object) -> Source:
    file.write_text(content, encoding="utf-8", newline="")
    return open_source(Settings(source=SourceSettings(source=str(file), **options)))  # type: ignore[arg-type]


def values(source: Source) -> list[list[object]]:
    return [list(row.values.values()) for row in source.rows() if isinstance(row, Row)]


def test_the_separator_is_told_from_the_header_and_said(tmp_path: Path) -> None:
    found = source(tmp_path / "a.csv", "id;text\n1;a, b\n")
    assert values(found) == [["1", "a, b"]]
    assert "';' is taken as the separator" in found.notes[0]
    assert values(source(tmp_path / "a.tsv", "id\ttext\n1\ta, b\n")) == [["1", "a, b"]]
    with pytest.raises(SourceError, match=r"'id;text', 'x'"):
        source(tmp_path / "a.csv", "id;text,x\n1;a,b\n")


def test_tsv_without_quoting_keeps_its_quotes(tmp_path: Path) -> None:
    raw = 'id\ttext\n1\t"Foo" is a song\n2\t"open\n3\tplain\n4\tclosed"\n5\t"quoted\ttab"\n'
    assert values(source(tmp_path / "a.tsv", raw)) == [
        ["1", '"Foo" is a song'],
        ["2", '"open'],
        ["3", "plain"],
        ["4", 'closed"'],
        ["5", "quoted\ttab"],
    ]


def test_a_quote_left_open_costs_one_row(tmp_path: Path) -> None:
    found = list(source(tmp_path / "a.csv", 'id,text\n1,"open\n2,b\n3,c\n').rows())
    assert found[0] == BadRow("a.csv, row 1 (line 2)", "a quote that is never closed")
    assert [row.values["id"] for row in found if isinstance(row, Row)] == ["2", "3"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_line_ends(tmp_path: Path, end: str) -> None:
    content = f'id,text{end}1,"two{end}lines"{end}{end}2,b'
    assert values(source(tmp_path / "a.csv", content)) == [["1", f"two{end}lines"], ["2", "b"]]


def test_columns_without_or_with_the_same_name(tmp_path: Path) -> None:
    found = source(tmp_path / "a.csv", ",text,n,n\n0,a,1,2\n")
    assert found.reader.columns() == ("column_1", "text", "n", "n_2")
    assert "column 4 is named 'n' again: read as 'n_2'" in found.notes


@pytest.mark.parametrize(
    ("header", "chosen", "said"),
    [
        ("id,title,text,x", ("text", "id", "title"), "'text' is taken as the text (by its name)"),
        ("_id,name,blurb", ("blurb", "_id", "name"), "'blurb' is taken as the text (the only one left)"),
        ("blurb", ("blurb", "", ""), "no column is named as the id: documents are numbered by their rows"),
        ("id,doc_id,text", ("text", "", ""), "'id', 'doc_id' could all be the id"),
        ("ID,Body,price", ("Body", "ID", ""), "'ID' is taken as the id"),
    ],
)
def test_columns_are_guessed_where_one_can_be_meant(
    tmp_path: Path, header: str, chosen: tuple[str, str, str], said: str
) -> None:
    found = source(tmp_path / "a.csv", f"{header}\n")
    assert (*found.columns.text, found.columns.id, found.columns.title) == chosen
    assert any(said in note for note in found.notes)


def test_named_columns_are_not_guessed_and_not_said(tmp_path: Path) -> None:
    found = source(
        tmp_path / "a.csv", "key,head,title,text\n", id="key", title="head", text=("title", "text")
    )
    assert found.columns.text == ("title", "text")
    assert found.notes == ()


def test_a_beir_folder_is_read_with_its_metadata(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text(
        '{"_id": "1", "title": "t", "text": "x", "metadata": {"year": 1999}}\n'
    )
    (tmp_path / "queries.jsonl").write_text("")
    found = open_source(Settings(source=SourceSettings(source=str(tmp_path))))
    assert [row.values for row in found.rows() if isinstance(row, Row)] == [
        {"year": 1999, "_id": "1", "title": "t", "text": "x"}
    ]
    assert "use it with --queries" in found.notes[0]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("0", "int", 0),
        (" -12 ", "int", -12),
        ("999999999999999999", "int", 999999999999999999),
        ("-.5", "float", -0.5),
        ("5.", "float", 5.0),
        ("1e3", "float", 1000.0),
        ("TRUE", "bool", True),
        ("2024-02-29", "date", date(2024, 2, 29)),
        ("2024-02-29 12:30", "timestamp", datetime(2024, 2, 29, 12, 30)),
        ("2024-02-29T12:30:00.1234567", "timestamp", datetime(2024, 2, 29, 12, 30, 0, 123456)),
        ("2024-02-29T12:30:00+0130", "timestamp_utc", datetime(2024, 2, 29, 11, tzinfo=timezone.utc)),
    ],
)
def test_values_of_cells(text: str, kind: Kind, value: object) -> None:
    assert kind_of_text(text) == kind
    assert from_text(text, kind) == value


@pytest.mark.parametrize(
    "text",
    [
        *[
            "01",
            "00.5",
            "+1",
            "1,5",
            "1_000",
            "٣",
            "1e999",
            "9999999999999999999",
            "nan",
            "-",
            ".",
            "-.",
            "e5",
        ],
        *["1.2.3", "0x1", "2023-02-29", "2024-13-01", "0001-01-01T00:00:00+01:00", "2024-01-01T25:00", "yes"],
    ],
)
def test_what_only_looks_like_a_value_stays_text(text: str) -> None:
    assert kind_of_text(text) == "string"


def test_kinds_widen() -> None:
    assert widen("null", "int") == widen("int", "null") == "int"
    assert widen("int", "float") == widen("float", "int") == "float"
    assert widen("date", "timestamp") == "timestamp"
    assert widen("bool", "int") == widen("timestamp", "timestamp_utc") == "string"
    assert from_text("2024-01-02", "timestamp") == datetime(2024, 1, 2)
