"""Search: an Engine over a corpus in arrays (evaluation) and over an index (serving); query -> hits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from searchfit.config import IndexSettings, ModelSettings
from searchfit.encoders import load_encoder
from searchfit.encoders.corpus import COSINE, Encoding, load_words
from searchfit.errors import SettingsError, WorkspaceError
from searchfit.filters import Filter, parse
from searchfit.found import Found
from searchfit.fusion import Block, Ranking, Rows, Vectors, gathered
from searchfit.interaction import NO_TOKENS, HeldWords, Questions, Tokens, rank_words, word_scores
from searchfit.keyword import KeywordIndex
from searchfit.legs import Asked, KeywordLeg, rank_one
from searchfit.mapped import is_large, let_go, rows_of
from searchfit.records import Engine, Hit, encoded_text
from searchfit.request import EVERY_STEP, Answer, Request, Switches, check_page
from searchfit.rerank import PairScores, Reranker, rerank
from searchfit.semantic import semantic_search as exact_search
from searchfit.snippets import make_snippet
from searchfit.stores import Store
from searchfit.stores.corpus import StoreCorpus
from searchfit.stores.push import attached
from searchfit.stores.versions import stamp
from searchfit.views import View
from searchfit.views import documents as view_documents
from searchfit.views import passages as view_passages
from searchfit.workspace import Workspace

if TYPE_CHECKING:
    import scipy.sparse as sp

    from searchfit.encoders.sentence import SentenceEncoder

_T = TypeVar("_T")

Read = tuple[Vectors, Tokens]
"""A question as a model reads it: its vector (d) and its tokens."""


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
    words: HeldWords | None = None

    @classmethod
    def load(cls, encoded: Path, keyword: Path) -> ArrayCorpus:
        """Open the artefacts of the encode stage; vectors are memory-mapped."""
        names = ("passages", "sentences", "offsets", "documents")
        arrays = {name: np.load(encoded / f"{name}.npy", mmap_mode="r") for name in names}
        index, encoding = KeywordIndex.load(keyword), Encoding.load(encoded)
        return cls(**arrays, keyword=index, encoding=encoding, words=load_words(encoded))

    @property
    def count(self) -> int:
        """Number of passages."""
        return len(self.passages)

    def keyword_scores(self, queries: Sequence[str], rows: Rows | None = None) -> sp.csr_array:
        """The keyword leg, a sparse (len(queries), count) matrix, or that of distinct rows alone."""
        return self.keyword.scores(queries, rows)

    def spans(self, text: str) -> Iterator[tuple[str, int, int]]:
        """The index terms of a text, at (term, start, end)."""
        return self.keyword.analyzer.spans(text)

    def idf(self, term: str) -> float:
        """Rarity of a term."""
        return self.keyword.idf(term)

    def take(self, rows: Rows) -> Block:
        """These passages as one block, in the order asked."""
        places, offsets = gathered(self.offsets, rows)
        passages, sentences = rows_of(self.passages, rows), rows_of(self.sentences, places)
        return Block(0, self.documents[rows], passages, sentences, offsets)

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
            if is_large(self.sentences):
                let_go(self.passages, self.sentences)
            start = end


class Searcher:
    """The served engine of a workspace, opened for reading.

    It follows the additions and removals that are made to its index: each call sees one version, the newest.
    Another index that a new fit swaps in is not followed; open the workspace again for that. `attach` gives
    the store that is searched in place of a version's own; keywords are always searched here.
    """

    def __init__(self, folder: Path, attach: Callable[[Store], Store] | None = None) -> None:
        self.folder = folder
        self._attach = attach
        self._attached: tuple[StoreCorpus, Store] | None = None
        self._corpus = StoreCorpus(folder)
        self._lock = Lock()
        self.engine = Engine(**self._corpus.info["engine"])
        self.settings = IndexSettings.model_validate(self._corpus.info.get("index", {}))

    @property
    def corpus(self) -> StoreCorpus:
        """The newest version of the index."""
        with self._lock:
            now = stamp(self.folder)
            if now and now != self._corpus.opened.stamp:
                self._corpus = StoreCorpus(self.folder, self._corpus)
            return self._corpus

    def _store(self, corpus: StoreCorpus) -> Store:
        """Where a version is searched."""
        if self._attach is None:
            return corpus.store
        with self._lock:
            if self._attached is None or self._attached[0] is not corpus:
                self._attached = None  # lets go of the one before
                self._attached = corpus, self._attach(corpus.store)
            return self._attached[1]

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """The model of this index: questions go through its query tower, additions through the other."""
        info = self._corpus.info
        settings = ModelSettings.model_validate({**info["model"], "name": str(self.folder / "model")})
        encoder = load_encoder(settings)
        if encoder.dimension != info["dimension"]:
            raise WorkspaceError(
                f"the model gives {encoder.dimension} dimensions, the index holds {info['dimension']}.",
                "Index and model do not belong together: run the same fit again.",
            )
        return encoder

    @cached_property
    def reranker(self) -> Reranker:
        """The re-ranker of this index. Raises SettingsError where its engine has none."""
        if not self.engine.reranker:
            raise SettingsError(
                f"the engine {self.engine.name!r} has no re-ranker.",
                "Fit with --reranker; it is used where it makes the engine better.",
            )
        model = ModelSettings.model_validate({**self._corpus.info["model"], "name": ""})
        return Reranker.load(str(self.folder / self.engine.reranker), model.device, model.precision)

    @property
    def documents(self) -> View:
        """The documents of the workspace as a table, additions and removals included; see views.documents."""
        return view_documents(self.folder.parents[1])

    @property
    def passages(self) -> View:
        """The passages of the workspace as a table, likewise; see views.passages."""
        return view_passages(self.folder.parents[1])

    @property
    def columns(self) -> dict[str, str]:
        """The metadata columns that can be filtered on, with their types."""
        return dict(self._corpus.store.columns)

    def search(
        self,
        query: str,
        k: int = 10,
        where: str | None = None,
        passages: bool = False,
        offset: int = 0,
        switches: Switches = EVERY_STEP,
    ) -> list[Hit]:
        """The k best documents (or passages) for a query after the first `offset`, best first, each with its
        best passage.

        `where` is a filter such as `price < 300000 and rooms >= 3`. Raises SettingsError for an empty query,
        k < 1 or offset < 0, FilterError for a filter that does not fit the columns.
        """
        return self.answer(Request(query, k, where, passages, offset, switches)).hits

    def answer(self, request: Request, read: Read | None = None) -> Answer:
        """What `search` gives, and the version of the index that it comes from. `read` is what `read` gives
        for the query, where it is known already."""
        request.check()
        query, offset = request.query, request.offset
        filter_ = parse(request.where, self.columns) if request.where else None
        engine = request.switches.applied(self.engine)
        vector, tokens = read or self.read(engine, [query])[0]

        def hits(corpus: StoreCorpus) -> Answer:
            asked = self._asked(corpus, vector, corpus.bm25.leg(query, filter_), filter_)
            depth = max(offset + request.k, engine.rerank_depth, engine.token_depth)
            found = self._find(corpus, engine, asked, depth, request.passages)
            if engine.token_weight:
                found = found.met(word_scores(corpus, corpus.words_by_row, [query], [tokens]))
            found = found.reranked(query, self._pairs(corpus))
            page = slice(offset, offset + request.k)
            return Answer(self._hits(corpus, found, query, page, request.switches), self.version(corpus))

        return self._over(hits)

    def version(self, corpus: StoreCorpus) -> str:
        """The name of a version of the index: that of its folder, and its generation."""
        return f"{self.folder.name}.{corpus.opened.version.generation}"

    def search_many(self, queries: Sequence[str], k: int = 10, where: str | None = None) -> Ranking:
        """Rankings of documents for many queries, by passage rows, exact. Without a filter the index is read
        once for many of them. Ranks as `search` does."""
        engine, reads = self.engine, self.read(self.engine, queries)
        filter_ = parse(where, self.columns) if where else None

        def ranking(corpus: StoreCorpus) -> Ranking:
            depth = max(k, engine.rerank_depth)
            if filter_ is not None:
                found = self._one_by_one(corpus, queries, reads, depth, filter_)
            else:
                vectors, tokens = [read[0] for read in reads], [read[1] for read in reads]
                words = word_scores(corpus, corpus.words, queries, tokens)
                asked = Questions(queries, np.array(vectors), words)
                found = rank_words([engine], corpus, asked, depth)[0]
                found = Ranking(np.append(corpus.store.rows, -1)[found.rows], found.scores)
            if self.engine.reranker:
                read = self._pairs(corpus)(queries, found.rows[:, : self.engine.rerank_depth])
                found = rerank(self.engine, found, read)
            return Ranking(found.rows[:, :k], found.scores[:, :k])

        return self._over(ranking)

    def more_like(self, document_id: str, k: int = 10, where: str | None = None) -> list[Hit]:
        """The k documents most like one of the index, by the mean of its passages' vectors: of passage to
        passage, no query tower and no keywords. Raises SettingsError when there is no such document."""
        check_page(k, 0)
        filter_ = parse(where, self.columns) if where else None

        def hits(corpus: StoreCorpus) -> list[Hit]:
            own = corpus.store.rows_of(document_id)
            if not len(own):
                raise SettingsError(f"there is no document {document_id!r} in the index.")
            mean = corpus.store.vectors(own)[0].mean(axis=0)
            if corpus.info.get("similarity", "cosine") == "cosine":
                mean /= max(float(np.linalg.norm(mean)), 1e-12)
            engine = Engine("more like this", units="passage", keyword_weight=0.0)
            asked = self._asked(corpus, mean, corpus.bm25.leg("", filter_), filter_)
            found = self._find(corpus, engine, asked, k, False, int(corpus.documents[corpus.places(own[0])]))
            return self._hits(corpus, found, "", slice(0, k), EVERY_STEP)

        return self._over(hits)

    semantic_search = staticmethod(exact_search)

    def document_ids(self, rows: Rows) -> list[str]:
        """The document ids of passage rows."""
        return self.corpus.store.document_ids(rows)

    def read(self, engine: Engine, queries: Sequence[str]) -> list[Read]:
        """The vector (d) and the tokens of each query, as far as an engine looks at them."""
        if not engine.dense_weight and not engine.token_weight:  # no model needs to be loaded
            return [(np.empty(0, np.float32), NO_TOKENS)] * len(queries)
        if not engine.token_weight:
            return [(vector, NO_TOKENS) for vector in self.encoder.encode_queries(queries)]
        return list(zip(*self.encoder.encode_questions(queries), strict=True))

    def _over(self, work: Callable[[StoreCorpus], _T]) -> _T:
        """Do work over the newest version; again, should that be removed meanwhile by two newer ones."""
        while True:
            corpus = self.corpus
            try:
                return work(corpus)
            except WorkspaceError:
                if self.corpus is corpus:
                    raise

    def _asked(
        self, corpus: StoreCorpus, vector: Vectors, keyword: KeywordLeg, where: Filter | None
    ) -> Asked:
        by_sentence = corpus.sentences <= self.settings.exact_sentences
        return Asked(vector, keyword, where, by_sentence, 64 if by_sentence else self.settings.candidates)

    def _find(
        self,
        corpus: StoreCorpus,
        engine: Engine,
        asked: Asked,
        count: int,
        passages: bool,
        without: int = -1,
    ) -> Found:
        """The first `count` documents (or passages), other than the document `without`."""

        def enough(rows: Rows) -> bool:
            if not passages:
                rows = np.setdiff1d(corpus.documents[corpus.places(rows)], [without])
            return len(rows) >= count

        scored = rank_one(engine, self._store(corpus), asked, enough)
        seen = {without}
        shown: list[int] = []
        for place, document in enumerate(corpus.documents[corpus.places(scored.rows)].tolist()):
            if passages or document not in seen:
                shown.append(place)
                seen.add(document)
            if len(shown) == count:
                break
        return Found(engine, scored, shown)

    def _pairs(self, corpus: StoreCorpus) -> PairScores:
        def texts(rows: Rows) -> list[str]:
            fetched = self._store(corpus).fetch(rows)
            return [encoded_text(fields["title"], fields["text"]) for fields in fetched]

        return PairScores(lambda: self.reranker, texts)

    def _one_by_one(
        self, corpus: StoreCorpus, queries: Sequence[str], reads: Sequence[Read], k: int, where: Filter
    ) -> Ranking:
        rows = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        for number, (query, (vector, tokens)) in enumerate(zip(queries, reads, strict=True)):
            asked = self._asked(corpus, vector, corpus.bm25.leg(query, where), where)
            found = self._find(corpus, self.engine, asked, max(k, self.engine.token_depth), False)
            if self.engine.token_weight:
                found = found.met(word_scores(corpus, corpus.words_by_row, [query], [tokens]))
            shown = found.shown[:k]
            rows[number, : len(shown)] = found.scored.rows[shown]
            scores[number, : len(shown)] = found.scored.scores[shown]
        return Ranking(rows, scores)

    def _hits(
        self, corpus: StoreCorpus, found: Found, query: str, page: slice, switches: Switches
    ) -> list[Hit]:
        shown = found.shown[page]
        fetched = self._store(corpus).fetch(found.scored.rows[shown])
        terms = set(corpus.analyzer.terms(query))
        hits: list[Hit] = []
        for number, (place, fields) in enumerate(zip(shown, fetched, strict=True), start=page.start + 1):
            snippet, highlights = fields["text"][:0], tuple[tuple[int, int], ...]()
            if switches.snippets:
                text, sentences = fields["text"], fields["sentences"]
                snippet, highlights = make_snippet(text, sentences, terms, corpus.analyzer)
            hit = Hit(
                rank=number,
                score=round(float(found.scored.scores[place]), 6),
                document_id=fields["document_id"],
                passage_id=fields["id"],
                title=fields["title"],
                text=fields["text"],
                snippet=snippet,
                highlights=highlights,
                start=fields["start"],
                end=fields["end"],
                metadata=fields["metadata"],
                scores=found.scores(place, switches.explain),
            )
            hits.append(hit)
        return hits


def open_searcher(workspace: Path) -> Searcher:
    """The engine that a workspace serves. Raises WorkspaceError when there is none yet."""
    return Searcher(Workspace(workspace).served_index(), partial(attached, workspace))
