"""What a report looks up: documents by name, the words and the vectors of passages."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from searchfit.keyword import function_words
from searchfit.records import encoded_text
from searchfit.search import ArrayCorpus

Rows = npt.NDArray[np.int64]

_TITLE_CHARS, _TEXT_CHARS = 300, 20_000
_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Words:
    """How the content words of a question stand in passages: `terms` counts the distinct ones, `row` is the
    passage with most of them, `shared` the share of them that it holds (NaN without terms)."""

    terms: int
    row: int
    shared: float


class Library:
    """The documents and passages of a workspace, with their untuned vectors and their words."""

    def __init__(self, inputs: Mapping[str, Path]) -> None:
        self._inputs = inputs
        self.corpus = ArrayCorpus.load(inputs["encoded"], inputs["keyword"])
        table = pq.read_table(inputs["documents.parquet"], columns=["id", "title"])
        self._ids = table["id"].to_pylist()
        self._titles = pc.utf8_slice_codeunits(table["title"], 0, _TITLE_CHARS)
        self.row_of: dict[str, int] = {}
        for row, ident in enumerate(self._ids):
            self.row_of.setdefault(ident, row)
        keyword = self.corpus.keyword
        common = function_words(keyword.analyzer.language)
        self._common = {term for word in common for term in keyword.analyzer.terms(word)}

    def named(self, document: int) -> dict[str, str]:
        """A document's id and the beginning of its title."""
        return {"id": self._ids[document][:_TITLE_CHARS], "title": self._titles[document].as_py() or ""}

    def ident(self, document: int) -> str:
        """A document's id."""
        return str(self._ids[document])

    def passages(self, documents: Sequence[int]) -> Rows:
        """The rows of the passages of some documents."""
        starts = np.searchsorted(self.corpus.documents, list(documents), "left")
        stops = np.searchsorted(self.corpus.documents, list(documents), "right")
        parts = [np.arange(start, stop) for start, stop in zip(starts, stops, strict=True)]
        return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)

    def terms(self, question: str) -> list[str]:
        """The distinct content words of a question, as index terms."""
        found = dict.fromkeys(self.corpus.keyword.analyzer.terms(question))
        return [term for term in found if term not in self._common] or list(found)

    def postings(self, term: str) -> npt.NDArray[Any]:
        """The rows of the passages that hold a term, ascending."""
        keyword = self.corpus.keyword
        place = bisect_left(keyword.vocabulary, term)
        if place == len(keyword.vocabulary) or keyword.vocabulary[place] != term:
            return np.empty(0, np.int32)
        return np.asarray(keyword.rows[keyword.starts[place] : keyword.starts[place + 1]])

    def words(self, question: str, passages: Rows) -> Words:
        """How the question's content words stand in the best of some passages (one or more rows)."""
        terms = self.terms(question)
        held = np.zeros(len(passages), int)
        for term in terms:
            held += np.isin(passages, self.postings(term))
        best = int(held.argmax())
        return Words(
            len(terms), int(passages[best]), float(held[best] / len(terms)) if terms else float("nan")
        )

    def holders(self, question: str) -> int:
        """How many passages hold all content words of a question; 0 for a question without any."""
        lists = sorted((self.postings(term) for term in self.terms(question)), key=len)
        if not lists:
            return 0
        common = lists[0]
        for rows in lists[1:]:
            common = np.intersect1d(common, rows, assume_unique=True)
        return len(common)

    def document_words(self, document: int) -> int:
        """Words of a document, titles of its passages included, as the keyword index counts them."""
        return int(self.corpus.keyword.lengths[self.passages([document])].sum())

    def texts(self, rows: Sequence[int]) -> dict[int, str]:
        """The encoded texts of some passages, of long ones the beginning, by row."""
        wanted = np.unique(np.array(list(rows), np.int64))
        found: dict[int, str] = {}
        first = 0
        file = pq.ParquetFile(self._inputs["passages.parquet"])
        for batch in file.iter_batches(_BATCH, columns=["title", "text"]):
            start, stop = np.searchsorted(wanted, [first, first + batch.num_rows])
            mine = wanted[start:stop]
            for row, record in zip(
                mine.tolist(), batch.take(pa.array(mine - first)).to_pylist(), strict=True
            ):
                found[row] = encoded_text(record["title"], record["text"])[:_TEXT_CHARS]
            first += batch.num_rows
        return found
