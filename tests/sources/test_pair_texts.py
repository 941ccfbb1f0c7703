from __future__ import annotations

from pathlib import Path

from searchfit.config import PairsSettings
from searchfit.sources.pair_texts import PairTextsReader
from searchfit.sources.rows import Row


def read(file: Path, content: str) -> tuple[PairTextsReader, list[Row]]:
    file.write_text(content, encoding="utf-8")
    reader = PairTextsReader(PairsSettings(file=str(file)))
    rows = list(reader.rows())
    found = [row for row in rows if isinstance(row, Row)]
    assert len(found) == len(rows)
    return reader, found


def test_each_different_text_is_one_document_negatives_too(tmp_path: Path) -> None:
    reader, rows = read(
        tmp_path / "p.csv", "query,positive,negative\na,one,two\nb,one,three\nc,two,one\nd,four,three\n"
    )
    assert [row.values["text"] for row in rows] == ["one", "two", "three", "four"]
    assert len({row.values["id"] for row in rows}) == 4
    assert reader.columns() == ("id", "text")
    again, others = read(tmp_path / "q.csv", "query,passage\nz,four\ny,one\n")
    assert {r.values["id"] for r in others} <= {r.values["id"] for r in rows}  # a text keeps its id
    assert again.fingerprint() != reader.fingerprint()


def test_ids_of_documents_are_kept(tmp_path: Path) -> None:
    """Two pieces under one id: the first takes it, the other is told apart."""
    _, rows = read(
        tmp_path / "p.csv", "query,passage,document_id\na,one,d1\nb,more of one,d1\nc,two,d2\nd,one,d1\n"
    )
    assert [row.values["text"] for row in rows] == ["one", "more of one", "two"]
    first, second, third = (row.values["id"] for row in rows)
    assert (first, third) == ("d1", "d2")
    assert second not in ("d1", "d2", "")
