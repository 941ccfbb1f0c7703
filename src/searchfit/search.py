"""Search: an Engine over a corpus in arrays (evaluation) and over an index (serving); query -> hits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from searchfit.config import EngineSettings, ModelSettings
from searchfit.encoders import load_encoder
from searchfit.encoders.corpus import COSINE, Encoding
from searchfit.errors import SettingsError, WorkspaceError
from searchfit.filters import Filter, parse
from searchfit.fusion import Block, Floats, Ranking, Rows, Scored, Vectors, rank, rank_one
from searchfit.keyword import Analyzer, KeywordIndex
from searchfit.records import Engine, Hit
from searchfit.stores import Store, open_store
from searchfit.workspace import Workspace

if TYPE_CHECKING:
    import scipy.sparse as sp

    from searchfit.encoders.sentence import SentenceEncoder

_SNIPPET_CHARS = 240


@dataclass(frozen=True, slots=True)
class ArrayCorpus:
    """A corpus in arrays: (n, d) passages, (m, d) sentences, (n + 1) offsets, (n) documents (ascending), and
    how the vectors are compared."""

    passages: Vectors
    sentences: Vectors
    offsets: Rows
    documents: npt.NDArray[np.int32]
    keyword: KeywordIndex
    encoding: Encoding = COSINE

    @classmethod
    def load(cls, encoded: Path, keyword: Path) -> ArrayCorpus:
        """Open the artefacts of the encode stage; vectors are memory-mapped."""
        names = ("passages", "sentences", "offsets", "documents")
        arrays = {name: np.load(encoded / f"{name}.npy", mmap_mode="r") for name in names}
        return cls(**arrays, keyword=KeywordIndex.load(keyword), encoding=Encoding.load(encoded))

    @property
    def count(self) -> int:
        """Number of passages."""
        return len(self.passages)

    def keyword_scores(self, queries: Sequence[str]) -> sp.csr_array:
        """The keyword leg, a sparse (len(queries), count) matrix."""
        return self.keyword.scores(queries)

    def take(self, rows: Rows) -> Block:
        """These passages as one block, in the order asked."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        sentences = self.sentences[np.repeat(self.offsets[rows], lengths) + within]
        return Block(0, self.documents[rows], self.passages[rows], sentences, offsets)

    def blocks(self, rows: int) -> Iterator[Block]:
        """The blocks in row order; a document is never divided."""
        start = 0
        while start < self.count:
            end = min(self.count, start + rows)
            while end < self.count and self.documents[end] == self.documents[end - 1]:
                end += 1
            first, last = self.offsets[start], self.offsets[end]
            offsets = np.asarray(self.offsets[start : end + 1]) - first
            yield Block(
                start,
                self.documents[start:end],
                self.passages[start:end],
                self.sentences[first:last],
                offsets,
            )
            start = end


def untuned_engine(settings: EngineSettings, encoding: Encoding, name: str = "untuned engine") -> Engine:
    """The engine of the settings over vectors as they are encoded, which every stage begins from."""
    return Engine(
        name,
        units=settings.units,
        dense_weight=encoding.dense_weight,
        keyword_weight=settings.keyword_weight,
    )


class StoreCorpus:
    """An index version as a corpus: vectors come from its store, keyword scores from its postings."""

    def __init__(self, folder: Path) -> None:
        self.store: Store = open_store(folder)
        self.info = self.store.info
        try:
            self.documents = np.load(folder / "documents.npy", mmap_mode="r")
            self._lengths = np.load(folder / "lengths.npy")
            self._keyword = self.info["keyword"]
        except (OSError, ValueError, KeyError) as error:
            raise WorkspaceError(
                f"the index {folder} is damaged: {error}.", "Run the same fit again."
            ) from error
        self.analyzer = Analyzer(self._keyword["language"])

    @property
    def count(self) -> int:
        """Number of passages."""
        return len(self.documents)

    def keyword_scores(self, queries: Sequence[str]) -> sp.csr_array:
        """The keyword leg, a sparse (len(queries), count) matrix, from the postings of the queries' terms."""
        found = self.store.postings(
            sorted({term for query in queries for term in self.analyzer.terms(query)})
        )
        rows = [rows for rows, _ in found.values()]
        frequencies = [frequencies for _, frequencies in found.values()]
        arrays = {
            "starts": np.concatenate([[0], np.cumsum([len(part) for part in rows])]).astype(np.int64),
            "rows": np.concatenate([np.empty(0, np.int64), *rows]),
            "frequencies": np.concatenate([np.empty(0, np.float32), *frequencies]),
            "lengths": self._lengths,
        }
        index = KeywordIndex(self.analyzer, arrays, list(found), self._keyword["k1"], self._keyword["b"])
        return index.scores(queries)

    def blocks(self, rows: int) -> Iterator[Block]:
        """The blocks in row order; a document is never divided."""
        import pyarrow as pa

        start = 0
        held: list[pa.RecordBatch] = []
        for batch in self.store.scan(["vector", "sentence_vectors"]):
            held.append(batch)
            end = start + sum(part.num_rows for part in held)
            if end - start >= rows or end == self.count:
                table = pa.Table.from_batches(held)
                if end < self.count:
                    # The last document may go on in the next batch: leave it for the next block.
                    end = int(np.searchsorted(self.documents, self.documents[end - 1]))
                if end == start:
                    continue
                yield _block(table[: end - start], start, self.documents[start:end])
                held = table[end - start :].to_batches()
                start = end


