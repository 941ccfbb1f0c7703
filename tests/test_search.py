from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from searchfit import fusion
from searchfit.config import IndexSettings
from searchfit.encoders import load_encoder
from searchfit.errors import FilterError, SearchfitError, SettingsError, WorkspaceError
from searchfit.fusion import rank
from searchfit.keyword import Analyzer
from searchfit.records import Engine
from searchfit.request import Switches
from searchfit.search import ArrayCorpus, Searcher, open_searcher
from searchfit.snippets import make_snippet
from searchfit.stores.lancedb import LanceStore

QUESTIONS = [
    "pruning the old rose hedge",
    "who repaired the locomotive signal in spring",
    "glacier",
    "violin and cello rehearsal before the overture",
    "Nobody had expected that the old anchor would outlast both the mast and the keel.",
    "zebra quantum",
    "garden notes 12",
    "???",
]
ENGINES = [
    Engine(f"{units} {dense:g} {lexical:g}", units=units, dense_weight=dense, keyword_weight=lexical)
    for units in ("passage", "sentence", "both")
    for dense, lexical in ((1.0, 1.0), (1.0, 0.0), (0.5, 1.5))
] + [Engine("keyword", dense_weight=0.0)]


@pytest.fixture(scope="module")
def folder(bench: Any) -> Path:
    """The workspace of the shared fit, with its index."""
    bench.path("engine.json")
    return bench.folder


@pytest.fixture
def searcher(folder: Path) -> Searcher:
    return open_searcher(folder)


@pytest.fixture(scope="module")
def arrays(bench: Any) -> ArrayCorpus:
    return ArrayCorpus.load(bench.path("encoded"), bench.path("keyword"))


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_the_engine_ranks_alike_over_arrays_and_over_the_store(
    engine: Engine, searcher: Searcher, arrays: ArrayCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusion, "_BLOCK_ROWS", 50)  # several blocks, on both sides
    searcher.engine = engine
    vectors = searcher.encoder.encode_queries(QUESTIONS)
    expected = rank([engine], arrays, vectors, QUESTIONS, 10)[0]
    many = searcher.search_many(QUESTIONS, 10)
    np.testing.assert_array_equal(many.rows, expected.rows)
    np.testing.assert_allclose(many.scores, expected.scores, atol=1e-5)
    for query, question in enumerate(QUESTIONS):
        hits = searcher.search(question, 10)
        fields = searcher.corpus.store.fetch(expected.rows[query])
        assert [hit.passage_id for hit in hits] == [row["id"] for row in fields]
        assert [hit.document_id for hit in hits] == searcher.document_ids(expected.rows[query])
        np.testing.assert_allclose([hit.score for hit in hits], expected.scores[query], atol=1e-5)


def test_the_legs_explain_the_score(searcher: Searcher) -> None:
    searcher.engine = Engine("e", dense_weight=0.5, keyword_weight=1.5)
    for hit in searcher.search(QUESTIONS[1]):
        legs = 0.5 * hit.scores["dense"] + 1.5 * hit.scores["keyword"]
        assert hit.score == pytest.approx(legs, abs=3e-6)
        assert 0 <= hit.scores["keyword"] <= 1


def test_documents_come_once_unless_passages_are_asked_for(searcher: Searcher, corpus: list[Any]) -> None:
    question = corpus[7].text.split(".")[0]  # the long document
    documents = [hit.document_id for hit in searcher.search(question, 20)]
    assert len(set(documents)) == len(documents) == 20
    hits = searcher.search(question, 20, passages=True)
    assert len({hit.passage_id for hit in hits}) == 20
    assert len({hit.document_id for hit in hits}) < 20
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert [hit.rank for hit in hits] == list(range(1, 21))


def test_hits_hold_what_the_documents_hold(searcher: Searcher, corpus: list[Any]) -> None:
    by_id = {doc.id: doc for doc in corpus}
    for hit in searcher.search("sourdough oven", 100):
        doc = by_id.pop(hit.document_id)
        assert hit.text == doc.text[hit.start : hit.end]
        assert (hit.title, hit.metadata) == (
            doc.title,
            {**hit.metadata, "price": doc.price, "place": doc.place},
        )
        assert hit.snippet in hit.text
    assert not by_id  # more than all were asked for: all came
    json.dumps(hit.to_dict())


