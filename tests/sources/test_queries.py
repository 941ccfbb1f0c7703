from __future__ import annotations

from pathlib import Path

import pytest

from searchfit.config import QueriesSettings
from searchfit.errors import SourceError
from searchfit.sources.queries import UserQueries, fingerprint, read_queries


def read(file: Path, content: str | bytes, split: str = "test") -> UserQueries:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_queries(QueriesSettings(file=str(file), split=split))


def test_no_file_is_no_questions() -> None:
    assert read_queries(QueriesSettings()) == UserQueries(())
    assert fingerprint(QueriesSettings()) == {}


def test_one_question_a_line(tmp_path: Path) -> None:
    found = read(tmp_path / "q.txt", "\ufefffirst  one\r\n\r\n第二\r\nfirst one\n")
    assert found.queries == (("1", "first one"), ("3", "第二"))
    assert not found.qrels
    assert [(drop.reason, drop.samples) for drop in found.drops] == [
        ("a question that an earlier line has", ("q.txt, row 4",))
    ]
    assert fingerprint(QueriesSettings(file=str(tmp_path / "q.txt")))["files"][0][1] > 0


def test_a_table_with_judgements(tmp_path: Path) -> None:
    found = read(
        tmp_path / "q.csv",
        "id,Question,text,doc_id,relevance\na,why?,passage,d1,2\na,why?,passage,d2,0\nb,how?,p,d3,-1\nc,what?,,,\n",
    )
    assert found.queries == (("a", "why?"), ("b", "how?"), ("c", "what?"))
    assert found.qrels == {"a": {"d1": 2, "d2": 0}, "b": {"d3": 0}}
    assert "'Question' is the question" in found.notes[0]


def test_questions_without_ids_are_told_by_their_words(tmp_path: Path) -> None:
    found = read(
        tmp_path / "q.jsonl",
        '{"query": "why?", "document_id": ["d1", 7]}\n'
        '{"query": "why? ", "document_id": "d2"}\n{"query": "how?"}\n',
    )
    assert found.queries == (("1", "why?"), ("3", "how?"))
    assert found.qrels == {"1": {"d1": 1, "7": 1, "d2": 1}}


def test_bad_rows_are_counted_and_too_many_are_an_error(tmp_path: Path) -> None:
    good = "".join(f"{n},question {n},d,1\n" for n in range(97))
    found = read(
        tmp_path / "q.csv", "id,query,document_id,score\n" + good + "x,q,d,0.5\n0,other,d,1\n,q,d,1\n"
    )
    assert len(found.queries) == 97
    assert {drop.reason for drop in found.drops} == {
        "a score that is no whole number",
        "an id that an earlier, different question has",
        "no id",
    }
    with pytest.raises(SourceError, match="1 of 2 rows"):
        read(tmp_path / "q.csv", "id,query\na,b\nc,\n")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.csv", "a,b\n1,2\n", "no column of questions. Its columns: 'a', 'b'"),
        ("q.csv", "query\n", "holds no questions"),
        ("q.txt", "", "is empty"),
        ("q.txt", "a question".encode("utf-16"), "UTF-16"),
        ("q.docx", "x", "ends in .docx"),
        ("q.jsonl", "nonsense\n", "no readable JSON object"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read(tmp_path / name, content)


def beir(folder: Path, qrels: dict[str, str]) -> Path:
    (folder / "queries.jsonl").write_text(
        '{"_id": "1", "text": "one"}\n{"_id": "2", "text": "two", "metadata": {}}\n'
    )
    for split, content in qrels.items():
        (folder / "qrels").mkdir(exist_ok=True)
        (folder / "qrels" / f"{split}.tsv").write_text(content)
    return folder


def test_a_beir_folder_gives_the_questions_of_its_split(tmp_path: Path) -> None:
    header = "query-id\tcorpus-id\tscore\n"
    folder = beir(tmp_path, {"test": f"{header}2\td1\t2\n2\td 2\t-1\n", "dev": "1 0 d3 1\n"})
    found = read_queries(QueriesSettings(file=str(folder)))
    assert (found.queries, found.qrels) == ((("2", "two"),), {"2": {"d1": 2, "d 2": 0}})
    found = read_queries(QueriesSettings(file=str(folder), split="dev"))
    assert (found.queries, found.qrels) == ((("1", "one"),), {"1": {"d3": 1}})
    with pytest.raises(SourceError, match=r"no split 'train'[^$]*dev, test"):
        read_queries(QueriesSettings(file=str(folder), split="train"))
    assert len(fingerprint(QueriesSettings(file=str(folder)))["files"]) == 2


def test_a_beir_folder_without_judgements_or_with_foreign_ones(tmp_path: Path) -> None:
    folder = beir(tmp_path, {})
    found = read_queries(QueriesSettings(file=str(folder)))
    assert len(found.queries) == 2
    assert "no qrels" in found.notes[0]
    beir(tmp_path, {"test": "1\td\t1\n9\td\t1\n8\tnonsense\n"})
    with pytest.raises(SourceError, match="2 of 3 rows") as caught:
        read_queries(QueriesSettings(file=str(folder)))
    assert "judged, but not in queries.jsonl (query 9)" in str(caught.value)
    (folder / "queries.jsonl").unlink()
    with pytest.raises(SourceError, match=r"has no queries\.jsonl"):
        read_queries(QueriesSettings(file=str(folder)))