def _block(table: Any, start: int, documents: npt.NDArray[np.int32]) -> Block:
    vectors, lists = (table[name].combine_chunks() for name in ("vector", "sentence_vectors"))
    size = vectors.type.list_size
    lengths = np.diff(lists.offsets.to_numpy())
    return Block(
        start,
        documents,
        vectors.flatten().to_numpy().reshape(-1, size),
        lists.flatten().flatten().to_numpy().reshape(-1, size),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


class Searcher:
    """The served engine of a workspace: one index version with its model, opened for reading.

    It keeps answering from the version it opened while another one is built and swapped in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corpus = StoreCorpus(folder)
        self.engine = Engine(**self.corpus.info["engine"])

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """The model of this index version; only its query tower is used."""
        settings = ModelSettings.model_validate(
            {**self.corpus.info["model"], "name": str(self.folder / "model")}
        )
        encoder = load_encoder(settings)
        held = self.corpus.info["dimension"]
        if encoder.dimension != held:
            raise WorkspaceError(
                f"the model gives {encoder.dimension} dimensions, the index holds {held}.",
                "Index and model do not belong together: run the same fit again.",
            )
        return encoder

    @property
    def columns(self) -> dict[str, str]:
        """The metadata columns that can be filtered on, with their types."""
        return dict(self.corpus.store.columns)

    def search(self, query: str, k: int = 10, where: str | None = None, passages: bool = False) -> list[Hit]:
        """The k best documents (or passages) for a query, best first, each with its best passage.

        `where` is a filter such as `price < 300000 and rooms >= 3`. Raises SettingsError for an empty query
        or k < 1, FilterError for a filter that does not fit the columns.
        """
        if not query.strip():
            raise SettingsError("the query is empty.", "Write a few words or a question.")
        if k < 1:
            raise SettingsError(f"k must be at least 1, got {k}.")
        filter_ = parse(where, self.columns) if where else None
        keyword = self.corpus.keyword_scores([query]).toarray()[0]
        if filter_ is not None:
            keyword = self._masked(keyword, filter_)
        vector = (
            self.encoder.encode_queries([query])[0] if self.engine.dense_weight else np.empty(0, np.float32)
        )

        def distinct(rows: Rows) -> bool:
            return len(rows if passages else np.unique(self.corpus.documents[rows])) >= k

        scored = rank_one(self.engine, self.corpus.store, vector, keyword, distinct, filter_)
        return self._hits(query, scored, k, passages)

    def search_many(self, queries: Sequence[str], k: int = 10) -> Ranking:
        """Rankings of documents for many queries at once, by reading the index once for every 256 queries.
        Ranks as `search` does."""
        vectors = self.encoder.encode_queries(queries)
        return rank([self.engine], self.corpus, vectors, queries, k)[0]

    def document_ids(self, rows: Rows) -> list[str]:
        """The document ids of passage rows."""
        return [str(fields["document_id"]) for fields in self.corpus.store.fetch(rows)]

    def _masked(self, keyword: Floats, where: Filter) -> Floats:
        masked = np.full_like(keyword, -np.inf)
        rows = self.corpus.store.matching(where)
        masked[rows] = keyword[rows]
        return masked

    def _hits(self, query: str, scored: Scored, k: int, passages: bool) -> list[Hit]:
        places: list[int] = []
        seen: set[int] = set()
        for place, row in enumerate(scored.rows):
            document = int(self.corpus.documents[row])
            if len(places) < k and np.isfinite(scored.keyword[place]) and (passages or document not in seen):
                places.append(place)
                seen.add(document)
        terms = set(self.corpus.analyzer.terms(query))
        fetched = self.corpus.store.fetch(scored.rows[places])
        return [
            self._hit(rank_, place, fields, scored, terms)
            for rank_, (place, fields) in enumerate(zip(places, fetched, strict=True), start=1)
        ]

    def _hit(self, rank_: int, place: int, fields: dict[str, Any], scored: Scored, terms: set[str]) -> Hit:
        snippet, highlights = make_snippet(fields["text"], fields["sentences"], terms, self.corpus.analyzer)
        return Hit(
            rank=rank_,
            score=round(float(scored.scores[place]), 6),
            document_id=fields["document_id"],
            passage_id=fields["id"],
            title=fields["title"],
            text=fields["text"],
            snippet=snippet,
            highlights=highlights,
            start=fields["start"],
            end=fields["end"],
            metadata=fields["metadata"],
            scores={
                "dense": round(float(scored.dense[place]), 6),
                "keyword": round(float(scored.keyword[place]), 6),
            },
        )


def make_snippet(
    text: str, sentences: Sequence[int], terms: set[str], analyzer: Analyzer
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The stretch of a passage that holds most distinct query terms, from a sentence's start, and where the
    terms stand in it."""
    matches = [span for span in analyzer.spans(text) if span[0] in terms]
    starts = list(sentences[::2]) or [0]

    def found(start: int) -> int:
        return len({term for term, a, b in matches if a >= start and b <= start + _SNIPPET_CHARS})

    start = max(starts, key=lambda s: (found(s), -s))
    end = min(len(text), start + _SNIPPET_CHARS)
    if end < len(text):
        space = text.rfind(" ", start, end)
        end = space if space > start + _SNIPPET_CHARS // 2 else end
    marks: list[tuple[int, int]] = []
    for a, b in sorted({(a - start, b - start) for _, a, b in matches if a >= start and b <= end}):
        if marks and a < marks[-1][1]:  # pairs of characters overlap, and so do identifiers and their parts
            marks[-1] = marks[-1][0], max(b, marks[-1][1])
        else:
            marks.append((a, b))
    return text[start:end], tuple(marks)


def open_searcher(workspace: Path) -> Searcher:
    """The engine that a workspace serves. Raises WorkspaceError when there is none yet."""
    served = Workspace(workspace).served()
    if served is None:
        raise WorkspaceError(
            f"{workspace} has no finished search engine.",
            "Run searchfit fit to its end; the same command carries on where it stopped.",
        )
    return Searcher(workspace / served["index"])
