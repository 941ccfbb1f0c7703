from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pipeline_tools import cli

from searchfit.config import PairsSettings
from searchfit.errors import SettingsError, WorkspaceError
from searchfit.export import export_pairs
from searchfit.records import HOLDOUT, PAIRS, PASSAGES, SCREENED, LabelledPair
from searchfit.sources.pairs import read_pairs

FORMATS = ("tsv", "csv", "jsonl", "parquet", "sentence-transformers", "beir")
NASTY = (
    "plain words",
    "=SUM(A1:A9) is a formula",
    "+1 202 555 0100",
    "-5 degrees",
    "@home with pets",
    "'=quoted formula",
    "''+twice quoted",
    "'plain apostrophe",
    'a "quoted" word, a comma; a semicolon',
    "a\ttab and\ta second",
    "lines\nof\r\ntext\u2028and\u0085more",
    "bell \x07 and \x1b[31mred",
    '"',
    "\\N \\t",
    "größe 船の旅 🚀 e\u0301",
)


def write_workspace(folder: Path, queries: int = 60, holdout: bool = True) -> list[LabelledPair]:
    """A workspace that has come to the screen (or the holdout), with texts that formats find hard to hold;
    the pairs that stand in it."""
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"format": 1, "stages": {}}', encoding="utf-8")
    count = max(20, queries // 3)
    texts = [f"{NASTY[n % len(NASTY)]} {n}" for n in range(count)]
    titles = ["" if n % 3 else f"{NASTY[(n + 4) % len(NASTY)]} title" for n in range(count)]
    passages = [
        (
            f"d{n // 2}#{n % 2}",
            f"d{n // 2}",
            n // 2,
            titles[n],
            texts[n],
            0,
            len(texts[n]),
            [0, len(texts[n])],
        )
        for n in range(count)
    ]
    save(folder / "passages.parquet", passages, PASSAGES)
    documents = [f"d{n}" for n in range((count + 1) // 2)]
    pq.write_table(pa.table({"id": documents}), folder / "documents.parquet")
    pairs, screened, expected = [], [], []
    for n in range(queries):
        own = (n * 7) % count
        # White space inside queries is not kept by readers of questions.
        text = " ".join(f"{NASTY[(n + 1) % len(NASTY)]} query {n}".split())
        query = (
            f"q{n:05d}",
            text,
            passages[own][0],
            ("crop", "title")[n % 2],
            ("phrases", "t5")[n % 5 == 0],
            1,
        )
        kept = n % 4 != 3
        screened.append((*query, own // 2, 1 if kept else 0, "" if kept else f"too short, says {n % 2}"))
        if kept:
            pairs.append((*query, own, own // 2, 1))
            title = titles[own]
            joined = texts[own] if not title else f"{title}{'' if title[-1] in '.!?:;' else '.'} {texts[own]}"
            expected.append((own, LabelledPair(text, joined, 1.0, (), query[0], f"d{own // 2}")))
    save(folder / "pairs.parquet", pairs, PAIRS)
    save(folder / "screened.parquet", screened, SCREENED)
    if holdout:
        rows = [(n, name, n, ("train", "train", "dev", "test")[n % 4]) for n, name in enumerate(documents)]
        save(folder / "holdout.parquet", rows, HOLDOUT)
    return [pair for _, pair in sorted(expected, key=lambda item: item[0])]


def save(path: Path, rows: list[tuple[Any, ...]], schema: pa.Schema) -> None:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in schema]
    pq.write_table(pa.table(columns, schema=schema), path)


def read(folder: Path, split: str = "train") -> Iterator[LabelledPair]:
    return iter(read_pairs(PairsSettings(file=str(folder), split=split)))


def clean(text: str) -> str:
    """White space and control characters as single spaces."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def as_held(pair: LabelledPair, format_: str) -> LabelledPair:
    """What a format can hold of a pair."""
    if format_ == "tsv":
        return LabelledPair(clean(pair.query), clean(pair.text))
    if format_ == "sentence-transformers":
        return LabelledPair(pair.query, pair.text)
    return pair


@pytest.mark.parametrize("format_", FORMATS)
def test_what_is_exported_is_read_back_equal(tmp_path: Path, format_: str) -> None:
    expected = write_workspace(tmp_path / "ws")
    done = export_pairs(tmp_path / "ws", tmp_path / "out", format_)
    assert done.pairs == len(expected) == 45
    splits = ("train", "dev", "test") if format_ in ("sentence-transformers", "beir") else ("train",)
    found = [pair for split in splits for pair in read(tmp_path / "out", split)]
    wanted = [as_held(pair, format_) for pair in expected]
    if len(splits) > 1 or format_ == "beir":
        assert Counter(found) == Counter(wanted)
    else:
        assert found == wanted
    written = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert written == {*done.files, ".searchfit-export.json"}
    assert [path.name for path in tmp_path.iterdir()].count("out") == 1
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_a_split_holds_the_documents_of_the_holdout(tmp_path: Path, format_: str, split: str) -> None:
    expected = write_workspace(tmp_path / "ws")
    places = {"train": (0, 1), "dev": (2,), "test": (3,)}[split]
    wanted = [pair for pair in expected if int(pair.document_id[1:]) % 4 in places]
    assert export_pairs(tmp_path / "ws", tmp_path / "out", format_, split).pairs == len(wanted) > 0
    assert Counter(read(tmp_path / "out", split)) == Counter(as_held(pair, format_) for pair in wanted)


def test_passages_come_one_to_a_row_with_their_queries(tmp_path: Path) -> None:
    expected = write_workspace(tmp_path / "ws")
    assert export_pairs(tmp_path / "ws", tmp_path / "out", "passages").pairs == len(expected)
    with (tmp_path / "out" / "passages.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head[:3] == ["document_id", "passage_id", "passage"]
    assert head[3:] == [f"query_{n}" for n in range(1, len(head) - 2)]
    assert all(len(row) == len(head) for row in rows)
    assert len({row[1] for row in rows}) == len(rows)
    cells = [cell for row in rows for cell in row[3:] if cell]
    assert len(cells) == len(expected)
    assert not [cell for row in rows for cell in row if cell[:1] in ("=", "+", "-", "@")]
    documents = Counter(row[0] for row in rows for cell in row[3:] if cell)
    assert documents == Counter(pair.document_id for pair in expected)


def test_tsv_comes_in_shards_of_1024_clean_pairs(tmp_path: Path) -> None:
    expected = write_workspace(tmp_path / "ws", queries=3000)
    assert export_pairs(tmp_path / "ws", tmp_path / "out", "tsv").files == (
        "pairs-00000.tsv",
        "pairs-00001.tsv",
        "pairs-00002.tsv",
    )
    shards = [file.read_bytes().decode() for file in sorted((tmp_path / "out").glob("*.tsv"))]
    assert [shard.count("\n") for shard in shards] == [1024, 1024, len(expected) - 2048]
    for shard in shards:
        assert len(shard.splitlines()) == shard.count("\n")
        assert all(
            line.count("\t") == 1 and line.replace("\t", " ").isprintable()
            for line in shard.split("\n")
            if line
        )
    assert list(read(tmp_path / "out")) == [as_held(pair, "tsv") for pair in expected]


def test_no_cell_of_the_csv_is_a_formula(tmp_path: Path) -> None:
    expected = write_workspace(tmp_path / "ws")
    export_pairs(tmp_path / "ws", tmp_path / "out", "csv")
    with (tmp_path / "out" / "pairs.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file))
    assert header == ["query", "passage", "query_id", "document_id"]
    assert len(rows) == len(expected)
    assert not [cell for row in rows for cell in row if cell[:1] in tuple("=+-@\t\r")]
    assert [row[0] for row in rows if row[0].startswith("'")]
    bare = {pair.query for pair in expected if pair.query[0] not in "=+-@'"}
    assert len(bare) > 10
    assert bare <= {row[0] for row in rows}  # nothing else is changed


def test_the_other_formats_are_what_their_readers_expect(tmp_path: Path) -> None:
    write_workspace(tmp_path / "ws")
    export_pairs(tmp_path / "ws", tmp_path / "st", "sentence-transformers")
    assert pq.read_schema(tmp_path / "st" / "train.parquet").names == ["anchor", "positive"]
    export_pairs(tmp_path / "ws", tmp_path / "pq", "parquet")
    names = ["query", "passage", "query_id", "document_id"]
    assert pq.read_schema(tmp_path / "pq" / "pairs.parquet").names == names
    export_pairs(tmp_path / "ws", tmp_path / "beir", "beir")
    lines = (tmp_path / "beir" / "corpus.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    corpus = {json.loads(line)["_id"]: json.loads(line) for line in lines}
    assert len(corpus) == len(lines) == 20  # the whole corpus, not only what is asked for
    assert set(corpus["d0#0"]) == {"_id", "title", "text", "metadata"}
    queries = (tmp_path / "beir" / "queries.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert len(queries) == 45
    judged = (tmp_path / "beir" / "qrels" / "train.tsv").read_text(encoding="utf-8").splitlines()
    assert judged[0] == "query-id\tcorpus-id\tscore"
    assert all(line.split("\t")[1] in corpus and line.split("\t")[2] == "1" for line in judged[1:])


def test_only_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    write_workspace(tmp_path / "ws")
    out = tmp_path / "deep" / "out"
    export_pairs(tmp_path / "ws", out, "tsv")
    export_pairs(tmp_path / "ws", out, "jsonl")
    assert [path.name for path in out.glob("[!.]*")] == ["pairs.jsonl"]
    (out / "mine.txt").write_text("precious", encoding="utf-8")
    with pytest.raises(SettingsError, match="not empty, and no earlier export"):
        export_pairs(tmp_path / "ws", out, "tsv")
    assert (out / "mine.txt").read_text(encoding="utf-8") == "precious"
    with pytest.raises(SettingsError, match="is a file"):
        export_pairs(tmp_path / "ws", out / "mine.txt", "tsv")
    (tmp_path / "empty").mkdir()
    assert export_pairs(tmp_path / "ws", tmp_path / "empty", "tsv").pairs == 45
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_failed_export_leaves_nothing_behind(tmp_path: Path) -> None:
    write_workspace(tmp_path / "ws")
    export_pairs(tmp_path / "ws", tmp_path / "out", "tsv")
    passages = tmp_path / "ws" / "passages.parquet"
    passages.write_bytes(passages.read_bytes()[:200])
    with pytest.raises(pa.ArrowInvalid):
        export_pairs(tmp_path / "ws", tmp_path / "out", "jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "ws"]
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == ["pairs-00000.tsv"]


@pytest.mark.parametrize("format_", FORMATS)
def test_no_pairs_give_an_empty_export(tmp_path: Path, format_: str) -> None:
    write_workspace(tmp_path / "ws", queries=0)
    done = export_pairs(tmp_path / "ws", tmp_path / "out", format_)
    assert done.pairs == 0
    assert done.files


def test_what_cannot_be_exported_says_why(tmp_path: Path) -> None:
    write_workspace(tmp_path / "ws", holdout=False)
    with pytest.raises(SettingsError, match="no format 'xml'"):
        export_pairs(tmp_path / "ws", tmp_path / "out", "xml")
    with pytest.raises(SettingsError, match="no split 'validation'"):
        export_pairs(tmp_path / "ws", tmp_path / "out", "tsv", "validation")
    for format_, split in (("beir", "all"), ("tsv", "dev")):
        with pytest.raises(WorkspaceError, match="not come to the stage holdout"):
            export_pairs(tmp_path / "ws", tmp_path / "out", format_, split)
    with pytest.raises(WorkspaceError, match="is not a searchfit workspace"):
        export_pairs(tmp_path / "absent", tmp_path / "out", "tsv")
    (tmp_path / "ws" / "pairs.parquet").unlink()
    with pytest.raises(WorkspaceError, match="not come to the stage screen"):
        export_pairs(tmp_path / "ws", tmp_path / "out", "tsv")
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path: Path) -> None:
    write_workspace(tmp_path / "ws")
    done = cli("export", tmp_path / "ws", "--pairs", tmp_path / "out", "--format", "csv", "--json")
    assert json.loads(done.stdout) == {"pairs": 45, "files": ["pairs.csv"]}
    done = cli("export", tmp_path / "ws", "--pairs", tmp_path / "out", "--split", "dev")
    assert (done.returncode, done.stdout) == (0, "")
    assert "files 1: " in done.stderr
    assert (tmp_path / "out" / "pairs.jsonl").is_file()
    assert cli("export", tmp_path / "ws", "--pairs", tmp_path / "out", "--format", "x").returncode == 2
