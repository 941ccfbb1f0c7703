from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from searchfit import shingles
from searchfit.shingles import alike, contained, signatures

WORDS = [f"word{n}" for n in range(3000)]


def prose(seed: int, words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def grams(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + 4]) for i in range(len(words) - 3)}


def test_the_share_is_that_of_a_plain_count() -> None:
    chance = random.Random(1)
    small = [f"w{n}" for n in range(6)]  # few words, so that many runs are common
    texts = [" ".join(chance.choices(small, k=chance.randint(5, 60))) for _ in range(40)]
    others = [" ".join(chance.choices(small, k=chance.randint(5, 200))) for _ in range(30)]
    rows, shares = contained(texts, others)
    for text, row, share in zip(texts, rows, shares, strict=True):
        every = [len(grams(text) & grams(other)) / len(grams(text)) for other in others]
        assert share == pytest.approx(max(every))
        assert row == -1 if max(every) == 0 else every[row] == max(every)


@pytest.mark.parametrize("words", [35, 60, 160])
def test_a_copy_with_three_words_changed_is_found_in_a_longer_text(words: int) -> None:
    text = prose(1, words)
    copy = text.split()
    for place in (words // 4, words // 2, 3 * words // 4):
        copy[place] = "other"
    others = [prose(2, 400), f"{prose(3, 300)} {' '.join(copy)} {prose(4, 300)}"]
    rows, shares = contained([text, prose(5, words)], others)
    assert rows[0] == 1
    assert shares[0] >= 0.6
    assert shares[1] < 0.05


def test_nothing_to_compare() -> None:
    rows, shares = contained(["some text"], [])
    assert (rows.tolist(), shares.tolist()) == ([-1], [0.0])
    assert contained([], ["some text"])[0].tolist() == []
    assert contained(["?", ""], ["?", "x"])[1].tolist() == [1.0, 0.0]


def copies(count: int) -> list[str]:
    """Texts of which some are copies of others, some but for a few words, and some hold nothing."""
    chance = random.Random(6)
    texts = [prose(n, 40) for n in range(count)]
    for _ in range(count):
        words = texts[chance.randrange(count)].split()
        for _ in range(chance.randrange(4) if words else 0):
            words[chance.randrange(len(words))] = "other"
        texts[chance.randrange(count)] = " ".join(words)
    return [*texts, "", "?", ""]


@pytest.mark.parametrize("threshold", [0.3, 0.7, 1.0])
def test_neighbours_that_share_a_band_are_compared_by_all_values(
    monkeypatch: pytest.MonkeyPatch, threshold: float
) -> None:
    monkeypatch.setattr(shingles, "_COMPARED", 5)
    signed = signatures(texts := copies(120), 123, 4)
    assert signed.shape == (32, 123, 4)
    expected = set()
    for band in signed:
        groups: dict[bytes, list[int]] = {}
        for row, values in enumerate(band):
            groups.setdefault(values.tobytes(), []).append(row)
        pairs = {pair for rows in groups.values() for pair in pairwise(rows)}
        expected |= {(a, b) for a, b in pairs if np.mean(signed[:, a] == signed[:, b]) >= threshold}
    found = list(alike(signed, threshold))
    assert set(found) == expected
    assert {(a, b) for a, b in found if texts[a] == texts[b]}


def test_signatures_in_a_file_are_those_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = copies(50)
    held = signatures(texts, len(texts), 4)
    monkeypatch.setattr(shingles, "_SIGNED", 7)
    kept = signatures(iter(texts), len(texts), 4, tmp_path / "signatures")
    assert (kept == held).all()
    assert (tmp_path / "signatures").stat().st_size == 512 * len(texts)
    assert list(alike(kept, 0.7)) == list(alike(held, 0.7))
    assert list(alike(signatures([], 0, 4, tmp_path / "none"), 0.7)) == []
