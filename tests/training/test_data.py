from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_tools import make_model, sentences, small_set

from searchfit.errors import ModelError, SettingsError
from searchfit.records import LabelledPair
from searchfit.training.data import ABSENT, Feed, TrainingSet
from searchfit.training.tokens import TokenTable
from searchfit.training.towers import Towers, freeze_word_embeddings


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    prompts = {"query": "query: ", "document": "rose garden. "}
    return make_model(tiny_model, tmp_path_factory.mktemp("models") / "mean", prompts=prompts)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("with_prompt", [True, False])  # whether the prompt's tokens are pooled
def test_batches_are_what_the_model_itself_would_read(
    model: Any, monkeypatch: pytest.MonkeyPatch, left: bool, with_prompt: bool
) -> None:
    if left:
        monkeypatch.setattr(model.tokenizer, "padding_side", "left")
    monkeypatch.setattr(model[1], "include_prompt", with_prompt)
    texts = [*sentences(1500), "", "Ünwörter 日本", " ".join(sentences(20)), sentences(1)[0]]
    random = np.random.default_rng(0)
    for task, prompt in (("query", "query: "), ("document", "rose garden. ")):
        table = TokenTable.build(model, texts, task)
        for rows in ([3], [1502], [1500, 1501], random.integers(0, len(texts), 32)):
            found = table.collate(np.asarray(rows))
            expected = model.preprocess([texts[i] for i in rows], prompt=prompt)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                if isinstance(value, torch.Tensor):
                    assert torch.equal(found[name], value), name
                else:
                    assert found[name] == value
    assert table.lengths.max() == 96  # cut at the model's window
    assert sum(array.nbytes for array in table.flat.values()) < 3 * table.offsets[-1] + 100


def test_vectors_are_those_of_encode(model: Any) -> None:
    data = small_set(40, 1)
    towers = Towers.of("shared", model, chunk_tokens=200)
    towers.module.eval()
    feed = Feed(data, towers)
    rows = np.random.default_rng(2).permutation(40)
    features, labels = feed.batch(rows)
    assert labels is None
    with torch.no_grad():
        vectors = [towers(one)["sentence_embedding"].numpy() for one in features]
    np.testing.assert_allclose(vectors[0], model.encode_query(data.queries)[rows], atol=1e-4)
    for column in (0, 1):
        texts = [data.texts[i] for i in data.rows[rows, column]]
        np.testing.assert_allclose(vectors[1 + column], model.encode_document(texts), atol=1e-4)


