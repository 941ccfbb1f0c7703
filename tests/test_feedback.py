"""Feedback: what is kept and what is not, what clicks weigh, what a fit takes from it, and the command."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pipeline_tools import CUT, Corpus, cli, fit, ran, tiny_model, write_corpus

from searchfit.config import FeedbackSettings, PairsSettings, QueriesSettings, load_settings
from searchfit.errors import SettingsError, WorkspaceError
from searchfit.feedback import Click, Feedback, clicked, fingerprint, judged, lessons, overview
from searchfit.journal import Journal
from searchfit.sources.pairs import read_pairs
from searchfit.sources.queries import read_queries
from searchfit.stages import Tools, label


def empty(folder: Path) -> Path:
    """A workspace without anything in it."""
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text('{"format": 1, "stages": {}}', encoding="utf-8")
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return empty(tmp_path / "ws")


def named(place: Path, **values: Any) -> FeedbackSettings:
    return FeedbackSettings(workspace=str(place), **values)


# What is kept


def test_judgements_and_clicks_come_back(place: Path) -> None:
    feedback = Feedback(place, clicks=True)
    feedback.add(judged("  who  walks\nthere ", "doc-1", 2, "eva"))
    feedback.add(judged("who walks there", "doc-2", 0))
    feedback.add(judged("who walks there", "doc-2", None))
    feedback.add(Click("who walks there", "doc-3", 4))
    again = Feedback(place)
    assert [(one.query, one.document_id, one.grade, one.judge) for one in again.judgements()] == [
        ("who walks there", "doc-1", 2, "eva")
    ]
    assert [(one.query, one.document_id, one.rank) for one in again.clicks()] == [
        ("who walks there", "doc-3", 4)
    ]


def test_nothing_of_the_reader_is_kept(place: Path) -> None:
    Feedback(place, clicks=True).add(Click("words", "doc", 1))
    [line] = (place / "clicks.jsonl").read_text(encoding="utf-8").splitlines()
    kept = json.loads(line)
    assert set(kept) == {"query", "document_id", "rank", "day"}
    assert len(kept["day"]) == len("2026-01-01")  # a day, not the minute


def test_clicks_are_refused_unless_asked_for(place: Path) -> None:
    with pytest.raises(SettingsError, match="not kept"):
        Feedback(place).add(Click("words", "doc", 1))
    assert not (place / "clicks.jsonl").exists()


@pytest.mark.parametrize(
    "said",
    [
        judged(" \n", "doc", 1),
        judged("words", "", 1),
        judged("x" * 2001, "doc", 1),
        judged("words", "d" * 1001, 1),
        judged("words", "doc", 4),
        judged("words", "doc", 1, " "),
        Click("words", "doc", 0),
        Click("words", "doc", True),
        Click("words", "doc", 10_001),
        Click("words", "doc", "1"),  # type: ignore[arg-type]
    ],
)
def test_nonsense_is_refused(place: Path, said: Any) -> None:
    feedback = Feedback(place, clicks=True)
    with pytest.raises(SettingsError):
        feedback.add(said)
    assert feedback.judgements() == []
    assert feedback.clicks() == []


def test_hostile_words_stay_one_line(place: Path) -> None:
    feedback = Feedback(place, clicks=True)
    odd = '"}\u2028{"grade": 3} \x00 \x1b[2J </script> \ud800'
    feedback.add(Click(odd, "doc\n1", 1))
    feedback.add(judged(odd, "doc\n1", 1))
    assert len((place / "clicks.jsonl").read_bytes().splitlines()) == 1
    [click], [judgement] = feedback.clicks(), feedback.judgements()
    assert click.document_id == judgement.document_id == "doc\n1"
    assert click.query == judgement.query
    assert "</script>" in click.query


def test_a_half_written_click_is_not_read_and_makes_way(place: Path) -> None:
    feedback = Feedback(place, clicks=True)
    feedback.add(Click("one", "doc", 1))
    with (place / "clicks.jsonl").open("ab") as file:
        file.write(b'{"query": "two", "docu')
    assert [one.query for one in feedback.clicks()] == ["one"]
    feedback.add(Click("three", "doc", 2))
    assert [one.query for one in feedback.clicks()] == ["one", "three"]


@pytest.mark.parametrize("line", ["[]", "{}", '{"query": 1, "document_id": "a", "rank": 1, "day": ""}', "x"])
def test_a_damaged_row_is_named(place: Path, line: str) -> None:
    Feedback(place, clicks=True).add(Click("one", "doc", 1))
    with (place / "clicks.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(WorkspaceError, match="row 2: this is no click"):
        Feedback(place).clicks()


def test_a_full_journal_refuses_and_stays_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl", most=100)
    for _ in range(5):
        journal.add({"row": "x" * 8})  # 20 bytes
    with pytest.raises(WorkspaceError, match="full"):
        journal.add({})
    assert len(list(journal.lines())) == 5
    assert (tmp_path / "j.jsonl").stat().st_size == 100


# What clicks weigh


def test_clicks_of_all_ranks_count_as_if_looked_at_alike() -> None:
    """Readers who look at rank r with a chance of 1/r and click what is good: two good documents at ranks 1
    and 4 are clicked 4 to 1, and weigh the same."""
    chance = random.Random(5)
    shown = {"first": 1, "fourth": 4}
    clicks = [
        Click("words", document, rank)
        for _ in range(4000)
        for document, rank in shown.items()
        if chance.random() < 1 / rank
    ]
    found = {one.document_id: one for one in clicked(clicks, FeedbackSettings())}
    assert found["first"].clicks > 3.6 * found["fourth"].clicks
    assert found["fourth"].weight == pytest.approx(found["first"].weight, rel=0.1)
    assert found["first"].counts
    assert found["fourth"].counts


def test_one_click_never_decides_and_strays_of_a_popular_query_do_not_count() -> None:
    clicks = [
        Click("rare", "far", 9000),
        *[Click("often", "good", 1)] * 60,
        *[Click("often", "stray", 5)] * 2,
    ]
    counts = {one.document_id: (one.weight, one.counts) for one in clicked(clicks, FeedbackSettings())}
    assert counts == {"far": (5.0, False), "good": (60.0, True), "stray": (10.0, False)}
    flat = clicked(clicks, FeedbackSettings(click_bias=0))
    assert {one.document_id: one.weight for one in flat} == {"far": 1.0, "good": 60.0, "stray": 2.0}


def test_case_and_spaces_make_no_other_query() -> None:
    clicks = [Click("A  word", "doc", 3), Click("a word", "doc", 3)]
    [one] = clicked(clicks, FeedbackSettings())
    assert (one.clicks, one.weight, one.counts) == (2, 6.0, True)


# What a fit takes


def test_evaluation_comes_first_and_what_is_tested_never_trains(place: Path) -> None:
    feedback = Feedback(place, clicks=True)
    order = random.Random(3).sample(range(30), 30)
    for number in order[:20]:
        feedback.add(judged(f"question {number}", "doc", 1 + number % 3))
        feedback.add(judged(f"question {number}", "other", 0))
    few = lessons(named(place, min_questions=21, max_questions=25), {"doc", "other"})
    assert (len(few.questions), few.enough, few.judged) == (20, False, ())
    assert any("too few" in note for note in few.notes)
    settings = named(place, min_questions=10, max_questions=12)
    some = lessons(settings, {"doc", "other"})
    assert (len(some.questions), some.enough, len(some.judged)) == (12, True, 2 * 8)
    tests, train = {text for _, text in some.questions}, {pair.query for pair in some.judged}
    assert not tests & train
    assert len(tests | train) == 20
    assert {pair.label for pair in some.judged if pair.document_id == "other"} == {0.0}
    for number in order[20:]:
        feedback.add(judged(f"question {number}", "doc", 1))
    more = {text for _, text in lessons(settings, {"doc", "other"}).questions}
    assert len(more & tests) >= 6  # of 30 at most 10 come before one of the 12
    assert more - tests <= {f"question {number}" for number in order[20:]}
    feedback.add(Click("question 99", "doc", 5))
    feedback.add(Click("Question  99", "doc", 5))
    feedback.add(Click(next(iter(tests)), "doc", 5))
    feedback.add(Click(next(iter(tests)), "doc", 5))
    assert [pair.query for pair in lessons(settings, {"doc"}).clicked] == ["Question 99"]


def test_documents_that_are_gone_teach_nothing(place: Path) -> None:
    feedback = Feedback(place, clicks=True)
    feedback.add(judged("one", "gone", 1))
    for _ in range(6):
        feedback.add(Click("two", "gone", 1))
    found = lessons(named(place), {"there"})
    assert (found.questions, found.judged, found.clicked) == ((), (), ())
    assert [row.label for row in overview(feedback, named(place))] == [1.0, 1.0]


def test_judges_who_differ_settle_on_the_lower_grade(place: Path) -> None:
    feedback = Feedback(place)
    feedback.add(judged("one", "doc", 3, "eva"))
    feedback.add(judged("One", "doc", 1, "ada"))
    [row] = overview(feedback, named(place))
    assert row.grade == 1


def test_the_fingerprint_sees_what_is_added(place: Path) -> None:
    assert fingerprint(FeedbackSettings()) is None
    seen = [fingerprint(named(place))]
    Feedback(place).add(judged("one", "doc", 1))
    seen.append(fingerprint(named(place)))
    Feedback(place, clicks=True).add(Click("one", "doc", 1))
    seen.append(fingerprint(named(place)))
    assert [len(one or {}) for one in seen] == [0, 1, 2]
    assert seen[1] != seen[2]


def test_the_label_stage_finds_the_passages(bench: Any, place: Path, tmp_path: Path) -> None:
    """Clicks train only on documents that train, while nothing is judged; the clicked passage is the one with
    the query's words."""
    passages = pq.read_table(bench.path("passages.parquet")).to_pylist()
    held = pq.read_table(bench.path("holdout.parquet")).to_pylist()
    splits = {row["document_id"]: row["split"] for row in held}
    feedback = Feedback(place, clicks=True)
    some = {name: next(p for p in passages if splits[p["document_id"]] == name) for name in ("train", "test")}
    for name, passage in some.items():
        for _ in range(2):
            feedback.add(Click(f"{name} {passage['text'][:60]}", passage["document_id"], 3))
    values = {"feedback.workspace": str(place)}
    settings = load_settings(base=bench.settings, values=values).only("pairs", "queries", "feedback")
    result = label.run(settings, bench.inputs("label"), Tools(tmp_path))
    [row] = pq.read_table(tmp_path / "labelled.parquet").to_pylist()
    assert row["text"] == some["train"]["text"]
    assert passages[row["passage"]]["id"] == some["train"]["id"]
    assert (row["label"], row["split"]) == (1.0, "train")
    assert [(drop.reason, drop.count) for drop in result.drops] == [
        ("clicked documents that are held out", 1)
    ]
    assert "r^1" in " ".join(result.notes)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("feedback")
    return Corpus(write_corpus(folder / "places.csv"), str(tiny_model(folder)))


