"""What a source yields, and the count of what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from searchfit.errors import SourceError
from searchfit.parsers import Mark
from searchfit.records import Drop

SAMPLES = 5


@dataclass(frozen=True, slots=True)
class Row:
    """One record as it stands in its source. `number` is its 1-based place, `where` is for people. `marks`
    tell pages and headings of the column `text`, where the source knows them."""

    where: str
    number: int
    values: Mapping[str, Any]
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class BadRow:
    """A record that cannot be used. `fault` False: left out on purpose, not held against the source."""

    where: str
    reason: str
    fault: bool = True


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold the text (joined by blank lines), the id and the title; "" is none."""

    text: tuple[str, ...]
    id: str = ""
    title: str = ""

    @property
    def names(self) -> frozenset[str]:
        """The columns that are no metadata."""
        return frozenset((*self.text, self.id, self.title))


class Reader(Protocol):
    """A file format or scheme: knows its columns, streams its rows, tells when it changed."""

    @property
    def name(self) -> str:
        """The source, for messages."""

    @property
    def untyped(self) -> bool:
        """Whether values are the bare text of a cell, whose type is still to be told."""

    @property
    def known(self) -> Columns | None:
        """The columns where the format fixes them; None where they have to be chosen."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was guessed on opening, for people."""

    def columns(self, everything: bool = False) -> tuple[str, ...]:
        """The names of the columns, in order; `everything` reads to the end where only that tells all."""

    def rows(self) -> Iterator[Row | BadRow]:
        """Every record, in order, holding only a few in memory."""

    def fingerprint(self) -> dict[str, Any]:
        """JSON-able values that change when the source does, told without reading it."""


class Tally:
    """Counts bad rows by reason, with samples of where they are."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._samples: dict[str, list[str]] = {}
        self.good = 0
        self.faults = 0

    def add(self, bad: BadRow) -> None:
        """Count one bad row."""
        self.faults += bad.fault
        self._counts[bad.reason] = self._counts.get(bad.reason, 0) + 1
        samples = self._samples.setdefault(bad.reason, [])
        if len(samples) < SAMPLES:
            samples.append(bad.where)

    def drops(self) -> tuple[Drop, ...]:
        """The reasons, the most frequent first."""
        ranked = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return tuple(Drop(reason, count, tuple(self._samples[reason])) for reason, count in ranked)

    def check(self, name: str, max_share: float, hint: str) -> None:
        """Raise SourceError when more than `max_share` of the rows are at fault."""
        total = self.good + self.faults
        if self.faults and self.faults > max_share * total:
            listed = "\n".join(f"  {d.count} x {d.reason} ({'; '.join(d.samples)})" for d in self.drops())
            raise SourceError(
                f"{self.faults} of {total} rows of {name} are bad, more than the {max_share:.0%} allowed:\n"
                f"{listed}",
                hint,
            )
