from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.util import pairwise_cos_sim, pairwise_dot_score
from training_tools import make_model, small_set

from searchfit.errors import SettingsError
from searchfit.objectives import OBJECTIVES, load_objective
from searchfit.training.data import Feed, TrainingSet
from searchfit.training.loop import Loop, LoopOptions
from searchfit.training.towers import Towers

# What each objective learns from in these tests: labels and negatives.
DATA = {
    "mnr": ("", 2),
    "mnr-cached": ("", 2),
    "mnr-symmetric": ("", 0),
    "distill": ("scores", 2),
    "margin-mse": ("scores", 2),
    "contrastive": ("binary", 0),
    "online-contrastive": ("binary", 0),
    "cosine": ("graded", 0),
    "triplet": ("", 2),
}
EVERYTHING = np.arange(12)
KINDS = ("query", "shared", "separate")


def data_for(name: str) -> TrainingSet:
    labels, negatives = DATA[name]
    return small_set(negatives=negatives, labels=labels)


def towers_of(model: Any, data: TrainingSet, kind: Any, **values: Any) -> tuple[Towers, Feed]:
    towers = Towers.of(kind, model, **values)
    vectors = model.encode_document(data.texts) if kind == "query" else None
    return towers, Feed(data, towers, vectors)


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    return {name: make_model(tiny_model, folder / name, name) for name in ("mean", "cls")}


def test_every_objective_is_tried() -> None:
    assert DATA.keys() == OBJECTIVES.keys()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_trains_lowers_its_loss_and_reloads_equal(
    models: dict[str, Any], tmp_path: Path, name: str, kind: Any, pooling: str
) -> None:
    model, data = models[pooling], data_for(name)
    towers, feed = towers_of(model, data, kind)
    before = model.encode_query(data.queries), model.encode_document(data.texts)
    options = {"mini_batch": 5} if name == "mnr-cached" else {}
    objective = load_objective(name, towers, options)
    objective.check(data.rows, data.labels)

    def loss(_step: int, _part: int) -> torch.Tensor:
        return objective.loss(*feed.batch(EVERYTHING))

    history = Loop(
        towers.module,
        loss,
        LoopOptions(steps=15, learning_rate=3e-3, schedule="constant", warmup=0.0),
        tmp_path / "run",
    ).run()
    assert history.losses[3] != history.losses[0]
    assert min(history.losses[-3:]) < 0.9 * history.losses[0]

    tuned = towers.assemble(model)
    tuned.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    again = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    queries, texts = again.encode_query(data.queries), again.encode_document(data.texts)
    np.testing.assert_array_equal(queries, tuned.encode_query(data.queries))
    np.testing.assert_array_equal(texts, tuned.encode_document(data.texts))
    assert np.abs(queries - before[0]).max() > 1e-3
    assert (np.abs(texts - before[1]).max() == 0) == (kind == "query")
    np.testing.assert_array_equal(model.encode_query(data.queries), before[0])  # the base stays as it was


def library_loss(name: str, model: Any) -> Any:
    """The same loss, straight from the library."""
    made: dict[str, Any] = {
        "mnr": lambda: losses.MultipleNegativesRankingLoss(model),
        "mnr-cached": lambda: losses.MultipleNegativesRankingLoss(model),
        "mnr-symmetric": lambda: losses.MultipleNegativesSymmetricRankingLoss(model),
        "distill": lambda: losses.DistillKLDivLoss(model, pairwise_cos_sim, temperature=0.1),
        "margin-mse": lambda: losses.MarginMSELoss(model),
        "contrastive": lambda: losses.ContrastiveLoss(model),
        "online-contrastive": lambda: losses.OnlineContrastiveLoss(model),
        "cosine": lambda: losses.CosineSimilarityLoss(model),
        "triplet": lambda: losses.TripletLoss(model, losses.TripletDistanceMetric.COSINE, 0.5),
    }
    return made[name]()


