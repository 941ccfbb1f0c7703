from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from searchfit import inversion
from searchfit.inversion import invert
from searchfit.keyword import Analyzer, KeywordIndex

FILES = ("frequencies.npy", "lengths.npy", "rows.npy", "starts.npy")


def made(seed: int, count: int) -> list[str]:
    """Texts of words by Zipf's law, some of them empty."""
    chance = random.Random(seed)
    words = [f"w{n}" for n in range(90)]
    weights = [1 / (n + 1) for n in range(90)]
    return [" ".join(chance.choices(words, weights, k=chance.randrange(30))) for _ in range(count)]


def small(monkeypatch: pytest.MonkeyPatch, read: int, sorted_: int) -> None:
    monkeypatch.setattr(inversion, "_READ", read)
    monkeypatch.setattr(inversion, "_SORTED", sorted_)


@pytest.mark.parametrize(("read", "sorted_"), [(1, 300), (37, 200), (1000, 1), (1 << 20, 1 << 20)])
@pytest.mark.parametrize("count", [0, 1, 60])
def test_it_is_what_a_plain_count_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: int, sorted_: int, count: int
) -> None:
    small(monkeypatch, read, sorted_)
    counts = [Counter(text.split()) for text in made(1, count)]
    vocabulary = invert(counts, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == list(FILES)
    assert vocabulary == sorted({term for one in counts for term in one})
    frequencies, lengths, rows, starts = (np.load(tmp_path / name) for name in FILES)
    assert (frequencies.dtype, lengths.dtype, rows.dtype, starts.dtype) == ("f4", "f4", "i4", "i8")
    for number, term in enumerate(vocabulary):
        own = slice(starts[number], starts[number + 1])
        there = [(row, one[term]) for row, one in enumerate(counts) if term in one]
        assert list(zip(rows[own].tolist(), frequencies[own].tolist(), strict=True)) == there
    assert lengths.tolist() == [one.total() for one in counts]
    assert int(starts[-1]) == len(rows) == len(frequencies) == sum(map(len, counts))


def test_written_and_built_indexes_are_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = made(2, 200)
    KeywordIndex.build(texts, Analyzer("none"), 0.9, 0.4).save(tmp_path / "built")
    small(monkeypatch, 50, 300)
    terms = KeywordIndex.write(tmp_path / "written", iter(texts), Analyzer("none"), 0.9, 0.4)
    names = sorted(path.name for path in (tmp_path / "built").iterdir())
    assert names == sorted([*FILES, "keyword.json", "vocabulary.txt"])
    assert names == sorted(path.name for path in (tmp_path / "written").iterdir())
    for name in names:
        assert (tmp_path / "built" / name).read_bytes() == (tmp_path / "written" / name).read_bytes()
    assert terms == len(KeywordIndex.load(tmp_path / "written").vocabulary)


def test_nothing_is_left_of_what_failed(tmp_path: Path) -> None:
    def texts() -> Iterator[Counter[str]]:
        yield Counter(["a", "b"])
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        invert(texts(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_postings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """150 different words a text: 1,200 bytes, were they held."""
    small(monkeypatch, 5000, 20_000)

    def peak(count: int) -> int:
        texts = (
            dict.fromkeys([f"w{row % 7 + 7 * place}" for place in range(150)], 1) for row in range(count)
        )
        tracemalloc.start()
        invert(texts, tmp_path)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert (peak(2000) - peak(500)) / 1500 < 100
