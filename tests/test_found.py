from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from searchfit.errors import SettingsError
from searchfit.fusion import Ranking, rank
from searchfit.recipe import STAGES
from searchfit.records import Engine
from searchfit.request import Switches
from searchfit.rerank import PairScores, Reranker, rerank
from searchfit.search import ArrayCorpus, Searcher, open_searcher
from searchfit.stages import Tools, index
from searchfit.teachers import PassageTexts

QUESTIONS = ["pruning the old rose hedge", "glacier", "who repaired the locomotive signal in spring", "???"]
ENGINE = Engine("re-ranked", reranker="reranker", rerank_depth=7, rerank_weight=1.5)


@pytest.fixture(scope="module")
def searcher(bench: Any, tiny_reranker: Path, tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    """The index of the shared corpus, had a re-ranked engine been chosen."""
    folder = tmp_path_factory.mktemp("served")
    choice = folder / "choice.json"
    choice.write_text(json.dumps({"chosen": ENGINE.to_dict()}), encoding="utf-8")
    inputs = bench.inputs("index") | {"evaluation/choice.json": choice, "models/reranker": tiny_reranker}
    sections = next(stage.sections for stage in STAGES if stage.name == "index")
    index.run(bench.settings.only(*sections), inputs, Tools(folder, "v1"))
    searcher = open_searcher(folder)
    assert searcher.engine == ENGINE
    return searcher


@pytest.fixture(scope="module")
def expected(bench: Any, searcher: Searcher, tiny_reranker: Path) -> Ranking:
    """The rankings as the evaluation makes them, over arrays."""
    arrays = ArrayCorpus.load(bench.path("encoded"), bench.path("keyword"))
    vectors = searcher.encoder.encode_queries(QUESTIONS)
    first = rank([ENGINE], arrays, vectors, QUESTIONS, 20)[0]
    texts = PassageTexts(bench.path("passages.parquet"))
    pairs = PairScores(lambda: Reranker.load(str(tiny_reranker), "cpu", "fp32"), texts.take)
    return rerank(ENGINE, first, pairs(QUESTIONS, first.rows[:, :7]))


def passage_ids(bench: Any) -> list[str]:
    ids: list[str] = pq.read_table(bench.path("passages.parquet"))["id"].to_pylist()
    return ids


def test_search_ranks_as_the_evaluation_does(bench: Any, searcher: Searcher, expected: Ranking) -> None:
    ids = passage_ids(bench)
    many = searcher.search_many(QUESTIONS, 20)
    np.testing.assert_array_equal(many.rows, expected.rows)
    np.testing.assert_allclose(many.scores, expected.scores, atol=1e-4)
    np.testing.assert_array_equal(searcher.search_many(QUESTIONS, 3).rows, expected.rows[:, :3])
    for query, question in enumerate(QUESTIONS):
        hits = searcher.search(question, 20)
        assert [hit.passage_id for hit in hits] == [ids[row] for row in expected.rows[query]]
        np.testing.assert_allclose([hit.score for hit in hits], expected.scores[query], atol=1e-4)
        few = searcher.search(question, 2) + searcher.search(question, 3, offset=2)
        assert [hit.passage_id for hit in few] == [hit.passage_id for hit in hits[:5]]
        assert [hit.rank for hit in few] == [1, 2, 3, 4, 5]


def test_it_can_be_switched_off_and_explains_itself(searcher: Searcher) -> None:
    on = searcher.search(QUESTIONS[0], 20, switches=Switches(explain=True))
    off = searcher.search(QUESTIONS[0], 20, switches=Switches(rerank=False))
    plain = {hit.passage_id: hit for hit in off}
    assert [hit.passage_id for hit in on] != [hit.passage_id for hit in off]
    assert {hit.passage_id for hit in on[:7]} == {hit.passage_id for hit in off[:7]}
    assert [hit.passage_id for hit in on[7:]] == [hit.passage_id for hit in off[7:]]
    assert all("reranker" not in hit.scores for hit in [*off, *on[7:]])
    for hit in on[:7]:
        said = searcher.reranker.scores(QUESTIONS[0], [f"{hit.title}. {hit.text}"])[0]
        assert hit.scores["reranker"] == pytest.approx(said, abs=1e-4)
        assert hit.scores["first_stage"] == pytest.approx(plain[hit.passage_id].score, abs=2e-6)
        assert hit.scores["rerank_weight"] == 1.5
    assert [hit.score for hit in on] == sorted((hit.score for hit in on), reverse=True)


def test_filters_and_passages_are_re_ranked_too(searcher: Searcher) -> None:
    hits = searcher.search(QUESTIONS[1], 5, "price < 50")
    every = searcher.search(QUESTIONS[1], 7, "price < 50", switches=Switches(rerank=False))
    assert all(hit.metadata["price"] < 50 for hit in hits)
    assert {hit.passage_id for hit in hits} <= {hit.passage_id for hit in every}
    assert "reranker" in searcher.search(QUESTIONS[1], 3, passages=True)[0].scores
    assert searcher.search(QUESTIONS[1], 5, "price < 0") == []


def test_without_a_re_ranker_there_is_none_to_ask(bench: Any) -> None:
    version = json.loads(bench.path("engine.json").read_text(encoding="utf-8"))["index"]
    with pytest.raises(SettingsError, match="no re-ranker"):
        _ = Searcher(bench.folder / version).reranker
