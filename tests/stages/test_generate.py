from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from searchfit.config import GenerateSettings, Settings
from searchfit.errors import SettingsError
from searchfit.keyword import Analyzer, KeywordIndex
from searchfit.records import PASSAGES, QUERIES
from searchfit.stages import Tools
from searchfit.stages.generate import _choose, run


def inputs(folder: Path, sizes: list[int]) -> dict[str, Path]:
    """Documents of as many passages as `sizes` says, in several row groups."""
    rows = []
    for document, size in enumerate(sizes):
        for n in range(size):
            text = f"Machine {document} builds part{n} of engine{document} from steel and some copper wire."
            rows.append(
                (f"d{document}#{n}", f"d{document}", document, "", text, 0, len(text), [0, len(text)])
            )
    columns = list(zip(*rows, strict=True)) if rows else [[] for _ in PASSAGES]
    path = folder / "passages.parquet"
    pq.write_table(pa.table([list(column) for column in columns], schema=PASSAGES), path, row_group_size=7)
    KeywordIndex.build([row[4] for row in rows], Analyzer("english")).save(folder / "keyword")
    return {"passages.parquet": path, "keyword": folder / "keyword"}


def small(**options: int) -> Settings:
    return Settings(generate=GenerateSettings(part_passages=4, **options))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "queries").iterdir())}


def test_writes_parts_in_passage_order(tmp_path: Path) -> None:
    given = inputs(tmp_path, [5, 1, 4])
    seen: list[tuple[int, int]] = []
    result = run(
        small(), given, Tools(tmp_path / "out", progress=lambda _, done, total: seen.append((done, total)))
    )
    assert list(files(tmp_path / "out")) == [f"part-0000{n}.parquet" for n in range(3)]
    table = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / "out" / "queries").iterdir()))
    assert table.schema.equals(QUERIES)
    passages = pq.read_table(given["passages.parquet"])["id"].to_pylist()
    assert list(dict.fromkeys(table["passage_id"].to_pylist())) == passages
    assert table["id"].to_pylist()[:3] == ["d0#0/0", "d0#0/1", "d0#0/2"]
    assert result.counts["queries"] == table.num_rows == 30
    assert result.counts["passages"] == 10
    assert result.counts["crop"] + result.counts["keyphrases"] + result.counts.get("question", 0) == 30
    assert result.notes == ()
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_a_killed_run_goes_on_to_the_same_files(tmp_path: Path) -> None:
    given = inputs(tmp_path, [3] * 6)
    whole = run(small(), given, Tools(tmp_path / "whole"))

    def stop(_: str, done: int, __: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small(), given, Tools(tmp_path / "killed", progress=stop))
    folder = tmp_path / "killed" / "queries"
    assert len(list(folder.iterdir())) == 2
    kept = (folder / "part-00000.parquet").stat().st_mtime_ns
    content = (folder / "part-00001.parquet").read_bytes()
    (folder / "part-00001.parquet").write_bytes(content[: len(content) // 2])
    (folder / "part-00002.parquet.tmp").write_bytes(b"half of a")
    assert run(small(), given, Tools(tmp_path / "killed")) == whole
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert (folder / "part-00000.parquet").stat().st_mtime_ns == kept


def test_too_many_passages_are_sampled_over_the_documents_and_said(tmp_path: Path) -> None:
    given = inputs(tmp_path, [20, 1, 2, 1])
    result = run(small(max_queries=18), given, Tools(tmp_path))
    table = pa.concat_tables(pq.read_table(path) for path in (tmp_path / "queries").iterdir())
    documents = {name.split("#")[0] for name in table["passage_id"].to_pylist()}
    assert documents == {"d0", "d1", "d2", "d3"}
    assert result.counts["passages"] == 6
    assert table.num_rows <= 18
    assert "6 of 24 passages" in result.notes[0]
    assert "max_queries is 18" in result.notes[0]


def test_choice_is_even_seeded_and_of_the_right_size() -> None:
    documents = np.repeat(np.arange(50), np.arange(50) % 5 + 1)
    for most in (1, 7, 50, 90, 149, 150, 999):
        rows = _choose(documents, most, 1)
        assert len(rows) == min(most, len(documents)) == len(set(rows.tolist()))
        assert (np.diff(rows) > 0).all()
        per_document = np.bincount(documents[rows], minlength=50)
        left = np.bincount(documents, minlength=50) - per_document
        assert per_document.max() <= per_document[left > 0].min(initial=99) + 1
    few = _choose(documents, 10, 1)
    assert np.diff(documents[few]).max() <= 6
    assert not np.array_equal(_choose(documents, 60, 1), _choose(documents, 60, 2))
    assert np.array_equal(_choose(documents, 60, 1), _choose(documents, 60, 1))


def test_no_passages_leave_one_empty_part(tmp_path: Path) -> None:
    result = run(small(), inputs(tmp_path, []), Tools(tmp_path))
    assert pq.read_table(tmp_path / "queries" / "part-00000.parquet").schema.equals(QUERIES)
    assert result.counts["queries"] == 0


def test_unknown_generator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'magic'"):
        run(Settings(generate=GenerateSettings(generator="magic")), inputs(tmp_path, [1]), Tools(tmp_path))
