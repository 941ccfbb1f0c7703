from __future__ import annotations

import sys
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from searchfit import fusion, mining
from searchfit.errors import SettingsError
from searchfit.fusion import Ranking, rank
from searchfit.keyword import Analyzer, KeywordIndex
from searchfit.mining import (
    Known,
    NegativeOptions,
    Pool,
    VectorCorpus,
    choose_negatives,
    leg,
    nearest,
    number_texts,
    positive_scores,
    score_rows,
)
from searchfit.records import Engine
from searchfit.search import ArrayCorpus

COUNT = 60
WORDS = ["rose", "anchor", "violin", "glacier", "oven", "signal", "hedge"]


def unit(seed: int, count: int, dimension: int = 8) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def in_order(scores: np.ndarray) -> list[int]:
    """Rows by the documented order: the score rounded to six decimals, falling, then the row."""
    return sorted(range(len(scores)), key=lambda row: (-round(float(scores[row]), 6), row))


@pytest.mark.parametrize("rows", [7, 8192])
@pytest.mark.parametrize("share", [None, 0.05, 0.6])
def test_the_nearest_are_those_of_brute_force(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows: int, share: float | None
) -> None:
    monkeypatch.setattr(fusion, "_BLOCK_ROWS", rows)
    monkeypatch.setattr(fusion, "_CHUNK_QUERIES", 4)
    # Rounded, so that ties are common; the products are exact in any order.
    np.save(tmp_path / "v.npy", np.round(unit(1, COUNT) * 4) / 4)
    passages = np.load(tmp_path / "v.npy", mmap_mode="r")
    queries = np.round(unit(2, 9) * 4) / 4
    allowed = None if share is None else np.random.default_rng(3).random(COUNT) < share
    ranking = nearest(queries, passages, 10, allowed)
    for query, found, scores in zip(queries, ranking.rows, ranking.scores, strict=True):
        exact = passages.astype(float) @ query
        expected = [row for row in in_order(exact) if allowed is None or allowed[row]][:10]
        assert found.tolist() == expected + [-1] * (10 - len(expected))
        np.testing.assert_allclose(scores[: len(expected)], exact[expected], atol=1e-6)


def test_memory_does_not_grow_with_the_passages() -> None:
    queries = unit(1, 64)

    def peak(count: int) -> int:
        passages = unit(0, count)
        tracemalloc.start()
        nearest(queries, passages, 20)
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held

    small, large = peak(20_000), peak(200_000)
    assert large < 1.3 * small
    assert large < 64 * 200_000 * 4 / 4  # a quarter of the score matrix


def toy(seed: int = 4) -> tuple[ArrayCorpus, np.ndarray, list[str]]:
    """A corpus of 60 passages in 30 documents with sentences and words, and 12 queries."""
    random = np.random.default_rng(seed)
    texts = [" ".join(random.choice(WORDS, 5)) for _ in range(COUNT)]
    offsets = np.concatenate([[0], np.cumsum(random.integers(1, 4, COUNT))])
    corpus = ArrayCorpus(
        unit(seed, COUNT),
        unit(seed + 1, int(offsets[-1])),
        offsets,
        np.arange(COUNT, dtype=np.int32) // 2,
        KeywordIndex.build(texts, Analyzer("english")),
    )
    return corpus, unit(seed + 2, 12), [" ".join(random.choice(WORDS, 2)) for _ in range(12)]


@pytest.mark.parametrize("units", ["passage", "sentence", "both"])
@pytest.mark.parametrize("legs", ["dense", "keyword", "both"])
def test_rows_score_as_in_the_ranking_by_that_leg(
    monkeypatch: pytest.MonkeyPatch, units: Any, legs: Any
) -> None:
    monkeypatch.setattr(mining, "_PAIRS", 100)
    corpus, vectors, texts = toy()
    engine = leg(Engine("e", units=units, dense_weight=0.7, keyword_weight=1.3), legs)
    ranking = rank([engine], corpus, vectors, texts, COUNT, np.ones(COUNT, bool))[0]
    assert (np.sort(ranking.rows) == np.arange(COUNT)).all()
    asked = ranking.rows.copy()
    asked[3, 5] = asked[7] = -1
    scores = score_rows(engine, corpus, vectors, texts, asked)
    assert scores.dtype == np.float32
    assert np.isneginf(scores[asked < 0]).all()
    np.testing.assert_allclose(scores[asked >= 0], ranking.scores[asked >= 0], atol=2e-6)
    assert np.ptp(scores[asked >= 0]) > 0.1


