"""Screen: keep the generated queries that a search engine could be fitted to.

The cheap looks come first, and the dear ones only at what is left: the text alone, the text beside its
passage, the teacher, the other queries, and a cross-encoder where one is named. The teacher is the untuned
engine: it has to find a query's own document again among its first k (round-trip consistency, Alberti et
al. 2019, "Synthetic QA Corpora Generation with Roundtrip Consistency").
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from searchfit.config import ScreenSettings, Settings
from searchfit.encoders import load_encoder
from searchfit.encoders.batched import BatchedEncoder
from searchfit.encoders.cross import CrossEncoder, score_pairs
from searchfit.executors import Portable
from searchfit.fusion import Rows, Vectors
from searchfit.keyword import Analyzer
from searchfit.mining import leg
from searchfit.prior import blend_engine
from searchfit.ranking import Asked, Round, rank_rounds
from searchfit.records import PAIRS, SCREENED, Drop, StageResult, encoded_text
from searchfit.screening import NEAR_DUPLICATE, Sibling, TextScreen, by_passage, is_copy, near_duplicates
from searchfit.search import ArrayCorpus
from searchfit.stages import Tools
from searchfit.trust import Trust
from searchfit.writing import write_table

VERSION = 2

_NO_MODEL = "phrases"
"""The generator whose queries are crops of passages by design."""

_CHUNK = 1024
"""Queries that a model reads at a time."""

_READ = 1 << 17
"""Passages whose ids are looked at at a time."""


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Read queries/, write screened.parquet (every query and why it was dropped), pairs.parquet and
    pair_vectors.npy (n, d): the kept queries and their untuned vectors.

    Raises ModelError for a re-ranker that cannot be loaded.
    """
    import pyarrow.dataset as ds  # which loads pandas

    table = ds.dataset(inputs["queries"], format="parquet").to_table().sort_by("id")
    work = _Work(settings, inputs, tools, table)
    held = Portable(partial(ArrayCorpus.load, inputs["encoded"], inputs["keyword"]))
    corpus = held.model
    analyzer = corpus.keyword.analyzer
    copies = work.read(analyzer)
    looked = work.left()
    vectors = work.vectors(looked)
    k = round_trip_depth(settings.screen, len(np.unique(corpus.documents)))
    work.look_up(held, vectors, looked, k)
    kept = np.isin(looked, work.left())
    texts = [work.texts[row] for row in looked[kept]]
    repeated = near_duplicates(texts, vectors[kept], analyzer, settings.screen.near_duplicate)
    work.drop(looked[kept][repeated], NEAR_DUPLICATE)
    if settings.screen.reranker:
        work.rerank()
    rows = work.left()
    work.write(rows)
    np.save(tools.output / "pair_vectors.npy", vectors[np.isin(looked, rows)])
    counts = {
        "queries": len(table),
        "kept": len(rows),
        "copy_share": round(copies / max(1, len(table)), 4),
        "round_trip_depth": k,
    }
    return StageResult(counts=counts, drops=_tally(work.reasons, work.texts))


def round_trip_depth(settings: ScreenSettings, documents: int) -> int:
    """Among how many documents the teacher must find a query's own: `top_k`, and more in a corpus of fewer
    than `small_corpus` documents, where every pair that is lost is missed and near neighbours are few: as
    the root of how many times smaller it is, up to a quarter of the documents, so that a query taken at
    random still seldom passes."""
    smaller = settings.small_corpus / max(1, documents)
    return max(settings.top_k, int(min(settings.top_k * smaller**0.5, documents / 4)))


