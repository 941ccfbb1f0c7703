from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from searchfit.training import texts as room
from searchfit.training.texts import Batches, Texts, write_texts


def test_texts_come_back_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_BLOCK", 7)
    made = [f"text {i} ü東" * (i % 5 + 1) for i in range(33)]
    with_blanks = [text for pair in zip(made, ["", " \n"] * 17, strict=False) for text in pair]
    write_texts(tmp_path / "texts", iter(with_blanks))
    held = Texts(tmp_path / "texts")
    assert held.lengths.tolist() == [len(text) for text in made]
    order = np.random.default_rng(1).permutation(33)
    assert held.take(order) == [made[i] for i in order]
    write_texts(tmp_path / "none", [])
    assert Texts(tmp_path / "none").lengths.tolist() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["none", "texts"]


def test_batches_hold_every_text_once_an_epoch_and_texts_of_like_length() -> None:
    lengths = np.random.default_rng(2).integers(1, 1000, 500).astype(np.int32)
    batches = Batches(lengths, 8, seed=3)
    epochs = [[batches.rows(epoch * 63 + i) for i in range(63)] for epoch in range(2)]
    assert batches.per_epoch == 63
    for rows in epochs:
        assert sorted(np.concatenate(rows).tolist()) == list(range(500))
        assert {len(row) for row in rows} <= {8, 4}
        spread = np.mean([np.ptp(lengths[row]) for row in rows])
        assert spread < 0.25 * 1000 * 7 / 9  # of random batches of 8: 7/9 of the range
    assert [row.tolist() for row in epochs[0]] != [row.tolist() for row in epochs[1]]
    later = Batches(lengths, 8, seed=3)  # a resumed run begins in the middle
    assert later.rows(100).tolist() == epochs[1][37].tolist()
    assert Batches(lengths, 8, seed=4).rows(0).tolist() != epochs[0][0].tolist()
