from __future__ import annotations

import random

import pytest

from searchfit.shingles import contained

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
