from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from searchfit.config import CleanSettings, Settings, SourceSettings
from searchfit.errors import SourceError
from searchfit.records import DOCUMENTS, StageResult
from searchfit.stages import Tools, ingest

Ingest = Callable[..., tuple[StageResult, pa.Table]]


@pytest.fixture
def read(tmp_path: Path) -> Ingest:
    """Ingest a file with this name and content; gives the result and the table."""

    def read(name: str, content: bytes | str, **options: object) -> tuple[StageResult, pa.Table]:
        file = tmp_path / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return ingest_source(str(file), tmp_path, **options)

    return read


def ingest_source(source: str, tmp_path: Path, **options: object) -> tuple[StageResult, pa.Table]:
    output = tmp_path / "output"
    output.mkdir(exist_ok=True)
    options.setdefault("max_bad_share", 0.9)
    plain = CleanSettings(steps=(), language=False)
    settings = Settings(source=SourceSettings(source=source, **options), clean=plain)  # type: ignore[arg-type]
    result = ingest.run(settings, {}, Tools(output))
    assert [file.name for file in output.iterdir()] == ["documents.parquet"]
    return result, pq.read_table(output / "documents.parquet")


def dropped(result: StageResult) -> dict[str, tuple[int, tuple[str, ...]]]:
    return {drop.reason: (drop.count, drop.samples) for drop in result.drops}


def test_a_csv_keeps_text_and_types_its_other_columns(read: Ingest) -> None:
    result, table = read(
        "homes.csv",
        "\ufeffid,name,description,price,share,sold,listed,seen,zip,phone,rooms\n"
        'a,Villa,"Quiet, with\na pool",300000,1,true,2024-01-31,2024-01-31T10:00:00Z,01234,+34600,3\n'
        "b,Flat,Près du port,-5,.25,False,2023-12-01,2024-01-31 12:30:00.5+02:00,50001,+34601,\n",
    )
    assert table.schema.names[:3] == DOCUMENTS.names
    assert table.to_pylist() == [
        {
            "id": "a",
            "title": "Villa",
            "text": "Quiet, with\na pool",
            "metadata.price": 300000,
            "metadata.share": 1.0,
            "metadata.sold": True,
            "metadata.listed": date(2024, 1, 31),
            "metadata.seen": datetime(2024, 1, 31, 10, tzinfo=timezone.utc),
            "metadata.zip": "01234",
            "metadata.phone": "+34600",
            "metadata.rooms": 3,
        },
        {
            "id": "b",
            "title": "Flat",
            "text": "Près du port",
            "metadata.price": -5,
            "metadata.share": 0.25,
            "metadata.sold": False,
            "metadata.listed": date(2023, 12, 1),
            "metadata.seen": datetime(2024, 1, 31, 10, 30, 0, 500000, tzinfo=timezone.utc),
            "metadata.zip": "50001",
            "metadata.phone": "+34601",
            "metadata.rooms": None,
        },
    ]
    assert result.counts == {"documents": 2, "characters": len("Quiet, with\na pool") + 12, "bad_rows": 0}
    assert any("'description' is taken as the text" in note for note in result.notes)
    assert any("price (int), share (float)" in note for note in result.notes)


def test_a_type_is_told_from_the_last_value_too(read: Ingest) -> None:
    rows = "".join(f"{n},text {n},{n},{n}\n" for n in range(ingest.BATCH_ROWS + 10))
    _, table = read("late.csv", f"id,text,n,code\n{rows}x,last,0.5,n/a\n")
    assert table.schema.field("metadata.n").type == pa.float64()
    assert table.column("metadata.code").to_pylist()[-2:] == [str(ingest.BATCH_ROWS + 9), "n/a"]
    assert table.column("id").to_pylist()[:2] == ["0", "1"]


