from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import KINDS, TEXTS, save_encoder

from searchfit.config import ModelSettings
from searchfit.encoders import fingerprint, load_encoder, load_tokenizer
from searchfit.encoders.sentence import SentenceEncoder
from searchfit.errors import SettingsError

POOLINGS = ("mean", "cls", "max", "weightedmean")
SOME = [*TEXTS[:5], "violin", ""]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("raw")
    return {kind: save_encoder(kind, folder / kind) for kind in KINDS}


def settings(folder: Path, **options: Any) -> ModelSettings:
    return ModelSettings(name=str(folder), **{"precision": "fp32", **options})


def states(folder: Path, text: str) -> np.ndarray:
    """(tokens, dimension) with transformers alone."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    features = tokenizer(text, return_tensors="pt", truncation=True, max_length=64)
    features.pop("token_type_ids", None)
    with torch.no_grad():
        return np.asarray(model(**features).last_hidden_state[0].numpy())


def pooled(tokens: np.ndarray, pooling: str) -> np.ndarray:
    weights = np.arange(1, len(tokens) + 1)[:, None]
    ways = {
        "mean": tokens.mean(axis=0),
        "cls": tokens[0],
        "max": tokens.max(axis=0),
        "weightedmean": (tokens * weights).sum(axis=0) / weights.sum(),
    }
    return np.asarray(ways[pooling])


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_raw_encoder_is_pooled_as_asked(raw: dict[str, Path], kind: str, pooling: str) -> None:
    encoder = load_encoder(settings(raw[kind], pooling=pooling, similarity="dot"))
    expected = np.stack([pooled(states(raw[kind], text), pooling) for text in SOME])
    np.testing.assert_allclose(encoder.encode_queries(SOME), expected, atol=1e-5)
    unit = load_encoder(settings(raw[kind], pooling=pooling))
    assert (encoder.similarity, unit.similarity) == ("dot", "cosine")
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(unit.encode_documents(SOME), expected, atol=1e-5)
    assert encoder.remarks == ()


@pytest.mark.parametrize("task", ["ForSequenceClassification", "ForMaskedLM"])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_of_other_tasks_are_encoders_too(tmp_path: Path, kind: str, task: str) -> None:
    folder = save_encoder(kind, tmp_path / kind, task)
    encoder = load_encoder(settings(folder))
    expected = np.stack([states(folder, text).mean(axis=0) for text in SOME])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode_queries(SOME), expected, atol=1e-5)
    assert "mean pooling was taken" in encoder.remarks[0]
    again = load_encoder(settings(folder))
    for name, value in encoder.model.state_dict().items():  # also of what the checkpoint does not hold
        assert (value == again.model.state_dict()[name]).all(), name


@pytest.mark.parametrize("kind", KINDS)
def test_texts_longer_than_the_positions_are_cut(tmp_path: Path, kind: str) -> None:
    folder = save_encoder(kind, tmp_path / kind, window=None)
    encoder = load_encoder(settings(folder))
    window = load_tokenizer(settings(folder)).max_tokens
    assert window == encoder.model.max_seq_length == (128 if kind in ("roberta", "mpnet") else 130)
    long = " ".join(["anchor"] * 300)
    assert np.isfinite(encoder.encode_documents([long])).all()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_head_is_the_same_at_every_load(
    raw: dict[str, Path], tmp_path: Path, kind: str, pooling: str
) -> None:
    import torch

    asked = {"pooling": pooling, "head_dim": 12, "head_dropout": 0.3, "normalize": True}
    torch.manual_seed(1)
    encoder = load_encoder(settings(raw[kind], **asked))
    torch.manual_seed(2)
    again = load_encoder(settings(raw[kind], **asked))
    vectors = encoder.encode_queries(SOME)
    assert vectors.shape == (len(SOME), encoder.dimension) == (len(SOME), 12)
    np.testing.assert_array_equal(vectors, again.encode_queries(SOME))
    names = [type(module).__name__ for module in encoder.model]
    assert names == ["Transformer", "Pooling", "Dropout", "Dense", "Normalize"]
    weight = encoder.model[3].linear.weight.detach().numpy()
    np.testing.assert_allclose(weight @ weight.T, np.eye(12), atol=1e-5)
    base = load_encoder(settings(raw[kind], pooling=pooling, similarity="dot")).encode_queries(SOME)
    expected = base @ weight.T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    encoder.save(tmp_path / "saved")
    for more in ({}, asked):  # the saved model has the head: asking for it again adds nothing
        reopened = load_encoder(settings(tmp_path / "saved", **more))
        np.testing.assert_array_equal(reopened.encode_queries(SOME), vectors)
        assert [type(module).__name__ for module in reopened.model] == names


def test_a_models_own_pooling_and_normalisation_can_be_overridden(tiny_model: Path) -> None:
    own = load_encoder(settings(tiny_model))
    other = load_encoder(settings(tiny_model, pooling="cls", normalize=False, similarity="dot"))
    assert [type(module).__name__ for module in other.model] == ["Transformer", "Pooling"]
    np.testing.assert_allclose(
        other.encode_queries(["violin"])[0], states(tiny_model, "violin")[0], atol=1e-5
    )
    assert np.abs(own.encode_queries(["violin"]) - other.encode_queries(["violin"])).max() > 0.01
    same = load_encoder(settings(tiny_model, pooling="mean", normalize=True))
    assert [type(module).__name__ for module in same.model] == ["Transformer", "Pooling", "Normalize"]
    np.testing.assert_array_equal(same.encode_queries(SOME), own.encode_queries(SOME))


def test_dot_products_are_of_the_vectors_as_the_model_gives_them(tiny_model: Path, tmp_path: Path) -> None:
    raw_vectors = settings(tiny_model, normalize=False, similarity="dot")
    encoder = load_encoder(raw_vectors)
    text = "The anchor is old. The violin too."
    passages, inner, _ = encoder.encode_passages([text, ""], [[(0, 18), (19, 34)], [(0, 0)]])
    np.testing.assert_allclose(passages, encoder.encode_documents([text, ""]), atol=1e-5)
    assert abs(np.linalg.norm(passages[0]) - 1) > 0.1
    tokens = states(tiny_model, text)[1:-1]
    np.testing.assert_allclose(inner[0], tokens[:5].mean(axis=0), atol=1e-5)
    np.testing.assert_array_equal(inner[2], passages[1])
    encoder.save(tmp_path / "saved")
    reopened = load_encoder(settings(tmp_path / "saved"))  # the model itself says how it is compared
    assert reopened.similarity == "dot"
    np.testing.assert_array_equal(reopened.encode_queries(SOME), encoder.encode_queries(SOME))
    from sentence_transformers import SentenceTransformer

    assert SentenceTransformer(str(tmp_path / "saved"), device="cpu").similarity_fn_name == "dot"


def test_spans_pass_through_the_head(raw: dict[str, Path]) -> None:
    encoder = load_encoder(settings(raw["bert"], head_dim=7))
    assert encoder.late_pooling
    text = "the anchor is old and the violin too"
    _, inner, _ = encoder.encode_passages([text], [[(0, 10), (11, len(text))]])
    weight = encoder.model[2].linear.weight.detach().numpy()
    tokens = states(raw["bert"], text)
    expected = weight @ tokens[1:3].mean(axis=0)
    np.testing.assert_allclose(inner[0], expected / np.linalg.norm(expected), atol=1e-5)
    alone = load_encoder(settings(raw["bert"], head_dim=7, pooling="cls"))
    assert not alone.late_pooling


def test_what_is_built_is_in_the_fingerprint(raw: dict[str, Path], tmp_path: Path) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"pooling": "cls"},
        {"head_dim": 8},
        {"head_dropout": 0.1},
        {"normalize": True},
        {"normalize": False},
        {"similarity": "dot"},
        {"query_prompt": "a"},
        {"document_prompt": "a"},
    ]
    assert len({fingerprint(settings(raw["bert"], **more)) for more in variants}) == len(variants)
    shutil.copytree(raw["bert"], tmp_path / "copy")
    assert fingerprint(settings(tmp_path / "copy")) == fingerprint(settings(raw["bert"]))


def test_what_the_modules_do_not_allow_is_refused(raw: dict[str, Path], tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import (
        Dense,
        Pooling,
        StaticEmbedding,
        Transformer,
    )

    base = SentenceTransformer(str(raw["bert"]), device="cpu")
    static = SentenceTransformer(modules=[StaticEmbedding(base.tokenizer, embedding_dim=8)], device="cpu")
    static.save_pretrained(str(tmp_path / "static"), create_model_card=False)
    assert load_encoder(settings(tmp_path / "static")).dimension == 8
    for more in ({"pooling": "mean"}, {"head_dim": 4}, {"head_dropout": 0.1}):
        with pytest.raises(SettingsError, match=f"model.{next(iter(more))}"):
            load_encoder(settings(tmp_path / "static", **more))
    transformer = base[0]
    assert isinstance(transformer, Transformer)
    both = [transformer, Pooling(32, ("mean", "max")), Dense(64, 10)]
    SentenceTransformer(modules=both, device="cpu").save_pretrained(
        str(tmp_path / "both"), create_model_card=False
    )
    double = load_encoder(settings(tmp_path / "both"))
    assert (double.dimension, double.late_pooling) == (10, False)
    with pytest.raises(SettingsError, match="takes 64"):
        load_encoder(settings(tmp_path / "both", pooling="cls"))


def changed(encoder: SentenceEncoder, seed: int) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in encoder.tower("query").state_dict().items()
        if value.is_floating_point()
    }


@pytest.mark.parametrize("head", [0, 12])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_towers_are_saved_with_their_routes(
    raw: dict[str, Path], tmp_path: Path, kind: str, pooling: str, head: int
) -> None:
    from sentence_transformers import SentenceTransformer

    asked = {"pooling": pooling, "head_dim": head, "query_prompt": "every ", "document_prompt": "old "}
    encoder = load_encoder(settings(raw[kind], **asked))
    one, other = changed(encoder, 1), changed(encoder, 2)
    plain = encoder.encode_queries(SOME), encoder.encode_documents(SOME)
    made = {
        "query": encoder.with_towers(one, None, 0.5),
        "shared": encoder.with_towers(one, one, 0.5),
        "separate": encoder.with_towers(one, other, 0.5),
    }
    for name, towers in made.items():
        queries, documents = towers.encode_queries(SOME), towers.encode_documents(SOME)
        assert np.abs(queries - plain[0]).max() > 0.01
        assert (np.abs(documents - plain[1]).max() > 0.01) == (name != "query")
        towers.save(tmp_path / name)
        for again in (settings(tmp_path / name), settings(tmp_path / name, **asked)):
            reopened = load_encoder(again)
            np.testing.assert_array_equal(reopened.encode_queries(SOME), queries)
            np.testing.assert_array_equal(reopened.encode_documents(SOME), documents)
        library = SentenceTransformer(str(tmp_path / name), device="cpu")
        ways = {"normalize_embeddings": True, "batch_size": 1}
        np.testing.assert_allclose(library.encode_query(SOME, **ways), queries, atol=1e-5)
        np.testing.assert_allclose(library.encode_document(SOME, **ways), documents, atol=1e-5)
        assert load_tokenizer(settings(tmp_path / name)).max_tokens == 64
        assert (tmp_path / name / "router_config.json").exists() == (name != "shared")
    np.testing.assert_array_equal(made["shared"].encode_queries(SOME), made["query"].encode_queries(SOME))
    np.testing.assert_array_equal(encoder.encode_queries(SOME), plain[0])  # the encoder stayed as it was


def test_towers_can_be_tuned_and_rebuilt_again(raw: dict[str, Path], tmp_path: Path) -> None:
    encoder = load_encoder(settings(raw["mpnet"]))
    one, other = changed(encoder, 1), changed(encoder, 2)
    encoder.with_towers(one, other, 1.0).save(tmp_path / "two")
    two = load_encoder(settings(tmp_path / "two"))
    back = two.with_towers(other, one, 1.0)
    np.testing.assert_array_equal(back.encode_queries(SOME), two.encode_documents(SOME))
    np.testing.assert_array_equal(back.encode_documents(SOME), two.encode_queries(SOME))
    headed = load_encoder(settings(tmp_path / "two", head_dim=5, pooling="cls", head_dropout=0.1))
    assert headed.encode_queries(SOME).shape == headed.encode_documents(SOME).shape == (len(SOME), 5)
    assert np.abs(headed.encode_queries(SOME) - headed.encode_documents(SOME)).max() > 0.01
    assert not headed.late_pooling
    with pytest.raises(KeyError):
        encoder.with_towers({"nothing": one["0.model.embeddings.word_embeddings.weight"]}, None, 1.0)
