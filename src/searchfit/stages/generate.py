"""Write queries for the passages.

Every answer of a generator goes into the ledger at once; the part files are then written from the ledger, in
passage order. A run that was killed, or stopped by its budget, asks only for what the ledger lacks.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.config import Settings
from searchfit.distinct import Distinct
from searchfit.generators import Generator, Task, load_generator, parts
from searchfit.generators.ledger import Entry, Ledger, key
from searchfit.keyword import KeywordIndex
from searchfit.records import PASSAGES, QUERIES, Drop, Passage, Query, StageResult
from searchfit.stages import Tools
from searchfit.writing import digest, write_table

VERSION = 2

_WINDOW = 1000
"""Passages read at a time."""

Rows = npt.NDArray[np.int64]


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Read passages.parquet and the keyword index, write queries/part-*.parquet (records.QUERIES).

    Several generators share the passages out by a hash of the passage id. Where every passage would make more
    than `generate.max_queries` queries, passages are sampled evenly over the documents. Raises SettingsError
    for an unknown generator, MissingExtraError, ModelError or GeneratorError where one cannot work.
    """
    named = parts(settings)
    statistics = _Statistics(inputs["keyword"])
    writers = [load_generator(part, settings, statistics, tools.executor) for part in named]
    mean = sum(part.share * writer.per_passage for part, writer in zip(named, writers, strict=True))
    with (
        pq.ParquetFile(inputs["passages.parquet"]) as file,
        Ledger(tools.ledger or tools.output / "ledger.sqlite") as ledger,
    ):
        passages = _Passages(file)
        rows = _choose(passages.documents(), int(settings.generate.max_queries / mean), settings.seed)
        owners = _owners(passages, rows, [part.share for part in named], settings.seed)
        work = _Work(settings, passages, ledger, tools, len(rows))
        for number, writer in enumerate(writers):
            work.fill(writer, rows[owners == number])
        tally = work.write(writers, rows, owners)
        for part, writer in zip(named, writers, strict=True):
            if part.kind == "phrases":
                ledger.forget_older(writer)
    details = {f"{writer.name} {name}": value for writer in writers for name, value in writer.details.items()}
    return tally.result(file.metadata.num_rows, len(rows), settings, details)


@dataclass(slots=True)
class _Tally:
    """What was written, and what was not and why."""

    styles: Counter[str] = field(default_factory=Counter)
    served: int = 0
    not_asked: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    samples: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0

    def add(self, passage: Passage, entry: Entry | None) -> None:
        if entry is None:
            self.not_asked += 1
            return
        self.styles.update(style for _, style in entry.queries)
        self.served += bool(entry.queries)
        self.tokens_in += entry.tokens_in
        self.tokens_out += entry.tokens_out
        self.cost += entry.cost
        if entry.fault:
            # What follows a colon differs from case to case.
            reason = entry.fault.split(": ")[0]
            self.faults[reason] += 1
            self.samples[reason] = (*self.samples.get(reason, ()), f"{passage.id}: {entry.fault}")[:5]

    def result(self, total: int, chosen: int, settings: Settings, details: Mapping[str, str]) -> StageResult:
        counts: dict[str, int | float | str] = {
            "passages": chosen,
            "queries": self.styles.total(),
            "passages_without_queries": chosen - self.served,
        }
        if self.tokens_in:
            counts |= {"tokens read": self.tokens_in, "tokens written": self.tokens_out}
        if self.cost:
            counts["cost"] = round(self.cost, 4)
        notes = []
        if chosen < total:
            notes.append(
                f"Queries were written for {chosen} of {total} passages, spread over the documents, because "
                f"generate.max_queries is {settings.generate.max_queries}."
            )
        if self.not_asked:
            notes.append(
                f"{self.not_asked} passages were not asked for, so as not to pass generate.max_cost "
                f"({settings.generate.max_cost:g}). Raise it and run the same command to carry on."
            )
        drops = [Drop(reason, n, self.samples[reason]) for reason, n in sorted(self.faults.items())]
        return StageResult(counts | dict(sorted(self.styles.items())), tuple(drops), tuple(notes), details)


