from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from searchfit.config import GenerateSettings, Settings
from searchfit.errors import SettingsError
from searchfit.generators import Part, Task, Written
from searchfit.keyword import Analyzer, KeywordIndex
from searchfit.records import PASSAGES, QUERIES, Drop, Passage
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


def small(**options: float) -> Settings:
    return Settings(generate=GenerateSettings(**{"part_passages": 4, **options}))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "queries").iterdir())}


def test_writes_parts_in_passage_order(tmp_path: Path) -> None:
    given = inputs(tmp_path, [5, 1, 4])
    seen: list[tuple[int, int]] = []
    result = run(
        small(),
        given,
        Tools(tmp_path / "out", progress=lambda _, done, total, __: seen.append((done, total))),
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
    assert seen == [(10, 10)]


@dataclass
class Scripted:
    """A generator that answers in groups of three, counts what it is asked, and can fail or stop."""

    name: str = "scripted"
    per_passage: int = 2
    fingerprint: str = "1"
    price: float = 0.0
    poison: str = "never"
    stop_after: int = 10**9
    asked: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    details: dict[str, str] = field(default_factory=lambda: {"revision": "abc"})

    def content(self, passage: Passage) -> tuple[str, ...]:
        return (passage.text,)

    def most_cost(self, passage: Passage) -> float:  # noqa: ARG002
        return self.price

    def write(self, tasks: Iterable[Task]) -> Iterator[list[Written]]:
        group: list[Written] = []
        for task in tasks:
            if task.known:
                self.known.append(task.passage.id)
                continue
            if len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(task.passage.id)
            number = len(self.asked)
            if self.poison in task.passage.text:
                group.append(Written(task.passage, fault=f"refused: code {number}", cost=self.price / 2))
            else:
                queries = ((f"question {number} a", "question"), (f"question {number} b", "claim"))
                group.append(Written(task.passage, queries, "", 100, 10, self.price / 2))
            if len(group) == 3:
                yield group
                group = []
        if group:
            yield group


def scripted(monkeypatch: pytest.MonkeyPatch, *generators: Scripted) -> None:
    waiting = {generator.name: generator for generator in generators}
    parts = tuple(Part(name, "", 1 / len(waiting)) for name in waiting)
    monkeypatch.setattr("searchfit.stages.generate.parts", lambda _: parts)
    monkeypatch.setattr("searchfit.stages.generate.load_generator", lambda part, *_: waiting[part.kind])


def written(folder: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted((folder / "queries").iterdir()))


def test_a_killed_run_asks_only_for_what_the_ledger_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = inputs(tmp_path, [3] * 6)
    tools = Tools(tmp_path / "killed", ledger=tmp_path / "ledger.sqlite")
    first = Scripted(stop_after=11)
    scripted(monkeypatch, first)
    with pytest.raises(KeyboardInterrupt):
        run(small(), given, tools)
    second = Scripted()
    scripted(monkeypatch, second)
    result = run(small(), given, tools)
    assert second.asked == first.asked[9:] + [f"d{n}#{m}" for n, m in ((3, 2), (4, 0), (4, 1), (4, 2))] + [
        f"d5#{m}" for m in range(3)
    ]
    assert second.known == first.asked[:9]  # the two that were in flight are asked again
    table = written(tmp_path / "killed")
    assert result.counts["queries"] == table.num_rows == 36
    assert table["id"].to_pylist() == [f"d{n}#{m}/{i}" for n in range(6) for m in range(3) for i in range(2)]


def test_a_killed_run_of_phrases_goes_on_to_the_same_files(tmp_path: Path) -> None:
    given = inputs(tmp_path, [30] * 20)
    whole = run(small(), given, Tools(tmp_path / "whole"))

    def stop(_: str, done: int, __: int, ___: str = "") -> None:
        if done == 400:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small(), given, Tools(tmp_path / "killed", progress=stop))
    (tmp_path / "killed" / "queries").mkdir()
    (tmp_path / "killed" / "queries" / "part-00009.parquet.tmp").write_bytes(b"half of a")
    assert run(small(), given, Tools(tmp_path / "killed")) == whole
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_what_is_set_aside_is_said_and_asked_again_only_when_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = inputs(tmp_path, [2, 2])
    writer = Scripted(poison="Machine 1")
    scripted(monkeypatch, writer)
    tools = Tools(tmp_path / "out")
    result = run(small(), given, tools)
    assert result.drops == (Drop("refused", 2, ("d1#0: refused: code 3", "d1#1: refused: code 4")),)
    assert result.counts["passages_without_queries"] == 2
    assert result.details == {"scripted revision": "abc"}
    run(small(), given, tools)
    assert len(writer.asked) == 4
    writer.poison = "never"
    forced = run(small(), given, Tools(tmp_path / "out", forced=True))
    assert writer.asked[4:] == ["d1#0", "d1#1"]
    assert forced.drops == ()
    assert forced.counts["queries"] == 8


