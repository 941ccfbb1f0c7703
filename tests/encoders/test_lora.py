from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import KINDS, TEXTS, save_encoder

from searchfit.config import ModelSettings
from searchfit.encoders import load_encoder
from searchfit.encoders.lora import lora_modules, merged
from searchfit.encoders.sentence import SentenceEncoder
from searchfit.errors import MissingExtraError, SettingsError

SOME = list(TEXTS[:6])


@pytest.fixture(scope="module", params=KINDS)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SentenceEncoder:
    folder = save_encoder(request.param, tmp_path_factory.mktemp("lora") / request.param)
    return load_encoder(ModelSettings(name=str(folder), precision="fp32", head_dim=8))


def vectors(model: Any) -> np.ndarray:
    model.eval()
    return np.asarray(model.encode(SOME, normalize_embeddings=True))


def test_adapters_train_alone_and_are_merged(encoder: SentenceEncoder, tmp_path: Path) -> None:
    import torch

    plain = encoder.encode_queries(SOME)
    before = {name: value.clone() for name, value in encoder.tower("query").state_dict().items()}
    model = lora_modules(encoder.tower("query"), rank=4, alpha=8)
    np.testing.assert_allclose(vectors(model), plain, atol=1e-6)
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert all(".lora_" in name for name in trained if name.startswith("0."))
    assert any(name.endswith("linear.weight") for name in trained if not name.startswith("0."))  # the head
    assert any(".attention." in name for name in trained)
    assert not any("pooler" in name for name in trained)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        out = model(model.preprocess(SOME))["sentence_embedding"]
        optimizer.zero_grad()
        out.square().mean().backward()
        optimizer.step()
    learnt = vectors(model)
    assert np.abs(learnt - plain).max() > 0.01
    weights = merged(model)
    assert weights.keys() == before.keys()
    tuned = encoder.with_towers(weights, None, 1.0)
    np.testing.assert_allclose(tuned.encode_queries(SOME), learnt, atol=1e-5)
    np.testing.assert_allclose(vectors(model), learnt, atol=1e-6)  # the adapters still stand beside
    tuned.save(tmp_path / "saved")
    reopened = load_encoder(ModelSettings(name=str(tmp_path / "saved"), precision="fp32"))
    np.testing.assert_array_equal(reopened.encode_queries(SOME), tuned.encode_queries(SOME))
    embeddings = "0.model.embeddings.word_embeddings.weight"
    assert torch.equal(weights[embeddings], before[embeddings])


def test_without_adapters_the_weights_are_the_models_own(encoder: SentenceEncoder) -> None:
    import torch

    model = encoder.tower("query")
    weights = merged(model)
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_adapters_begin_the_same_each_time_and_go_where_asked(tmp_path: Path) -> None:
    import torch

    folder = save_encoder("bert", tmp_path / "bert")
    encoder = load_encoder(ModelSettings(name=str(folder), precision="fp32"))
    one, other = (lora_modules(encoder.tower("query"), 4, 8, ("query", "value")) for _ in range(2))
    adapted = {name: value for name, value in one.named_parameters() if value.requires_grad}
    assert len(adapted) == 2 * 2 * 2  # layers, targets, matrices
    assert all(".query." in name or ".value." in name for name in adapted)
    assert all(torch.equal(dict(other.named_parameters())[name], value) for name, value in adapted.items())
    with pytest.raises(SettingsError, match="named nothing") as caught:
        lora_modules(encoder.tower("query"), 4, 8, ("nothing",))
    assert "dense, key, query, value" in caught.value.hint
    with pytest.raises(SettingsError, match="rank 0"):
        lora_modules(encoder.tower("query"), 0, 8)


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else found(name, *rest)
    )
    with pytest.raises(MissingExtraError, match=r"searchfit\[lora\]"):
        lora_modules(None)  # type: ignore[arg-type]