def test_every_kind_of_bad_row_is_counted_with_its_place(read: Ingest) -> None:
    result, table = read(
        "bad.csv",
        b"id,text,n\n"
        b"1,good,1\n"
        b"1,again,1\n"
        b"2,,1\n"
        b"3,   ,1\n"
        b"4,b\xe9d,1\n"
        b"5,n\0l,1\n"
        b"6,cells\n"
        b'7,"quote" after,1\n'
        b",no id,1\n"
        b"\n"
        b"8," + b"x" * 200 + b",1\n"
        b'9,"open,1\n'
        b"10,fine,1\n",
        max_text_chars=100,
    )
    assert table.column("id").to_pylist() == ["1", "10"]
    assert dropped(result) == {
        "an id that an earlier row has": (1, ("bad.csv, row 2 (line 3)",)),
        "empty text": (2, ("bad.csv, row 3 (line 4)", "bad.csv, row 4 (line 5)")),
        "bad UTF-8": (1, ("bad.csv, row 5 (line 6)",)),
        "NUL byte": (1, ("bad.csv, row 6 (line 7)",)),
        "wrong number of cells": (1, ("bad.csv, row 7 (line 8)",)),
        "text after a closing quote": (1, ("bad.csv, row 8 (line 9)",)),
        "no id": (1, ("bad.csv, row 9 (line 10)",)),
        "longer than source.max_text_chars": (1, ("bad.csv, row 10 (line 12)",)),
        "a quote that is never closed": (1, ("bad.csv, row 11 (line 13)",)),
    }
    assert result.counts["bad_rows"] == 10


