from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from searchfit.config import ModelSettings
from searchfit.encoders import fingerprint, load_encoder, load_tokenizer, locate
from searchfit.encoders.sentence import SentenceEncoder
from searchfit.errors import ModelError

TEXTS = [
    "The anchor and the keel.",
    "x",
    "Our guide to the glacier explains why a ridge near the hut needs so much patience. " * 3,
    "",
    "violin",
    "Nobody had expected that the old rose would outlast both the soil and the compost.",
    "Unseen words: Übergröße, 東京!",
]


def settings(folder: Path, **options: Any) -> ModelSettings:
    return ModelSettings(name=str(folder), **{"precision": "fp32", **options})


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> SentenceEncoder:
    return load_encoder(settings(tiny_model))


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> Any:
    """The independent way: sentence-transformers alone, one text at a time."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(tiny_model), device="cpu")


def one_by_one(model: Any, texts: list[str], **options: Any) -> np.ndarray:
    return np.stack([model.encode(text, normalize_embeddings=True, **options) for text in texts])


@pytest.fixture(scope="module")
def tuned_weights(encoder: SentenceEncoder) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(3)
    return {
        name: value + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in encoder.query_modules().state_dict().items()
        if value.is_floating_point()
    }


def test_vectors_come_in_the_order_of_the_texts(
    encoder: SentenceEncoder, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("searchfit.encoders.sentence._BATCH_TOKENS", {"cpu": 40, "gpu": 40})
    expected = one_by_one(plain, TEXTS)
    for vectors in (encoder.encode_queries(TEXTS), encoder.encode_documents(TEXTS)):
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, expected, atol=2e-6)
    assert encoder.encode_queries([]).shape == (0, 32)
    assert encoder.dimension == 32


def test_bf16_vectors_are_close_and_of_unit_length(tiny_model: Path, plain: Any) -> None:
    rough = load_encoder(settings(tiny_model, precision="bf16"))
    assert rough.bf16
    vectors = rough.encode_documents(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (vectors * one_by_one(plain, TEXTS)).sum(axis=1).min() > 0.99


def test_the_users_prompts_go_before_the_texts(tiny_model: Path, plain: Any, tmp_path: Path) -> None:
    own = load_encoder(settings(tiny_model, query_prompt="query: ", document_prompt="notes on "))
    queries = one_by_one(plain, [f"query: {text}" for text in TEXTS])
    documents = one_by_one(plain, [f"notes on {text}" for text in TEXTS])
    np.testing.assert_allclose(own.encode_queries(TEXTS), queries, atol=2e-6)
    np.testing.assert_allclose(own.encode_documents(TEXTS), documents, atol=2e-6)
    np.testing.assert_allclose(own.encode_passages(TEXTS, [[]] * len(TEXTS))[0], documents, atol=2e-6)
    own.save(tmp_path / "saved")
    from sentence_transformers import SentenceTransformer

    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(again.encode_query(TEXTS, normalize_embeddings=True), queries, atol=2e-6)
    np.testing.assert_allclose(again.encode_document(TEXTS, normalize_embeddings=True), documents, atol=2e-6)


def test_the_models_own_prompts_are_used(tiny_model: Path, plain: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    file = folder / "config_sentence_transformers.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "prompts": {"query": "query: ", "document": "notes on "}}))
    own = load_encoder(settings(folder))
    queries = one_by_one(plain, [f"query: {text}" for text in TEXTS])
    documents = one_by_one(plain, [f"notes on {text}" for text in TEXTS])
    two_towers = own.with_query_weights({}, 1.0)
    for encoder in (own, two_towers):
        np.testing.assert_allclose(encoder.encode_queries(TEXTS), queries, atol=2e-6)
        np.testing.assert_allclose(encoder.encode_documents(TEXTS), documents, atol=2e-6)
        np.testing.assert_allclose(encoder.encode_passages(TEXTS, [[]] * 7)[0], documents, atol=2e-6)
        assert encoder.query_modules().prompts["query"] == "query: "  # so that training sees it too


def token_mean(folder: Path, text: str, start: int, end: int) -> np.ndarray:
    """With transformers alone: the mean of the states of the tokens that begin in a span."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    features = tokenizer(text, return_tensors="pt", return_offsets_mapping=True, truncation=True)
    offsets = features.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        states = model(**features).last_hidden_state[0].numpy()
    mean = states[[i for i, (a, b) in enumerate(offsets) if b > a and start <= a < end]].mean(axis=0)
    return np.asarray(mean / np.linalg.norm(mean))


