from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from searchfit.errors import WorkspaceError
from searchfit.generators import Task, Written
from searchfit.generators.ledger import Ledger, key
from searchfit.records import Passage


@dataclass(frozen=True)
class Writer:
    """Only the identity of a generator."""

    name: str = "w"
    fingerprint: str = "model-1"
    per_passage: int = 3
    details: dict[str, str] = field(default_factory=dict)

    def content(self, passage: Passage) -> tuple[str, ...]:
        return passage.title, passage.text

    def most_cost(self, passage: Passage) -> float:
        raise NotImplementedError(passage)

    def write(self, tasks: Iterable[Task]) -> Iterator[Sequence[Written]]:
        raise NotImplementedError(tasks)


WRITER = Writer()


def passage(text: str, title: str = "", name: str = "d#0") -> Passage:
    return Passage(name, "d", 0, title, text, 0, len(text), ((0, len(text)),))


def test_what_was_put_in_is_found_by_its_content(tmp_path: Path) -> None:
    queries = (("What is it?", "question"), ("它是什么 \ud7ff", "keywords"))
    with Ledger(tmp_path / "a" / "ledger.sqlite") as ledger:
        ledger.put(
            WRITER,
            1,
            [Written(passage("one"), queries, "", 7, 3, 0.5), Written(passage("two"), (), "bad: x")],
        )
    with Ledger(tmp_path / "a" / "ledger.sqlite") as ledger:
        keys = [key(WRITER, 1, passage(text, name="another#9")) for text in ("one", "two", "three")]
        found = ledger.get(keys)
        assert [name in found for name in keys] == [True, True, False]
        assert found[keys[0]].queries == queries
        assert (found[keys[0]].tokens_in, found[keys[0]].tokens_out, found[keys[0]].cost) == (7, 3, 0.5)
        assert found[keys[1]].fault == "bad: x"
        assert ledger.spent() == 0.5


def test_keys_follow_all_that_an_answer_follows_from() -> None:
    base = passage("text", "title")
    names = {
        key(WRITER, 1, base),
        key(WRITER, 2, base),
        key(replace(WRITER, fingerprint="model-2"), 1, base),
        key(WRITER, 1, passage("text")),
        key(WRITER, 1, passage("title", "text")),
        key(WRITER, 1, passage("letext", "tit")),
    }
    assert len(names) == 6


def test_a_second_try_replaces_the_fault_and_adds_up_the_cost(tmp_path: Path) -> None:
    one = passage("one")
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.put(WRITER, 1, [Written(one, (), "timed out", 5, 0, 0.25)])
        ledger.put(WRITER, 1, [Written(one, (("q", "question"),), "", 5, 2, 0.5)])
        (entry,) = ledger.get([key(WRITER, 1, one)]).values()
        assert (entry.queries, entry.fault, entry.tokens_in, entry.cost) == (
            (("q", "question"),),
            "",
            10,
            0.75,
        )


def test_more_keys_than_one_question_takes(tmp_path: Path) -> None:
    passages = [passage(f"text {n}") for n in range(2500)]
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.put(WRITER, 1, [Written(one, ((one.text, "claim"),)) for one in passages])
        found = ledger.get([key(WRITER, 1, one) for one in passages])
    assert {entry.queries[0][0] for entry in found.values()} == {one.text for one in passages}


def test_older_states_are_forgotten_only_when_asked(tmp_path: Path) -> None:
    newer = replace(WRITER, fingerprint="model-2")
    other = replace(WRITER, name="other")
    one = passage("one")
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        for writer in (WRITER, newer, other):
            ledger.put(writer, 1, [Written(one)])
        ledger.forget_older(newer)
        assert [len(ledger.get([key(writer, 1, one)])) for writer in (WRITER, newer)] == [0, 1]
        ledger.put(WRITER, 1, [Written(one)])
        assert len(ledger.get([key(replace(other), 1, one)])) == 1


def test_a_damaged_ledger_is_named_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    file.write_bytes(b"not a database, but somebody's work" * 100)
    with pytest.raises(WorkspaceError, match=r"ledger\.sqlite cannot be used"):
        Ledger(file)
    assert file.read_bytes().startswith(b"not a database")


CHILD = """
import sys
from test_ledger import WRITER, passage
from pathlib import Path
from searchfit.generators import Written
from searchfit.generators.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
for number in range(10**6):
    ledger.put(WRITER, 1, [Written(passage(f"{number} {part}"), ((f"q{number}", "claim"),)) for part in "ab"])
    print(number, flush=True)
"""


def test_kill_9_loses_no_group_that_was_acknowledged_and_leaves_no_half(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    for last in (3, 40):
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, str(file)], stdout=subprocess.PIPE, text=True, env=environment
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if int(line) >= last:
                    child.send_signal(signal.SIGKILL)
                    break
        with Ledger(file) as ledger:
            keys = [key(WRITER, 1, passage(f"{n} {part}")) for n in range(last + 1) for part in "ab"]
            assert len(ledger.get(keys)) == len(keys)
        with sqlite3.connect(file) as base:
            (count,) = base.execute("select count(*) from answers").fetchone()
            assert count % 2 == 0
