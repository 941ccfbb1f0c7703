from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from searchfit import teachers
from searchfit.encoders import load_encoder
from searchfit.encoders.cross import CrossEncoder
from searchfit.encoders.sentence import SentenceEncoder
from searchfit.errors import ModelError, SettingsError
from searchfit.fusion import rank
from searchfit.metrics import score_run
from searchfit.records import Engine
from searchfit.search import ArrayCorpus
from searchfit.teachers import (
    BiEncoderTeacher,
    CrossEncoderTeacher,
    EnsembleTeacher,
    Materials,
    PassageTexts,
    judge,
    load_teacher,
)

QUESTIONS = ["rose soil compost", "the old glacier", "violin and cello", "zebra"]


@pytest.fixture(scope="module")
def materials(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Materials:
    """The shared fit's corpus, and its untuned engine and model."""
    encoded, keyword = bench.path("encoded"), bench.path("keyword")
    return Materials(
        ArrayCorpus.load(encoded, keyword),
        bench.path("passages.parquet"),
        keyword,
        Engine("teacher"),
        bench.settings.model,
        load_encoder(bench.settings.model).encode_queries,
        tmp_path_factory.mktemp("vectors"),
    )


@pytest.fixture
def rows(materials: Materials) -> np.ndarray:
    """Six passages for each question, two of them absent."""
    drawn = np.random.default_rng(0).integers(0, materials.corpus.count, (len(QUESTIONS), 6))
    drawn[0, 2] = drawn[3, 5] = -1
    return drawn


def texts(materials: Materials) -> list[str]:
    table = pq.read_table(materials.passages)
    return [
        f"{title}. {text}"
        for title, text in zip(*(table[c].to_pylist() for c in ("title", "text")), strict=True)
    ]


def test_the_blend_scores_as_its_engine_ranks(materials: Materials, rows: np.ndarray) -> None:
    teacher = load_teacher("blend", materials)
    scores = teacher.scores(QUESTIONS, rows)
    everything = np.ones(materials.corpus.count, bool)
    vectors = materials.encode(QUESTIONS)
    ranking = rank([materials.engine], materials.corpus, vectors, QUESTIONS, len(everything), everything)[0]
    for query, own in enumerate(rows):
        known = dict(zip(ranking.rows[query].tolist(), ranking.scores[query].tolist(), strict=True))
        for row, score in zip(own.tolist(), scores[query].tolist(), strict=True):
            assert score == (-np.inf if row < 0 else pytest.approx(known[row], abs=2e-6))


def test_a_keyword_only_blend_encodes_nothing(materials: Materials, rows: np.ndarray) -> None:
    def never(_: Sequence[str]) -> Any:
        raise AssertionError("nothing is to be encoded")

    lone = replace(materials, engine=Engine("words", dense_weight=0.0), encode=never)
    scores = load_teacher("blend", lone).scores(QUESTIONS, rows)
    words = materials.corpus.keyword_scores(QUESTIONS).toarray()
    there = rows >= 0
    np.testing.assert_allclose(scores[there], np.take_along_axis(words, rows, 1)[there], atol=1e-6)
    assert scores[there].max() > 0


def test_the_cross_encoder_reads_query_and_passage(
    monkeypatch: pytest.MonkeyPatch, materials: Materials, tiny_reranker: Path, rows: np.ndarray
) -> None:
    from sentence_transformers import CrossEncoder as Oracle

    monkeypatch.setattr(teachers, "_PAIRS", 12)
    teacher = load_teacher(f"cross-encoder:{tiny_reranker}", materials)
    scores = teacher.scores(QUESTIONS, rows)
    model, passages = Oracle(str(tiny_reranker), device="cpu"), texts(materials)
    for query, own in enumerate(rows):
        for place, row in enumerate(own):
            if row < 0:
                assert np.isneginf(scores[query, place])
            else:
                expected = model.predict([(QUESTIONS[query], passages[row])])[0]  # a sigmoid by default
                assert scores[query, place] == pytest.approx(float(expected), abs=1e-5)
    assert scores.dtype == np.float32
    assert np.ptp(scores[rows >= 0]) > 0.05


def test_the_bi_encoder_gives_cosines_and_keeps_its_vectors(
    monkeypatch: pytest.MonkeyPatch, materials: Materials, tiny_model: Path, rows: np.ndarray, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    materials = replace(materials, folder=tmp_path)
    scores = load_teacher(f"bi-encoder:{tiny_model}", materials).scores(QUESTIONS, rows)
    model = SentenceTransformer(str(tiny_model), device="cpu")
    expected = model.encode(QUESTIONS) @ model.encode(texts(materials)).T
    there = rows >= 0
    np.testing.assert_allclose(scores[there], np.take_along_axis(expected, rows, 1)[there], atol=1e-5)
    assert np.isneginf(scores[~there]).all()

    def never(*_: Any) -> Any:
        raise AssertionError("the passages are encoded already")

    monkeypatch.setattr(SentenceEncoder, "encode_documents", never)
    again = load_teacher(f"bi-encoder:{tiny_model}", materials)
    np.testing.assert_array_equal(again.scores(QUESTIONS, rows), scores)


def test_an_interrupted_encoding_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, materials: Materials, tmp_path: Path
) -> None:
    monkeypatch.setattr(teachers, "_CHUNK", 16)
    encode = SentenceEncoder.encode_documents
    seen: list[str] = []

    def stumbling(self: SentenceEncoder, batch: Sequence[str]) -> Any:
        if len(seen) == 32:
            raise KeyboardInterrupt
        seen.extend(batch)
        return encode(self, batch)

    monkeypatch.setattr(SentenceEncoder, "encode_documents", stumbling)
    with pytest.raises(KeyboardInterrupt):
        _ = BiEncoderTeacher(materials.model, materials.passages, tmp_path / "cut").vectors
    (mark,) = (tmp_path / "cut").glob("*.json")
    assert json.loads(mark.read_text()) == {"passages": 32}

    def counting(self: SentenceEncoder, batch: Sequence[str]) -> Any:
        seen.extend(batch)
        return encode(self, batch)

    monkeypatch.setattr(SentenceEncoder, "encode_documents", counting)
    vectors = BiEncoderTeacher(materials.model, materials.passages, tmp_path / "cut").vectors
    assert seen == texts(materials)
    monkeypatch.setattr(SentenceEncoder, "encode_documents", encode)
    whole = BiEncoderTeacher(materials.model, materials.passages, tmp_path / "whole")
    np.testing.assert_array_equal(vectors, whole.vectors)


@dataclass
class Fixed:
    """A teacher that says what it was given."""

    said: np.ndarray
    name: str = "fixed"
    fingerprint: str = "f"

    def scores(self, texts: Sequence[str], rows: np.ndarray) -> np.ndarray:
        return np.where(rows >= 0, self.said[: len(texts)], -np.inf).astype(np.float32)


def test_the_ensemble_is_the_mean_of_z_scores_on_the_members_scale() -> None:
    random = np.random.default_rng(2)
    said = [random.normal(0.5, 0.1, (3, 7)), random.normal(-4, 20, (3, 7)), np.full((3, 7), 2.0)]
    rows = np.arange(21).reshape(3, 7)
    rows[1, 3:5] = -1
    scores = EnsembleTeacher([Fixed(each) for each in said]).scores(["a", "b", "c"], rows)
    for query in range(3):
        there = rows[query] >= 0
        own = np.array([each[query][there] for each in said])
        z = (own - own.mean(1, keepdims=True)) / np.where(own.std(1) > 0, own.std(1), 1)[:, None]
        expected = own.mean() + own.std(1).mean() * z.mean(0)
        np.testing.assert_allclose(scores[query][there], expected, rtol=1e-4, atol=1e-4)
        assert np.isneginf(scores[query][~there]).all()


def test_an_ensemble_does_not_follow_the_member_of_the_largest_scale() -> None:
    small, large = np.array([[0.9, 0.5, 0.4, 0.1]]), np.array([[10.0, 11.0, -30.0, 9.0]])
    rows = np.arange(4)[None]
    scores = EnsembleTeacher([Fixed(small), Fixed(large)]).scores(["a"], rows)
    assert scores[0].argmax() == 0
    lone = EnsembleTeacher([Fixed(small)]).scores(["a"], rows)
    np.testing.assert_allclose(lone, small, atol=1e-6)


def test_teachers_load_by_name_and_say_what_decides_their_scores(
    materials: Materials, tiny_reranker: Path, tiny_model: Path
) -> None:
    names = ["blend", f"cross-encoder:{tiny_reranker}", f"bi-encoder:{tiny_model}"]
    names.append("+".join(names))
    loaded = [load_teacher(name, materials) for name in names]
    assert [teacher.name for teacher in loaded] == names
    prints = {teacher.fingerprint for teacher in loaded}
    assert len(prints) == 4
    assert prints == {load_teacher(name, materials).fingerprint for name in names}
    other = replace(materials, engine=Engine("teacher", keyword_weight=0.5))
    assert load_teacher("blend", other).fingerprint not in prints
    renamed = replace(materials, engine=Engine("another name"))
    assert load_teacher("blend", renamed).fingerprint in prints


def test_a_plus_in_a_folder_s_name_divides_nothing(
    materials: Materials, tiny_reranker: Path, tmp_path: Path
) -> None:
    import shutil

    folder = shutil.copytree(tiny_reranker, tmp_path / "a+b")
    loaded = load_teacher(f"cross-encoder:{folder}+blend", materials)
    assert isinstance(loaded, EnsembleTeacher)
    assert isinstance(loaded.members[0], CrossEncoderTeacher)
    assert [member.name for member in loaded.members] == [f"cross-encoder:{folder}", "blend"]


@pytest.mark.parametrize("name", ["", "oracle", "cross-encoder:", "bi-encoder", "blend+oracle"])
def test_an_unknown_teacher_is_refused_with_those_that_there_are(materials: Materials, name: str) -> None:
    with pytest.raises(SettingsError, match="cross-encoder:MODEL"):
        load_teacher(name, materials)


def test_a_model_that_is_not_there_is_refused_at_once(materials: Materials, tmp_path: Path) -> None:
    for kind in ("cross-encoder", "bi-encoder"):
        with pytest.raises(ModelError):
            load_teacher(f"{kind}:{tmp_path}/none", materials)


def test_texts_come_by_row_whatever_the_row_groups(materials: Materials, tmp_path: Path) -> None:
    table = pa.table({"title": ["", *"abcdefghi"], "text": [f"text {i}" for i in range(10)]})
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=3)
    passages = PassageTexts(tmp_path / "p.parquet")
    expected = ["text 0", *(f"{title}. text {i}" for i, title in enumerate("abcdefghi", 1))]
    asked = [9, 0, 3, 3, 5]
    assert passages.take(np.array(asked)) == [expected[row] for row in asked]
    assert passages.take(np.array([], np.int64)) == []
    assert PassageTexts(materials.passages).take(np.arange(3)) == texts(materials)[:3]
    for wrong in (-1, 10):
        with pytest.raises(IndexError):
            passages.take(np.array([2, wrong]))


