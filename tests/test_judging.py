"""`searchfit judge`: the pool, the record that survives a kill, the way through it, agreement and qrels."""

from __future__ import annotations

import io
import json
import random
import re
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pipeline_tools import CUT, Corpus, Done, cli, environment, fit, tiny_model, write_corpus
from sklearn.metrics import cohen_kappa_score

from searchfit.config import Settings, to_toml
from searchfit.errors import SettingsError, SourceError, WorkspaceError
from searchfit.judged import system_rankings
from searchfit.judgements import Judgement, Record, agreements
from searchfit.judging import Pool, Questions, Session, judged_questions, questions
from searchfit.metrics import read_qrels
from searchfit.search import open_searcher
from searchfit.workspace import Workspace

ASKED = ("a captain without a head", "birds and comets on the ceiling", "doors open to the south only")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose owner has three questions, without judgements."""
    folder = tmp_path_factory.mktemp("judging")
    (folder / "mine.txt").write_text("\n".join(ASKED) + "\n", encoding="utf-8")
    corpus = Corpus(write_corpus(folder / "places.csv"), str(tiny_model(folder)))
    own = {"queries__file": str(folder / "mine.txt"), "train__enabled": False}
    fit(folder / "ws", corpus, **CUT, **own)
    return folder / "ws"


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """The record of an empty workspace."""
    (tmp_path / "manifest.json").write_text('{"format": 1, "stages": {}}', encoding="utf-8")
    return Record(tmp_path)


def said(query: str, document: str, grade: int | None, judge: str = "me") -> Judgement:
    return Judgement(f"id of {query}", query, document, grade, judge)


def press(workspace: Path, keys: str, *options: object, monkeypatch: pytest.MonkeyPatch) -> Done:
    monkeypatch.setattr(sys, "stdin", io.StringIO(keys))
    return cli("judge", workspace, *options)


def test_the_pool_is_the_union_of_what_the_systems_find(workspace: Path) -> None:
    pool = Pool.of(workspace, questions(workspace), 3)
    searcher = open_searcher(workspace)
    wanted: set[tuple[str, int]] = set()
    for _, ranking in system_rankings(searcher, Workspace(workspace), ASKED, whiten=True):
        for query, rows in zip(ASKED, ranking.rows[:, :3], strict=True):
            wanted |= {(query, int(searcher.corpus.documents[row])) for row in rows if row >= 0}
    places = searcher.corpus.places(np.array([e.row for e in pool.entries]))
    documents = searcher.corpus.documents[places].tolist()
    found = [(e.query, document) for e, document in zip(pool.entries, documents, strict=True)]
    assert sorted(found) == sorted(wanted)
    assert len(found) > 3 * len(ASKED)  # the systems differ
    for entry in pool.entries:
        fields = searcher.corpus.store.fetch(np.array([entry.row]))[0]
        assert fields["document_id"] == entry.document_id


def test_a_page_shows_the_passage_or_the_whole_document(workspace: Path) -> None:
    pool = Pool.of(workspace, questions(workspace), 3)
    entry = next(e for e in pool.entries if e.query == ASKED[0] and "captain" in pool.page(e).text)
    page = pool.page(entry)
    assert {page.text[a:b] for a, b in page.highlights} >= {"captain", "head"}
    whole = pool.page(entry, whole=True)
    assert page.text in whole.text
    assert len(page.text) < len(whole.text)
    documents = pq.read_table(workspace / "documents.parquet").to_pylist()
    text = next(row["text"] for row in documents if row["id"] == entry.document_id)
    assert whole.text.split() == text.split()
    assert {whole.text[a:b] for a, b in whole.highlights} >= {"captain", "head"}


def test_what_came_judged_is_not_judged_again(workspace: Path) -> None:
    asked = questions(workspace)
    every = Pool.of(workspace, asked, 2)
    one = next(entry for entry in every.entries if entry.query == ASKED[1])
    twice = Questions(
        (*asked.queries, ("again", ASKED[1])),
        {"again": {one.document_id: 0}},
    )
    rest = Pool.of(workspace, twice, 2)
    assert {*every.entries} - {*rest.entries} == {one}
    assert len(rest.entries) == len(every.entries) - 1
    assert (
        Pool.of(workspace, Questions(twice.queries, twice.qrels, generated=True), 2).entries == every.entries
    )


def test_the_order_is_blind_and_stays(workspace: Path, record: Record) -> None:
    def order(pool: Pool, judge: str, seed: int) -> list[tuple[str, str]]:
        session, seen = Session(pool, record, judge, seed), []
        while (entry := session.current) is not None:
            seen.append((entry.query, entry.document_id))
            session.skip()
        return seen

    pool = Pool.of(workspace, questions(workspace), 10)
    first = order(pool, "me", 1)
    assert sorted(first) == sorted((e.query, e.document_id) for e in pool.entries)
    assert list(dict.fromkeys(query for query, _ in first)) == list(ASKED)
    assert first == order(pool, "me", 1)
    assert len({tuple(order(pool, *other)) for other in (("me", 1), ("me", 2), ("eva", 1))}) == 3
    small = order(Pool.of(workspace, questions(workspace), 3), "me", 1)
    assert small == [pair for pair in first if pair in set(small)]  # a deeper pool does not shuffle anew
    # No system's ranking shows in the order: the place by chance has nothing to do with the place found at.
    searcher = open_searcher(workspace)
    chosen = system_rankings(searcher, Workspace(workspace), ASKED)[-1][1]
    rows = searcher.corpus.store.rows
    ranked = [searcher.document_ids(rows[places[places >= 0]]) for places in chosen.rows]
    top = {(q, d) for q, ids in zip(ASKED, ranked, strict=True) for d in ids[:5]}
    places = [place for place, pair in enumerate(first) if pair in top]
    assert places != sorted(places)[: len(top)] or places[-1] > len(top)


def test_a_session_goes_on_where_it_ended(workspace: Path, record: Record) -> None:
    pool = Pool.of(workspace, questions(workspace), 2)
    total = len(pool.entries)
    session = Session(pool, record, "me")
    entries = []
    for grade in (1, 0, 3):
        assert session.current is not None
        entries.append(session.current)
        session.judge_it(grade)
    skipped = session.current
    session.skip()
    assert session.progress == (3, total)
    again = Session(pool, record, "me")
    assert again.progress == (3, total)
    assert again.current == skipped
    assert again.undo()
    assert again.current == entries[2]
    again.judge_it(2)
    assert again.current == skipped
    assert [j.grade for j in record.judgements()] == [1, 0, 2]
    assert Session(pool, record, "eva").progress == (0, total)
    while again.current is not None:
        again.judge_it(0)
    assert again.progress == (total, total)
    with pytest.raises(LookupError):
        again.judge_it(1)
    while again.undo():
        pass
    assert again.progress == (0, total)
    assert record.judgements() == []


def test_the_last_word_holds(record: Record) -> None:
    for judgement in (
        said("q", "a", 1), said("q", "b", 2), said("q", "a", 0, "eva"), said("q", "a", 3),
        said("q", "b", None), said("p", "a", None),
    ):  # fmt: skip
        record.add(judgement)
    assert [(j.judge, j.document_id, j.grade) for j in record.judgements()] == [
        ("eva", "a", 0),
        ("me", "a", 3),
    ]
    with pytest.raises(SettingsError, match="grade of 4"):
        record.add(said("q", "a", 4))


def test_a_half_written_line_is_survived(record: Record, tmp_path: Path) -> None:
    file = tmp_path / "judgements.jsonl"
    record.add(said("wörter \ud800 und mehr", "a", 1))  # no half of a surrogate pair stops the record
    record.add(said("q" * 9000, "b", 2))
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    first = record.judgements()[:1]
    for cut in (*range(len(lines[0]), len(lines[0]) + 30), len(whole) - 1):
        file.write_bytes(whole[:cut])
        assert record.judgements() == first
    record.add(said("q", "c", 0))
    assert [j.document_id for j in record.judgements()] == ["a", "c"]
    file.write_bytes(b"\x00" * 5000)  # a machine that lost power
    assert record.judgements() == []
    record.add(said("q", "c", 0))
    assert file.read_bytes().count(b"\n") == 1


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"grade": 1}', '{"judge": 1}', "\x00", "null"])
def test_a_damaged_line_is_named(record: Record, tmp_path: Path, line: str) -> None:
    record.add(said("q", "a", 1))
    with (tmp_path / "judgements.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(WorkspaceError, match="row 2: this is no judgement"):
        record.judgements()


def test_people_judge_at_the_same_time_and_kills_lose_nothing(record: Record, tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import sys
        from pathlib import Path
        from searchfit.judgements import Judgement, Record
        record = Record(Path(sys.argv[1]))
        for number in range(int(sys.argv[3])):
            record.add(Judgement("i", "q" * 3000, f"d{number}", 1, sys.argv[2]))
            print(number, flush=True)
    """)
    counts = {"a": 40, "b": 40, "killed": 10**6}
    people = {
        name: subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), name, str(count)],
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
        )
        for name, count in counts.items()
    }
    killed = people["killed"]
    assert killed.stdout is not None
    told = [killed.stdout.readline() for _ in range(20)]
    killed.kill()
    told += killed.communicate()[0].splitlines()
    for name in ("a", "b"):
        people[name].communicate(timeout=60)
        assert people[name].returncode == 0
    found = Counter(j.judge for j in record.judgements())
    assert (found["a"], found["b"]) == (40, 40)
    assert found["killed"] >= len(told) >= 20