def test_each_leg_ranks_by_its_own_scores() -> None:
    corpus, vectors, texts = toy()
    engine = Engine("e", units="passage")
    everything = np.ones(COUNT, bool)
    words = corpus.keyword_scores(texts).toarray()
    for legs, scores in (("dense", vectors @ corpus.passages.T), ("keyword", words)):
        found = rank([leg(engine, legs)], corpus, vectors, texts, 5, everything)[0]  # type: ignore[arg-type]
        assert found.rows.tolist() == [in_order(each)[:5] for each in scores]


def test_a_leg_that_the_engine_lacks_is_refused() -> None:
    with pytest.raises(SettingsError, match="keyword"):
        leg(Engine("plain", keyword_weight=0.0), "keyword")
    with pytest.raises(SettingsError, match="no words"):
        rank([Engine("e")], VectorCorpus(unit(0, 3)), unit(1, 2), ["a", "b"], 2)


ORACLE = [
    {"num_negatives": 3, "range_min": 0, "range_max": 20},
    {"num_negatives": 4, "range_min": 5, "range_max": 9},
    {"num_negatives": 6, "range_min": 2, "range_max": 30, "absolute_margin": 0.15},
    {"num_negatives": 6, "range_min": 0, "range_max": 30, "relative_margin": 0.2},
    {"num_negatives": 5, "range_min": 1, "range_max": 25, "max_score": 0.3, "min_score": -0.1},
    {
        "num_negatives": 5,
        "range_min": 3,
        "range_max": 25,
        "absolute_margin": 0.05,
        "relative_margin": 0.1,
        "max_score": 0.4,
    },
]


class Columns(dict[str, list[str]]):
    """As much of a datasets.Dataset as mine_hard_negatives asks for."""

    from_dict = classmethod(lambda cls, columns: cls(columns))
    column_names = property(list)

    def __len__(self) -> int:
        return len(self["query"])

    def to_pandas(self) -> Any:
        return self

    def groupby(self, name: str) -> Any:
        counts = Counter(self[name])
        return SimpleNamespace(count=lambda: SimpleNamespace(to_dict=lambda: {"positive": counts}))


@pytest.mark.parametrize("asked", ORACLE)
def test_negatives_are_those_of_sentence_transformers(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    import torch
    from sentence_transformers.util import hard_negatives

    # The oracle needs of the library `datasets` a table only, and that only to read and write it.
    monkeypatch.setitem(sys.modules, "datasets", ModuleType("datasets"))
    monkeypatch.setattr(sys.modules["datasets"], "Dataset", Columns, raising=False)
    monkeypatch.setattr(hard_negatives, "is_datasets_available", lambda: True)

    passages, queries = unit(5, COUNT), unit(6, 20)
    random = np.random.default_rng(7)
    # One to three positives each, among the better half; a few of negative score.
    order = np.argsort(-(queries @ passages.T), axis=1)
    positives = [order[i, random.choice(35, 1 + i % 3, replace=False)].tolist() for i in range(20)]
    embedded = {f"q{i}": vector for i, vector in enumerate(queries)}
    embedded |= {f"p{i}": vector for i, vector in enumerate(passages)}

    def encode(texts: Sequence[str], **_: Any) -> np.ndarray:
        return np.stack([embedded[text] for text in texts])

    def similarity(a: Any, b: Any) -> Any:
        return torch.as_tensor(a) @ torch.as_tensor(b).T

    model: Any = SimpleNamespace(
        device=torch.device("cpu"),
        encode_query=encode,
        encode_document=encode,
        similarity=similarity,
        similarity_pairwise=lambda a, b: (torch.as_tensor(a) * torch.as_tensor(b)).sum(1),
    )
    pairs = [(f"q{i}", f"p{row}") for i, rows in enumerate(positives) for row in rows]
    mined: Any = hard_negatives.mine_hard_negatives(
        Columns({"query": [q for q, _ in pairs], "positive": [p for _, p in pairs]}),  # type: ignore[arg-type]
        model,
        corpus=[f"p{i}" for i in range(COUNT)],
        output_format="triplet",
        verbose=False,
        **asked,
    )
    expected: dict[str, list[str]] = {}
    for query, negative in zip(mined["query"], mined["negative"], strict=True):
        expected.setdefault(query, []).append(negative)
    # A triplet comes again for every positive of its query.
    expected = {query: list(dict.fromkeys(found)) for query, found in expected.items()}

    known = np.full((20, 3), -1)
    for i, rows in enumerate(positives):
        known[i, : len(rows)] = rows
    engine = Engine("e", units="passage", keyword_weight=0)
    own = positive_scores(score_rows(engine, VectorCorpus(passages), queries, [""] * 20, known))
    chosen = choose_negatives(
        nearest(queries, passages, asked["range_max"] + 3),
        Known([f"q{i}" for i in range(20)], known, own),
        Pool(np.ones(COUNT, bool)),
        NegativeOptions(
            count=asked["num_negatives"],
            skip=asked["range_min"],
            depth=asked["range_max"],
            absolute_margin=asked.get("absolute_margin"),
            relative_margin=asked.get("relative_margin"),
            max_score=asked.get("max_score"),
            min_score=asked.get("min_score"),
        ),
    )
    ours = {f"q{i}": [f"p{row}" for row in rows if row >= 0] for i, rows in enumerate(chosen.rows)}
    assert {query: found for query, found in ours.items() if found} == expected
    assert len(expected) > 5


def one(
    options: NegativeOptions, ranked: Sequence[float] = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4), **more: Any
) -> mining.Negatives:
    """The choice for one query whose candidates are rows 0, 1, 2 ... and whose positive is row 9."""
    ranking = Ranking(np.arange(len(ranked))[None], np.array([ranked], np.float32))
    known = {"positives": np.array([[9, -1]]), "scores": np.array([0.8], np.float32), **more}
    pool = Pool(known.pop("allowed", np.ones(40, bool)), known.pop("texts", None))
    return choose_negatives(ranking, Known(["q"], **known), pool, options)