def test_equal_passages_are_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(tmp_path, [2, 1])
    table = pq.read_table(given["passages.parquet"])
    texts = pa.array(["The same."] * 3, pa.large_string())
    pq.write_table(table.set_column(4, "text", texts), given["passages.parquet"])
    writer = Scripted()
    scripted(monkeypatch, writer)
    result = run(small(), given, Tools(tmp_path / "out"))
    assert writer.asked == ["d0#0"]
    assert result.counts["queries"] == 6
    assert set(written(tmp_path / "out")["text"].to_pylist()) == {"question 1 a", "question 1 b"}


def test_a_budget_is_never_passed_and_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(tmp_path, [1] * 40)
    writer = Scripted(price=1.0)
    scripted(monkeypatch, writer)
    tools = Tools(tmp_path / "out")
    result = run(small(max_cost=4.2), given, tools)
    assert result.counts["cost"] <= 4.2
    assert len(writer.asked) == 7  # 3.5 spent, nothing under way: one more could cost 1
    assert "33 passages were not asked for" in result.notes[0]
    assert run(small(max_cost=4.2), given, tools).counts == result.counts
    raised = run(small(max_cost=100), given, tools)
    assert sorted(writer.asked) == sorted(set(writer.asked))
    assert raised.counts["queries"] == 80
    assert raised.counts["cost"] == 20
    assert raised.counts["tokens read"] == 4000
    assert raised.notes == ()


def test_a_budget_is_spread_over_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("searchfit.stages.generate._WINDOW", 10)
    writer = Scripted(price=1.0)
    scripted(monkeypatch, writer)
    run(small(max_cost=5.3), inputs(tmp_path, [1] * 100), Tools(tmp_path / "out"))
    assert [name.split("#")[0] for name in writer.asked[:9]] == [f"d{n}" for n in range(0, 90, 10)]


def test_generators_share_the_passages_out_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Scripted("one"), Scripted("two", per_passage=4)
    scripted(monkeypatch, one, two)
    tools = Tools(tmp_path / "out", ledger=tmp_path / "ledger.sqlite")
    run(small(), inputs(tmp_path, [2] * 30), tools)
    assert len(one.asked) + len(two.asked) == 60
    assert 15 < len(one.asked) < 45
    table = written(tmp_path / "out")
    owners = dict(zip(table["passage_id"].to_pylist(), table["generator"].to_pylist(), strict=True))
    assert {name for name, owner in owners.items() if owner == "two"} == set(two.asked)
    run(small(), inputs(tmp_path, [2] * 40), tools)  # a corpus that has grown
    assert len(one.asked) + len(two.asked) == 80
    assert not set(one.asked) & set(two.asked)
    assert small(max_queries=30).generate.max_queries // 3 == 10  # (2 + 4) / 2 queries a passage
    few = run(small(max_queries=30), inputs(tmp_path, [2] * 40), tools)
    assert few.counts["passages"] == 10


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