def test_agreement_is_kappa() -> None:
    rng = random.Random(3)
    for grades in ((0, 1), (0, 1, 2, 3)):
        mine = [rng.choice(grades) for _ in range(80)]
        theirs = [grade if rng.random() < 0.6 else rng.choice(grades) for grade in mine]
        held = [said("q", f"d{i}", grade, "zoe") for i, grade in enumerate(mine)]
        held += [said("q", f"d{i}", grade, "adam") for i, grade in enumerate(theirs)]
        held += [said("q", "only zoe", 1, "zoe"), said("other", "d1", 1, "carl")]
        (found,) = agreements(held)
        assert (found.judges, found.both) == (("adam", "zoe"), 80)
        assert found.equal == sum(a == b for a, b in zip(mine, theirs, strict=True)) / 80
        weights = "linear" if len(grades) > 2 else None
        assert found.kappa == pytest.approx(cohen_kappa_score(mine, theirs, weights=weights), abs=1e-12)
    assert agreements([said("q", "d", 1, "a"), said("q", "d", 1, "b")])[0].kappa is None
    assert agreements([]) == []


def test_judges_and_old_judgements_become_one_grade() -> None:
    asked = Questions(
        (("1", "old"), ("2", "new"), ("3", "old"), ("4", "bare")), {"1": {"a": 1, "b": 0}, "3": {"c": 2}}
    )
    held = [
        said("old", "a", 0, "x"),
        said("new", "a", 3, "x"), said("new", "a", 0, "y"),
        said("new", "b", 3, "x"), said("new", "b", 1, "y"), said("new", "b", 2, "z"),
        Judgement("2", "of an earlier file", "a", 1, "x"),
    ]  # fmt: skip
    found = judged_questions(asked, held)
    assert found.queries == (("1", "old"), ("2", "new"), ("2-2", "of an earlier file"))
    assert found.qrels == {"1": {"a": 0, "b": 0, "c": 2}, "2": {"a": 0, "b": 2}, "2-2": {"a": 1}}
    generated = judged_questions(Questions(asked.queries, asked.qrels, generated=True), held)
    assert generated.qrels["1"] == {"a": 0}
    with pytest.raises(SourceError, match="nothing is judged"):
        judged_questions(Questions((("1", "q"),), {}), [])


