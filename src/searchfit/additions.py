"""What is added to an index: its documents read as a fit reads them, and split and encoded as its are."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.catalog import Catalog
from searchfit.config import Settings, load_settings
from searchfit.encoders.corpus import encode_corpus, load_words
from searchfit.errors import SourceError
from searchfit.fusion import Floats, Rows
from searchfit.indexing import content_hash
from searchfit.interaction import HeldWords, joined_words
from searchfit.keyword import KeywordIndex
from searchfit.records import DOCUMENTS, METADATA_PREFIX, PLACE, encoded_text
from searchfit.search import ArrayCorpus, Searcher
from searchfit.stages import Progress, Tools, ingest, split
from searchfit.writing import write_table

if TYPE_CHECKING:
    from searchfit.stores.versions import Opened


def read_documents(folder: Path, opened: Opened, source: Settings, progress: Progress) -> list[str]:
    """Read a source into folder/documents.parquet with the metadata columns of the index; notes for people on
    rows and columns that were left out. Texts are cleaned as those of the index
    were. Raises SourceError for a source that cannot be read, and for values
    that do not fit a column of the index."""
    store, record = opened.store, opened.index / "clean.json"
    inputs = {"clean.json": record} if record.exists() else {}
    result = ingest.run(source, inputs, Tools(folder, progress=progress))
    file = folder / "documents.parquet"
    table = pq.read_table(file)
    columns = {METADATA_PREFIX + column["name"]: column["column"] for column in store.info["metadata"]}
    notes = [
        f"{drop.count} rows left out: {drop.reason} ({', '.join(drop.samples)})" for drop in result.drops
    ]
    extra = [name for name in table.schema.names if name not in {*columns, *DOCUMENTS.names, "marks"}]
    if extra:
        listed = ", ".join(name.removeprefix(METADATA_PREFIX) for name in extra)
        notes.append(f"columns that the index does not have are left out: {listed}; a new fit takes them in")
    made = {name: table[name] for name in (*DOCUMENTS.names, "marks") if name in table.schema.names}
    for name, stored in columns.items():
        if name in PLACE.names and name not in table.schema.names:
            continue  # splitting tells it
        made[name] = _column(table, name, store.segments[0].schema.field(stored).type)
    write_table(file, pa.table(made).replace_schema_metadata(table.schema.metadata))
    return notes


def _column(table: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    if name not in table.schema.names:
        return pa.chunked_array([pa.nulls(table.num_rows, kind)])
    try:
        return table[name].cast(kind)
    except pa.ArrowException as error:
        raise SourceError(
            f"column {name.removeprefix(METADATA_PREFIX)!r} holds {kind} in the index and "
            f"{table[name].type} in what is added: {error}.",
            "Mend the values, or fit again: a new fit takes the types from all documents.",
        ) from error


class Encoded:
    """The passages of folder/documents.parquet and their vectors. Documents whose title and text the index
    holds already keep the vectors that they have there."""

    def __init__(self, folder: Path, searcher: Searcher, known: Catalog, progress: Progress) -> None:
        """Raises ModelError when the model of the index cannot be loaded."""
        self._folder, self._searcher, self._progress = folder, searcher, progress
        self._store = searcher.corpus.store
        self.documents, self.passages = folder / "documents.parquet", folder / "passages.parquet"
        settings = _settings(self._store.info, searcher.folder)
        inputs = {"documents.parquet": self.documents}
        split.run(settings, inputs, Tools(folder, progress=progress))
        table = pq.read_table(self.passages)
        self._sentences = table["sentences"].combine_chunks()
        self._owner = table["document"].to_numpy().astype(np.int32)
        held = self._held(known)
        self.fresh = np.flatnonzero(held < 0)
        """The passages that were encoded; the others kept their vectors."""
        vectors = self._vectors(table, held)
        words = self._words(held)
        keyword = self._store.info["keyword"]
        texts = (
            encoded_text(*pair)
            for pair in zip(table["title"].to_pylist(), table["text"].to_pylist(), strict=True)
        )
        index = KeywordIndex.build(texts, searcher.corpus.analyzer, keyword["k1"], keyword["b"])
        self.corpus = ArrayCorpus(*vectors, documents=self._owner, keyword=index, words=words)

    def _held(self, known: Catalog) -> Rows:
        """For each passage the row that has its vectors, -1 for none."""
        place_of = {content: place for place, content in enumerate(known.contents)}
        table = pq.read_table(self.documents, columns=["title", "text"])
        pairs = zip(table["title"].to_pylist(), table["text"].to_pylist(), strict=True)
        held = np.full(len(self._owner), -1, np.int64)
        counts = np.bincount(self._owner, minlength=table.num_rows)
        starts = np.cumsum(counts) - counts
        for document, (title, text) in enumerate(pairs):
            place = place_of.get(content_hash(title, text))
            count = int(counts[document])
            if place is not None and int(known.counts[place]) == count:
                own = slice(starts[document], starts[document] + count)
                held[own] = known.rows[place] + np.arange(count)
        return held

    def _vectors(self, table: pa.Table, held: Rows) -> tuple[Floats, Floats, Rows]:
        """Vectors of passages, their sentences and offsets: encoded, or taken from the index."""
        lengths = np.diff(self._sentences.offsets.to_numpy()) // 2
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        size = self._store.info["dimension"]
        passages = np.empty((len(held), size), np.float32)
        sentences = np.empty((int(offsets[-1]), size), np.float32)
        parts = [(np.flatnonzero(held >= 0), self._store.vectors(held[held >= 0]))]
        if len(self.fresh):
            parts.append((self.fresh, self._encode(table.take(self.fresh))))
        for places, (own, inner, _) in parts:
            passages[places] = own
            where = np.repeat(offsets[places] - np.cumsum(lengths[places]) + lengths[places], lengths[places])
            sentences[where + np.arange(len(inner))] = inner
        return passages, sentences, offsets

    def _words(self, held: Rows) -> HeldWords | None:
        """The words of the passages, from where their vectors are; None where the index has none."""
        centre = self._centre
        if centre is None:
            return None
        bits = [np.empty((0, -(-len(centre) // 8)), np.uint8)] * len(held)
        old = np.flatnonzero(held >= 0)
        parts = [(old, self._store.words(held[old]))]
        made = load_words(self._folder / "encoded")
        if len(self.fresh) and made is not None:
            parts.append((self.fresh, made.held))
        for places, found in parts:
            for place, (start, end) in zip(places, pairwise(found.offsets), strict=True):
                bits[place] = found.bits[start:end]
        return HeldWords(joined_words(bits), centre)

    @property
    def _centre(self) -> Floats | None:
        centre = self._store.info.get("centre")
        return np.array(centre, np.float32) if centre else None

    def _encode(self, table: pa.Table) -> tuple[Floats, Floats, Rows]:
        folder = self._folder / "encoded"
        write_table(self._folder / "fresh.parquet", table)

        def told(done: int, total: int) -> None:
            self._progress("encode", done, total)

        encode_corpus(
            self._searcher.encoder, self._folder / "fresh.parquet", folder, told, centre=self._centre
        )
        vectors, inner, offsets = (
            np.load(folder / f"{name}.npy") for name in ("passages", "sentences", "offsets")
        )
        return vectors, inner, offsets


def _settings(info: Mapping[str, Any], index: Path) -> Settings:
    """The settings of the fit that made an index, as far as splitting goes."""
    values = {f"split.{name}": value for name, value in info["split"].items()}
    values |= {f"model.{name}": value for name, value in info["model"].items()}
    return load_settings(values={**values, "model.name": str(index / "model")}).only("split", "model")
