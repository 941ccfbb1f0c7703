from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from searchfit.config import PairsSettings
from searchfit.errors import SourceError
from searchfit.records import LabelledPair
from searchfit.sources.pair_texts import PairTextsReader
from searchfit.sources.pairs import fingerprint, read_pairs
from searchfit.sources.rows import Row


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def read(path: Path, **settings: Any) -> list[LabelledPair]:
    return list(read_pairs(PairsSettings(file=str(path), **settings)))


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        ("source_sentence,target_sentence", "a b,c d", LabelledPair("a b", "c d")),
        ("question,answer", "a,b", LabelledPair("a", "b")),
        ("anchor,positive", "a,b", LabelledPair("a", "b")),
        ("Query,Passage", "a,b", LabelledPair("a", "b")),
        ("query,text,label", "a,b,0", LabelledPair("a", "b", 0.0)),
        ("query,passage,label", "a,b,3", LabelledPair("a", "b", 3.0)),
        ("query,passage,score", "a,b,0.25", LabelledPair("a", "b", 0.25)),
        ("query,passage,label", "a,b,true", LabelledPair("a", "b", 1.0)),
        ("query,positive,negative", "a,b,c", LabelledPair("a", "b", negatives=("c",))),
        (
            "query,positive,negative_1,negative_2,negative_3",
            "a,b,c,,e",
            LabelledPair("a", "b", negatives=("c", "e")),
        ),
        ("title,body,accepted_answer", "how?,long,so", LabelledPair("how?", "so")),
        ("id,title,body,accepted_answer,tags", "7,how?,long,so,x", LabelledPair("how?", "so")),
        ("question,title,passage", "a,b,c", LabelledPair("a", "c")),
        (
            "query,passage,query_id,document_id",
            "a,b,q1,d1",
            LabelledPair("a", "b", query_id="q1", document_id="d1"),
        ),
    ],
)
def test_the_columns_are_told_by_their_names(
    tmp_path: Path, header: str, row: str, expected: LabelledPair
) -> None:
    assert read(write(tmp_path / "pairs.csv", f"{header}\n{row}\n")) == [expected]
    tabbed = f"{header}\n{row}\n".replace(",", "\t")
    assert read(write(tmp_path / "pairs.tsv", tabbed)) == [expected]


