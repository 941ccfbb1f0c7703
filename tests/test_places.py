from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from searchfit.config import PairsSettings, QueriesSettings, Settings, SourceSettings
from searchfit.errors import MissingExtraError, SourceError
from searchfit.places import Place
from searchfit.sources import BadRow, Row, Source, open_source
from searchfit.sources.files import TOO_LONG
from searchfit.sources.pairs import read_pairs
from searchfit.sources.queries import read_queries

CSV = b"id,text\n1,one\n2,two\n"
PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: bytes(pa.compress(data, "zstd", asbytes=True)),
}


def source(name: object, **options: object) -> Source:
    return open_source(Settings(source=SourceSettings(source=str(name), **options)))  # type: ignore[arg-type]


def texts(found: Source) -> list[Any]:
    return [row.values["text"] for row in found.rows() if isinstance(row, Row)]


@pytest.mark.parametrize("end", PACK)
@pytest.mark.parametrize(
    ("name", "data"), [("a.csv", CSV), ("a.jsonl", b'{"text": "one"}\n{"text": "two"}\n')]
)
def test_compressed_tables(tmp_path: Path, end: str, name: str, data: bytes) -> None:
    file = tmp_path / (name + end.upper())
    file.write_bytes(PACK[end](data))
    assert texts(source(file)) == ["one", "two"]


