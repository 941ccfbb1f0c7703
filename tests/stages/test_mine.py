from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from searchfit.config import load_settings
from searchfit.records import PAIRS
from searchfit.search import ArrayCorpus
from searchfit.stages import Tools, mine

ARRAYS = {
    *("passages", "scores", "own_scores", "hard", "hard_scores", "negatives", "negative_scores"),
}


def run(
    bench: Any, out: Path, inputs: dict[str, Path] | None = None, **values: Any
) -> tuple[dict[str, np.ndarray], Any]:
    settings = load_settings(base=bench.settings, values=values).only("mine", "engine", "model", "seed")
    result = mine.run(settings, inputs or bench.inputs("mine"), Tools(out))
    return {path.stem: np.load(path) for path in (out / "mined").glob("*.npy")}, result


def queries(out: Path) -> Any:
    """mined/queries.parquet."""
    return pq.read_table(out / "mined" / "queries.parquet")


def vectors_of(bench: Any, texts: list[str]) -> np.ndarray:
    """The stored vectors of generated queries, by their texts."""
    place = {
        text: row for row, text in enumerate(pq.read_table(bench.path("pairs.parquet"))["text"].to_pylist())
    }
    stored = np.load(bench.path("pair_vectors.npy"))
    return stored[[place[text] for text in texts]]


def training_passages(bench: Any) -> tuple[ArrayCorpus, np.ndarray]:
    corpus = ArrayCorpus.load(bench.path("encoded"), bench.path("keyword"))
    split = pq.read_table(bench.path("holdout.parquet"))["split"].to_numpy()
    return corpus, split[corpus.documents] == "train"


def test_nothing_held_out_is_among_queries_candidates_and_negatives(bench: Any, tmp_path: Path) -> None:
    mined, result = run(bench, tmp_path, **{"mine.negatives": 1000})
    corpus, training = training_passages(bench)
    assert 0 < training.sum() < corpus.count
    table = queries(tmp_path)
    known = set(
        zip(
            *(pq.read_table(bench.path("pairs.parquet"))[c].to_pylist() for c in ("text", "passage")),
            strict=True,
        )
    )
    assert set(zip(table["text"].to_pylist(), table["passage"].to_pylist(), strict=True)) <= known
    assert training[table["passage"].to_numpy()].all()
    assert set(table["origin"].to_pylist()) == {"generated"}
    assert training[mined["passages"]].all()
    assert training[mined["negatives"]].all()
    assert len(mined["negatives"]) == training.sum()  # no more than there are, and none twice
    assert len(set(mined["negatives"].tolist())) == len(mined["negatives"])
    assert result.counts["held-out passages among them"] == 0
    assert training[mined["hard"][mined["hard"] >= 0]].all()
    assert (mined["hard"] != table["passage"].to_numpy()[:, None]).all()
    assert result.counts["training queries"] == len(table) == len(mined["passages"])
    assert result.counts["hard negatives"] == (mined["hard"] >= 0).sum() > len(table)


@pytest.mark.parametrize("units", ["passage", "both"])
def test_scores_are_the_teachers(bench: Any, tmp_path: Path, units: str) -> None:
    values = {
        "engine.units": units,
        "engine.blend_weight": 0.7,
        "engine.adapt": False,
        "mine.candidates": 9,
        "mine.negatives": 15,
    }
    mined, _ = run(bench, tmp_path, **values)
    corpus, training = training_passages(bench)
    table = queries(tmp_path)
    texts, rows = table["text"].to_pylist(), table["passage"].to_numpy()
    vectors = vectors_of(bench, texts).astype(float)
    whole = vectors @ corpus.passages.T
    best = np.maximum.reduceat(vectors @ corpus.sentences.T, corpus.offsets[:-1], axis=1)
    teacher = (whole if units == "passage" else (whole + best) / 2) + 0.7 * corpus.keyword.scores(
        texts
    ).toarray()
    assert mined["passages"].shape == mined["scores"].shape == (len(rows), 9)
    np.testing.assert_allclose(mined["scores"], np.take_along_axis(teacher, mined["passages"], 1), atol=2e-6)
    each = np.arange(len(rows))
    np.testing.assert_allclose(mined["own_scores"], teacher[each, rows], atol=2e-6)
    there = mined["hard"] >= 0
    expected = np.where(there, teacher[each[:, None], mined["hard"]], -np.inf)
    np.testing.assert_allclose(mined["hard_scores"], expected, atol=2e-6)
    # The margin that is asked for: 0.05 of the positive's score.
    assert (expected < 0.95 * teacher[each, rows][:, None] + 2e-6).all()
    among = np.sort(np.where(training, teacher, -np.inf), axis=1)[:, :-10:-1]
    np.testing.assert_allclose(mined["scores"], among, atol=2e-6)
    for query, candidates in enumerate(mined["passages"]):
        twice = np.isin(mined["negatives"], candidates)
        scores = mined["negative_scores"][query]
        assert np.isneginf(scores[twice]).all()
        np.testing.assert_allclose(scores[~twice], teacher[query, mined["negatives"][~twice]], atol=2e-6)


def test_it_is_the_same_again(bench: Any, tmp_path: Path) -> None:
    one, two = run(bench, tmp_path / "1")[0], run(bench, tmp_path / "2")[0]
    assert one.keys() == two.keys() == ARRAYS
    assert queries(tmp_path / "1").equals(queries(tmp_path / "2"))
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name])


def test_a_sample_takes_the_same_share_of_each_style(bench: Any, tmp_path: Path) -> None:
    pairs = pq.read_table(bench.path("pairs.parquet"))
    style = dict(zip(pairs["text"].to_pylist(), pairs["style"].to_pylist(), strict=True))
    run(bench, tmp_path / "whole")
    run(bench, tmp_path / "some", **{"mine.max_queries": 60})
    whole, some = ([style[t] for t in queries(tmp_path / n)["text"].to_pylist()] for n in ("whole", "some"))
    assert len(some) == 60
    for name in set(whole):
        assert some.count(name) / 60 == pytest.approx(whole.count(name) / len(whole), abs=0.03)


@pytest.mark.parametrize("negatives", [0, 20])
def test_no_training_query_gives_empty_arrays(bench: Any, tmp_path: Path, negatives: int) -> None:
    empty = {"pairs.parquet": tmp_path / "pairs.parquet", "pair_vectors.npy": tmp_path / "pair_vectors.npy"}
    pq.write_table(pa.table([[] for _ in PAIRS], schema=PAIRS), empty["pairs.parquet"])
    np.save(empty["pair_vectors.npy"], np.empty((0, 32), np.float32))
    values = {"mine.negatives": negatives}
    mined, result = run(bench, tmp_path, {**bench.inputs("mine"), **empty}, **values)
    assert mined["passages"].shape == (0, 12)
    assert mined["negative_scores"].shape == (0, negatives)
    assert result.counts["training queries"] == 0


def test_candidates_are_no_more_than_there_are(bench: Any, tmp_path: Path) -> None:
    mined, _ = run(bench, tmp_path, **{"mine.candidates": 100_000, "mine.negatives": 0})
    _, training = training_passages(bench)
    assert mined["passages"].shape[1] == training.sum()
    assert mined["negative_scores"].shape == (len(mined["passages"]), 0)
