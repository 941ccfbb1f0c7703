"""Write queries for the passages, in part files, so that a killed run goes on after its last whole part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.config import Settings
from searchfit.generators import load_generator
from searchfit.keyword import KeywordIndex
from searchfit.records import QUERIES, Passage, Query, StageResult
from searchfit.stages import Tools
from searchfit.workspace import write_table

VERSION = 1

Rows = npt.NDArray[np.int64]


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Read passages.parquet and the keyword index, write queries/part-*.parquet (records.QUERIES).

    Where every passage would make more than `generate.max_queries` queries, passages are sampled evenly over
    the documents. Raises SettingsError for an unknown generator.
    """
    options = settings.generate
    statistics = _Statistics(KeywordIndex.load(inputs["keyword"]))
    generator = load_generator(options, settings.seed, statistics)
    folder = tools.output / "queries"
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob("*.tmp"):
        unfinished.unlink()
    styles: Counter[str] = Counter()
    done = served = 0
    with pq.ParquetFile(inputs["passages.parquet"]) as file:
        passages = _Passages(file)
        rows = _choose(passages.documents(), options.max_queries // options.per_passage, settings.seed)
        # An empty corpus gets one empty part, so that readers always find the schema.
        for number, start in enumerate(range(0, max(len(rows), 1), options.part_passages)):
            part = rows[start : start + options.part_passages]
            path = folder / f"part-{number:05d}.parquet"
            table = _whole(path)
            if table is None:
                table = _table(generator.generate(passages.take(part)))
                write_table(path, table)
            styles.update(table["style"].to_pylist())
            served += len(table["passage_id"].unique())
            done += len(part)
            tools.progress("writing queries", done, len(rows))
    return _result(file.metadata.num_rows, len(rows), served, styles, options.max_queries)


def _result(total: int, chosen: int, served: int, styles: Counter[str], most: int) -> StageResult:
    counts = {"passages": chosen, "queries": styles.total(), "passages_without_queries": chosen - served}
    notes = []
    if chosen < total:
        notes.append(
            f"Queries were written for {chosen} of {total} passages, spread over the documents, because "
            f"generate.max_queries is {most}."
        )
    return StageResult(counts | dict(sorted(styles.items())), notes=tuple(notes))


class _Statistics:
    """The keyword index as generators see it."""

    def __init__(self, index: KeywordIndex) -> None:
        self.idf = index.idf
        self.terms = index.analyzer.terms


class _Passages:
    """Passages by row number; one row group at a time is in memory."""

    def __init__(self, file: pq.ParquetFile) -> None:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._file = file
        self._starts = np.cumsum([0, *sizes])
        self._group, self._table = -1, pa.table({})

    def documents(self) -> Rows:
        """The document row of every passage."""
        return np.asarray(self._file.read(columns=["document"])["document"].to_numpy(), np.int64)

    def take(self, rows: Rows) -> list[Passage]:
        """The passages of ascending rows."""
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        found = []
        for group in np.unique(groups):
            if group != self._group:
                self._group, self._table = int(group), self._file.read_row_group(int(group))
            local = rows[groups == group] - self._starts[group]
            found += [_passage(record) for record in self._table.take(pa.array(local)).to_pylist()]
        return found


def _passage(record: dict[str, object]) -> Passage:
    edges = record.pop("sentences")
    spans = tuple(zip(edges[::2], edges[1::2], strict=True)) if isinstance(edges, list) else ()
    return Passage(**record, sentences=spans)  # type: ignore[arg-type]


def _choose(documents: Rows, most: int, seed: int) -> Rows:
    """Rows of at most `most` passages (at least one), ascending: no document gets a further one while
    another has none left out. Passages of a document are drawn by chance, documents evenly by place.
    """
    most = max(most, 1)
    if len(documents) <= most:
        return np.arange(len(documents))
    chance = np.random.default_rng(seed).random(len(documents))
    order = np.lexsort((chance, documents))
    starts = np.flatnonzero(np.diff(documents[order], prepend=-1))
    sizes = np.diff(starts, append=len(order))
    turns = np.arange(len(order)) - np.repeat(starts, sizes)
    filled = np.cumsum(np.bincount(turns))
    last = int(np.searchsorted(filled, most, side="right"))
    sure, rest = order[turns < last], order[turns == last]
    more = rest[np.arange(most - len(sure)) * len(rest) // max(most - len(sure), 1)]
    return np.sort(np.concatenate([sure, more]))


def _table(queries: Sequence[Sequence[Query]]) -> pa.Table:
    flat = [query for group in queries for query in group]
    return pa.table(
        {name: [getattr(query, name) for query in flat] for name in QUERIES.names}, schema=QUERIES
    )


def _whole(path: Path) -> pa.Table | None:
    """The part that an earlier run left, or None where there is none that can be read."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError):
        return None
    return table if table.schema.equals(QUERIES) else None