def reasons(chosen: mining.Negatives) -> dict[str, int]:
    return {drop.reason: drop.count for drop in chosen.drops}


def test_each_rule_leaves_out_its_own_and_counts_them() -> None:
    assert one(NegativeOptions(3)).rows.tolist() == [[0, 1, 2]]
    chosen = one(NegativeOptions(3, skip=1, depth=4, absolute_margin=0.05))
    assert chosen.rows.tolist() == [[3, 4, 5]]
    np.testing.assert_allclose(chosen.scores, [[0.6, 0.5, 0.4]])
    assert reasons(chosen) == {"within the margin of the positive": 2, "before the rank window": 1}
    chosen = one(NegativeOptions(2, depth=2, relative_margin=0.25))
    assert chosen.rows.tolist() == [[3, 4]]
    assert reasons(chosen) == {"within the relative margin of the positive": 3, "after the rank window": 1}
    chosen = one(NegativeOptions(6, max_score=0.75, min_score=0.55))
    assert chosen.rows.tolist() == [[2, 3, -1, -1, -1, -1]]
    assert np.isnan(chosen.scores[0, 2:]).all()
    assert reasons(chosen) == {"above the highest score": 2, "below the lowest score": 2}


def test_a_margin_to_a_negative_score_is_still_below_it() -> None:
    chosen = one(
        NegativeOptions(3, relative_margin=0.5), (-0.1, -0.25, -0.35, -0.4), scores=np.float32([-0.2])
    )
    assert chosen.rows.tolist() == [[2, 3, -1]]


def test_what_the_teacher_takes_for_a_positive_is_no_negative() -> None:
    teacher = np.array([[0.95, 0.2, 0.75, 0.69, 0.1, 0.3]], np.float32)
    scores = {"teacher": teacher, "teacher_positives": np.array([0.8], np.float32)}
    chosen = one(NegativeOptions(4, guard=0.1), **scores)
    assert chosen.rows.tolist() == [[1, 3, 4, 5]]
    assert reasons(chosen) == {"the teacher takes it for a positive": 2}
    assert one(NegativeOptions(4, guard=0.0), **scores).rows.tolist() == [[1, 2, 3, 4]]


def test_positives_their_text_repeated_text_and_held_out_passages_never_stand() -> None:
    texts = np.arange(40)
    texts[1] = texts[9]
    texts[[2, 4]] = 77
    allowed = np.ones(40, bool)
    allowed[3] = False
    chosen = one(NegativeOptions(6), texts=texts, allowed=allowed, positives=np.array([[9, 0]]))
    assert chosen.rows.tolist() == [[2, 5, -1, -1, -1, -1]]
    assert reasons(chosen) == {
        "a known positive, or its text": 2,
        "the text of a better candidate": 1,
        "not a passage that may be taken": 1,
    }


