from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from searchfit.encoders.cross import CrossEncoder
from searchfit.errors import ModelError

PAIRS = [
    ("rose soil", "The rose and the soil were checked before anybody touched the compost again."),
    ("anchor", "harbour"),
    ("violin sonata tempo chord", "The glacier near the summit."),
    ("oven dough saffron", "oven " * 200),
]


@pytest.fixture(scope="module")
def reranker(tiny_reranker: Path) -> Path:
    return tiny_reranker


def logits(folder: Path) -> np.ndarray:
    """What transformers itself says of each pair, one at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return np.array(
            [
                model(**tokenizer(*pair, truncation=True, max_length=96, return_tensors="pt")).logits.item()
                for pair in PAIRS
            ]
        )


def test_scores_are_the_sigmoid_of_the_model_s_output(reranker: Path) -> None:
    scores = CrossEncoder.load(str(reranker), "cpu").score(*zip(*PAIRS, strict=True))
    expected = 1 / (1 + np.exp(-logits(reranker)))
    assert scores.dtype == np.float32
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(scores, expected, atol=1e-4)


@pytest.mark.parametrize("activation", ["Identity", "Sigmoid"])
def test_a_saved_activation_changes_nothing(reranker: Path, tmp_path: Path, activation: str) -> None:
    import torch
    from sentence_transformers import CrossEncoder as Model

    model = Model(str(reranker), device="cpu", activation_fn=getattr(torch.nn, activation)())
    model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    queries, texts = zip(*PAIRS, strict=True)
    np.testing.assert_allclose(
        CrossEncoder.load(str(tmp_path / "saved")).score(queries, texts),
        1 / (1 + np.exp(-logits(reranker))),
        atol=1e-4,
    )


def test_no_pairs_no_scores(reranker: Path) -> None:
    assert CrossEncoder.load(str(reranker)).score([], []).shape == (0,)


def test_models_that_are_no_rerankers_are_refused(reranker: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no re-ranker"):
        CrossEncoder.load(str(tiny_model))
    with pytest.raises(ModelError, match="no such folder"):
        CrossEncoder.load(str(tmp_path / "absent"))
    damaged = shutil.copytree(reranker, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"\x10" * 100)
    with pytest.raises(ModelError, match="cannot be loaded"):
        CrossEncoder.load(str(damaged))
    config = (reranker / "config.json").read_text(encoding="utf-8")
    many = shutil.copytree(reranker, tmp_path / "many")
    (many / "config.json").write_text(
        config.replace('"0": "LABEL_0"', '"0": "no", "1": "yes"'), encoding="utf-8"
    )
    with pytest.raises(ModelError, match="2 outputs"):
        CrossEncoder.load(str(many))


def test_code_of_its_own_and_pickled_weights_are_refused(reranker: Path, tmp_path: Path) -> None:
    evil = shutil.copytree(reranker, tmp_path / "evil")
    config = (evil / "config.json").read_text(encoding="utf-8")
    mark = tmp_path / "ran"
    (evil / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Evil: pass\n", encoding="utf-8")
    auto = '{"AutoConfig": "evil.Evil", "AutoModelForSequenceClassification": "evil.Evil"}'
    changed = config.replace('"model_type": "bert"', f'"model_type": "evil", "auto_map": {auto}')
    assert changed != config
    (evil / "config.json").write_text(changed, encoding="utf-8")
    with pytest.raises(ModelError):
        CrossEncoder.load(str(evil))
    assert not mark.exists()
    pickled = shutil.copytree(reranker, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no safetensors"):
        CrossEncoder.load(str(pickled))


def test_bf16_says_nearly_the_same(reranker: Path) -> None:
    queries, texts = zip(*PAIRS, strict=True)
    exact = CrossEncoder.load(str(reranker), "cpu").raw(queries, texts)
    fast = CrossEncoder.load(str(reranker), "cpu", "bf16").raw(queries, texts)
    np.testing.assert_allclose(fast, exact, atol=0.1)
    assert not np.array_equal(fast, exact)


def test_an_encoder_gets_a_new_head_and_its_whole_window(tiny_model: Path, tmp_path: Path) -> None:
    """The head is the same each time, a saved one gives the same scores, and the encoder is the one named."""
    from safetensors.torch import load_file

    made = CrossEncoder.start(str(tiny_model), "cpu")
    queries, texts = zip(*PAIRS, strict=True)
    scores = made.raw(queries, texts)
    assert made.model.max_seq_length == 128  # the embedding model stops at 96
    np.testing.assert_array_equal(CrossEncoder.start(str(tiny_model), "cpu").raw(queries, texts), scores)
    made.save(tmp_path / "saved")
    np.testing.assert_allclose(
        CrossEncoder.load(str(tmp_path / "saved")).raw(queries, texts), scores, atol=1e-6
    )
    before = load_file(tiny_model / "model.safetensors")
    after = load_file(tmp_path / "saved" / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    np.testing.assert_array_equal(after[f"bert.{name}"], before[name])


def test_a_cross_encoder_is_trained_on_from_its_own_head(reranker: Path) -> None:
    queries, texts = zip(*PAIRS, strict=True)
    np.testing.assert_array_equal(
        CrossEncoder.start(str(reranker), "cpu").raw(queries, texts),
        CrossEncoder.load(str(reranker), "cpu").raw(queries, texts),
    )
