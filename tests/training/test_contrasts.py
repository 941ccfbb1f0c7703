from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from searchfit.config import MineSettings, RerankTrainingSettings
from searchfit.encoders.cross import CrossEncoder
from searchfit.fusion import Rows
from searchfit.training.loop import Loop, LoopOptions
from searchfit.training.rerank import Contrasts, RerankCourse, rerank_loss


def contrasts(bench: Any, **values: Any) -> Contrasts:
    documents = np.load(bench.path("encoded") / "documents.npy")
    settings = RerankTrainingSettings(**values)
    return Contrasts.load(bench.path("mined"), documents, settings, bench.settings.mine, 1)


@pytest.mark.parametrize("objective", ["listwise", "bce", "margin-mse"])
def test_losses_by_hand(objective: str) -> None:
    import torch

    random = np.random.default_rng(2)
    scores = random.normal(size=(3, 5)).astype(np.float32)
    teacher = random.random((3, 5)).astype(np.float32)
    right = 1 / (1 + np.exp(-scores.astype(float)))
    chances = np.exp(scores[:, 0]) / np.exp(scores).sum(axis=1)
    margins = (scores[:, :1] - scores[:, 1:]) - (teacher[:, :1] - teacher[:, 1:])
    expected = {
        "listwise": -np.log(chances).mean(),
        "bce": (-np.log(right[:, 0]).mean() - np.log(1 - right[:, 1:]).mean()) / 2,
        "margin-mse": (margins**2).mean(),
    }
    loss = rerank_loss(objective, torch.from_numpy(scores), teacher)
    assert float(loss) == pytest.approx(expected[objective], abs=1e-5)


def test_wrong_answers_are_of_other_training_documents_and_score_lower(bench: Any) -> None:
    data = contrasts(bench, depth=6)
    documents = np.load(bench.path("encoded") / "documents.npy")
    split = pq.read_table(bench.path("holdout.parquet"))["split"].to_numpy()
    table = pq.read_table(bench.path("mined") / "queries.parquet")
    mined = set(zip(table["text"].to_pylist(), table["passage"].to_pylist(), strict=True))
    assert len(data) > 20
    assert data.wrong.shape[1] == 6
    for query, own, score, wrong, scores in zip(
        data.queries, data.own, data.own_scores, data.wrong, data.wrong_scores, strict=True
    ):
        assert (query, own) in mined
        there = wrong >= 0
        assert there.any()
        assert documents[own] not in documents[wrong[there]]
        assert (split[documents[wrong[there]]] == "train").all()
        assert (scores[there] <= score - 0.05 * abs(score) + 1e-6).all()


def test_a_labelled_answer_stands_above_what_the_teacher_says(tmp_path: Path) -> None:
    """The mine stage lifts it among the candidates; its own score stays the teacher's."""
    import pyarrow as pa

    table = pa.table({"text": ["q"], "passage": pa.array([2], pa.int32()), "origin": ["labelled"]})
    pq.write_table(table, tmp_path / "queries.parquet")
    np.save(tmp_path / "passages.npy", np.array([[0, 1, 2]]))
    np.save(tmp_path / "scores.npy", np.array([[0.9, 0.8, 1.0]], np.float32))
    np.save(tmp_path / "own_scores.npy", np.array([0.1], np.float32))
    data = Contrasts.load(tmp_path, np.arange(3, dtype=np.int32), RerankTrainingSettings(), MineSettings(), 1)
    assert data.wrong.tolist() == [[0, 1, -1]]
    assert data.own_scores.tolist() == [1.0]


def test_a_sample_is_drawn_by_the_seed(bench: Any) -> None:
    some, every = contrasts(bench, max_queries=10), contrasts(bench)
    assert len(some) == 10 < len(every)
    assert some.queries == contrasts(bench, max_queries=10).queries
    assert set(some.queries) < set(every.queries)


def test_lists_begin_with_the_own_passage(bench: Any) -> None:
    data = contrasts(bench)
    batch: Rows = np.arange(8)
    rows, scores = data.lists(batch, 5, np.random.default_rng(0))
    assert rows.shape == scores.shape == (8, 6)
    assert rows[:, 0].tolist() == data.own[:8].tolist()
    for query in range(8):
        taught = dict(zip(data.wrong[query].tolist(), data.wrong_scores[query].tolist(), strict=True))
        assert set(rows[query, 1:].tolist()) <= {row for row in taught if row >= 0}
        assert scores[query, 1:].tolist() == [taught[row] for row in rows[query, 1:].tolist()]
    assert not np.array_equal(rows, data.lists(batch, 5, np.random.default_rng(1))[0])


def test_a_course_learns_to_tell_answers_from_others(bench: Any, tiny_model: Path, tmp_path: Path) -> None:
    from searchfit.teachers import PassageTexts

    values = {"max_queries": 6, "negatives": 3, "depth": 3, "epochs": 25, "batch_size": 6}
    data = contrasts(bench, **values)
    model = CrossEncoder.start(str(tiny_model), "cpu")
    texts = PassageTexts(bench.path("passages.parquet"))
    course = RerankCourse(RerankTrainingSettings(**values), 1, model, data, texts.take)
    assert course.steps == 25
    assert course.parts == 3
    options = LoopOptions(course.steps, learning_rate=5e-3, accumulate=course.parts)
    history = Loop(model.model, course.loss, options, tmp_path / "checkpoints").run()
    assert np.mean(history.losses[-5:]) < 0.6 * np.mean(history.losses[:5])
    rows, _ = data.lists(np.arange(6), 3, np.random.default_rng(9))
    queries = [query for query in data.queries for _ in range(4)]
    scores = model.raw(queries, texts.take(rows.ravel())).reshape(6, 4)
    assert (scores[:, 0] > scores[:, 1:].max(axis=1)).sum() >= 5  # by chance 1.5