def test_a_fit_learns_from_what_readers_said(source: Corpus, tmp_path: Path) -> None:
    ws = tmp_path / "ws"
    own = {**CUT, "train__enabled": False, "feedback__workspace": str(ws), "feedback__min_questions": 6}
    own["feedback__max_questions"] = 8
    fit(ws, source, until="choose", **own)
    systems = json.loads((ws / "evaluation/systems.json").read_text(encoding="utf-8"))
    assert systems["questions"] == "generated"
    feedback = Feedback(ws, clicks=True)
    for number in range(10):
        feedback.add(judged(f"place number {number}", f"doc-{number}", 2))
    for _ in range(2):
        feedback.add(Click("birds and comets", "doc-25", 3))
    again = ran(fit(ws, source, until="choose", **own))
    assert again[0] == "label"
    assert "evaluate" in again
    systems = json.loads((ws / "evaluation/systems.json").read_text(encoding="utf-8"))
    table = pq.read_table(ws / "evaluation/queries.parquet").to_pylist()
    tested = {row["text"]: row["relevant"] for row in table}
    labelled = pq.read_table(ws / "labelled.parquet").to_pylist()
    trained = {row["query"]: row["text"] for row in labelled}
    assert systems["questions"] == "judged"
    assert len(tested) == 8
    assert all(
        tested[f"place number {n}"] == [f"doc-{n}"] for n in range(10) if f"place number {n}" in tested
    )
    assert not set(tested) & set(trained)
    assert {*tested, *trained} >= {"birds and comets"}
    assert "birds and comets" in trained["birds and comets"]
    assert {row["split"] for row in labelled} == {"train"}
    assert ran(fit(ws, source, until="choose", **own)) == []
    feedback.add(Click("birds and comets", "doc-26", 1))
    assert ran(fit(ws, source, until="label", **own)) == ["label"]