def test_the_command_takes_keys_from_a_pipe(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = press(workspace, "y\nn\n?\n\n 3\nm\ns\nu\n2\n", "--depth", 2, monkeypatch=monkeypatch)
    assert done.returncode == 0, done.stderr
    total = int(re.findall(r"systems: (\d+) documents", done.stderr)[0])
    assert done.stdout == f"3 of {total} judged by me\n"
    assert done.stderr.count("s skip") == 2
    assert [j.grade for j in Record(workspace).judgements()] == [1, 0, 2]
    shown = done.stderr.splitlines()
    assert sum(line.startswith(f"[1/{total}] {ASKED[0]}") for line in shown) == 1
    assert not re.search("keyword|untuned|dense|chosen", done.stderr)  # blinded

    done = press(workspace, "q\ny\n", "--depth", 2, "--json", monkeypatch=monkeypatch)
    told = json.loads(done.stdout)
    assert (told["judge"], told["judged"], told["pool"], told["judges"]) == ("me", 3, total, {"me": 3})
    done = press(workspace, "y\n" * 500, "--depth", 2, "--judge", "eva", monkeypatch=monkeypatch)
    assert done.stdout.splitlines()[0] == f"{total} of {total} judged by eva"
    assert "eva and me: 3 in common, 33% equal, kappa" in done.stdout

    out = tmp_path / "out"
    done = press(workspace, "", "--export", out, monkeypatch=monkeypatch)
    assert done.returncode == 0, done.stderr
    assert sum(map(len, read_qrels(out / "qrels" / "test.tsv").values())) == total
    mine = tmp_path / "mine"
    assert press(workspace, "", "--export", mine, "--judge", "me", monkeypatch=monkeypatch).returncode == 0
    assert sorted(read_qrels(mine / "qrels" / "test.tsv")["1"].values()) == [0, 1, 2]
    scored = cli("evaluate", workspace, out, "--json")
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)["questions"] == len(ASKED)


