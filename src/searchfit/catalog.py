"""The documents of an index version: their ids, hashes of their content, and their rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from searchfit.errors import WorkspaceError
from searchfit.stores import Rows
from searchfit.stores.files import REBUILD
from searchfit.stores.segment import Segment
from searchfit.stores.versions import Opened


def segment_catalog(segment: Segment, deleted: Rows) -> pa.Table:
    """The catalog (indexing.CATALOG) of a segment, without deleted documents."""
    try:
        table = pq.read_table(segment.folder / "catalog.parquet")
    except (OSError, pa.ArrowException) as error:
        raise WorkspaceError(f"the index {segment.folder} is damaged: {error}.", REBUILD) from error
    # A document is deleted whole: its first row stands for it.
    return table.filter(pc.invert(pc.is_in(table["row"], pa.array(deleted))))


@dataclass(frozen=True, slots=True)
class Catalog:
    """The documents that live, by id: `places` says where each stands in the columns. `rows[i]` is the first
    of the `counts[i]` rows of document i, which follow one another."""

    places: dict[str, int]
    contents: list[bytes]
    wholes: list[bytes]
    rows: Rows
    counts: Rows

    @classmethod
    def of(cls, opened: Opened) -> Catalog:
        """Read the catalog of a version. Raises WorkspaceError when it is damaged."""
        parts = [segment_catalog(segment, opened.deleted) for segment in opened.store.segments]
        table = pa.concat_tables(parts)
        return cls(
            {id_: place for place, id_ in enumerate(table["id"].to_pylist())},
            table["content"].to_pylist(),
            table["whole"].to_pylist(),
            table["row"].to_numpy(),
            table["rows"].to_numpy().astype(np.int64),
        )

    def rows_of(self, ids: Iterable[str]) -> Rows:
        """The rows of documents that are in the catalog, ascending."""
        places = np.array([self.places[id_] for id_ in ids], np.int64)
        counts = self.counts[places]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.sort(np.repeat(self.rows[places], counts) + within)

    def owners(self, rows: Rows) -> list[str]:
        """The ids of the documents that some rows belong to, each once."""
        order = np.argsort(self.rows)
        owners = order[np.searchsorted(self.rows[order], rows, "right") - 1]
        ids = list(self.places)
        return [ids[place] for place in np.unique(owners)]