# The command


@pytest.fixture
def heard(bench: Any, place: Path) -> Path:
    """A workspace with documents and some feedback."""
    (place / "documents.parquet").symlink_to(bench.path("documents.parquet"))
    (place / "searchfit.toml").write_text("", encoding="utf-8")
    manifest = {"format": 1, "stages": {"ingest": {"artefacts": {"documents.parquet": {}}}}}
    (place / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    ids = pq.read_table(place / "documents.parquet", columns=["id"])["id"].to_pylist()
    feedback = Feedback(place, clicks=True)
    feedback.add(judged("right and wrong", ids[0], 1))
    feedback.add(judged("right and wrong", ids[1], 0))
    for _ in range(2):
        feedback.add(Click("clicked\x1b[2J", ids[2], 5))
    feedback.add(Click("right and wrong", ids[0], 1))
    return place


def test_the_command_lists(heard: Path) -> None:
    done = cli("feedback", heard)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 judgements (2 by reader), 3 clicks\n")
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    told = json.loads(cli("feedback", heard, "--json").stdout)
    assert (told["judgements"], told["clicks"]) == (2, 3)
    rows = [(row["grade"], row["clicks"], row["weight"], row["label"]) for row in told["rows"]]
    assert sorted(rows, key=str) == [(0, 0, 0.0, 0.0), (1, 1, 1.0, 1.0), (None, 2, 10.0, 1.0)]
    assert "the first 1 of 3" in cli("feedback", heard, "--limit", 1).stderr


def test_exports_are_read_as_they_are(heard: Path, tmp_path: Path) -> None:
    assert cli("feedback", heard, "--export", tmp_path / "q", "--format", "qrels").returncode == 0
    asked = read_queries(QueriesSettings(file=str(tmp_path / "q")))
    assert [text for _, text in asked.queries] == ["right and wrong"]
    assert sorted(next(iter(asked.qrels.values())).values()) == [0, 1]
    assert cli("feedback", heard, "--export", tmp_path / "p", "--format", "pairs").returncode == 0
    pairs = list(read_pairs(PairsSettings(file=str(tmp_path / "p"))))
    assert sorted(pair.label for pair in pairs) == [0.0, 1.0, 1.0]
    texts = {row["id"]: row["text"] for row in pq.read_table(heard / "documents.parquet").to_pylist()}
    assert all(texts[pair.document_id] in pair.text for pair in pairs)
    assert cli("feedback", heard, "--export", tmp_path / "x").returncode == 2
    assert not (tmp_path / "x").exists()


def test_without_feedback_it_says_so(place: Path, tmp_path: Path) -> None:
    (place / "searchfit.toml").write_text("", encoding="utf-8")
    assert cli("feedback", place).stdout == "0 judgements, 0 clicks\n"
    assert cli("feedback", tmp_path / "none").returncode == 1