@pytest.mark.parametrize("budget", [1, 50, 96, 300, 10**6])
def test_chunks_keep_to_their_budget_and_hold_every_row_once(model: Any, budget: int) -> None:
    towers = Towers.of("shared", model, chunk_tokens=budget)
    lengths = torch.from_numpy(np.random.default_rng(0).integers(1, 97, 50))
    mask = (torch.arange(96) < lengths[:, None]).long()
    groups = towers._groups(mask)
    assert sorted(torch.cat(groups).tolist()) == list(range(50))
    for group in groups:
        assert len(group) == 1 or len(group) * int(lengths[group].max()) <= budget or budget >= mask.numel()
    assert len(groups) <= max(1, 2 * int(lengths.sum()) // budget + 1, 50 if budget <= 96 else 0)


@pytest.mark.parametrize(
    "prompts", [None, {"query": "query: ", "passage": "rose "}, {"document": "", "corpus": "rose "}]
)
def test_prompts_are_those_of_encode_query_and_encode_document(
    model: Any, monkeypatch: pytest.MonkeyPatch, prompts: Any
) -> None:
    monkeypatch.setattr(model, "prompts", dict(prompts or {}))
    for task, encode in (("query", model.encode_query), ("document", model.encode_document)):
        expected = encode(["the old harbour"])[0]
        with torch.no_grad():
            found = model(TokenTable.build(model, ["the old harbour"], task).collate(np.array([0])))
        np.testing.assert_allclose(found["sentence_embedding"][0].numpy(), expected, atol=1e-5)


def test_frozen_vectors_pass_through(model: Any) -> None:
    data = small_set(6, 2, "scores")
    vectors = np.random.default_rng(0).random((18, 32)).astype(np.float32)
    towers = Towers.of("query", model)
    features, labels = Feed(data, towers, vectors).batch(np.array([4, 1]))
    assert len(features) == 4
    np.testing.assert_array_equal(towers(features[2])["sentence_embedding"], vectors[data.rows[[4, 1], 1]])
    assert labels is not None
    np.testing.assert_array_equal(labels, np.asarray(data.labels)[[4, 1]])
    with pytest.raises(ValueError, match="frozen"):
        towers.part("document")
    with pytest.raises(ValueError, match="vectors"):
        Feed(data, towers)
    with pytest.raises(ValueError, match="vectors"):
        Feed(data, Towers.of("shared", model), vectors)
    with pytest.raises(ValueError, match="17 vectors for 18 texts"):
        Feed(data, towers, vectors[:17])


def test_frozen_word_embeddings_stay(model: Any) -> None:
    towers = Towers.of("separate", model)
    size = model[0].auto_model.get_input_embeddings().weight.numel()
    assert freeze_word_embeddings(towers.module) == 2 * size
    assert freeze_word_embeddings(towers.module) == 0
    frozen = [name for name, p in towers.module.named_parameters() if not p.requires_grad]
    assert len(frozen) == 2
    assert all("word_embeddings" in name for name in frozen)
    assert all(p.requires_grad for p in model.parameters())


def test_models_that_read_no_padded_tokens_are_refused() -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    static = StaticEmbedding(Tokenizer(WordLevel({"a": 0}, unk_token="a")), embedding_dim=4)
    with pytest.raises(ModelError, match="StaticEmbedding"):
        TokenTable.build(SentenceTransformer(modules=[static], device="cpu"), ["a"], "query")


def test_towers_of_another_kind_are_refused(model: Any) -> None:
    with pytest.raises(SettingsError, match="'three' are unknown"):
        Towers.of("three", model)  # type: ignore[arg-type]
    two = Towers.of("separate", model).assemble(model)
    with pytest.raises(SettingsError, match="two towers"):
        Towers.of("shared", two)
    assert Towers.of("separate", two).get_embedding_dimension() == 32


def test_pairs_become_a_set() -> None:
    data = TrainingSet.from_pairs(
        [
            LabelledPair("where is the rose", "in the garden", negatives=("in the oven", "at sea")),
            LabelledPair("where is the dough", "in the oven"),
        ]
    )
    assert data.texts == ["in the garden", "in the oven", "at sea"]
    np.testing.assert_array_equal(data.rows, [[0, 1, 2], [1, ABSENT, ABSENT]])
    assert data.labels is None
    np.testing.assert_array_equal(data.widths, [3, 1])
    graded = TrainingSet.from_pairs([LabelledPair("a", "b", 0.5), LabelledPair("c", "d", 0)])
    assert graded.labels is not None
    assert graded.labels.tolist() == [0.5, 0]
    assert graded.positives == [{0}, frozenset()]
    assert len(TrainingSet.from_pairs([])) == 0


def test_known_positives_are_no_negatives() -> None:
    pairs = [
        LabelledPair(
            "Where is the  ROSE", "in the garden", negatives=("IN the Garden ", "oven", "by the wall")
        ),
        LabelledPair("where is the rose", "by the wall", negatives=("oven", "Oven", "sea")),
    ]
    data = TrainingSet.from_pairs(pairs)
    texts = [[data.texts[i] for i in row if i != ABSENT] for row in data.rows]
    assert texts == [["in the garden", "oven"], ["by the wall", "oven", "sea"]]
    assert data.dropped == 3
    assert data.rows[0].tolist()[2:] == [ABSENT, ABSENT]


def test_a_dropped_negatives_score_goes_with_it() -> None:
    data = TrainingSet(
        ["q"],
        ["a", "b", "c", "A"],
        np.array([[0, 3, 1, 2]]),
        np.array([[0.9, 0.8, 0.2, 0.1]], np.float32),
    )
    assert data.rows.tolist() == [[0, 1, 2, ABSENT]]
    assert data.labels is not None
    np.testing.assert_allclose(data.labels[0, :3], [0.9, 0.2, 0.1])


def test_mined_arrays_become_a_set() -> None:
    texts = [f"text {i}" for i in range(100)]
    negatives = np.array([[7, 90, ABSENT], [3, ABSENT, ABSENT]])
    scores = np.arange(8, dtype=np.float32).reshape(2, 4)
    data = TrainingSet.from_mined(["a", "b"], texts, np.array([50, 7]), negatives, scores)
    assert data.texts == ["text 3", "text 7", "text 50", "text 90"]
    found = [[data.texts[i] for i in row if i != ABSENT] for row in data.rows]
    assert found == [["text 50", "text 7", "text 90"], ["text 7", "text 3"]]
    np.testing.assert_array_equal(data.labels, scores)
    taken = data.take(np.array([1]))
    assert (taken.queries, taken.rows.tolist()) == (["b"], [[1, 0, ABSENT, ABSENT]])


def test_negatives_become_pairs_with_label_0() -> None:
    data = TrainingSet.from_pairs([LabelledPair("a", "b", negatives=("c", "d")), LabelledPair("e", "f")])
    pairs = data.as_labelled()
    assert pairs.labels is not None
    found = [
        (query, pairs.texts[row[0]], label)
        for query, row, label in zip(pairs.queries, pairs.rows, pairs.labels, strict=True)
    ]
    assert found == [("a", "b", 1), ("a", "c", 0), ("a", "d", 0), ("e", "f", 1)]


@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        (np.zeros((1, 2), np.int64), None),
        (np.zeros(2, np.int64), None),
        (np.full((2, 1), 9), None),
        (np.full((2, 1), ABSENT), None),
        (np.zeros((2, 1), np.int64), np.zeros((2, 3), np.float32)),
    ],
)
def test_shapes_that_do_not_fit_are_bugs(rows: Any, labels: Any) -> None:
    with pytest.raises(ValueError, match=r"shape|outside"):
        TrainingSet(["a", "b"], ["c"], rows, labels)


def test_half_precision_stays_inside_the_towers(model: Any) -> None:
    """Vectors leave as float32, so that a loss is computed in full precision; gradients are float32 too."""

    def autocast() -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    data = small_set(8, 1)
    exact = Towers.of("shared", model)
    half = Towers.of("shared", model, autocast=autocast, chunk_tokens=60)
    features, _ = Feed(data, exact).batch(np.arange(8))
    for one in features:
        vectors = half(one)["sentence_embedding"]
        assert vectors.dtype == torch.float32
        expected = exact(one)["sentence_embedding"]
        assert not torch.equal(vectors, expected)
        assert torch.nn.functional.cosine_similarity(vectors, expected).min() > 0.99
    half(features[1])["sentence_embedding"].sum().backward()  # type: ignore[no-untyped-call]
    grads = [p.grad for p in half.module.parameters() if p.grad is not None]
    assert grads
    assert {grad.dtype for grad in grads} == {torch.float32}
