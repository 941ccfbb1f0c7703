from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchfit.generators import Task, Written
from searchfit.generators.batching import Item, halving, is_out_of_memory, seed_of, task_batches
from searchfit.records import Passage


def passage(words: int, number: int = 0) -> Passage:
    return Passage(f"p{number}", "d", 0, "", "w " * words, 0, 2 * words, ())


def tokenize(passages: Sequence[Passage]) -> list[list[int]]:
    return [list(range(len(p.text.split()))) for p in passages]


def texts(batches: Sequence[Sequence[Item]]) -> list[list[str]]:
    return [[item.passage.id for item in batch] for batch in batches]


@given(
    st.lists(st.integers(1, 60), max_size=80), st.integers(10, 300), st.integers(0, 20), st.integers(1, 30)
)
def test_every_task_is_in_one_batch_within_the_budget(
    lengths: list[int], budget: int, reserve: int, window: int
) -> None:
    tasks = [Task(passage(length, n)) for n, length in enumerate(lengths)]
    batches = list(task_batches(iter(tasks), tokenize, budget, reserve, window))
    assert sorted(id_ for batch in texts(batches) for id_ in batch) == sorted(
        task.passage.id for task in tasks
    )
    for batch in batches:
        longest = max(len(item.tokens) for item in batch) + reserve
        assert len(batch) == 1 or len(batch) * longest <= budget


def test_sorting_leaves_few_padded_tokens() -> None:
    rng = random.Random(3)
    lengths = [rng.randint(5, 300) for _ in range(1024)]
    batches = list(task_batches([Task(passage(n, i)) for i, n in enumerate(lengths)], tokenize, 4096))
    padded = sum(len(batch) * max(len(item.tokens) for item in batch) for batch in batches)
    rows = len(lengths) // len(batches)
    unsorted = sum(
        len(lengths[i : i + rows]) * max(lengths[i : i + rows]) for i in range(0, len(lengths), rows)
    )
    assert padded < 1.05 * sum(lengths)
    assert unsorted > 1.5 * sum(lengths)


def test_tasks_are_read_one_window_ahead_at_most() -> None:
    read = 0

    def endless() -> object:
        nonlocal read
        while True:
            read += 1
            yield Task(passage(read % 7 + 1, read))

    batches = task_batches(endless(), tokenize, 100, window=16)  # type: ignore[arg-type]
    next(batches)
    assert read == 16


@given(st.lists(st.booleans(), min_size=50, max_size=50))
def test_what_is_known_does_not_move_the_rest(known: list[bool]) -> None:
    lengths = [(7 * n) % 41 + 1 for n in range(50)]
    whole = texts(
        list(task_batches([Task(passage(n, i)) for i, n in enumerate(lengths)], tokenize, 90, 2, 20))
    )
    tasks = [Task(passage(n, i), known[i]) for i, n in enumerate(lengths)]
    rest = texts(list(task_batches(tasks, tokenize, 90, 2, 20)))
    left_out = {f"p{i}" for i in range(50) if known[i]}
    expected = [[id_ for id_ in batch if id_ not in left_out] for batch in whole]
    assert rest == [batch for batch in expected if batch]


def test_a_window_of_known_tasks_is_not_even_tokenized() -> None:
    def never(passages: Sequence[Passage]) -> list[list[int]]:
        raise AssertionError(passages)

    assert list(task_batches([Task(passage(3, n), known=True) for n in range(9)], never, 10, window=4)) == []


class Device:
    """Runs out of memory above a number of padded tokens."""

    def __init__(self, most: int, error: Exception) -> None:
        self.most, self.error = most, error
        self.runs: list[int] = []

    def run(self, batch: Sequence[Item]) -> list[Written]:
        self.runs.append(len(batch))
        if len(batch) * max(len(item.tokens) for item in batch) > self.most:
            raise self.error
        return [Written(item.passage, ((item.passage.text, "question"),)) for item in batch]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("std::bad_alloc"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"
        ),
    ],
    ids=["MemoryError", "cuda", "cpu"],
)
def test_the_batch_is_halved_until_it_fits(error: Exception) -> None:
    batch = [Item(passage(10, n), list(range(10))) for n in range(13)]
    device = Device(40, error)
    done = halving(batch, device.run)
    assert [written.passage.id for written in done] == [f"p{n}" for n in range(13)]
    assert all(written.queries and not written.fault for written in done)
    assert max(size for size in device.runs if size <= 4) <= 4 < max(device.runs) == 13


def test_a_passage_that_does_not_fit_alone_is_a_fault_and_the_others_are_written() -> None:
    lengths = [10, 10, 90, 10]
    done = halving([Item(passage(n), list(range(n))) for n in lengths], Device(40, MemoryError()).run)
    assert [bool(written.queries) for written in done] == [True, True, False, True]
    assert [bool(written.fault) for written in done] == [False, False, True, False]
    assert "memory" in done[2].fault


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("out of memory")])
def test_other_errors_are_raised(error: Exception) -> None:
    assert not is_out_of_memory(error)
    device = Device(0, error)
    with pytest.raises(type(error), match=str(error)):
        halving([Item(passage(1), [1]), Item(passage(1), [1])], device.run)
    assert device.runs == [2]


def test_torch_says_out_of_memory_as_expected() -> None:
    import torch

    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_seeds_follow_from_what_they_are_for() -> None:
    assert seed_of(13, [1, 2], [3]) == seed_of(13, (1, 2), [3])
    different = {
        seed_of(13, [1, 2], [3]),
        seed_of(13, [1], [2, 3]),
        seed_of(14, [1, 2], [3]),
        seed_of(13, "1"),
    }
    assert len(different) == 4
    assert all(0 <= seed < 2**32 for seed in different)
