from __future__ import annotations

import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from searchfit.config import EngineSettings
from searchfit.encoders.corpus import Encoding
from searchfit.keyword import Analyzer, KeywordIndex
from searchfit.prior import blend_engine, untuned_engine
from searchfit.records import PASSAGES
from searchfit.search import ArrayCorpus
from searchfit.trust import Trust, gauge

COUNT = 60
TREES = {"alder": "beside the water", "birch": "behind the house", "cedar": "upon the hill"}


class Reader:
    """An encoder that knows what each passage is about by any of its three names or, where it is blind, by
    none."""

    def __init__(self, blind: bool) -> None:
        self.blind = blind

    def _vectors(self, texts: list[str]) -> Any:
        seeds = [zlib.crc32(text.encode()) for text in texts]
        vectors = np.array([np.random.default_rng(seed).normal(size=COUNT) * 0.05 for seed in seeds])
        for place, text in enumerate(texts):
            if not self.blind and (found := re.search(r"(?:alder|birch|cedar)(\d+)", text)):
                vectors[place, int(found[1])] += 1
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def encode_questions(self, texts: list[str]) -> tuple[Any, list[Any]]:
        return self._vectors(texts), []

    def pieces(self, _: Any) -> float:
        return 2.8

    def encode_passages(self, texts: list[str], spans: Any, _: Any = None) -> tuple[Any, Any, None]:
        vectors = self._vectors(texts)
        return vectors, np.repeat(vectors, [len(own) for own in spans], axis=0), None


@pytest.fixture(scope="module")
def passages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Passages of three sentences, each with a name of its own and a word that all three share."""
    rows = []
    for number in range(COUNT):
        parts = [
            f"Old {tree}{number} willow{number} stands {where} all year round."
            for tree, where in TREES.items()
        ]
        text, ends = " ".join(parts), []
        for part in parts:
            ends += [text.index(part), text.index(part) + len(part)]
        rows.append(
            {"id": f"d{number}#0", "document_id": f"d{number}", "document": number, "title": "", "text": text}
            | {"start": 0, "end": len(text), "sentences": ends}
        )
    file = tmp_path_factory.mktemp("trust") / "passages.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=PASSAGES), file)
    return file


def corpus_of(passages: Path, reader: Reader) -> ArrayCorpus:
    texts = pq.read_table(passages)["text"].to_pylist()
    vectors, sentences, _ = reader.encode_passages(texts, [[(0, 1)] * 3] * len(texts))
    keyword = KeywordIndex.build(texts, Analyzer("english"))
    offsets = np.arange(0, 3 * len(texts) + 1, 3, dtype=np.int64)
    return ArrayCorpus(vectors, sentences, offsets, np.arange(len(texts), dtype=np.int32), keyword)


def test_a_model_that_finds_nothing_is_not_trusted(passages: Path) -> None:
    blind: Any = Reader(blind=True)
    found = gauge(blind, corpus_of(passages, blind), passages, 3)
    assert found.questions >= 20
    assert found.keyword > 2 * found.model
    assert found.factor > 1
    assert gauge(blind, corpus_of(passages, blind), passages, 3) == found


def test_a_model_that_knows_what_passages_are_about_is_trusted(passages: Path) -> None:
    seeing: Any = Reader(blind=False)
    found = gauge(seeing, corpus_of(passages, seeing), passages, 3)
    assert found.model > 0.95
    assert found.vectors == found.model, "there are no words"
    assert found.factor == 1


def test_few_passages_tell_nothing(passages: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.parquet"
    pq.write_table(pq.read_table(passages).slice(0, 12), few)
    blind: Any = Reader(blind=True)
    found = gauge(blind, corpus_of(few, blind), few, 3)
    assert found == Trust(found.questions, pieces=2.8)
    assert found.factor == 8, "the pieces tell"
    assert Trust().factor == 1


@pytest.mark.parametrize(
    ("keyword", "model", "words", "factor"),
    [
        (0.2, 0.4, True, 1),
        (0.5, 0.5, True, 1),
        (0.55, 0.5, True, 1.1**6),
        (0.55, 0.5, False, 1.1**3),
        (0.9, 0.1, True, 10),
        (0.5, 0.0, False, 10),
    ],
)
def test_the_factor_rises_where_keywords_find_more(
    keyword: float, model: float, words: bool, factor: float, tmp_path: Path
) -> None:
    trust = Trust(100, keyword, model, words)
    assert trust.factor == pytest.approx(factor)
    assert replace(trust, questions=19).factor == 1
    trust.save(tmp_path / "trust.json")
    assert Trust.load(tmp_path / "trust.json") == trust


def test_the_prior_follows_the_trust() -> None:
    encoding, trust = Encoding("cosine", 1.0, words=True), Trust(100, 0.6, 0.5, True)
    engine = untuned_engine(EngineSettings(), encoding, trust)
    assert engine.keyword_weight == pytest.approx(0.5 * trust.factor)
    assert (engine.token_weight, engine.token_depth) == (2.0, 40)
    blend = blend_engine(EngineSettings(), encoding, trust, "blend")
    assert blend.keyword_weight == pytest.approx(trust.factor)
    assert (blend.token_weight, blend.token_depth) == (0.0, 0)
    fixed = untuned_engine(EngineSettings(adapt=False), encoding, trust)
    assert fixed.keyword_weight == 0.5
    assert untuned_engine(EngineSettings(fusion="rrf"), encoding, trust).token_weight == 0


def test_a_text_scores_as_if_it_were_in_the_index() -> None:
    texts = ["the heron rests", "a violin and a heron heron", "walnut", "glacier of the north"]
    index = KeywordIndex.build(texts, Analyzer("english"))
    queries = ["heron glacier", "violin", "nothing known", ""]
    expected = index.scores(queries).toarray()
    found = [[index.score(query, text) for text in texts] for query in queries]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