@dataclass(slots=True)
class _Work:
    """Fills the ledger from the generators, and the part files from the ledger."""

    settings: Settings
    passages: _Passages
    ledger: Ledger
    tools: Tools
    total: int
    done: int = 0
    spent: float = 0.0
    reserved: float = 0.0
    short: bool = False

    def fill(self, writer: Generator, rows: Rows) -> None:
        """Ask for what the ledger lacks; each group is in the ledger before the next is waited for.

        Where the budget did not cover the worst case of what was under way, another round sees what is left.
        """
        before, answered = self.done, 1
        self.short = True
        while self.short and answered:
            self.done, answered, self.short = before, 0, False
            self.spent, self.reserved = self.ledger.spent(), 0.0
            for group in writer.write(self._tasks(writer, rows)):
                self.ledger.put(writer, self.settings.seed, group)
                self.spent += sum(written.cost for written in group)
                self.reserved -= sum(writer.most_cost(written.passage) for written in group)
                answered += len(group)
                self._advance(len(group))

    def _tasks(self, writer: Generator, rows: Rows) -> Iterator[Task]:
        asked = Distinct()
        for part in self._windows(rows):
            passages = self.passages.take(part)
            keys = [key(writer, self.settings.seed, passage) for passage in passages]
            there = self.ledger.get(keys)
            known = {name for name, entry in there.items() if not (entry.fault and self.tools.forced)}
            for passage, name in zip(passages, keys, strict=True):
                if name in known or name in asked:
                    self._advance(1)
                elif not self._afford(writer.most_cost(passage)):
                    return
                yield Task(passage, name in known or name in asked)
                asked.add(name)

    def _windows(self, rows: Rows) -> list[Rows]:
        """In order; where a budget may end the work, each window is spread over the whole corpus."""
        count = -(-len(rows) // _WINDOW)
        if self.settings.generate.max_cost:
            return [rows[first::count] for first in range(count)]
        return [rows[start : start + _WINDOW] for start in range(0, len(rows), _WINDOW)]

    def _afford(self, most: float) -> bool:
        """Set aside what a question may cost; whether the budget allows it."""
        limit = self.settings.generate.max_cost
        if limit and most and self.spent + self.reserved + most > limit:
            self.short = True
            return False
        self.reserved += most
        return True

    def _advance(self, count: int) -> None:
        self.done += count
        note = f"cost {self.spent:.2f}" if self.spent else ""
        self.tools.progress("writing queries", self.done, self.total, note)

    def write(self, writers: Sequence[Generator], rows: Rows, owners: Rows) -> _Tally:
        """Write the part files, in passage order."""
        folder = self.tools.output / "queries"
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.iterdir():
            left.unlink()
        tally = _Tally()
        size = self.settings.generate.part_passages
        # An empty corpus gets one empty part, so that readers always find the schema.
        for number, start in enumerate(range(0, max(len(rows), 1), size)):
            passages = self.passages.take(rows[start : start + size])
            own = [writers[owner] for owner in owners[start : start + size]]
            keys = [
                key(writer, self.settings.seed, passage)
                for writer, passage in zip(own, passages, strict=True)
            ]
            entries = self.ledger.get(keys)
            queries: list[Query] = []
            for writer, passage, name in zip(own, passages, keys, strict=True):
                entry = entries.get(name)
                tally.add(passage, entry)
                queries += _queries(passage, entry, writer.name, self.settings.seed)
            write_table(folder / f"part-{number:05d}.parquet", _table(queries))
        return tally


def _queries(passage: Passage, entry: Entry | None, writer: str, seed: int) -> list[Query]:
    return [
        Query(f"{passage.id}/{n}", text, passage.id, style, writer, seed)
        for n, (text, style) in enumerate(entry.queries if entry else ())
    ]


def _owners(passages: _Passages, rows: Rows, shares: Sequence[float], seed: int) -> Rows:
    """The number of the generator of each passage, by a hash of its id: a corpus that grows keeps them."""
    owners = np.zeros(len(rows), np.int64)
    limits = np.cumsum(shares)[:-1]
    for start in range(0, len(rows) if len(shares) > 1 else 0, _WINDOW):
        digests = b"".join(
            hashlib.blake2b(f"{seed}\0{passage.id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
            for passage in passages.take(rows[start : start + _WINDOW])
        )
        chance = np.frombuffer(digests, np.uint64) / 2.0**64
        owners[start : start + len(chance)] = np.searchsorted(limits, chance, side="right")
    return owners


class _Statistics:
    """The keyword index as generators see it; pickled as the folder that holds it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        index = KeywordIndex.load(folder)
        self.fingerprint = digest(folder)
        self.idf = index.idf
        self.terms = index.analyzer.terms

    def __reduce__(self) -> tuple[type[_Statistics], tuple[Path]]:
        return _Statistics, (self._folder.absolute(),)


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
    own = {name: value for name, value in record.items() if name in PASSAGES.names}
    return Passage(**own, sentences=spans)  # type: ignore[arg-type]


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


def _table(queries: Sequence[Query]) -> pa.Table:
    return pa.table(
        {name: [getattr(query, name) for query in queries] for name in QUERIES.names}, schema=QUERIES
    )