def library_value(name: str, model: Any, data: TrainingSet) -> float:
    """The library's loss on the texts as the library tokenises them."""
    columns = [data.queries, *([data.texts[i] for i in column] for column in data.rows.T)]
    labels = None if data.labels is None else torch.from_numpy(data.labels)

    def once(own: list[list[str]]) -> float:
        loss = library_loss(name, model)
        with torch.no_grad():
            return float(loss([model.preprocess(texts) for texts in own], labels))

    if name == "triplet":  # the library takes one negative
        return (once([columns[0], columns[1], columns[2]]) + once([columns[0], columns[1], columns[3]])) / 2
    if name == "distill":  # the library multiplies by the temperature squared
        return once(columns) / 0.1**2
    return once(columns)


@pytest.mark.parametrize("chunk", [None, 60])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_its_loss_is_the_librarys(models: dict[str, Any], name: str, kind: Any, chunk: int | None) -> None:
    data = data_for(name)
    towers, feed = towers_of(models["mean"], data, kind, chunk_tokens=chunk)
    towers.module.eval()
    found = load_objective(name, towers).loss(*feed.batch(EVERYTHING))
    assert found.item() == pytest.approx(library_value(name, models["mean"], data), rel=1e-4)


def gradients(towers: Towers, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    towers.module.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in towers.module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mini_batch", [1, 5, 100])
def test_the_cached_loss_has_the_gradients_of_the_plain_one(
    models: dict[str, Any], kind: Any, mini_batch: int
) -> None:
    data = data_for("mnr")
    towers, feed = towers_of(models["mean"], data, kind)
    plain = load_objective("mnr", towers).loss(*feed.batch(EVERYTHING))
    expected = gradients(towers, plain)
    objective = load_objective("mnr-cached", towers, {"mini_batch": mini_batch})
    loss = objective.loss(*feed.batch(EVERYTHING))
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    torch.testing.assert_close(gradients(towers, loss), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["margin-mse", "cosine", "contrastive", "distill", "triplet"])
def test_accumulated_parts_are_the_large_batch(models: dict[str, Any], tmp_path: Path, name: str) -> None:
    data, weights, courses = data_for(name), [], []
    for parts in (1, 3):
        towers, feed = towers_of(models["mean"], data, "shared")
        objective = load_objective(name, towers)

        def loss(_step: int, part: int, parts: int = parts, feed: Feed = feed, own: Any = objective) -> Any:
            return own.loss(*feed.batch(np.split(EVERYTHING, parts)[part]))

        options = LoopOptions(steps=4, learning_rate=1e-3, accumulate=parts)
        courses.append(Loop(towers.module, loss, options, tmp_path / str(parts)).run().losses)
        weights.append(towers.query.encode(data.queries))
    assert courses[1] == pytest.approx(courses[0], rel=1e-3)
    np.testing.assert_allclose(weights[1], weights[0], atol=2e-3)


def test_in_batch_negatives_are_not_the_large_batch(models: dict[str, Any]) -> None:
    """Why the cached form exists."""
    data = data_for("mnr")
    towers, feed = towers_of(models["mean"], data, "shared")
    objective = load_objective("mnr", towers)
    parts = [objective.loss(*feed.batch(part)).item() for part in np.split(EVERYTHING, 3)]
    assert abs(np.mean(parts) - objective.loss(*feed.batch(EVERYTHING)).item()) > 0.01


@pytest.mark.parametrize("name", list(OBJECTIVES))
@pytest.mark.parametrize("kind", KINDS)
def test_matryoshka_is_the_sum_over_the_beginnings_of_the_vectors(
    models: dict[str, Any], name: str, kind: Any
) -> None:
    data = data_for(name)
    towers, feed = towers_of(models["mean"], data, kind)
    objective = load_objective(name, towers, {"matryoshka": [8, 16]})
    plain = load_objective(name, towers)
    features, labels = feed.batch(EVERYTHING)
    with torch.no_grad():
        vectors = [towers(column)["sentence_embedding"] for column in features]
    expected = 0.0
    for dims in (32, 16, 8):
        own = [{"sentence_embedding": torch.nn.functional.normalize(v[:, :dims], dim=-1)} for v in vectors]
        expected += plain.loss(own, labels).item()
    loss = objective.loss(features, labels)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert gradients(towers, loss)


@pytest.mark.parametrize("name", ["mnr", "mnr-cached", "mnr-symmetric", "distill", "margin-mse"])
def test_the_similarity_is_followed(models: dict[str, Any], name: str) -> None:
    data = data_for(name)
    towers, feed = towers_of(models["mean"], data, "shared")
    values = {
        kind: load_objective(name, towers, {"similarity": kind}).loss(*feed.batch(EVERYTHING)).item()
        for kind in ("cosine", "dot")
    }
    assert values["cosine"] != pytest.approx(values["dot"], rel=1e-3)
    unit = [
        {"sentence_embedding": torch.nn.functional.normalize(towers(one)["sentence_embedding"], dim=-1)}
        for one in feed.batch(EVERYTHING)[0]
    ]
    scale = {"scale": 20.0} if name.startswith("mnr") else {}
    own = load_objective(name, towers, {"similarity": "dot", **scale})
    assert own.loss(unit, feed.batch(EVERYTHING)[1]).item() == pytest.approx(values["cosine"], rel=1e-4)


def test_margin_mse_by_hand(models: dict[str, Any]) -> None:
    data = data_for("margin-mse")
    towers, feed = towers_of(models["mean"], data, "shared")
    features, labels = feed.batch(EVERYTHING)
    query, *texts = (towers(one)["sentence_embedding"] for one in features)
    scores = torch.stack([pairwise_dot_score(query, text) for text in texts], dim=1)
    assert labels is not None
    errors = (scores[:, :1] - scores[:, 1:]) - (labels[:, :1] - labels[:, 1:])
    found = load_objective("margin-mse", towers).loss(features, labels)
    assert found.item() == pytest.approx((errors**2).mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "labels", "negatives", "said"),
    [
        ("distill", "", 2, "teacher's scores"),
        ("margin-mse", "", 2, "teacher's scores"),
        ("margin-mse", "scores", 0, "at least one negative"),
        ("triplet", "", 0, "at least one negative"),
        ("contrastive", "", 0, "a label for each pair"),
        ("contrastive", "graded", 0, "0 or 1"),
        ("online-contrastive", "graded", 0, "0 or 1"),
        ("contrastive", "binary", 1, "takes pairs, not negatives"),
        ("cosine", "", 0, "a label for each pair"),
        ("cosine", "scores", 2, "a label for each pair"),
        ("mnr", "binary", 0, "6 pairs are labelled as none"),
        ("mnr-cached", "binary", 2, "6 pairs are labelled as none"),
        ("triplet", "binary", 2, "6 pairs are labelled as none"),
    ],
)
def test_what_contradicts_the_objective_is_refused(name: str, labels: str, negatives: int, said: str) -> None:
    data = small_set(negatives=negatives, labels=labels)
    with pytest.raises(SettingsError, match=said) as caught:
        load_objective(name, object_with_dimension()).check(data.rows, data.labels)
    assert caught.value.hint