def test_too_many_bad_rows_are_an_error_that_shows_them(read: Ingest) -> None:
    with pytest.raises(SourceError, match=r"1 of 2 rows .* more than the 5% allowed") as caught:
        read("bad.csv", "id,text\n1,good\n2,\n", max_bad_share=0.05)
    assert "1 x empty text (bad.csv, row 2 (line 3))" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "\n \r\n", "is empty"),
        ("a.csv", "id,text\n", "holds no documents"),
        ("a.jsonl", "\n\n", "is empty"),
        ("a.jsonl", "[\n{}\n]\n", "no readable JSON object"),
        ("a.jsonl", "{}\n", "cannot be told"),
        ("a.csv", "x,y\n1,2\n", "'x', 'y'"),
        ("a.csv", "body,text\n1,2\n", "'body', 'text' could all be it"),
        ("a.csv", "id,text\n1,é\n".encode("utf-16"), "UTF-16"),
        ("a.csv", "id,text\n1,long enough\n".encode("utf-16-le"), "zero"),
        ("a.parquet", b"PAR1 nonsense PAR1", "not a sound Parquet file"),
        ("a.parquet", b"", "not a sound Parquet file"),
        ("a.json", "[]", "ends in .json"),
    ],
)
def test_what_cannot_be_read_is_an_error_for_the_user(
    read: Ingest, name: str, content: bytes | str, message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        read(name, content)


def test_an_unknown_column_is_answered_with_those_there_are(read: Ingest) -> None:
    with pytest.raises(
        SourceError, match=r"no column 'titel'.*'id', 'title', 'text'[^$]*Did you mean 'title'"
    ):
        read("a.csv", "id,title,text\n1,a,b\n", title="titel")


def test_json_lines_keep_their_types_and_widen_where_they_differ(read: Ingest) -> None:
    rows = [
        {"id": 1, "text": "one", "n": 1, "mixed": 1, "flag": True, "big": 1 << 70, "nest": {"a": [1]}},
        {
            "id": 2,
            "text": ["two", "paragraphs"],
            "n": 2.5,
            "mixed": "x",
            "flag": None,
            "big": 1,
            "code": "007",
        },
        {"id": 3.5, "text": "three", "n": float("nan"), "": "unnamed"},
    ]
    result, table = read("a.jsonl", "\n\n".join(map(json.dumps, rows)))
    assert table.column("id").to_pylist() == ["1", "2", "3.5"]
    assert table.column("text").to_pylist() == ["one", "two\n\nparagraphs", "three"]
    assert table.column("metadata.n").to_pylist() == [1.0, 2.5, None]
    assert table.column("metadata.mixed").to_pylist() == ["1", "x", None]
    assert table.column("metadata.flag").to_pylist() == [True, None, None]
    assert table.column("metadata.big").to_pylist() == [str(1 << 70), "1", None]
    assert table.column("metadata.nest").to_pylist() == ['{"a": [1]}', None, None]
    assert table.column("metadata.code").to_pylist() == [None, "007", None]
    assert table.column("metadata.column").to_pylist() == [None, None, "unnamed"]
    assert not result.drops


def test_broken_json_lines_are_counted(read: Ingest) -> None:
    good = '{"id": "a", "text": "good"}\n'
    broken = '{"text": \n3\n{"id": "b", "text": "\\ud800"}\n' + "[" * 100_000 + "\n"
    result, table = read("a.jsonl", good + broken + '{"id": "c", "text": "x\\u0000y"}\n{"id": "d"}\n')
    assert table.num_rows == 1
    assert {reason: count for reason, (count, _) in dropped(result).items()} == {
        "broken JSON": 2,
        "not a JSON object": 1,
        "bad UTF-8": 1,
        "NUL byte": 1,
        "no text": 1,
    }
    assert dropped(result)["no text"][1] == ("a.jsonl, row 7",)


def test_lines_of_ten_megabytes_cost_themselves_only(read: Ingest) -> None:
    long = "x" * 10_000_000
    result, table = read("a.jsonl", f'{{"text": "{long}"}}\n{{"text": "good"}}\n')
    assert table.column("id").to_pylist() == ["2"]
    result, table = read("a.csv", f'id,text\n1,{long}\n2,"{long}"\n3,good\n', max_text_chars=100_000)
    assert table.column("id").to_pylist() == ["3"]
    assert dropped(result) == {
        "longer than source.max_text_chars": (2, ("a.csv, row 1 (line 2)", "a.csv, row 2 (line 3)"))
    }


def test_a_named_column_may_first_appear_late(read: Ingest) -> None:
    early = "".join(f'{{"text": "text {n}"}}\n' for n in range(1500))
    _, table = read("a.jsonl", early + '{"text": "last", "heading": "Late"}\n', title="heading")
    assert table.column("title").to_pylist()[-2:] == ["", "Late"]


def test_several_text_columns_are_joined_by_blank_lines(read: Ingest) -> None:
    _, table = read("a.csv", "q,a\nWhy?,Because\nHow?,\n", text=("q", "a"))
    assert table.column("text").to_pylist() == ["Why?\n\nBecause", "How?"]
    assert table.column("id").to_pylist() == ["1", "2"]
    assert table.schema.names == DOCUMENTS.names


def test_equal_texts_are_kept_and_counted(read: Ingest) -> None:
    result, table = read("a.csv", "text\nsame\nsame\nsame\n")
    assert table.num_rows == 3
    assert any(note.startswith("2 documents have a text that an earlier one has") for note in result.notes)


def test_parquet_types_come_through(tmp_path: Path) -> None:
    moment = datetime(2024, 5, 6, 7, 8, 9, 123456)
    east = timezone(timedelta(hours=2))
    source = pa.table(
        {
            "id": pa.array([7, 8], pa.int32()),
            "text": pa.array(["a", "b"]).dictionary_encode(),
            "when": pa.array([moment, None], pa.timestamp("ns")),
            "zoned": pa.array([moment.replace(tzinfo=east)] * 2, pa.timestamp("ms", "Europe/Madrid")),
            "day": pa.array([date(2020, 2, 29)] * 2),
            "price": pa.array([Decimal("1.25"), Decimal("2")]),
            "flag": [True, False],
            "ratio": pa.array([0.5, float("nan")], pa.float32()),
            "tags": [["x", "y"], []],
            "picture": [b"\xff", b"\0"],
            "code": ["01", "02"],
            "none": pa.nulls(2),
        }
    )
    pq.write_table(source, tmp_path / "a.parquet")
    result, table = ingest_source(str(tmp_path / "a.parquet"), tmp_path)
    zoned = moment.replace(microsecond=123000, tzinfo=east)
    assert table.to_pylist()[0] == {
        "id": "7",
        "title": "",
        "text": "a",
        "metadata.when": moment,
        "metadata.zoned": zoned,
        "metadata.day": date(2020, 2, 29),
        "metadata.price": 1.25,
        "metadata.flag": True,
        "metadata.ratio": 0.5,
        "metadata.tags": '["x", "y"]',
        "metadata.code": "01",
        "metadata.none": None,
    }
    assert table.column("metadata.ratio").to_pylist()[1] is None
    assert any("'picture' of type binary is left out" in note for note in result.notes)


def test_parquet_with_bad_utf8_and_times_out_of_range(tmp_path: Path) -> None:
    broken = pa.array([b"good", b"b\xe9d", b"late"]).view(pa.string())
    times = pa.array([0, 0, 1 << 62], pa.timestamp("us"))
    pq.write_table(pa.table({"text": broken, "at": times}), tmp_path / "a.parquet")
    result, table = ingest_source(str(tmp_path / "a.parquet"), tmp_path)
    assert table.column("text").to_pylist() == ["good"]
    assert [drop.count for drop in result.drops] == [2]


def test_too_many_different_keys_are_refused(read: Ingest) -> None:
    rows = "".join(json.dumps({"text": "x", f"key{n}": 1}) + "\n" for n in range(ingest.MAX_COLUMNS + 1))
    with pytest.raises(SourceError, match="more than 1000 columns"):
        read("a.jsonl", rows, text=("text",))


def test_the_same_input_gives_the_same_bytes_over_leftovers(read: Ingest, tmp_path: Path) -> None:
    rows = "id,text,n\n" + "".join(f"{n},text {n},{n}\n" for n in range(300))
    read("a.csv", rows)
    first = (tmp_path / "output/documents.parquet").read_bytes()
    (tmp_path / "output/documents.parquet").write_bytes(b"half written")
    (tmp_path / "output/documents.spool").write_bytes(b"half written")
    read("a.csv", rows)
    assert (tmp_path / "output/documents.parquet").read_bytes() == first


ODD = st.lists(
    st.sampled_from(
        [
            b'"',
            b",",
            b"\n",
            b"\r",
            b"\0",
            b"\xff",
            b"a",
            b"id",
            b"text",
            b'{"text":"a"}',
            b"\xef\xbb\xbf",
            b"1",
        ]
    )
    | st.binary(max_size=6),
    max_size=40,
).map(b"".join)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
@profile(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=ODD, headed=st.booleans())
def test_no_bytes_end_in_a_traceback(read: Ingest, name: str, content: bytes, headed: bool) -> None:
    head = {"a.csv": b"id,text\n", "a.tsv": b"id\ttext\n", "a.jsonl": b'{"text": "x"}\n'}.get(name, b"PAR1")
    with contextlib.suppress(SourceError):
        result, table = read(name, head + content if headed else content, max_bad_share=1.0)
        assert table.num_rows == result.counts["documents"] > 0


@profile(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_parquet_never_ends_in_a_traceback(tmp_path: Path, data: st.DataObject) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["some text", "more"], "n": [1, 2]}), file)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(content))
    with contextlib.suppress(SourceError):
        result, table = ingest_source(str(file), tmp_path, text=("text",))
        assert table.num_rows == result.counts["documents"] > 0


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)


@profile(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_what_python_writes_as_csv_is_read_back(read: Ingest, rows: list[tuple[str, str]]) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([("text", "other"), *rows])
    _, table = read("a.csv", buffer.getvalue(), text=("text",))
    assert table.column("text").to_pylist() == [text for text, _ in rows]