@pytest.mark.parametrize("end", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("how", ["cut", "spoilt", "no such format"])
def test_damaged_compression_is_named(tmp_path: Path, end: str, how: str) -> None:
    if (end, how) == (".zst", "spoilt"):
        pytest.skip("zstd has no checksum here: changed bytes may be other, sound data")
    lines = b"".join(b"%d,%s\n" % (n, os.urandom(24).hex().encode()) for n in range(40_000))
    data = bytearray(PACK[end](b"id,text\n" + lines))
    if how == "cut":
        data = data[: len(data) // 2]
    elif how == "spoilt":
        data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    else:
        data = bytearray(CSV)
    file = tmp_path / f"a.csv{end}"
    file.write_bytes(data)
    with pytest.raises(SourceError, match=rf"a\.csv\{end} is cut off or damaged"):
        texts(source(file))


def test_a_line_that_unpacks_to_very_much_costs_itself_only(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"text": "' + b"x" * (40 << 20) + b'"}\n{"text": "two"}\n'))
    rows = list(source(file, max_text_chars=1000).rows())
    assert isinstance(rows[0], BadRow)
    assert rows[0].reason == TOO_LONG
    assert texts(source(file, max_text_chars=1000)) == ["two"]


def test_several_files_are_read_as_one(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.csv").write_bytes(b"id,text\n3,three\n")
    (tmp_path / "a.csv").write_bytes(CSV)
    (tmp_path / "sub" / "c.csv.gz").write_bytes(gzip.compress(b"text,id\nfour,4\n"))
    (tmp_path / "_SUCCESS").write_bytes(b"")
    whole = source(tmp_path)
    assert texts(whole) == ["one", "two", "three", "four"]
    assert [row.number for row in whole.rows() if isinstance(row, Row)] == [1, 2, 3, 4]
    assert "3 files are read as one" in whole.notes
    assert texts(source(tmp_path / "*.csv")) == ["one", "two", "three"]
    assert len(whole.fingerprint()["files"]) == 3


def test_a_folder_that_cannot_be_looked_into_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    for file in (tmp_path / "a.csv", tmp_path / "sub" / "b.csv"):
        file.write_bytes(CSV)
    scan = os.scandir

    def scandir(path: Any) -> Any:
        if os.path.basename(path) == "sub":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(SourceError, match="sub may not be read: permission denied"):
        source(tmp_path)


def test_files_with_other_columns_or_of_several_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(CSV)
    (tmp_path / "b.csv").write_bytes(b"id,text,price\n3,three,4\n")
    with pytest.raises(SourceError, match=r"b\.csv has other columns than a\.csv: it has besides 'price'"):
        source(tmp_path)
    (tmp_path / "b.csv").rename(tmp_path / "b.tsv")
    with pytest.raises(SourceError, match=r"several kinds: \.csv, \.tsv"):
        source(tmp_path)


def test_json_lines_may_have_keys_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "b", "price": 1}\n')
    assert source(tmp_path).reader.columns() == ("text", "price")


def test_a_parquet_file_that_is_cut_or_compressed_from_outside(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [os.urandom(99).hex() for _ in range(999)]}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match="not a sound Parquet file"):
        source(tmp_path / "a.parquet")
    (tmp_path / "b.parquet.gz").write_bytes(gzip.compress(data))
    with pytest.raises(SourceError, match="compressed Parquet"):
        source(tmp_path / "b.parquet.gz")


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder of fsspec's file system in memory."""
    import fsspec

    files, name = fsspec.filesystem("memory"), uuid4().hex
    files.pipe(f"/{name}/a.csv", CSV)
    pq.write_table(pa.table({"id": ["1"], "text": ["one"]}), f"/{name}/p.parquet", filesystem=files)
    files.pipe(f"/{name}/parts/a.jsonl.gz", gzip.compress(b'{"text": "one"}\n'))
    files.pipe(f"/{name}/parts/b.jsonl.gz", gzip.compress(b'{"text": "two"}\n'))
    files.pipe(f"/{name}/parts/_SUCCESS", b"")
    yield f"memory://{name}"
    files.rm(f"/{name}", recursive=True)


def test_urls(memory: str) -> None:
    assert texts(source(f"{memory}/a.csv")) == ["one", "two"]
    assert texts(source(f"{memory}/p.parquet")) == ["one"]
    assert texts(source(f"{memory}/parts")) == texts(source(f"{memory}/parts/*.gz")) == ["one", "two"]
    assert [
        row.query for row in read_pairs(PairsSettings(file=f"{memory}/a.csv", query=("id",), passage="text"))
    ] == [
        "1",
        "2",
    ]
    assert dict(read_queries(QueriesSettings(file=f"{memory}/a.csv")).queries) == {"1": "one", "2": "two"}


def test_a_url_changes_its_fingerprint_with_its_content(memory: str) -> None:
    import fsspec

    before = source(f"{memory}/a.csv").fingerprint()
    assert before == source(f"{memory}/a.csv").fingerprint()
    fsspec.filesystem("memory").pipe(f"{memory}/a.csv", CSV + b"3,three\n")
    assert source(f"{memory}/a.csv").fingerprint() != before


@pytest.mark.parametrize("name", ["/none.csv", "/no/such", "/*.tsv"])
def test_a_url_of_nothing(memory: str, name: str) -> None:
    with pytest.raises(SourceError, match=r"memory:.*does not exist|no file matches"):
        source(memory + name)


def test_file_urls_are_paths(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(CSV)
    assert texts(source(f"file://{tmp_path}/a.csv")) == ["one", "two"]


def test_a_scheme_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingExtraError, match=r"searchfit\[cloud\]"):
        source("gs://bucket/a.csv")


def test_what_a_store_cannot_do_is_an_error_of_the_source_and_a_bug_is_not() -> None:
    exceptions = pytest.importorskip("botocore.exceptions", reason="s3fs is not installed")
    remote = mock.Mock()
    remote.unstrip_protocol = "s3://{}".format
    place = Place("bucket/a.csv", remote)
    for fault in (exceptions.NoCredentialsError(), OSError("no route"), ValueError("no such key")):
        remote.info.side_effect = remote.open.side_effect = fault
        for ask in (place.mark, place.seekable):
            with pytest.raises(SourceError, match=r"s3://bucket/a\.csv cannot be read"):
                ask()
    for bug in (TypeError("x"), KeyError("x"), AttributeError("x")):
        remote.info.side_effect = remote.open.side_effect = bug
        for ask in (place.mark, place.seekable):
            with pytest.raises(type(bug)):
                ask()


def test_a_real_s3_protocol(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="a/one.csv", Body=CSV)
    s3.put_object(Bucket=bucket, Key="a/two.csv", Body=b"id,text\n3,three\n")
    s3.put_object(Bucket=bucket, Key="b.jsonl.zst", Body=PACK[".zst"](b'{"text": "zipped"}\n'))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": ["1"], "text": ["columns"]}), sink)
    s3.put_object(Bucket=bucket, Key="c.parquet", Body=sink.getvalue().to_pybytes())
    bucket = f"s3://{bucket}"
    assert texts(source(f"{bucket}/a/*.csv")) == texts(source(f"{bucket}/a")) == ["one", "two", "three"]
    assert texts(source(f"{bucket}/b.jsonl.zst")) == ["zipped"]
    assert texts(source(f"{bucket}/c.parquet")) == ["columns"]
    place, size, tag = source(f"{bucket}/a/one.csv").fingerprint()["files"][0]
    assert (place, size) == (f"{bucket}/a/one.csv", len(CSV))
    assert len(json.loads(tag)) == 32  # an ETag of S3, in quotes
    for name in ("s3://nowhere/a.csv", f"{bucket}/none.csv"):
        with pytest.raises(SourceError, match=f"{name} does not exist"):
            source(name)