@pytest.mark.parametrize("prompt", ["", "notes on "])
def test_spans_are_read_within_their_passage(tiny_model: Path, prompt: str) -> None:
    own = load_encoder(settings(tiny_model, document_prompt=prompt))
    assert own.late_pooling
    text = "The rose is old. Visitors who ask for the Übergröße wait! x"
    spans = [[(0, 16), (17, 57), (58, 59)], [], [(0, 1)]]
    passages, inner, _ = own.encode_passages([text, "violin", "x"], spans)
    assert passages.shape == (3, 32)
    assert inner.shape == (4, 32)
    np.testing.assert_allclose(passages, own.encode_documents([text, "violin", "x"]), atol=2e-6)
    shift = len(prompt)
    for (start, end), vector in zip(spans[0], inner, strict=False):
        expected = token_mean(tiny_model, prompt + text, start + shift, end + shift)
        np.testing.assert_allclose(vector, expected, atol=2e-6)
    np.testing.assert_allclose(inner[3], token_mean(tiny_model, f"{prompt}x", shift, 1 + shift), atol=2e-6)


def test_a_span_beyond_the_window_takes_the_passages_vector(encoder: SentenceEncoder) -> None:
    text = "rose " * 200 + "violin."
    passages, inner, _ = encoder.encode_passages([text], [[(0, 20), (1000, 1007)]])
    np.testing.assert_allclose(inner[1], passages[0], atol=1e-6)


def test_models_that_pool_otherwise_read_spans_alone(tiny_model: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    base = SentenceTransformer(str(tiny_model), device="cpu")
    model = SentenceTransformer(modules=[base[0], Pooling(32, pooling_mode="cls"), Normalize()], device="cpu")
    model.save_pretrained(str(tmp_path / "cls"), create_model_card=False)
    encoder = load_encoder(settings(tmp_path / "cls"))
    assert not encoder.late_pooling
    text = "The rose is old. The soil too."
    passages, inner, _ = encoder.encode_passages([text], [[(0, 16), (17, 30)]])
    np.testing.assert_allclose(passages, encoder.encode_documents([text]), atol=2e-6)
    np.testing.assert_allclose(
        inner, encoder.encode_documents(["The rose is old.", "The soil too."]), atol=2e-6
    )


def test_no_share_of_the_weights_is_the_untuned_model_and_all_is_the_tuned(
    encoder: SentenceEncoder, tuned_weights: dict[str, Any]
) -> None:
    import torch

    untuned = encoder.with_query_weights(tuned_weights, 0.0)
    np.testing.assert_array_equal(untuned.encode_queries(TEXTS), encoder.encode_queries(TEXTS))
    tuned = encoder.with_query_weights(tuned_weights, 1.0)
    model = encoder.query_modules()
    model.load_state_dict({**model.state_dict(), **tuned_weights})
    with torch.no_grad():
        expected = one_by_one(model, TEXTS)
    np.testing.assert_allclose(tuned.encode_queries(TEXTS), expected, atol=2e-6)
    assert np.abs(tuned.encode_queries(TEXTS) - encoder.encode_queries(TEXTS)).max() > 0.01
    np.testing.assert_array_equal(tuned.encode_documents(TEXTS), encoder.encode_documents(TEXTS))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_merged_weights_lie_on_the_line_between(
    encoder: SentenceEncoder, tuned_weights: dict[str, Any], share: float
) -> None:
    import torch

    before = encoder.query_modules().state_dict()
    merged = encoder.with_query_weights(tuned_weights, share).query_modules().state_dict()
    for name, value in tuned_weights.items():
        expected = (1 - share) * before[name].double() + share * value.double()
        torch.testing.assert_close(merged[name].double(), expected, atol=1e-6, rtol=0)
    after = encoder.query_modules().state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # and the encoder stayed as it was


def test_saved_towers_open_with_sentence_transformers(
    encoder: SentenceEncoder, tuned_weights: dict[str, Any], tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    tuned = encoder.with_query_weights(tuned_weights, 0.5)
    tuned.save(tmp_path / "two")
    again = SentenceTransformer(str(tmp_path / "two"), device="cpu")
    np.testing.assert_allclose(again.encode_query(TEXTS), tuned.encode_queries(TEXTS), atol=2e-6)
    np.testing.assert_allclose(again.encode_document(TEXTS), encoder.encode_documents(TEXTS), atol=2e-6)
    reopened = load_encoder(settings(tmp_path / "two"))
    np.testing.assert_array_equal(reopened.encode_queries(TEXTS), tuned.encode_queries(TEXTS))
    assert reopened.late_pooling
    once_more = reopened.with_query_weights(tuned_weights, 1.0)  # a tuned model can be tuned on
    expected = encoder.with_query_weights(tuned_weights, 1.0).encode_queries(TEXTS)
    np.testing.assert_allclose(once_more.encode_queries(TEXTS), expected, atol=2e-6)
    assert load_tokenizer(settings(tmp_path / "two")).max_tokens == 96


def test_pickled_weights_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    for load in (load_encoder, load_tokenizer, fingerprint):
        with pytest.raises(ModelError, match=r"only pytorch_model\.bin"):
            load(settings(folder))


def test_pickled_weights_beside_other_safetensors_are_not_loaded(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    folder = tmp_path / "mixed"
    shutil.copytree(tiny_model, folder)
    (folder / "adapter").mkdir()
    (folder / "model.safetensors").rename(folder / "adapter" / "model.safetensors")
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_encoder(settings(folder))


def test_remote_code_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "remote"
    shutil.copytree(tiny_model, folder)
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), "model_type": "own", "architectures": ["Model"]}
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_encoder(settings(folder))
    assert not ran.exists()


def test_modules_of_the_folder_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "modules"
    shutil.copytree(tiny_model, folder)
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    modules = json.loads((folder / "modules.json").read_text())
    modules[-1] |= {"type": "own.Own"}
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_encoder(settings(folder))
    assert not ran.exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [("./nowhere", "no such folder"), ("nowhere", "not a hub id"), ("/no/such/folder", "no such folder")],
)
def test_a_missing_model_is_an_error(name: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        locate(name)


def test_files_and_empty_folders_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="is a file"):
        locate(str(tmp_path / "file"))
    with pytest.raises(ModelError, match="no safetensors"):
        locate(str(tmp_path))