@pytest.mark.parametrize(
    ("where", "keep"),
    [
        ("price < 50", lambda doc: doc.price < 50),
        (
            'place in ("Huesca", "Teruel") and price >= 20',
            lambda doc: doc.place in ("Huesca", "Teruel") and doc.price >= 20,
        ),
        ("place is null", lambda doc: doc.place is None),
        ("price > 1000", lambda _: False),
    ],
)
def test_filters_leave_the_order_of_the_rest(
    where: str,
    keep: Callable[[Any], bool],
    searcher: Searcher,
    corpus: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Without words: they are looked at of the first results, and those of a filter are others.
    monkeypatch.setattr(searcher, "engine", replace(searcher.engine, token_weight=0.0, token_depth=0))
    everything = searcher.search("tide at the jetty", 100)
    by_id = {doc.id: doc for doc in corpus}
    expected = [hit.passage_id for hit in everything if keep(by_id[hit.document_id])]
    assert [hit.passage_id for hit in searcher.search("tide at the jetty", 100, where)] == expected
    assert [hit.passage_id for hit in searcher.search("tide at the jetty", 3, where)] == expected[:3]


def test_questions_that_cannot_be_answered_are_errors(searcher: Searcher) -> None:
    with pytest.raises(SettingsError, match="empty"):
        searcher.search(" \n ")
    with pytest.raises(SettingsError, match="k must be"):
        searcher.search("glacier", 0)
    with pytest.raises(FilterError, match="prize"):
        searcher.search("glacier", where="prize < 3")
    assert (searcher.columns["price"], searcher.columns["place"]) == ("int", "string")


def test_the_index_answers_by_the_chosen_query_tower(folder: Path, searcher: Searcher, bench: Any) -> None:
    chosen = json.loads((folder / "evaluation" / "choice.json").read_text())["chosen"]
    assert searcher.engine == Engine(**chosen)
    untuned = load_encoder(bench.settings.model).encode_queries(QUESTIONS)
    assert np.allclose(searcher.encoder.encode_queries(QUESTIONS), untuned, atol=1e-6) == (
        searcher.engine.query_tower == 0
    )


def test_an_open_searcher_answers_while_the_workspace_is_rebuilt(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "ws"
    shutil.copytree(folder, copy)
    before = open_searcher(copy)
    expected = [hit.document_id for hit in before.search("glacier")]
    shutil.rmtree(copy / "models")
    (copy / "engine.json").unlink()
    assert [hit.document_id for hit in before.search("glacier")] == expected


def test_an_unfinished_or_damaged_workspace_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="no finished search engine"):
        open_searcher(tmp_path)
    (tmp_path / "engine.json").write_text("{}")
    with pytest.raises(WorkspaceError, match="damaged"):
        open_searcher(tmp_path)
    (tmp_path / "engine.json").write_text("{not json")
    with pytest.raises(WorkspaceError, match="damaged"):
        open_searcher(tmp_path)
    version = json.loads((folder / "engine.json").read_text())["index"]
    shutil.copytree(folder / version, tmp_path / "index")
    (tmp_path / "index" / "documents.bin").unlink()
    (tmp_path / "engine.json").write_text('{"index": "index"}')
    with pytest.raises(WorkspaceError, match="damaged"):
        open_searcher(tmp_path)


def test_a_model_of_another_size_is_refused(folder: Path, tmp_path: Path) -> None:
    version = json.loads((folder / "engine.json").read_text())["index"]
    shutil.copytree(folder / version, tmp_path / "index")
    info = tmp_path / "index" / "info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "dimension": 31}))
    with pytest.raises(SearchfitError, match="32 dimensions"):
        Searcher(tmp_path / "index").search("glacier")


def test_take_gives_the_rows_asked_for(arrays: ArrayCorpus) -> None:
    rows = np.array([5, 2, arrays.count - 1, 2])
    block = arrays.take(rows)
    np.testing.assert_array_equal(block.passages, arrays.passages[rows])
    np.testing.assert_array_equal(block.documents, arrays.documents[rows])
    for place, row in enumerate(rows):
        own = block.sentences[block.offsets[place] : block.offsets[place + 1]]
        np.testing.assert_array_equal(own, arrays.sentences[arrays.offsets[row] : arrays.offsets[row + 1]])


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store hands out three passages at a time, so that documents go on in the next batch."""
    scan = LanceStore.scan
    monkeypatch.setattr(LanceStore, "scan", lambda self, columns: scan(self, columns, 3))


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_blocks_are_whole_documents_and_all_rows(arrays: ArrayCorpus, searcher: Searcher, rows: int) -> None:
    for corpus in (arrays, searcher.corpus):
        blocks = list(corpus.blocks(rows))
        np.testing.assert_array_equal(np.concatenate([b.passages for b in blocks]), arrays.passages)
        np.testing.assert_array_equal(np.concatenate([b.sentences for b in blocks]), arrays.sentences)
        np.testing.assert_array_equal(np.concatenate([b.documents for b in blocks]), arrays.documents)
        starts = np.cumsum([0, *(len(b.passages) for b in blocks)])
        assert [b.start for b in blocks] == starts[:-1].tolist()
        assert all(one.documents[-1] < two.documents[0] for one, two in itertools.pairwise(blocks))
        lengths = np.concatenate([np.diff(b.offsets) for b in blocks])
        np.testing.assert_array_equal(lengths, np.diff(arrays.offsets))


def snippet(text: str, query: str, starts: list[int]) -> tuple[str, list[str]]:
    analyzer = Analyzer("english")
    spans = [edge for a, b in zip(starts, [*starts[1:], len(text)], strict=True) for edge in (a, b)]
    cut, marks = make_snippet(text, spans, set(analyzer.terms(query)), analyzer)
    for one, two in itertools.pairwise(marks):
        assert one[1] <= two[0]
    return cut, [cut[a:b] for a, b in marks]


def test_snippets_start_where_most_query_words_are() -> None:
    first, second = "Nothing of note is said in here at all. " * 8, "Pools, and a big garden by the beach."
    cut, marks = snippet(first + second, "pool garden", [0, 40, len(first)])
    assert cut == second
    assert marks == ["Pools", "garden"]


def test_long_snippets_end_between_words() -> None:
    text = "garden " + "word " * 100
    cut, marks = snippet(text, "garden", [0])
    assert 200 < len(cut) <= 240
    assert text[: len(cut) + 1].endswith("word ")
    assert marks == ["garden"]
    assert len(snippet("garden" + "x" * 500, "garden", [0])[0]) == 240


def test_overlapping_matches_are_one_highlight() -> None:
    assert snippet("我喜欢自然语言处理", "自然语言", [0])[1] == ["自然语言"]
    assert snippet("Use the HTTPServer class", "HTTPServer http server", [0])[1] == ["HTTPServer"]


def test_no_match_gives_the_beginning() -> None:
    assert snippet("A short text.", "zebra", [0]) == ("A short text.", [])


def test_units_other_than_the_indexed_are_served_too(searcher: Searcher) -> None:
    whole = searcher.search("tulip mulch", 5)
    searcher.engine = replace(searcher.engine, units="passage")
    assert [hit.score for hit in searcher.search("tulip mulch", 5)] != [hit.score for hit in whole]


def test_pages_go_on_where_the_last_ended(searcher: Searcher) -> None:
    whole = searcher.search(QUESTIONS[0], 30)
    pages = [hit for start in (0, 7, 14) for hit in searcher.search(QUESTIONS[0], 7, offset=start)]
    assert pages == whole[:21]
    assert searcher.search(QUESTIONS[0], 7, offset=500) == []
    with pytest.raises(SettingsError, match="offset"):
        searcher.search("glacier", offset=-1)


def test_steps_can_be_switched_off(searcher: Searcher) -> None:
    searcher.engine = Engine("e")
    dense = searcher.search(QUESTIONS[1], switches=Switches(keyword=False, snippets=False))
    assert all(hit.score == hit.scores["dense"] and not hit.snippet for hit in dense)
    lexical = searcher.search(QUESTIONS[1], switches=Switches(dense=False))
    assert all(hit.score == hit.scores["keyword"] for hit in lexical)
    searcher.engine = Engine("e", keyword_weight=0.0)
    with pytest.raises(SettingsError, match="no leg left"):
        searcher.search("glacier", switches=Switches(dense=False))


def test_explained_hits_tell_the_rank_in_every_leg(searcher: Searcher) -> None:
    searcher.engine = Engine("e")
    plain = searcher.search(QUESTIONS[1], 60)
    explained = searcher.search(QUESTIONS[1], 60, switches=Switches(explain=True))
    assert [hit.passage_id for hit in explained] == [hit.passage_id for hit in plain]
    by_keyword = sorted(explained, key=lambda hit: -hit.scores["keyword"])
    assert by_keyword[0].scores["keyword_rank"] == 1
    assert {"passage_rank", "sentence_rank", "keyword_rank"} <= set(by_keyword[0].scores)


def test_reciprocal_ranks_are_those_of_the_legs(searcher: Searcher, arrays: ArrayCorpus) -> None:
    engine = Engine("rrf", fusion="rrf", keyword_weight=0.7)
    searcher.engine = engine
    vectors = searcher.encoder.encode_queries(QUESTIONS)
    block = next(arrays.blocks(10_000))
    expected = rank([engine], arrays, vectors, QUESTIONS, 10)[0]
    for number, question in enumerate(QUESTIONS):
        lexical = arrays.keyword_scores([question]).toarray()[0]
        dense = fusion.dense_scores(engine, vectors[number][None], block)[0]
        fused = np.zeros(arrays.count)
        for weight, scores in ((1.0, np.round(dense, 6)), (0.7, np.round(lexical, 6))):
            order = np.lexsort((np.arange(len(scores)), -scores))[:100]
            for place, row in enumerate(order, start=1):
                if weight == 1.0 or scores[row] > 0:
                    fused[row] += weight * 61 / (60 + place)
        best = np.sort([fused[arrays.documents == d].max() for d in np.unique(arrays.documents)])[::-1][:10]
        np.testing.assert_allclose(expected.scores[number], best, atol=2e-6)
        hits = searcher.search(question)
        np.testing.assert_allclose([hit.score for hit in hits], best, atol=2e-6)
        assert [hit.document_id for hit in hits] == searcher.document_ids(expected.rows[number])


def test_many_questions_with_a_filter_rank_as_one(searcher: Searcher) -> None:
    found = searcher.search_many(QUESTIONS[:3], 80, "price < 50")
    for number, question in enumerate(QUESTIONS[:3]):
        hits = searcher.search(question, 80, "price < 50")
        rows = found.rows[number]
        assert searcher.document_ids(rows[rows >= 0]) == [hit.document_id for hit in hits]


def test_by_keywords_alone_no_model_is_loaded(searcher: Searcher) -> None:
    searcher.engine = Engine("keyword", dense_weight=0.0)
    found = searcher.search_many(QUESTIONS[:3], 20)
    for number, question in enumerate(QUESTIONS[:3]):
        hits = searcher.search(question, 20)
        assert searcher.document_ids(found.rows[number]) == [hit.document_id for hit in hits]
    assert "encoder" not in vars(searcher)


def test_more_like_finds_the_nearest_documents(
    searcher: Searcher, arrays: ArrayCorpus, corpus: list[Any]
) -> None:
    hits = searcher.more_like(corpus[7].id, 5)
    own = arrays.documents == 7
    mean = arrays.passages[own].mean(axis=0)
    scores = arrays.passages @ (mean / np.linalg.norm(mean))
    scores[own] = -2
    assert hits[0].score == pytest.approx(float(scores.max()), abs=1e-5)
    assert corpus[7].id not in {hit.document_id for hit in hits}
    assert len(hits) == 5
    with pytest.raises(SettingsError, match="no document 'nobody'"):
        searcher.more_like("nobody")


@pytest.mark.parametrize("chunks", [(1, 1), (2, 5), (256, 65_536)])
def test_semantic_search_in_chunks_is_exact(arrays: ArrayCorpus, chunks: tuple[int, int]) -> None:
    queries = np.asarray(arrays.passages[:5]) + np.float32(0.01)
    found = Searcher.semantic_search(queries, arrays.passages, 7, *chunks)
    scores = queries @ arrays.passages.T
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1)[:, :7], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(scores, found.rows, 1), found.scores, atol=1e-6)
    few = Searcher.semantic_search(queries, arrays.passages[:2], 4)
    assert (few.rows[:, 2:] == -1).all()
    with pytest.raises(SettingsError, match="dimensions"):
        Searcher.semantic_search(queries[:, :5], arrays.passages)


def test_without_a_leg_of_their_own_sentences_of_the_candidates_count(searcher: Searcher) -> None:
    exact = [searcher.search(question, 3) for question in QUESTIONS]
    searcher.settings = IndexSettings(exact_sentences=0, candidates=30)
    near = [searcher.search(question, 3) for question in QUESTIONS]
    assert [[hit.passage_id for hit in hits] for hits in near] == [
        [hit.passage_id for hit in hits] for hits in exact
    ]