def dev(seed: int, queries: int = 40) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Queries with 15 candidates, one of them the answer, and noise."""
    random = np.random.default_rng(seed)
    rows = np.tile(np.arange(15), (queries, 1))
    relevant = np.zeros(rows.shape, bool)
    relevant[np.arange(queries), random.integers(0, 15, queries)] = True
    return [f"q{i}" for i in range(queries)], rows, relevant, random.standard_normal(rows.shape)


def test_the_verdict_is_by_ndcg_over_the_same_candidates() -> None:
    asked, rows, relevant, noise = dev(1)
    student = noise + relevant
    good, bad = Fixed(noise + 3 * relevant), Fixed(-noise)
    better, worse = (judge(teacher, asked, rows, student, relevant) for teacher in (good, bad))
    qrels = {q: {str(int(own.argmax())): 1} for q, own in zip(asked, relevant, strict=True)}
    for said, mean in (
        (student, better.comparison.mean_a),
        (good.said, better.comparison.mean_b),
        (bad.said, worse.comparison.mean_b),
    ):
        run = {q: {str(i): float(s) for i, s in enumerate(own)} for q, own in zip(asked, said, strict=True)}
        assert mean == pytest.approx(np.mean([each["ndcg@10"] for each in score_run(run, qrels).values()]))
    assert (better.worse, better.sure) == (False, True)
    assert (worse.worse, worse.sure) == (True, True)
    better.require()
    worse.require(force=True)
    with pytest.raises(SettingsError, match=r"fixed is worse than the student on 40 dev queries"):
        worse.require()
    assert "better than" in better.message
    assert "chance" not in better.message


def test_a_teacher_that_is_just_as_good_is_not_used() -> None:
    asked, rows, relevant, noise = dev(2)
    verdict = judge(Fixed(noise), asked, rows, noise.astype(np.float32), relevant)
    assert verdict.worse
    assert not verdict.sure
    assert "level with" in verdict.message


def test_a_teacher_that_cannot_tell_gains_nothing_by_it() -> None:
    asked, rows, relevant, _ = dev(3)
    relevant[:] = False
    relevant[:, 0] = True
    verdict = judge(Fixed(np.zeros(rows.shape)), asked, rows, np.full(rows.shape, -1.0), relevant)
    assert verdict.comparison.mean_b == verdict.comparison.mean_a == 0


def test_queries_without_an_answer_among_their_candidates_are_left_aside() -> None:
    asked, rows, relevant, noise = dev(4)
    relevant[:5] = False
    rows[5][relevant[5]] = -1
    teacher = Fixed(noise[6:] + relevant[6:])
    assert judge(teacher, asked, rows, noise, relevant).comparison.n == 34
    none = judge(teacher, asked[:5], rows[:5], noise[:5], relevant[:5])
    assert none.worse
    assert "no dev queries" in none.message
    with pytest.raises(SettingsError, match="no dev queries"):
        none.require()


def test_models_load_when_they_first_score(
    monkeypatch: pytest.MonkeyPatch, materials: Materials, tiny_reranker: Path
) -> None:
    loaded: list[str] = []
    load = CrossEncoder.load
    monkeypatch.setattr(CrossEncoder, "load", lambda *a: (loaded.append(a[0]), load(*a))[1])
    teacher = load_teacher(f"cross-encoder:{tiny_reranker}", materials)
    assert teacher.fingerprint
    assert loaded == []
    for _ in range(2):
        teacher.scores(QUESTIONS[:1], np.array([[0]]))
    assert loaded == [str(tiny_reranker)]