def test_misuse_is_told(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, words in (
        (("--format", "trec"), "goes with --export"),
        (("--judge", " "), "no name"),
        (("--export", tmp_path / "x", "--depth", 5), "Leave --depth"),
    ):
        done = press(workspace, "", *options, monkeypatch=monkeypatch)
        assert (done.returncode, words in done.stderr) == (2, True)
    assert press(tmp_path, "", monkeypatch=monkeypatch).returncode == 1
    (tmp_path / "one.txt").write_text(ASKED[0], encoding="utf-8")
    done = press(workspace, "", "--queries", tmp_path / "one.txt", monkeypatch=monkeypatch)
    assert "1 questions, the best 10" in done.stderr
    done = press(workspace, "", "--limit", 2, monkeypatch=monkeypatch)
    assert "the first 2 of 3 questions" in done.stderr


def test_what_is_shown_cannot_steer_the_terminal(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from searchfit.judging import Page

    bad = "".join(map(chr, (*range(10), *range(11, 32), *range(127, 160))))
    nasty = Page(f"\x1b]0;owned\x07{bad}", f"\x1b[2Jword{bad}[bold]x[/bold]", ((4, 8),))
    monkeypatch.setattr(Pool, "page", lambda *_: nasty)
    done = press(workspace, "s\nq\n", "--judge", "other", monkeypatch=monkeypatch)
    assert not set(bad) & set(done.stderr)
    assert "[2Jword" in done.stderr
    assert "[bold]x[/bold]" in done.stderr


@pytest.mark.usefixtures("record")
@pytest.mark.parametrize("kind", ["generated", "judged"])
def test_without_questions_those_of_the_evaluation_are_judged(tmp_path: Path, kind: str) -> None:
    (tmp_path / "searchfit.toml").write_text(to_toml(Settings()), encoding="utf-8")
    with pytest.raises(WorkspaceError, match="not come to the stage evaluate"):
        questions(tmp_path)
    rows = [
        {"query_id": f"q{i}", "split": ("dev", "test")[i % 2], "text": f"text {i}", "relevant": [f"d{i}"]}
        for i in range(40)
    ]
    (tmp_path / "evaluation").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "evaluation" / "queries.parquet")
    (tmp_path / "evaluation" / "systems.json").write_text(json.dumps({"questions": kind}), encoding="utf-8")
    asked = questions(tmp_path)
    assert asked.generated == (kind == "generated")
    assert sorted(asked.queries) == sorted((f"q{i}", f"text {i}") for i in range(1, 40, 2))
    assert asked.qrels == {f"q{i}": {f"d{i}": 1} for i in range(1, 40, 2)}
    assert asked.queries != tuple((f"q{i}", f"text {i}") for i in range(1, 40, 2))  # a sample is one of all
    assert asked == questions(tmp_path)
    pq.write_table(pa.Table.from_pylist(rows[::2]), tmp_path / "evaluation" / "queries.parquet")
    with pytest.raises(SourceError, match="neither questions of yours nor test questions"):
        questions(tmp_path)
