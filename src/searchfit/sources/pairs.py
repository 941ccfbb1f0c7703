"""Labelled pairs: a query, a text, and whether the text answers the query.

Read are tables (CSV, TSV, JSON Lines, Parquet) and folders of them, TSV without a header, and BEIR folders.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searchfit.config import PairsSettings, QueriesSettings
from searchfit.errors import SourceError
from searchfit.places import Place, find_places, is_hidden, is_table, local
from searchfit.records import Drop, LabelledPair, encoded_text
from searchfit.sources.columns import listed
from searchfit.sources.files import check_file, fingerprint_files, read_lines, record_limit
from searchfit.sources.jsonl import BeirReader
from searchfit.sources.queries import cell, read_queries, texts_in
from searchfit.sources.rows import BadRow, Reader, Row, Tally
from searchfit.sources.tables import open_table

MAX_TEXT_CHARS = 5_000_000
MAX_BAD_SHARE = 0.05
HINT = "Mend them, or name the columns with pairs.query and pairs.passage if others are meant."
KNOWN = ".csv, .tsv, .jsonl or .parquet, a folder of one of those, or a BEIR folder with qrels/SPLIT.tsv"

# In order of preference.
QUERY_NAMES = ("query", "question", "anchor", "source_sentence", "sentence1")
TEXT_NAMES = (
    *("passage", "positive", "pos", "target_sentence", "accepted_answer", "answer", "text", "sentence2"),
)
TITLE_NAMES = ("title", "question_title")
ANSWER_NAMES = ("accepted_answer", "answer")
LABEL_NAMES = ("label", "score", "relevance")
QUERY_ID_NAMES = ("query_id", "query-id", "qid", "question_id")
DOCUMENT_ID_NAMES = ("document_id", "doc_id", "passage_id", "corpus-id", "corpus_id", "answer_id")
_NEGATIVE = re.compile(r"(?:hard_)?negatives?(?:[_-]?\d+)?|neg", re.IGNORECASE)
_ESCAPED = re.compile(r"'+[=+\-@\t\r]")

EXPORTED = ("query", "passage", "query_id", "document_id")
"""The columns of `searchfit export`. In such a CSV an apostrophe keeps formulas asleep, see `export`."""


@dataclass(frozen=True, slots=True)
class Roles:
    """Which columns hold what; "" is none."""

    query: tuple[str, ...]
    text: str
    label: str = ""
    negatives: tuple[str, ...] = ()
    query_id: str = ""
    document_id: str = ""
    metadata: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = (
            ("the query", self.query),
            ("the text", (self.text,)),
            ("the label", (self.label,)),
            ("negatives", self.negatives),
            ("the query's id", (self.query_id,)),
            ("the document's id", (self.document_id,)),
            ("metadata", self.metadata),
        )
        parts = [f"{' and '.join(map(repr, names))} as {role}" for role, names in said if any(names)]
        return ", ".join(parts)


class LabelledPairs:
    """Pairs that are read while they are iterated over, a few at a time; may be iterated over again.

    Iterating raises SourceError at its end when more than 5% of the rows are bad or there is no pair. `notes`
    say what was guessed, and `drops`, after an iteration, what it left out.
    """

    def __init__(
        self, name: str, parts: Sequence[_Part], notes: Sequence[str], drops: Sequence[Drop]
    ) -> None:
        self.name = name
        self.notes = tuple(notes)
        self.drops: tuple[Drop, ...] = tuple(drops)
        self._before = tuple(drops)
        self._parts = parts

    @property
    def untyped(self) -> bool:
        """Whether metadata are the bare text of cells, see `Reader.untyped`."""
        return any(part.untyped for part in self._parts)

    def __iter__(self) -> Iterator[LabelledPair]:
        tally = Tally()
        for part in self._parts:
            for item in part.read():
                if isinstance(item, BadRow):
                    tally.add(item)
                else:
                    tally.good += 1
                    yield item
        self.drops = (*self._before, *tally.drops())
        tally.check(self.name, MAX_BAD_SHARE, HINT)
        if not tally.good:
            raise SourceError(f"{self.name} holds no pairs.", "Expected at least one.")


def read_pairs(settings: PairsSettings) -> LabelledPairs:
    """Open the pairs that `settings.file` names and choose their columns; nothing but heads is read.

    Raises SourceError for a file that cannot be read, or whose columns cannot be told.
    """
    name = _named(settings)
    if beir := _beir(name):
        return _open_beir(beir, settings)
    tables = [_open_table(file, settings) for file in _files(name, settings.split)]
    notes = dict.fromkeys(note for table in tables for note in table.notes)
    return LabelledPairs(name, tables, list(notes), ())


def fingerprint(settings: PairsSettings) -> dict[str, Any]:
    """JSON-able values that change when the pairs do; empty where none are named."""
    if not settings.file.strip():
        return {}
    name = _named(settings)
    if beir := _beir(name):
        return fingerprint_files(
            [beir / "corpus.jsonl", beir / "queries.jsonl", beir / "qrels" / f"{settings.split}.tsv"]
        )
    return fingerprint_files(_files(name, settings.split))


def _named(settings: PairsSettings) -> str:
    if not settings.file.strip():
        raise SourceError("no pairs are named.", f"Expected {KNOWN}.")
    return local(settings.file)


def _beir(name: str) -> Path | None:
    return Path(name) if os.path.isfile(os.path.join(name, "corpus.jsonl")) else None


def _files(name: str, split: str) -> list[Place]:
    """The tables of a folder, in order of their names, or those that a URL or glob names; those of the split
    where some are named so."""
    found = find_places(name)
    if os.path.isdir(name):
        inside = [entry for entry in os.scandir(name) if entry.is_file() and is_table(entry.name)]
        found = sorted((Place(entry.path) for entry in inside if not is_hidden(entry.name)), key=str)
    elif len(found) == 1:
        return found
    found = [file for file in found if re.split(r"[.-]", file.name)[0] == split] or found
    kinds = sorted({file.suffix for file in found})
    if len(kinds) != 1:
        there = f"files of several kinds: {', '.join(kinds)}" if kinds else "no file of pairs"
        raise SourceError(f"{name} holds {there}.", f"Expected {KNOWN}.")
    return found


class _Part:
    """Something that yields pairs and bad rows."""

    notes: tuple[str, ...] = ()
    untyped = False

    def read(self) -> Iterator[LabelledPair | BadRow]:
        raise NotImplementedError


def _open_table(place: Place, settings: PairsSettings) -> _Part:
    if place.suffix in {".tsv", ".tab"} and (bare := _bare(place, settings)):
        return bare
    reader = open_table(place, MAX_TEXT_CHARS)
    return _Table(reader, place, _roles(reader, settings))


def _bare(path: Place, settings: PairsSettings) -> _Part | None:
    """A TSV of two columns whose first line is a pair, not names."""
    check_file(path)
    first = next(iter(read_lines(path, record_limit(MAX_TEXT_CHARS), newline="\n")), None)
    cells = [cell.strip().strip('"').lower() for cell in first.text.split("\t")] if first else []
    named = settings.query or settings.passage or settings.metadata
    known = _first(cells, QUERY_NAMES + TITLE_NAMES) and _first(cells, TEXT_NAMES)
    return None if named or known or len(cells) != 2 else _Bare(path)


class _Bare(_Part):
    """query TAB text, one pair a line, no header; a quote is a character like any other."""

    def __init__(self, path: Place) -> None:
        self._path = path
        folder = os.path.basename(os.path.dirname(str(path)))
        self.notes = (f"{folder}/*{path.suffix}: no header, read as query and text",)

    def read(self) -> Iterator[LabelledPair | BadRow]:
        for line in read_lines(self._path, record_limit(MAX_TEXT_CHARS), newline="\n"):
            where = f"{self._path.name}, row {line.number}"
            cells = [" ".join(cell.split()) for cell in line.text.split("\t")]
            if fault := line.fault():
                yield BadRow(where, fault)
            elif len(cells) != 2:
                if any(cells):
                    yield BadRow(where, "expected two cells, query and text")
            elif not all(cells):
                yield BadRow(where, "no query" if not cells[0] else "no text")
            else:
                yield LabelledPair(cells[0], cells[1])


class _Table(_Part):
    """A table with named columns."""

    def __init__(self, reader: Reader, path: Place, roles: Roles) -> None:
        self._reader, self._roles, self.untyped = reader, roles, reader.untyped
        self._ours = path.suffix == ".csv" and reader.columns() == EXPORTED
        self.notes = (*reader.notes, f"{path.name}: read {roles}")

    def read(self) -> Iterator[LabelledPair | BadRow]:
        for row in self._reader.rows():
            if isinstance(row, BadRow):
                yield row
            else:
                yield from self._pairs(self._awake(row) if self._ours else row)

    def _awake(self, row: Row) -> Row:
        values = {
            name: value[1:] if isinstance(value, str) and _ESCAPED.match(value) else value
            for name, value in row.values.items()
        }
        return Row(row.where, row.number, values)

    def _pairs(self, row: Row) -> Iterator[LabelledPair | BadRow]:
        roles, values = self._roles, row.values
        query = " ".join(" ".join(filter(None, (cell(row, name) for name in roles.query))).split())
        texts = list(texts_in(values.get(roles.text)))
        label = _label(cell(row, roles.label)) if roles.label else 1.0
        if not query:
            yield BadRow(row.where, "no query")
        elif not texts:
            # A question without an accepted answer is no fault of the table's.
            yield BadRow(row.where, "no text", fault=roles.text.lower() not in ANSWER_NAMES)
        elif label is None:
            yield BadRow(row.where, "a label that is no number")
        else:
            negatives = tuple(text for name in roles.negatives for text in texts_in(values.get(name)))
            ids = (cell(row, name) if name else "" for name in (roles.query_id, roles.document_id))
            query_id, document_id = ids
            metadata = {name: values.get(name) for name in roles.metadata}
            for text in texts:
                yield LabelledPair(query, text, label, negatives, query_id, document_id, metadata)


def _label(text: str) -> float | None:
    lowered = text.lower()
    if lowered in {"true", "false"}:
        return float(lowered == "true")
    try:
        number = float(text)
    except ValueError:
        return None
    return max(number, 0.0) if math.isfinite(number) else None


def _roles(reader: Reader, settings: PairsSettings) -> Roles:
    named = (*settings.query, settings.passage, settings.label, *settings.negatives, *settings.metadata)
    there = _columns(reader, named)
    free = [name for name in there if name not in named]
    query = settings.query or tuple(filter(None, [_first(free, QUERY_NAMES)]))
    if not query and (settings.passage or _first(free, ANSWER_NAMES)):
        query = tuple(filter(None, [_first(free, TITLE_NAMES)]))
    text = settings.passage or _first([name for name in free if name not in query], TEXT_NAMES)
    if not query or not text:
        missing = "queries" if not query else "texts"
        names = QUERY_NAMES if not query else TEXT_NAMES
        raise SourceError(
            f"{reader.name} has no column of {missing}. Its columns: {listed(there)}.",
            f"Expected one of {', '.join(names)}; or name it with pairs.query and pairs.passage.",
        )
    negatives = settings.negatives or tuple(name for name in free if _NEGATIVE.fullmatch(name))
    return Roles(
        query,
        text,
        settings.label or _first(free, LABEL_NAMES),
        negatives,
        _first(free, QUERY_ID_NAMES),
        _first([*free, *settings.metadata], DOCUMENT_ID_NAMES),
        settings.metadata,
    )


def _columns(reader: Reader, named: Sequence[str]) -> Sequence[str]:
    """The reader's columns. Raises SourceError where one that is named is not among them."""
    there = reader.columns()
    if absent := [name for name in named if name and name not in there]:
        there = reader.columns(everything=True)
        absent = [name for name in absent if name not in there]
    if absent:
        raise SourceError(f"{reader.name} has no column {absent[0]!r}.", f"Its columns: {listed(there)}.")
    return there


