from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from searchfit.records import LABELLED
from searchfit.stages.mine import MINED
from searchfit.training.lessons import Lesson, Lessons
from searchfit.writing import write_table

TEXTS = [f"passage {row}" for row in range(10)]


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """Two generated queries and one of the user's with two answers, of which one stands as its negative."""
    mined = tmp_path / "mined"
    mined.mkdir()
    rows = [("g0", 0, "generated"), ("g1", 1, "generated"), ("mine", 2, "labelled"), ("mine", 3, "labelled")]
    columns = dict(zip(MINED.names, zip(*rows, strict=True), strict=True))
    write_table(mined / "queries.parquet", pa.table({n: list(v) for n, v in columns.items()}, schema=MINED))
    hard = np.array([[5, 6], [7, -1], [3, -1], [8, 2]])
    np.save(mined / "hard.npy", hard)
    np.save(mined / "own_scores.npy", np.array([0.9, 0.8, 0.7, 0.6], np.float32))
    np.save(mined / "hard_scores.npy", np.where(hard < 0, -np.inf, hard / 100).astype(np.float32))
    labelled = [
        pair("mine", 2, "train"),
        pair("mine", 3, "train"),
        pair("mine", 4, "train", label=0.0),
        pair("away", -1, "train", text="a text of no corpus", negatives=["nor this"]),
        pair("away", -1, "train", text="a poor answer", label=0.2),
        pair("secret", 9, "dev"),
    ]
    write_table(tmp_path / "labelled.parquet", pa.Table.from_pylist(labelled, schema=LABELLED))
    return {"mined": mined, "labelled.parquet": tmp_path / "labelled.parquet"}


def pair(query: str, passage: int, split: str, **more: Any) -> dict[str, Any]:
    own = {"query_id": "", "query": query, "text": "as the user wrote it", "label": 1.0, "negatives": []}
    return {**own, "passage": passage, "document": passage, "split": split, **more}


def load(inputs: dict[str, Path], which: str = "all") -> Lessons:
    return Lessons.load(inputs, which, lambda rows: [TEXTS[row] for row in rows])[0]


def told(lesson: Lesson) -> list[tuple[str, list[str]]]:
    """Each query with its texts."""
    data = lesson.data
    lines = zip(data.queries, data.rows, strict=True)
    return [(query, [data.texts[i] for i in row if i >= 0]) for query, row in lines]


@pytest.mark.parametrize(
    ("which", "rows"), [("all", [0, 1, 2, 3]), ("generated", [0, 1]), ("labelled", [2, 3])]
)
def test_the_queries_that_are_asked_for(inputs: dict[str, Path], which: str, rows: list[int]) -> None:
    lessons, found = Lessons.load(inputs, which, lambda rows: [TEXTS[row] for row in rows])
    assert found.tolist() == rows
    assert lessons.own.tolist() == rows
    assert len(lessons) == len(rows)
    assert lessons.labelled.num_rows == (0 if which == "generated" else 5)
    assert "secret" not in lessons.labelled["query"].to_pylist()  # held out


def test_texts_outside_the_corpus_are_learnt_where_passages_are_tuned(inputs: dict[str, Path]) -> None:
    inside, outside = load(inputs).sets("pairs", frozen=False)
    assert told(outside) == [("away", ["a text of no corpus", "nor this"])]
    assert outside.passages is None
    assert [query for query, _ in told(inside)] == ["g0", "g1", "mine", "mine"]
    (only,) = load(inputs).sets("pairs", frozen=True)
    assert told(only) == told(inside)


@pytest.mark.parametrize("needs", ["scores", "negatives"])
def test_a_known_answer_is_no_negative(inputs: dict[str, Path], needs: Any) -> None:
    """The first "mine" is left with none, and with that is no lesson for those who need one."""
    (lesson,) = load(inputs).sets(needs, frozen=False)
    assert told(lesson) == [
        ("g0", ["passage 0", "passage 5", "passage 6"]),
        ("g1", ["passage 1", "passage 7"]),
        ("mine", ["passage 3", "passage 8"]),
    ]
    assert (lesson.data.widths > 1).all()
    if needs == "scores":
        assert lesson.data.labels is not None
        np.testing.assert_allclose(lesson.data.labels[0], [0.9, 0.05, 0.06])
        np.testing.assert_allclose(lesson.data.labels[2, :2], [0.6, 0.08])
    assert lesson.passages is not None
    assert [TEXTS[row] for row in lesson.passages] == lesson.data.texts


def labels(lesson: Lesson) -> set[tuple[str, str, float]]:
    data = lesson.data
    assert data.labels is not None
    lines = zip(told(lesson), data.labels.tolist(), strict=True)
    return {(query, text, round(label, 3)) for (query, (text,)), label in lines}


@pytest.mark.parametrize("frozen", [False, True])
def test_labels_are_those_of_the_user(inputs: dict[str, Path], frozen: bool) -> None:
    generated, theirs = load(inputs).sets("labels", frozen)
    assert labels(generated) == {
        *[("g0", "passage 0", 1), ("g0", "passage 5", 0), ("g0", "passage 6", 0)],
        *[("g1", "passage 1", 1), ("g1", "passage 7", 0)],
    }
    known = {("mine", "passage 2", 1), ("mine", "passage 3", 1), ("mine", "passage 4", 0)}
    others = {("away", "a text of no corpus", 1), ("away", "nor this", 0), ("away", "a poor answer", 0.2)}
    assert labels(theirs) == (known if frozen else known | others)
    if frozen:
        assert theirs.passages is not None
        assert [TEXTS[row] for row in theirs.passages] == theirs.data.texts


def test_nothing_to_learn_gives_no_set(inputs: dict[str, Path]) -> None:
    np.save(inputs["mined"] / "hard.npy", np.full((4, 2), -1))
    assert load(inputs).sets("negatives", frozen=False) == []
