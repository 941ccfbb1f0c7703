"""How well the sample is searched without tuning: four systems on generated questions."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.parquet as pq

from searchfit.config import Settings
from searchfit.encoders import load_encoder
from searchfit.fusion import Vectors, rank
from searchfit.keyword import KeywordIndex
from searchfit.metrics import means, score_ranking
from searchfit.prior import blend_engine
from searchfit.records import Engine
from searchfit.search import ArrayCorpus
from searchfit.trust import Trust
from searchfit.workspace import Workspace

_QUESTIONS = 500
_TIMED = 128
_NAMES = ("ndcg@10", "mrr@10", "recall@10", "recall@100")


@dataclass(frozen=True, slots=True)
class Headroom:
    """Mean metrics by system over `questions` generated questions on `documents` documents, the best system
    by nDCG@10, and seconds a query: to encode it, and to rank by the engine among so many passages."""

    questions: int
    documents: int
    systems: dict[str, dict[str, float]]
    best: str
    encode: float
    rank_at: dict[int, float]

    @property
    def room(self) -> float:
        """What the dense model finds among 100 and does not rank well: Recall@100 - nDCG@10."""
        dense = self.systems["dense"]
        return dense["recall@100"] - dense["ndcg@10"]

    @property
    def lead(self) -> float:
        """By how much the engine, which teaches, is better than the dense model: nDCG@10."""
        return self.systems["engine"]["ndcg@10"] - self.systems["dense"]["ndcg@10"]


def measure(narrow: Workspace, wide: Workspace, settings: Settings) -> Headroom | None:
    """On the questions as they were written, before the screen, for that keeps what search finds; None where
    none were written."""
    texts, owners = _questions(narrow, settings.seed)
    if not texts:
        return None
    corpus = ArrayCorpus.load(narrow.artefact("encoded"), narrow.artefact("keyword"))
    encoder = load_encoder(settings.model)
    encoder.encode_queries(texts[:8])
    started = time.perf_counter()
    vectors = encoder.encode_queries(texts)
    encode = (time.perf_counter() - started) / len(texts)
    trust = Trust.load(narrow.artefact("trust.json"))
    prior = blend_engine(settings.engine, corpus.encoding, trust, "engine")
    engines = [
        Engine("keyword", dense_weight=0),
        replace(prior.vectors_alone("dense"), units="passage"),
        replace(prior, name="blend", units="passage"),
        prior,
    ]
    systems = {}
    for engine, ranking in zip(engines, rank(engines, corpus, vectors, texts, 100), strict=True):
        found = {
            str(number): score_ranking(
                [str(corpus.documents[row]) for row in rows if row >= 0], {str(own): 1}
            )
            for number, (rows, own) in enumerate(zip(ranking.rows, owners, strict=True))
        }
        systems[engine.name] = {
            name: round(value, 4) for name, value in means(found).items() if name in _NAMES
        }
    best = max(systems, key=lambda name: systems[name]["ndcg@10"])
    few = vectors[:_TIMED], texts[:_TIMED]
    timed = {one.count: _seconds(prior, one, *few) for one in (corpus, _tiled(corpus, wide))}
    return Headroom(len(texts), len(np.unique(corpus.documents)), systems, best, encode, timed)


def _questions(workspace: Workspace, seed: int) -> tuple[list[str], list[int]]:
    """Questions and the rows of their documents, sampled."""
    passages = pq.read_table(workspace.artefact("passages.parquet"), columns=["id", "document"])
    owner = dict(zip(passages["id"].to_pylist(), passages["document"].to_pylist(), strict=True))
    rows = pq.read_table(workspace.artefact("queries"), columns=["text", "passage_id"]).to_pylist()
    order = np.random.default_rng(seed).permutation(len(rows))[:_QUESTIONS]
    some = [rows[int(row)] for row in order]
    return [row["text"] for row in some], [owner[row["passage_id"]] for row in some]


def _tiled(corpus: ArrayCorpus, wide: Workspace) -> ArrayCorpus:
    """As many passages as the wide sample has: its keyword index, and the vectors over and over."""
    keyword = KeywordIndex.load(wide.artefact("keyword"))
    total = pq.ParquetFile(wide.artefact("passages.parquet")).metadata.num_rows
    rows = np.arange(total) % corpus.count
    block = corpus.take(rows)
    owners = np.arange(total, dtype=np.int32)
    return ArrayCorpus(block.passages, block.sentences, block.offsets, owners, keyword, corpus.encoding)


def _seconds(engine: Engine, corpus: ArrayCorpus, vectors: Vectors, texts: list[str]) -> float:
    rank([engine], corpus, vectors[:2], texts[:2], 100)  # what is made once
    started = time.perf_counter()
    rank([engine], corpus, vectors, texts, 100)
    return (time.perf_counter() - started) / len(texts)