def test_json_and_parquet_list_several_texts(tmp_path: Path) -> None:
    rows = [
        {"query": "a", "pos": ["b", "c"], "neg": ["d", "e"]},
        {"query": "f", "pos": ["g"], "neg": []},
    ]
    expected = [
        LabelledPair("a", "b", negatives=("d", "e")),
        LabelledPair("a", "c", negatives=("d", "e")),
        LabelledPair("f", "g"),
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    assert read(write(tmp_path / "pairs.jsonl", lines)) == expected
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    assert read(tmp_path / "pairs.parquet") == expected


def test_named_columns_override_the_guess(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", "query,title,body,passage,good,bad,worse,label\na,b,c,d,e,f,g,9\n")
    found = read(path, query=("title", "body"), passage="good", label="label", negatives=("bad", "worse"))
    assert found == [LabelledPair("b c", "e", 9.0, ("f", "g"))]
    with pytest.raises(SourceError, match="no column 'nope'") as caught:
        read(path, query=("nope",))
    assert "'body'" in caught.value.hint
    bare = write(tmp_path / "q.tsv", "one\ttwo\na\tb\n")
    assert read(bare, query=("two",), passage="one") == [LabelledPair("b", "a")]


def test_shards_without_a_header(tmp_path: Path) -> None:
    write(tmp_path / "shards" / "part-1.tsv", 'c "quoted\td\n\ne\tf\n')
    write(tmp_path / "shards" / "part-0.tsv", "a\tb\n")
    write(tmp_path / "shards" / ".hidden.csv", "x")
    pairs = read_pairs(PairsSettings(file=str(tmp_path / "shards")))
    assert list(pairs) == [LabelledPair("a", "b"), LabelledPair('c "quoted', "d"), LabelledPair("e", "f")]
    assert list(pairs) == list(pairs)
    assert pairs.notes == ("shards/*.tsv: no header, read as query and text",)
    assert pairs.drops == ()


def test_a_folder_s_files_of_the_split_are_read(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        write(tmp_path / f"{split}.jsonl", json.dumps({"anchor": split, "positive": "p"}))
    assert read(tmp_path) == [LabelledPair("train", "p")]
    assert read(tmp_path, split="dev") == [LabelledPair("dev", "p")]
    assert [pair.query for pair in read(tmp_path, split="other")] == ["dev", "train"]
    write(tmp_path / "x.csv", "query,passage\na,b\n")
    with pytest.raises(SourceError, match=r"several kinds: .csv, .jsonl"):
        read(tmp_path, split="other")


def write_beir(folder: Path) -> Path:
    corpus = [
        {"_id": "d1", "title": "Roses", "text": "They bloom."},
        {"_id": "d2", "title": "", "text": "No title."},
        {"_id": "d3#1", "title": "", "text": "A passage.", "metadata": {"document_id": "d3"}},
        {"_id": "d4", "title": "", "text": "Never judged."},
    ]
    queries = [{"_id": "q1", "text": "what blooms"}, {"_id": "q2", "text": "other"}]
    write(folder / "corpus.jsonl", "".join(json.dumps(row) + "\n" for row in corpus))
    write(folder / "queries.jsonl", "".join(json.dumps(row) + "\n" for row in queries))
    write(
        folder / "qrels" / "train.tsv",
        "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td3#1\t1\n",
    )
    write(folder / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\nq2\td2\t1\n")
    return folder


def test_the_ids_of_a_beir_folder_point_into_its_corpus(tmp_path: Path) -> None:
    folder = write_beir(tmp_path)
    assert read(folder) == [
        LabelledPair("what blooms", "Roses. They bloom.", 2.0, (), "q1", "d1"),
        LabelledPair("what blooms", "No title.", 0.0, (), "q1", "d2"),
        LabelledPair("other", "A passage.", 1.0, (), "q2", "d3"),
    ]
    assert read(folder, split="test") == [LabelledPair("other", "No title.", 1.0, (), "q2", "d2")]
    with pytest.raises(SourceError, match="no split 'dev'"):
        read(folder, split="dev")
    write(folder / "qrels" / "train.tsv", "q1\td1\t1\nq1\tlost\t1\n")
    with pytest.raises(SourceError, match=r"1 of 2 rows[^\n]*bad[^\0]*not in corpus.jsonl \(document lost"):
        read(folder)


def test_bad_rows_are_counted_and_too_many_are_an_error(tmp_path: Path) -> None:
    good = [f"query {n},text {n},1" for n in range(60)]
    path = write(tmp_path / "p.csv", "\n".join(["query,passage,label", *good, ",text,1", "query,,1", ""]))
    pairs = read_pairs(PairsSettings(file=str(path)))
    assert len(list(pairs)) == 60
    assert [(drop.reason, drop.count, drop.samples) for drop in pairs.drops] == [
        ("no query", 1, ("p.csv, row 61 (line 62)",)),
        ("no text", 1, ("p.csv, row 62 (line 63)",)),
    ]
    write(path, "\n".join(["query,passage,label", *good, "a,b,nan", "a,b,c", "a", "a", ""]))
    with pytest.raises(
        SourceError, match=r"4 of 64 rows of .*p.csv are bad, more than the 5% allowed"
    ) as caught:
        read(path)
    assert "2 x a label that is no number (p.csv, row 61 (line 62); p.csv, row 62 (line 63))" in str(
        caught.value
    )
    bare = write(tmp_path / "b.tsv", "a\tb\nonly one\n")
    with pytest.raises(SourceError, match="expected two cells, query and text"):
        read(bare)


def test_a_question_without_an_accepted_answer_is_no_fault(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", "title,body,accepted_answer\na,b,c\nd,e,\ng,h,\n")
    pairs = read_pairs(PairsSettings(file=str(path)))
    assert list(pairs) == [LabelledPair("a", "c")]
    assert [(drop.reason, drop.count) for drop in pairs.drops] == [("no text", 2)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "foo,bar\na,b\n", r"no column of queries. Its columns: 'foo', 'bar'"),
        ("p.csv", "query,bar\na,b\n", "no column of texts"),
        ("p.csv", "query,passage\n", "holds no pairs"),
        ("p.tsv", "", "is empty"),
        ("p.txt", "a", "ends in .txt, which is not read"),
        ("p.parquet", "nothing of the kind", "not a sound Parquet file"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read(write(tmp_path / name, text))


def test_absent_and_empty_places(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        read(tmp_path / "absent.csv")
    with pytest.raises(SourceError, match="no file of pairs"):
        read(tmp_path)
    with pytest.raises(SourceError, match="no pairs are named"):
        list(read_pairs(PairsSettings()))


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    assert fingerprint(PairsSettings()) == {}
    path = write(tmp_path / "p.csv", "query,passage\na,b\n")
    before = fingerprint(PairsSettings(file=str(path)))
    assert before == fingerprint(PairsSettings(file=str(path)))
    write(path, "query,passage\na,b\nc,d\n")
    assert before != fingerprint(PairsSettings(file=str(path)))
    folder = write_beir(tmp_path / "beir")
    train = fingerprint(PairsSettings(file=str(folder)))
    assert train != fingerprint(PairsSettings(file=str(folder), split="test"))


def test_named_columns_are_the_metadata_of_a_corpus_of_pairs(tmp_path: Path) -> None:
    """Of the pair that shows a text first; a text that is only a negative has none."""
    file = write(
        tmp_path / "pairs.csv",
        "query,text,negative,url,seen\na,one,three,u1,7\nb,two,one,u2,8\nc,one,two,u9,9\n",
    )
    settings = PairsSettings(file=str(file), metadata=("url", "seen"))
    assert [pair.metadata for pair in read_pairs(settings)][:1] == [{"url": "u1", "seen": "7"}]
    reader = PairTextsReader(settings)
    assert reader.columns() == ("id", "text", "url", "seen")
    assert reader.untyped  # the 7 of a CSV is a number
    rows = [row.values for row in reader.rows() if isinstance(row, Row)]
    assert [(row["text"], row.get("url")) for row in rows] == [("one", "u1"), ("three", None), ("two", "u2")]


def test_metadata_are_columns_that_are_there_and_free(tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.csv", "query,passage,text\na,one,u1\n")
    with pytest.raises(SourceError, match="no column 'link'"):
        read_pairs(PairsSettings(file=str(file), metadata=("link",)))
    with pytest.raises(SourceError, match="as the corpus of the pairs calls its own"):
        PairTextsReader(PairsSettings(file=str(file), metadata=("text",)))
    folder = write_beir(tmp_path / "beir")
    with pytest.raises(SourceError, match="no column 'link'"):
        read_pairs(PairsSettings(file=str(folder), metadata=("link",)))