def test_random_negatives_are_half_of_them_and_never_suspects() -> None:
    texts = np.arange(40)
    texts[20:30] = texts[9]
    allowed = np.arange(40) < 36
    seen = set()
    for seed in range(60):
        options = NegativeOptions(8, skip=1, random_share=0.5, absolute_margin=0.05, seed=seed)
        chosen = one(options, texts=texts, allowed=allowed)
        assert chosen.rows[0, :4].tolist() == [3, 4, 5, -1]
        drawn = chosen.rows[0, 4:].tolist()
        assert len(set(drawn)) == 4
        assert np.isnan(chosen.scores[0, 4:]).all()
        seen |= set(drawn)
    # Neither the positive and its text, the candidates left out, the hard ones, nor what is not allowed.
    assert seen == {6, 7, 8, *range(10, 20), *range(30, 36)}


def test_all_random_takes_nothing_from_the_ranking_and_a_small_pool_is_used_up() -> None:
    chosen = one(
        NegativeOptions(5, random_share=1.0, max_score=0.65), allowed=np.isin(np.arange(40), [0, 4, 9, 12])
    )
    assert sorted(chosen.rows[0].tolist()) == [-1, -1, -1, 4, 12]


def test_random_sampling_is_of_the_window_and_best_first() -> None:
    drawn = {
        tuple(one(NegativeOptions(2, skip=1, depth=5, sampling="random", seed=seed)).rows[0])
        for seed in range(80)
    }
    assert drawn == {(a, b) for a in range(1, 5) for b in range(a + 1, 5)}


def test_a_query_s_draws_depend_on_its_key_alone() -> None:
    queries = unit(8, 12)
    ranking = nearest(queries, unit(9, 500), 30)
    known = Known([f"q{i}" for i in range(12)], ranking.rows[:, :1], ranking.scores[:, 0])
    options = NegativeOptions(6, sampling="random", random_share=0.5, seed=3)
    pool = Pool(np.ones(500, bool))
    chosen = choose_negatives(ranking, known, pool, options).rows
    order = np.random.default_rng(0).permutation(12)[:7]
    part = choose_negatives(
        Ranking(ranking.rows[order], ranking.scores[order]),
        Known([known.keys[i] for i in order], known.positives[order], known.scores[order]),
        pool,
        options,
    )
    assert (part.rows == chosen[order]).all()
    assert (
        chosen[:, 3:]
        != choose_negatives(ranking, known, pool, NegativeOptions(6, random_share=0.5)).rows[:, 3:]
    ).any()


def test_absent_candidates_are_never_negatives() -> None:
    ranking = Ranking(np.array([[2, -1, -1]]), np.array([[0.5, -np.inf, -np.inf]], np.float32))
    chosen = choose_negatives(
        ranking, Known(["q"], np.array([[0]]), np.float32([0.9])), Pool(np.ones(5, bool)), NegativeOptions(2)
    )
    assert chosen.rows.tolist() == [[2, -1]]
    assert chosen.drops == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0},
        {"skip": -1},
        {"random_share": 1.1},
        {"count": 4, "skip": 2, "depth": 5},
        {"min_score": 0.5, "max_score": 0.4},
    ],
)
def test_options_that_contradict_each_other_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        NegativeOptions(**wrong)


def test_rules_without_their_scores_are_refused() -> None:
    with pytest.raises(SettingsError, match="guard"):
        one(NegativeOptions(guard=0.1))
    with pytest.raises(SettingsError, match="margin"):
        one(NegativeOptions(absolute_margin=0.1), scores=np.float32([np.nan]))


def test_the_lowest_positive_counts_and_texts_are_numbered() -> None:
    scores = np.array([[0.5, 0.2, -np.inf], [-np.inf] * 3], np.float32)
    np.testing.assert_array_equal(positive_scores(scores), np.float32([0.2, np.nan]))
    numbers = number_texts(["a", "b", "a", "ab", "b"])
    assert numbers[0] == numbers[2]
    assert numbers[1] == numbers[4]
    assert len(set(numbers.tolist())) == 3
