"""Documents, passages, vectors and postings into a segment of an index; for a fit and for additions alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.keyword import KeywordIndex
from searchfit.mapped import let_go
from searchfit.records import METADATA_PREFIX, PASSAGES, PLACE, SEEN
from searchfit.search import ArrayCorpus
from searchfit.stores.building import bits_array, build, vector_array
from searchfit.writing import table_writer

CATALOG = pa.schema(
    [
        ("id", pa.string()),
        ("content", pa.binary(16)),
        ("whole", pa.binary(16)),
        ("row", pa.int64()),
        ("rows", pa.int32()),
    ]
)
"""catalog.parquet of a segment: its documents that have passages, in order. `content` is a hash of title and
text, `whole` of the metadata, pages and headings besides; `row` is the first of its `rows` passages, which
follow one another as the segment was written."""

_BATCH = 1024
_ENTRIES = 1 << 16  # documents of the catalogue at a time
_HELD = 1 << 14  # passages whose mapped vectors are in memory at most
_TERMS, _POSTINGS = 20_000, 1 << 21  # handed over at a time, but for one term, which is never divided


@dataclass(frozen=True, slots=True)
class Material:
    """What a segment is made of: the tables of documents and passages (records.DOCUMENTS, PASSAGES), the
    passages' vectors and keywords, and the numbers that the first passage and the first document get."""

    documents: Path
    passages: Path
    corpus: ArrayCorpus
    first_row: int = 0
    first_document: int = 0