def test_labels_beyond_1_are_refused() -> None:
    data = small_set(negatives=0, labels="graded")
    with pytest.raises(SettingsError, match="from 0 to 1"):
        load_objective("cosine", object_with_dimension()).check(data.rows, 5 * np.asarray(data.labels))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("nothing", {}, "unknown"),
        ("mnr", {"margin": 1.0}, "no option 'margin'"),
        ("cosine", {"similarity": "dot"}, "no option 'similarity'"),
        ("mnr", {"similarity": "near"}, "'near' is unknown"),
        ("mnr", {"scale": 0}, "positive"),
        ("triplet", {"margin": -1}, "positive"),
        ("contrastive", {"distance": "taxi"}, "'taxi' is unknown"),
        ("distill", {"temperature": 0}, "positive"),
        ("mnr", {"matryoshka": [64]}, "model's 32"),
        ("mnr", {"matryoshka": [8], "similarity": "dot"}, "unit length"),
    ],
)
def test_what_cannot_be_is_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load_objective(name, object_with_dimension(), options)


def object_with_dimension() -> Any:
    """As much of a model as the losses ask for when they are made."""

    class Stub(list):  # type: ignore[type-arg]
        def get_embedding_dimension(self) -> int:
            return 32

    return Stub([torch.nn.Identity()])
