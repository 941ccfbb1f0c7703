"""Screen: keep the generated queries that a search engine could be fitted to.

Dropped are duplicates, the too short, the generic (many passages answer equally well), and those whose own
document the teacher, the untuned engine, does not find again in its top k (round-trip consistency, Alberti
et al. 2019, "Synthetic QA Corpora Generation with Roundtrip Consistency").
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from searchfit.config import ScreenSettings, Settings
from searchfit.encoders import load_encoder
from searchfit.fusion import Vectors, rank
from searchfit.records import PAIRS, Drop, Engine, StageResult
from searchfit.search import ArrayCorpus
from searchfit.stages import Tools
from searchfit.workspace import write_table

VERSION = 1


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Read queries/, write pairs.parquet and pair_vectors.npy (n, d): the kept queries, untuned vectors."""
    table = ds.dataset(inputs["queries"], format="parquet").to_table().sort_by("id")
    passages = pq.read_table(inputs["passages.parquet"], columns=["id", "document"])
    texts = table["text"].to_pylist()
    reasons = _textual_reasons(texts, settings.screen)
    looked = np.flatnonzero([not reason for reason in reasons])
    remaining = table.take(looked)
    own = pc.index_in(remaining["passage_id"], passages["id"].combine_chunks())
    documents = passages["document"].take(own).to_numpy()

    corpus = ArrayCorpus.load(inputs["encoded"], inputs["keyword"])
    tools.progress("screen", 0, len(looked))
    asked = remaining["text"].to_pylist()
    vectors = load_encoder(settings.model).encode_queries(asked)
    ranks, generic = _look_up(corpus, vectors, asked, documents, settings)
    for place, row in enumerate(looked):
        if generic[place]:
            reasons[row] = "generic: many documents answer equally well"
        elif not ranks[place]:
            reasons[row] = f"own document not among the first {settings.screen.top_k}"

    keep = (ranks > 0) & ~generic
    columns = [*remaining.columns, own, pa.array(documents), pa.array(ranks)]
    pairs = pa.table(
        [column.cast(field.type) for column, field in zip(columns, PAIRS, strict=True)], schema=PAIRS
    )
    write_table(tools.output / "pairs.parquet", pairs.filter(pa.array(keep)))
    np.save(tools.output / "pair_vectors.npy", vectors[keep])
    kept = int(keep.sum())
    return StageResult(counts={"queries": len(texts), "kept": kept}, drops=_tally(reasons, texts))


def _textual_reasons(texts: list[str], settings: ScreenSettings) -> list[str]:
    """Why a query is dropped by its text alone; "" keeps it. Of equal queries the first stays."""
    seen: set[str] = set()
    reasons = []
    for text in texts:
        plain = " ".join(text.casefold().split())
        if len(plain) < settings.min_chars and plain.isascii():
            reasons.append(f"shorter than {settings.min_chars} characters")
        elif plain in seen:
            reasons.append("duplicate")
        else:
            reasons.append("")
        seen.add(plain)
    return reasons


def _look_up(
    corpus: ArrayCorpus,
    vectors: Vectors,
    texts: list[str],
    documents: npt.NDArray[np.int32],
    settings: Settings,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """The 1-based rank of each query's own document under the teacher (0: not in the top k), and whether
    the query is generic. In a small corpus the top is the whole corpus, so nothing is generic there."""
    screen = settings.screen
    teacher = Engine("teacher", units=settings.engine.units, keyword_weight=settings.engine.keyword_weight)
    ranking = rank([teacher], corpus, vectors, texts, max(screen.top_k, screen.generic_ties))[0]
    found = np.where(ranking.rows >= 0, corpus.documents[np.maximum(ranking.rows, 0)], -1)
    hits = found[:, : screen.top_k] == documents[:, None]
    ranks = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0).astype(np.int32)
    close = ranking.scores >= ranking.scores[:, :1] - screen.generic_margin
    return ranks, close.sum(axis=1) >= screen.generic_ties


def _tally(reasons: list[str], texts: list[str]) -> tuple[Drop, ...]:
    by_reason: dict[str, list[str]] = {}
    for reason, text in zip(reasons, texts, strict=True):
        if reason:
            by_reason.setdefault(reason, []).append(text)
    return tuple(Drop(reason, len(rows), tuple(rows[:5])) for reason, rows in sorted(by_reason.items()))