def _first(there: Sequence[str], names: Sequence[str]) -> str:
    """The first of `names` that is there, as it is written there."""
    return next((name for wanted in names for name in there if name.lower() == wanted), "")


def _open_beir(path: Path, settings: PairsSettings) -> LabelledPairs:
    judged = read_queries(QueriesSettings(file=str(path), split=settings.split))
    if not judged.qrels:
        raise SourceError(f"{path} has no judgements.", f"Expected qrels/{settings.split}.tsv in it.")
    texts = dict(judged.queries)
    wanted: dict[str, list[tuple[str, int]]] = {}
    for query, documents in judged.qrels.items():
        for document, grade in documents.items():
            wanted.setdefault(document, []).append((query, grade))
    _columns(BeirReader(path, MAX_TEXT_CHARS), settings.metadata)
    part = _Beir(path, texts, wanted, settings.metadata)
    return LabelledPairs(str(path), [part], judged.notes, judged.drops)


class _Beir(_Part):
    """The judged documents of a BEIR corpus, in its order, each with the queries it was judged for."""

    def __init__(
        self,
        folder: Path,
        queries: dict[str, str],
        wanted: dict[str, list[tuple[str, int]]],
        metadata: tuple[str, ...],
    ) -> None:
        self._folder, self._queries, self._wanted, self._metadata = folder, queries, wanted, metadata

    def read(self) -> Iterator[LabelledPair | BadRow]:
        missing = set(self._wanted)
        for row in BeirReader(self._folder, MAX_TEXT_CHARS).rows():
            if isinstance(row, BadRow):
                yield row
                continue
            ident = cell(row, "_id")
            if ident not in missing:
                continue
            missing.remove(ident)
            text = encoded_text(cell(row, "title"), cell(row, "text"))
            # Passages may say which document they are of.
            document = cell(row, "document_id") or ident
            metadata = {name: row.values.get(name) for name in self._metadata}
            for query, grade in self._wanted[ident]:
                if text:
                    asked = self._queries[query]
                    yield LabelledPair(asked, text, float(grade), (), query, document, metadata)
                else:
                    yield BadRow(row.where, "no text")
        for ident in sorted(missing):
            yield BadRow(f"document {ident}", "judged, but not in corpus.jsonl")
