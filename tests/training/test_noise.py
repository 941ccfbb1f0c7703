from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import save_encoder

from searchfit.config import ModelSettings, PretrainSettings
from searchfit.encoders import load_encoder
from searchfit.training.denoise import delete_words
from searchfit.training.unmask import IGNORED, Masking, mask_tokens


def test_the_share_of_words_is_deleted_and_the_rest_keeps_its_order() -> None:
    words = [f"w{i}" for i in range(20_000)]
    left = delete_words(" ".join(words), 0.6, np.random.default_rng(1)).split()
    assert len(left) / len(words) == pytest.approx(0.4, abs=0.01)
    places = [int(word[1:]) for word in left]
    assert places == sorted(set(places))
    assert delete_words("one two  three.", 0.0, np.random.default_rng(1)) == "one two  three."


@pytest.mark.parametrize(
    "text", ["one", "one two", "  (one) two! ", "東京都の天気は晴れ", "ภาษาไทยไม่มีช่องว่าง"]
)
def test_something_always_stays(text: str) -> None:
    for seed in range(30):
        left = delete_words(text, 0.99, np.random.default_rng(seed))
        assert left.strip()
        assert len(left) <= len(text)
    many = {delete_words(f"{text} " * 9, 0.6, np.random.default_rng(seed)) for seed in range(9)}
    assert len(many) > 1


@pytest.mark.parametrize("text", ["", " ", "?!", "\n"])
def test_a_text_without_words_stays(text: str) -> None:
    assert delete_words(text, 0.6, np.random.default_rng(1)) == text


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60), st.integers(0, 99))
def test_what_is_left_is_made_of_the_text(text: str, seed: int) -> None:
    left = iter(text)
    assert all(char in left for char in delete_words(text, 0.6, np.random.default_rng(seed)))


def test_hidden_tokens_are_masked_changed_or_left() -> None:
    random = np.random.default_rng(1)
    ids = random.integers(10, 5000, (64, 500))
    words = np.broadcast_to(np.arange(500), ids.shape).copy()
    words[:, 0] = words[:, 400:] = -1
    got, labels = mask_tokens(ids, words, 0.15, (4, 5000), random)
    hidden = labels != IGNORED
    assert not hidden[words < 0].any()
    assert hidden[words >= 0].mean() == pytest.approx(0.15, abs=0.01)
    assert (labels[hidden] == ids[hidden]).all()
    assert (got[~hidden] == ids[~hidden]).all()
    assert (got[hidden] == 4).mean() == pytest.approx(0.8, abs=0.02)
    assert (got[hidden] == ids[hidden]).mean() == pytest.approx(0.1, abs=0.02)


def test_every_text_loses_a_token_and_blank_ones_none() -> None:
    ids = np.full((3, 4), 9)
    words = np.array([[-1, 0, 1, -1], [-1, 0, -1, -1], [-1, -1, -1, -1]])
    for seed in range(20):
        _, labels = mask_tokens(ids, words, 0.001, (4, 50), np.random.default_rng(seed))
        assert (labels != IGNORED).sum(axis=1).tolist() == [1, 1, 0]


def test_tokens_of_a_word_are_hidden_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_encoder("bert", tmp_path / "bert")
    encoder = load_encoder(ModelSettings(name=str(folder), precision="fp32"))
    text = "anchor unheardofword violin strangestuff tide"
    spans = [range(1, 2), range(2, 15), range(15, 16), range(16, 28), range(28, 29)]
    together, apart = 0, 0
    for whole in (True, False):
        task = Masking(encoder, PretrainSettings(objective="mlm", whole_words=whole, masked=0.4), 1)
        labels: list[np.ndarray] = []

        def keep(*given: Any, labels: list[np.ndarray] = labels) -> Any:
            hidden, own = mask_tokens(*given)
            labels.append(own[0])
            return hidden, own

        monkeypatch.setattr("searchfit.training.unmask.mask_tokens", keep)
        for seed in range(12):
            task.loss([text], np.random.default_rng(seed))
        assert len(labels[0]) == 30
        split = sum(0 < (row[list(span)] != IGNORED).mean() < 1 for row in labels for span in spans)
        together, apart = (split, apart) if whole else (together, split)
    assert together == 0
    assert apart > 5
