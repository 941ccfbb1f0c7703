"""Merging segments: many small ones into one, without what was deleted from them."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from searchfit.catalog import segment_catalog
from searchfit.stages import Progress
from searchfit.stores import Rows
from searchfit.stores.building import ARRAYS, VECTORS, build
from searchfit.stores.lancedb import LanceStore
from searchfit.stores.postings import TERMS
from searchfit.stores.segment import Segment
from searchfit.writing import write_table

_TERMS = 20_000
_ALIKE = 4
"""A segment is merged with those after it when it is no more than this many times as large as they."""
_HOLES = 0.1
"""Share of deleted passages from which a segment is written anew."""


def small_tail(sizes: Sequence[int]) -> int:
    """How many segments at the end are of a like size, the last included: to merge those alone writes each
    passage a few times only, however often documents are added."""
    count, total = 0, 0
    for size in reversed(sizes):
        if count and size > _ALIKE * total:
            break
        count += 1
        total += size
    return count


def worth_merging(store: LanceStore) -> int:
    """How many segments at the end `optimize` merges: all that were added, and the first one too when it is
    no larger than they or has lost a tenth; 0 where there is nothing to gain."""
    first, *others = (
        (segment.count, 0 if live is None else int(np.count_nonzero(~live)))
        for segment, live in store.parts()
    )
    added = sum(count for count, _ in others)
    if first[1] > _HOLES * first[0] or first[0] <= _ALIKE * added:
        return len(others) + 1 if others or first[1] else 0
    return len(others) if len(others) > 1 or any(holes for _, holes in others) else 0


def merge(folder: Path, parts: Sequence[Segment], store: LanceStore, progress: Progress) -> None:
    """Write a segment of what lives of some segments, which follow one another. Rows and numbers of documents
    stay. Raises what `stores.building.build` raises."""
    old = LanceStore(parts, store.deleted)
    folder.mkdir(parents=True, exist_ok=True)
    catalogs = [segment_catalog(segment, store.deleted) for segment in parts]
    write_table(folder / "catalog.parquet", pa.concat_tables(catalogs))
    added = [table for segment in parts if (table := added_documents(segment, store.deleted))]
    if added:
        # Those of some sources have marks.
        write_table(folder / "documents.parquet", pa.concat_tables(added, promote_options="default"))

    def told() -> Iterator[pa.RecordBatch]:
        done = 0
        columns = [*parts[0].schema.names, *(ARRAYS if "centre" in store.info else VECTORS)]
        for batch in old.scan(columns):
            done += batch.num_rows
            progress("merge", done, old.count())
            yield batch

    build(folder, told(), _postings(old), store.info)


def added_documents(segment: Segment, deleted: Rows) -> pa.Table | None:
    """The documents that were added with a segment and live; None for the one that the fit built."""
    file = segment.folder / "documents.parquet"
    if not file.exists():
        return None
    table = pq.read_table(file)
    return table.filter(pc.is_in(table["id"], segment_catalog(segment, deleted)["id"].combine_chunks()))


def _postings(store: LanceStore) -> Iterator[pa.RecordBatch]:
    held: list[dict[str, Any]] = []
    for term, rows, frequencies in _terms(store):
        if held and held[-1]["term"] == term:
            held[-1]["rows"] = np.concatenate([held[-1]["rows"], rows])
            held[-1]["frequencies"] = np.concatenate([held[-1]["frequencies"], frequencies])
            continue
        if len(held) == _TERMS:
            yield pa.RecordBatch.from_pylist(held, TERMS)
            held = []
        held.append({"term": term, "rows": rows, "frequencies": frequencies})
    if held:
        yield pa.RecordBatch.from_pylist(held, TERMS)


def _terms(store: LanceStore) -> Iterator[tuple[str, Any, Any]]:
    """Every term with its living rows, sorted; one of several segments comes once for each, in order."""

    def of(number: int) -> Iterator[tuple[bytes, int, Any, Any]]:
        segment, live = store.segments[number], store.live[number]
        for term, places, frequencies in segment.postings.all():
            kept = slice(None) if live is None else live[places]
            if len(places[kept]):
                yield term.encode(), number, segment.rows[places[kept]], frequencies[kept]

    numbers = range(len(store.segments))
    every = heapq.merge(*map(of, numbers), key=lambda entry: entry[:2])
    for term, _, rows, frequencies in every:
        yield term.decode(), rows, frequencies