@pytest.mark.parametrize("damage", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_model_is_an_error(tiny_model: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_model, folder)
    (folder / damage).write_bytes(b"\0{")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_encoder(settings(folder))
    if damage != "model.safetensors":
        with pytest.raises(ModelError, match="cannot be loaded"):
            load_tokenizer(settings(folder))


def test_tokens_are_counted_as_the_model_sees_them(tiny_model: Path, plain: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    texts = [*TEXTS, "rose " * 300]
    window = load_tokenizer(settings(tiny_model))
    expected = [len(tokenizer(text, truncation=False)["input_ids"]) for text in texts]
    assert window.count(texts).tolist() == expected
    assert expected[-1] == 302
    assert window.count([]).tolist() == []
    assert window.max_tokens == plain.max_seq_length == 96


def test_the_window_is_the_smallest_that_the_folder_names(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "window"
    shutil.copytree(tiny_model, folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    for stated, expected in ((64, 64), (10**30, None), (None, None)):
        file.write_text(json.dumps({**config, "model_max_length": stated}))
        window = load_tokenizer(settings(folder)).max_tokens
        model = load_encoder(settings(folder)).model
        assert window == model.max_seq_length
        assert expected is None or window == expected


def test_fingerprints_tell_models_and_prompts(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_model, folder)
    assert fingerprint(settings(folder)) == fingerprint(settings(tiny_model))
    assert fingerprint(settings(folder, query_prompt="q: ")) != fingerprint(settings(tiny_model))
    assert fingerprint(settings(folder, query_prompt="ab")) != fingerprint(
        settings(folder, query_prompt="a", document_prompt="b")
    )
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    (other / "vocab.txt").write_text("x")
    assert fingerprint(settings(other)) != fingerprint(settings(folder))