class _Work:
    """The queries (n) with what is known of each; a reason stands where one was dropped."""

    def __init__(self, settings: Settings, inputs: Mapping[str, Path], tools: Tools, table: pa.Table) -> None:
        self._settings, self._inputs, self._tools, self._table = settings, inputs, tools, table
        self._own, self._documents = _places(inputs["passages.parquet"], table["passage_id"])
        self._ranks = np.zeros(len(table), np.int32)
        self.texts: list[str] = table["text"].to_pylist()
        self.reasons = [""] * len(table)

    def left(self) -> Rows:
        """The rows that were not dropped so far, ascending."""
        return np.flatnonzero([not reason for reason in self.reasons])

    def drop(self, rows: Rows, reason: str) -> None:
        """Drop rows for one reason."""
        for row in rows:
            self.reasons[row] = reason

    def read(self, analyzer: Analyzer) -> int:
        """Drop what the texts alone speak against; the number of queries that are copies, dropped or not."""
        screen = TextScreen(self._settings.screen, analyzer)
        self.reasons = [screen.alone(text) for text in self.texts]
        models = pc.not_equal(self._table["generator"], _NO_MODEL).to_pylist()
        copies = done = 0
        for rows, record in by_passage(self._inputs["passages.parquet"], self._own, ["title", "text"]):
            passage = Sibling(encoded_text(record["title"], record["text"]), analyzer)
            for row in rows:
                text = self.texts[row]
                copied = is_copy(text, passage)
                copies += copied
                self.reasons[row] = self.reasons[row] or screen.beside(text, passage, models[row], copied)
            done += len(rows)
            self._tools.progress("reading queries", done, len(self.texts))
        return copies

    def vectors(self, rows: Rows) -> Vectors:
        """(n, d) the untuned vectors of the queries in rows (n)."""
        untuned = Portable(partial(load_encoder, self._settings.model))
        encoder = BatchedEncoder.of(untuned, self._tools.executor)
        return encoder.encode_queries([self.texts[row] for row in rows])

    def look_up(self, held: Portable[ArrayCorpus], vectors: Vectors, rows: Rows, k: int) -> None:
        """Drop rows (n), with vectors (n, d), whose own document is not among the teacher's first k, and
        those that many documents answer equally well. In a small corpus the top is the whole corpus, so
        nothing is generic there."""
        screen, corpus, tools = self._settings.screen, held.model, self._tools
        told = partial(tools.progress, "looking up queries")
        told(0, len(rows))
        trust = Trust.load(self._inputs["trust.json"])
        blend = blend_engine(self._settings.engine, corpus.encoding, trust, "teacher")
        teacher = leg(blend, screen.legs)
        texts = [self.texts[row] for row in rows]
        asked, width = Asked(texts, [vectors]), max(k, screen.generic_ties)
        (ranking,) = rank_rounds([Round(held, (teacher,))], asked, width, None, tools.executor, told)
        found = np.where(ranking.rows >= 0, corpus.documents[np.maximum(ranking.rows, 0)], -1)
        hits = found[:, :k] == self._documents[rows][:, None]
        ranks = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0).astype(np.int32)
        self._ranks[rows] = ranks
        close = ranking.scores >= ranking.scores[:, :1] - screen.generic_margin
        generic = close.sum(axis=1) >= screen.generic_ties
        self.drop(rows[ranks == 0], f"own document not among the first {k}")
        self.drop(rows[generic], "generic: many documents answer equally well")

    def rerank(self) -> None:
        """Drop what the cross-encoder does not take for an answer."""
        screen = self._settings.screen
        model = Portable(partial(CrossEncoder.load, screen.reranker, self._settings.model.device))
        rows, done = self.left(), 0
        under_way: deque[list[int]] = deque()

        def pairs() -> Iterator[tuple[list[str], list[str]]]:
            for part in self._beside_passages(rows):
                under_way.append([row for row, _ in part])
                yield [self.texts[row] for row, _ in part], [text for _, text in part]

        for scores in self._tools.executor.map_batches(partial(score_pairs, model), pairs()):
            judged = np.array(under_way.popleft(), np.int64)
            reason = f"the re-ranker scores it below {screen.reranker_min:g}"
            self.drop(judged[scores < screen.reranker_min], reason)
            done += len(judged)
            self._tools.progress("re-ranking queries", done, len(rows))

    def _beside_passages(self, rows: Rows) -> Iterator[list[tuple[int, str]]]:
        """Some rows at a time, each with the text of its query's passage."""
        part: list[tuple[int, str]] = []
        for places, record in by_passage(
            self._inputs["passages.parquet"], self._own[rows], ["title", "text"]
        ):
            text = encoded_text(record["title"], record["text"])
            part += [(int(rows[place]), text) for place in places]
            if len(part) >= _CHUNK:
                yield part
                part = []
        if part:
            yield part

    def write(self, rows: Rows) -> None:
        """Write pairs.parquet with the rows that stay, and screened.parquet."""
        output = self._tools.output
        known = self._table.columns
        documents, ranks = pa.array(self._documents), pa.array(self._ranks)
        pairs = _table([*known, pa.array(self._own), documents, ranks], PAIRS)
        write_table(output / "pairs.parquet", pairs.take(pa.array(rows)))
        screened = _table([*known, documents, ranks, pa.array(self.reasons, pa.string())], SCREENED)
        write_table(output / "screened.parquet", screened)


def _places(passages: Path, ids: pa.ChunkedArray) -> tuple[Rows, npt.NDArray[np.int32]]:
    """The (passage, document) rows of passages, by their ids."""
    names = ids.combine_chunks().dictionary_encode()
    rows = np.zeros(len(names.dictionary), np.int64)
    documents = np.zeros(len(names.dictionary), np.int32)
    start = 0
    with pq.ParquetFile(passages) as file:
        for batch in file.iter_batches(_READ, columns=["id", "document"]):
            place = pc.index_in(batch["id"], names.dictionary)
            here = np.flatnonzero(place.is_valid().to_numpy(zero_copy_only=False))
            named = place.drop_null().to_numpy()
            rows[named], documents[named] = start + here, batch["document"].to_numpy()[here]
            start += batch.num_rows
    numbers = names.indices.to_numpy()
    return rows[numbers], documents[numbers]


def _table(columns: Sequence[pa.Array], schema: pa.Schema) -> pa.Table:
    cast = [column.cast(field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.table(cast, schema=schema)


def _tally(reasons: list[str], texts: list[str]) -> tuple[Drop, ...]:
    by_reason: dict[str, list[str]] = {}
    for reason, text in zip(reasons, texts, strict=True):
        if reason:
            by_reason.setdefault(reason, []).append(text)
    return tuple(Drop(reason, len(rows), tuple(rows[:5])) for reason, rows in sorted(by_reason.items()))
