"""An index version as a corpus: its vectors in blocks, and its keyword scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from searchfit.errors import WorkspaceError
from searchfit.fusion import Block
from searchfit.interaction import PassageWords
from searchfit.keyword import Analyzer, KeywordIndex
from searchfit.stores import Floats, Rows
from searchfit.stores.bm25 import Bm25
from searchfit.stores.files import REBUILD
from searchfit.stores.lancedb import LanceStore
from searchfit.stores.versions import Opened, open_index

if TYPE_CHECKING:
    import scipy.sparse as sp


@dataclass(frozen=True, slots=True)
class StoredWords:
    """`interaction.Words` of an index version. Passages are named by their rows or, with `numbers`, by their
    places in these."""

    store: LanceStore
    centre: Floats
    numbers: Rows | None

    def take(self, rows: Rows) -> PassageWords:
        """The words of these passages, in the order asked."""
        return self.store.words(rows if self.numbers is None else self.numbers[rows])


class StoreCorpus:
    """The passages of an index version by their places in it, 0 to count - 1; `store` knows them by their
    rows, `store.rows[place]`.

    `held` is an earlier version of the same index: what both share is not opened twice. Raises WorkspaceError
    when the index is absent or damaged.
    """

    def __init__(self, folder: Path, held: StoreCorpus | None = None) -> None:
        self.opened: Opened = open_index(folder, held.opened if held else None)
        self.store = self.opened.store
        self.info: dict[str, Any] = self.store.info
        try:
            keyword = self.info["keyword"]
            self.analyzer: Analyzer = held.analyzer if held else Analyzer(keyword["language"])
            self.bm25 = Bm25(self.store, self.analyzer, keyword["k1"], keyword["b"])
        except (KeyError, TypeError) as error:
            raise WorkspaceError(f"the index {folder} is damaged: no {error}.", REBUILD) from error

    @property
    def count(self) -> int:
        """Number of passages."""
        return self.store.count()

    @cached_property
    def documents(self) -> npt.NDArray[np.int32]:
        """The document of each place, ascending."""
        return self.store.documents

    @property
    def sentences(self) -> int:
        """Number of sentence vectors, those of deleted passages too."""
        return sum(len(segment.sentences) for segment in self.store.segments)

    def places(self, rows: Rows) -> Rows:
        """The places of rows that are in this version."""
        return np.searchsorted(self.store.rows, rows)

    def keyword_scores(self, queries: Sequence[str]) -> sp.csr_array:
        """The keyword leg, a sparse (len(queries), count) matrix, from the postings of the queries' terms."""
        found = self.store.postings(
            sorted({term for query in queries for term in self.analyzer.terms(query)})
        )
        rows = [self.places(rows) for rows, _ in found.values()]
        frequencies = [frequencies for _, frequencies in found.values()]
        arrays = {
            "starts": np.concatenate([[0], np.cumsum([len(part) for part in rows])]).astype(np.int64),
            "rows": np.concatenate([np.empty(0, np.int64), *rows]),
            "frequencies": np.concatenate([np.empty(0, np.float32), *frequencies]),
            "lengths": self.store.lengths(),
        }
        return KeywordIndex(self.analyzer, arrays, list(found), self.bm25.k1, self.bm25.b).scores(queries)

    def spans(self, text: str) -> Iterator[tuple[str, int, int]]:
        """The index terms of a text, at (term, start, end)."""
        return self.analyzer.spans(text)

    def idf(self, term: str) -> float:
        """Rarity of a term, as in a fresh index of these passages."""
        return self.bm25.idf(term)

    @cached_property
    def words(self) -> StoredWords | None:
        """The words of passages by places; None where the model has none."""
        centre = self.info.get("centre")
        return StoredWords(self.store, np.array(centre, np.float32), self.store.rows) if centre else None

    @cached_property
    def words_by_row(self) -> StoredWords | None:
        """The words of passages by rows; None where the model has none."""
        return replace(self.words, numbers=None) if self.words else None

    def take(self, places: Rows) -> Block:
        """These passages as one block, in the order asked."""
        passages, sentences, offsets = self.store.vectors(self.store.rows[places])
        return Block(0, self.documents[places], passages, sentences, offsets)

    def blocks(self, rows: int) -> Iterator[Block]:
        """The blocks in order of places; a document is never divided."""
        start = 0
        for segment, live in self.store.parts():
            documents = segment.documents
            begin = 0
            while begin < segment.count:
                end = min(segment.count, begin + rows)
                while end < segment.count and documents[end] == documents[end - 1]:
                    end += 1
                block = segment.block(begin, end, None if live is None else live[begin:end], start)
                if len(block.documents):
                    yield block
                start += len(block.documents)
                begin = end