def write_segment(
    folder: Path, material: Material, info: Mapping[str, Any], progress: Callable[[str, int, int], None]
) -> None:
    """Write a segment with its catalog. Raises what `stores.building.build` raises."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_catalog(folder / "catalog.parquet", material, document_columns(info))
    rows = _passages(material, info["metadata"], progress)
    build(folder, rows, _postings(material.corpus.keyword, material.first_row), info)


def document_columns(info: Mapping[str, Any]) -> list[str]:
    """The metadata columns of documents.parquet that an index holds; those of pages and headings are told
    by the passages."""
    return [METADATA_PREFIX + column["name"] for column in info["metadata"] if not column.get("placed")]


def seen(schema: pa.Schema) -> dict[str, str]:
    """How far the source of a documents table has been read, see `records.SEEN`."""
    return dict(json.loads((schema.metadata or {}).get(SEEN, "{}")))


def content_hash(title: str, text: str) -> bytes:
    """What tells whether a document has to be split and encoded anew."""
    return blake2b(json.dumps([title, text]).encode(), digest_size=16).digest()


def whole_hash(content: bytes, metadata: Sequence[Any]) -> bytes:
    """What tells whether anything of a document has changed."""
    plain = [None if value != value else value for value in metadata]  # noqa: PLR0124
    return blake2b(content + json.dumps(plain, default=str).encode(), digest_size=16).digest()


def hashed(documents: Path | pa.Table, names: Sequence[str]) -> Iterator[tuple[str, bytes, bytes]]:
    """(id, content hash, whole hash) of each document of a table; `names` are its metadata columns. Marks
    count where there are some."""
    there = documents.schema.names if isinstance(documents, pa.Table) else pq.read_schema(documents).names
    columns = ["id", "title", "text", *names, *(name for name in ("marks",) if name in there)]
    if isinstance(documents, pa.Table):
        batches = iter(documents.select(columns).to_batches(_BATCH))
    else:
        batches = pq.ParquetFile(documents).iter_batches(_BATCH, columns=columns)
    for batch in batches:
        for id_, title, text, *metadata in zip(*(batch[name].to_pylist() for name in columns), strict=True):
            content = content_hash(title, text)
            if "marks" in there and not metadata[-1]:
                metadata.pop()  # as in a table without the column
            yield id_, content, whole_hash(content, metadata)


def _write_catalog(path: Path, material: Material, names: Sequence[str]) -> None:
    every = hashed(material.documents, names)
    counts = np.bincount(material.corpus.documents, minlength=pq.read_metadata(material.documents).num_rows)
    firsts = np.cumsum(counts) - counts + material.first_row
    with table_writer(path, CATALOG) as writer:
        for start in range(0, max(1, len(counts)), _ENTRIES):
            there = start + np.flatnonzero(counts[start : start + _ENTRIES])
            here = zip(islice(every, _ENTRIES), counts[start : start + _ENTRIES], strict=True)
            some = [entry for entry, count in here if count]
            columns = [pa.array([entry[part] for entry in some]) for part in range(3)]
            numbers = [pa.array(firsts[there]), pa.array(counts[there])]
            named = dict(zip(CATALOG.names, [*columns, *numbers], strict=True))
            writer.write_table(pa.table(named).cast(CATALOG))


def _passages(
    material: Material,
    metadata: Sequence[Mapping[str, Any]],
    progress: Callable[[str, int, int], None],
) -> Iterator[pa.RecordBatch]:
    """The rows of the segment in order: passages with their vectors, their places in their documents and the
    metadata of these."""
    corpus = material.corpus
    there = pq.read_schema(material.documents).names
    names = [name for each in metadata if (name := METADATA_PREFIX + each["name"]) in there]
    documents = _InOrder(material.documents, names)
    start = 0
    for batch in pq.ParquetFile(material.passages).iter_batches(_BATCH):
        end = start + batch.num_rows
        first, last = corpus.offsets[start], corpus.offsets[end]
        offsets = (np.asarray(corpus.offsets[start : end + 1]) - first).astype(np.int32)
        numbers = batch["document"].to_numpy() + material.first_document
        made = {
            "row": pa.array(np.arange(start, end) + material.first_row),
            **{name: batch[name] for name in PASSAGES.names},
            "document": pa.array(numbers.astype(np.int32)),
            "vector": vector_array(corpus.passages[start:end]),
            "sentence_vectors": pa.ListArray.from_arrays(
                pa.array(offsets), vector_array(corpus.sentences[first:last])
            ),
        }
        if corpus.words is not None:
            words = corpus.words.take(np.arange(start, end))
            made["words"] = bits_array(words.bits, words.offsets)
        of_rows = documents.take(batch["document"].to_numpy())
        for each in metadata:
            name = METADATA_PREFIX + each["name"]
            if name in names:
                made[each["column"]] = of_rows[name].combine_chunks()
            elif name in batch.schema.names:
                made[each["column"]] = batch[name]
            else:
                made[each["column"]] = pa.nulls(batch.num_rows, PLACE.field(name).type)
        yield pa.RecordBatch.from_pydict(made)
        if end // _HELD > start // _HELD:
            let_go(corpus.passages, corpus.sentences)
        start = end
        progress("index", end, corpus.count)


class _InOrder:
    """Columns of a Parquet file by ascending rows: what is between the first and the last row of a call is in
    memory."""

    def __init__(self, file: Path, names: Sequence[str]) -> None:
        self._names = names
        self._batches = pq.ParquetFile(file).iter_batches(_BATCH, columns=list(names)) if names else iter(())
        self._held: list[pa.RecordBatch] = []
        self._first = self._end = 0

    def take(self, rows: npt.NDArray[np.int32]) -> pa.Table:
        """These columns of the rows, which begin no earlier than those of the call before ended."""
        if not self._names:
            return pa.table({})
        while self._end <= rows[-1]:
            self._held.append(next(self._batches))
            self._end += self._held[-1].num_rows
        while self._first + self._held[0].num_rows <= rows[0]:
            self._first += self._held.pop(0).num_rows
        return pa.Table.from_batches(self._held).take(pa.array(rows - self._first))


def _postings(keyword: KeywordIndex, first_row: int) -> Iterator[pa.RecordBatch]:
    begin = 0
    while begin < len(keyword.vocabulary):
        most = keyword.starts[begin] + _POSTINGS
        end = max(begin + 1, int(np.searchsorted(keyword.starts, most, side="right")) - 1)
        terms = keyword.vocabulary[begin : min(end, begin + _TERMS)]
        starts = np.asarray(keyword.starts[begin : begin + len(terms) + 1])
        part = slice(starts[0], starts[-1])
        offsets = pa.array((starts - starts[0]).astype(np.int32))
        rows = keyword.rows[part].astype(np.int64) + first_row
        yield pa.RecordBatch.from_pydict(
            {
                "term": pa.array(terms, pa.string()),
                "rows": pa.ListArray.from_arrays(offsets, pa.array(rows)),
                "frequencies": pa.ListArray.from_arrays(
                    offsets, pa.array(np.asarray(keyword.frequencies[part]))
                ),
            }
        )
        let_go(keyword.rows, keyword.frequencies)
        begin += len(terms)
