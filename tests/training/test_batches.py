from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchfit.errors import SettingsError
from searchfit.training.batches import Batches, BatchOptions, Mixture, share
from searchfit.training.data import ABSENT, TrainingSet, normalised


def make_set(count: int, negatives: int = 0, seed: int = 0, queries: int = 0, texts: int = 0) -> TrainingSet:
    random = np.random.default_rng(seed)
    queries, texts = queries or count, texts or count * (1 + negatives)
    rows = random.integers(0, texts, (count, 1 + negatives))
    rows[:, 1:][random.random((count, negatives)) < 0.2] = ABSENT
    asked = random.integers(0, queries, count)
    return TrainingSet([f"query {i}" for i in asked], [f"text {i}" for i in range(texts)], rows)


def lengths_of(data: TrainingSet) -> Any:
    return np.random.default_rng(9).integers(3, 200, len(data))


def batches_of(data: TrainingSet, size: int, **values: Any) -> Batches:
    return Batches(data, lengths_of(data), BatchOptions(size, **values))


def conflicts(data: TrainingSet, rows: Any) -> list[str]:
    """What stands against a batch, by the words of the rule and by comparing all with all."""
    found = []
    answers: dict[str, set[str]] = {}
    for query, row in zip(data.queries, data.rows, strict=True):
        answers.setdefault(normalised(query), set()).add(normalised(data.texts[row[0]]))
    own = {int(r): [normalised(data.texts[i]) for i in data.rows[r] if i != ABSENT] for r in rows}
    for a, texts in own.items():
        found += ["a text twice in a row"] * (len(set(texts)) < len(texts))
        for b, others in own.items():
            if a != b:
                query = normalised(data.queries[a])
                found += ["equal queries"] * (query == normalised(data.queries[b]))
                found += ["equal texts"] * bool(set(texts) & set(others))
                found += ["a known answer"] * bool(answers[query] & set(others))
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(0, 3),
    st.integers(1, 40),
    st.integers(4, 60),
    st.integers(1, 12),
    st.integers(0, 99),
)
def test_a_batch_has_no_false_negatives_and_an_epoch_has_all_rows(
    count: int, negatives: int, queries: int, texts: int, size: int, seed: int
) -> None:
    data = make_set(count, negatives, seed, queries, texts)
    batches = batches_of(data, size, seed=seed).epoch(0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    for rows in batches:
        assert 1 <= len(rows) <= size
        assert len(set(data.widths[rows].tolist())) == 1
        assert conflicts(data, rows) == []


def test_case_and_spaces_do_not_hide_a_duplicate() -> None:
    data = TrainingSet(
        ["Where  is it", "where is IT ", "other", "more"], ["A b", "c", "a  B", "d"], np.arange(4)[:, None]
    )
    for seed in range(20):
        for rows in batches_of(data, 4, seed=seed).epoch(0):
            assert not {0, 1} <= set(rows.tolist())
            assert not {0, 2} <= set(rows.tolist())


def test_most_batches_are_full_and_of_like_length() -> None:
    data = make_set(5000, 1, queries=3000, texts=8000)
    lengths = lengths_of(data)
    batches = batches_of(data, 32).epoch(0)
    full = [rows for rows in batches if len(rows) == 32]
    assert len(full) > 0.9 * 5000 / 32
    spread = np.mean([np.ptp(lengths[rows]) for rows in full])
    assert spread < 0.15 * np.ptp(lengths)
    means = np.array([lengths[rows].mean() for rows in batches])
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.25  # in random order


def test_seed_and_epoch_decide_the_order() -> None:
    data = make_set(300, 1)

    def order(epoch: int, seed: int) -> list[list[int]]:
        return [rows.tolist() for rows in batches_of(data, 16, seed=seed).epoch(epoch)]

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(1, 1)
    assert order(0, 1) != order(0, 2)


def test_where_texts_are_no_negatives_duplicates_may_meet() -> None:
    data = make_set(100, queries=1, texts=1)
    assert [len(rows) for rows in batches_of(data, 25, distinct=False).epoch(0)] == [25] * 4
    assert [len(rows) for rows in batches_of(data, 25).epoch(0)] == [1] * 100


def test_batches_for_several_processes_divide_evenly() -> None:
    data = make_set(103, queries=60, texts=80)
    batches = batches_of(data, 8, multiple=4).epoch(0)
    assert {len(rows) for rows in batches} <= {4, 8}
    shares = [share(batches[0], rank, 4) for rank in range(4)]
    assert sorted(np.concatenate(shares).tolist()) == sorted(batches[0].tolist())
    assert len({len(one) for one in shares}) == 1
    with pytest.raises(SettingsError, match="one query for each process"):
        BatchOptions(3, multiple=4)


def test_a_mixture_without_weights_takes_each_set_once_an_epoch() -> None:
    sets = [batches_of(make_set(100, seed=1), 10), batches_of(make_set(35, 2, seed=2), 10)]
    mixture = Mixture(sets, seed=3)
    epoch = mixture.epoch(0)
    for place, one in enumerate(sets):
        rows = np.concatenate([rows for number, rows in epoch if number == place])
        assert sorted(rows.tolist()) == list(range(len(one.data)))
    numbers = [number for number, _ in epoch]
    assert numbers != sorted(numbers)
    steps = mixture.steps(3)
    assert steps == sum(len(mixture.epoch(number)) for number in range(3))
    assert mixture.steps(3, accumulate=4) == -(-steps // 4)
    course = [mixture.batch(number) for number in range(steps)]
    expected = [batch for number in range(3) for batch in mixture.epoch(number)]
    for (a, rows), (b, others) in zip(course, expected, strict=True):
        assert (a, rows.tolist()) == (b, others.tolist())
    fresh = Mixture(sets, seed=3).batch(steps - 1)  # a resumed run begins in the middle
    assert (fresh[0], fresh[1].tolist()) == (course[-1][0], course[-1][1].tolist())


def test_weights_share_out_the_batches() -> None:
    sets = [batches_of(make_set(200, seed=1), 10), batches_of(make_set(40, seed=2), 10)]
    mixture = Mixture(sets, weights=(1, 3), seed=0)
    total = len(sets[0].epoch(0)) + len(sets[1].epoch(0))
    epochs = [mixture.epoch(number) for number in range(4)]
    for epoch in epochs:
        assert len(epoch) == total
        count = Counter(number for number, _ in epoch)
        assert count[1] / total == pytest.approx(0.75, abs=1 / total)
    for place, one in enumerate(sets):
        seen = Counter(
            int(row) for epoch in epochs for number, rows in epoch for row in rows if number == place
        )
        assert max(seen.values()) - min(seen[row] for row in range(len(one.data))) <= 1


@pytest.mark.parametrize("weights", [(1,), (1, 0), (1, -2), (1, 2, 3)])
def test_weights_that_do_not_fit_are_refused(weights: tuple[float, ...]) -> None:
    sets = [batches_of(make_set(20, seed=1), 10), batches_of(make_set(20, seed=2), 10)]
    with pytest.raises(SettingsError, match="weights"):
        Mixture(sets, weights)


def test_no_batch_at_all_is_refused() -> None:
    with pytest.raises(SettingsError, match="no batch"):
        Mixture([batches_of(make_set(3, queries=1), 8, multiple=4)])


def test_a_hundred_thousand_pairs_take_seconds() -> None:
    data = make_set(100_000, 2, queries=60_000, texts=80_000)
    _ = data.query_keys, data.text_keys, data.positives, data.widths
    batches = batches_of(data, 32)
    begin = time.process_time()
    count = len(batches.epoch(0))
    assert time.process_time() - begin < 10
    assert count < 1.2 * 100_000 / 32
