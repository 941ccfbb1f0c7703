"""Read the source into documents.parquet, and say what was left out.

The type of a metadata column is known only after its last value, so the rows are spooled as text first
and typed when they are copied from the spool. Neither pass holds more than a batch in memory.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.cleaning import Cleaner, cut
from searchfit.config import CleanSettings, Settings, SourceSettings
from searchfit.distinct import SIZE, Distinct
from searchfit.errors import SourceError
from searchfit.languages import Languages
from searchfit.records import CLEANED, DOCUMENTS, MARKS, METADATA_PREFIX, SEEN, StageResult
from searchfit.sources import BadRow, Row, Source, Tally, open_source
from searchfit.sources.files import NUL, TOO_LONG
from searchfit.sources.values import ARROW, Kind, from_text, kind_of_text, kind_of_value, to_text, widen
from searchfit.stages import Tools

VERSION = 1

BATCH_ROWS = 4096
BATCH_CHARS = 8 << 20
MAX_COLUMNS = 1000
MAX_ID_CHARS = 1000

MARK = tuple(field.name for field in MARKS.value_type)

_encode = json.JSONEncoder(ensure_ascii=False).encode
_SPOOL = pa.schema([*DOCUMENTS, ("marks", MARKS), ("metadata", pa.large_string())])


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Write documents.parquet: records.DOCUMENTS, then one `metadata.` column for each column left, and the
    language. With the input `clean.json` of an index, texts are cleaned as its were.

    Raises SourceError when the source cannot be read, has no document, or has too many bad rows.
    """
    source = open_source(settings)
    cleaner = _cleaner(settings.clean, inputs.get("clean.json"))
    intake = _Intake(source, settings.source, cleaner, bool(settings.sql.since))
    spool, target = tools.output / "documents.spool", tools.output / "documents.parquet"
    target.unlink(missing_ok=True)
    try:
        _write_spool(spool, intake, tools)
        intake.check()
        _write_documents(spool, target, intake, source.seen)
    finally:
        spool.unlink(missing_ok=True)
    return intake.result()


def _cleaner(settings: CleanSettings, record: Path | None) -> Cleaner:
    if record is None:
        return Cleaner(settings)
    known = json.loads(record.read_text(encoding="utf-8"))
    return Cleaner(CleanSettings.model_validate(known["settings"]), known["lines"])


@dataclass
class _Intake:
    """Turns rows into documents; counts what is wrong and learns the types of the metadata."""

    source: Source
    settings: SourceSettings
    cleaner: Cleaner
    partial: bool = False
    """Only what changed lately is read: it may be nothing, and tells nothing of the share of bad rows."""
    tally: Tally = field(default_factory=Tally)
    kinds: dict[str, Kind] = field(default_factory=dict)
    characters: int = 0
    marked: bool = False
    languages: Languages = field(default_factory=Languages)

    def __post_init__(self) -> None:
        self._ids = Distinct()
        self._texts = array("Q")  # hashes, 8 bytes of each
        self._mine = self.source.columns.names
        self._kind_of = kind_of_text if self.source.reader.untyped else kind_of_value

    def documents(self) -> Iterator[dict[str, Any]]:
        """The rows of the spool."""
        for row in self.source.rows():
            document = row if isinstance(row, BadRow) else self._document(row)
            if isinstance(document, BadRow):
                self.tally.add(document)
            else:
                self.tally.good += 1
                yield document

    def _document(self, row: Row) -> dict[str, Any] | BadRow:
        columns = self.source.columns
        text = _joined([row.values.get(name) for name in columns.text])
        ident = (to_text(row.values.get(columns.id)) or "").strip() if columns.id else str(row.number)
        title = to_text(row.values.get(columns.title)) or "" if columns.title else ""
        fault = self._text_fault(text) or _id_fault(ident) or (NUL if "\0" in title else "")
        if fault or text is None:
            return BadRow(row.where, fault)
        told = row.marks if columns.text == ("text",) else ()
        title, *parts = self.cleaner.clean(title, cut(text, [mark[0] for mark in told]))
        title, text = " ".join(title.split()), "".join(parts)
        if fault := self._text_fault(text):
            return BadRow(row.where, fault)
        if not self._ids.add(blake2b(ident.encode(), digest_size=SIZE).digest()):
            return BadRow(row.where, "an id that an earlier row has")
        self._texts.frombytes(blake2b(text.encode(), digest_size=8).digest())
        self.cleaner.count(text)
        self.marked |= bool(told)
        starts = accumulate(map(len, parts))
        marks = [
            dict(zip(MARK, (start, *mark[1:]), strict=True))
            for start, mark in zip(starts, told, strict=False)
        ]
        return {"id": ident, "title": title, "text": text, "marks": marks, "metadata": self._metadata(row)}

    def _text_fault(self, text: str | None) -> str:
        if text is None:
            return "no text"
        if not text.strip():
            return "empty text"
        if "\0" in text:
            return NUL
        return TOO_LONG if len(text) > self.settings.max_text_chars else ""

    def _metadata(self, row: Row) -> str:
        """The other columns as a JSON list of texts, in the order of `kinds`."""
        for name, value in row.values.items():
            if name not in self._mine and self.kinds.setdefault(name, "null") != "string":
                self.kinds[name] = widen(self.kinds[name], self._kind_of(value))
        if len(self.kinds) > MAX_COLUMNS:
            raise SourceError(
                f"{self.source.name} has more than {MAX_COLUMNS} columns beside the text, at {row.where}.",
                "Leave out what is not filtered on, or nest it in one column: that is kept as JSON.",
            )
        return _encode([to_text(row.values.get(name)) for name in self.kinds])

    def check(self) -> None:
        """Raise SourceError for too many bad rows, or no document."""
        share = 1.0 if self.partial else self.settings.max_bad_share
        self.tally.check(self.source.name, share, "Mend them, or allow more with source.max_bad_share.")
        if not self.tally.good and not self.partial:
            raise SourceError(
                f"{self.source.name} holds no documents.", "Expected at least one with some text."
            )

    def result(self) -> StageResult:
        """What was read, dropped and guessed."""
        notes = list(self.source.notes)
        if self.kinds:
            listed = ", ".join(f"{name} ({_in_words(kind)})" for name, kind in self.kinds.items())
            notes.append(f"metadata that can be filtered on: {listed}")
        if repeated := len(self._texts) - len(np.unique(self._texts)):
            notes.append(f"{repeated} documents have a text that an earlier one has; they are kept")
        notes += self.cleaner.notes()
        if self.tells_language and (said := str(self.languages)):
            notes.append(f"languages: {said}")
        counts = {"documents": self.tally.good, "characters": self.characters, "bad_rows": self.tally.faults}
        return StageResult(counts | self.cleaner.counts(), self.tally.drops(), tuple(notes))

    @property
    def tells_language(self) -> bool:
        """Whether there is a column of the language: the user's own has precedence."""
        return self.cleaner.settings.language and "language" not in self.kinds

    def finished(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A document of the spool in its last form, with its language; None where that cannot be told."""
        starts = [mark["start"] for mark in row["marks"]]
        title, *parts = self.cleaner.finish(row["title"], cut(row["text"], starts))
        text = "".join(parts)
        self.characters += len(text)
        marks = [
            {**mark, "start": start}
            for start, mark in zip(accumulate(map(len, parts)), row["marks"], strict=False)
        ]
        language = self.languages.add(text) if self.tells_language else None
        return {"id": row["id"], "title": title, "text": text, "marks": marks, "language": language}


def _joined(parts: list[Any]) -> str | None:
    """The texts of the columns, joined by blank lines; a list of strings counts as its paragraphs."""
    texts: list[str] = []
    for part in parts:
        if isinstance(part, list) and all(isinstance(item, str) for item in part):
            texts += part
        elif (text := to_text(part)) is not None:
            texts.append(text)
    if len(texts) < 2:
        return texts[0] if texts else None
    return "\n\n".join(text for text in texts if text.strip())


def _id_fault(ident: str) -> str:
    if not ident:
        return "no id"
    if len(ident) > MAX_ID_CHARS:
        return f"an id longer than {MAX_ID_CHARS} characters"
    return NUL if "\0" in ident else ""


def _in_words(kind: Kind) -> str:
    return {"null": "empty", "timestamp_utc": "timestamp, UTC"}.get(kind, kind)


def _write_spool(spool: Path, intake: _Intake, tools: Tools) -> None:
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.OSFile(str(spool), "wb") as sink, pa.ipc.new_stream(sink, _SPOOL, options=options) as writer:
        for batch in _batches(intake.documents()):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, _SPOOL))
            tools.progress("reading documents", intake.tally.good, 0)


def _batches(documents: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    chars = 0
    for document in documents:
        batch.append(document)
        chars += len(document["text"]) + len(document["metadata"])
        if len(batch) == BATCH_ROWS or chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _write_documents(spool: Path, target: Path, intake: _Intake, seen: Mapping[str, str]) -> None:
    kinds = intake.kinds
    own = [*DOCUMENTS, pa.field("marks", MARKS)] if intake.marked else [*DOCUMENTS]
    own_names = pa.schema(own).names
    told = [(f"{METADATA_PREFIX}language", pa.string())] if intake.tells_language else []
    schema = pa.schema(
        [*own, *((f"{METADATA_PREFIX}{name}", ARROW[kind]) for name, kind in kinds.items()), *told],
        {SEEN: json.dumps(seen)} if seen else None,
    )
    with (
        pa.OSFile(str(spool), "rb") as file,
        pa.ipc.open_stream(file) as batches,
        pq.ParquetWriter(target, schema, compression="zstd") as writer,
    ):
        for batch in batches:
            rows = [json.loads(row) for row in batch.column("metadata").to_pylist()]
            columns = [_typed(rows, place, kind) for place, kind in enumerate(kinds.values())]
            done = [intake.finished(row) for row in batch.drop_columns("metadata").to_pylist()]
            first = [pa.array([row[name] for row in done], schema.field(name).type) for name in own_names]
            last = [pa.array([row["language"] for row in done], pa.string())] if told else []
            writer.write_batch(pa.RecordBatch.from_arrays([*first, *columns, *last], schema=schema))
        writer.add_key_value_metadata({CLEANED: json.dumps(intake.cleaner.record())})


def _typed(rows: list[list[str | None]], place: int, kind: Kind) -> Any:
    """One metadata column; rows read before the column first appeared are shorter."""
    texts = (row[place] if place < len(row) else None for row in rows)
    values = [None if text is None or not text.strip() else from_text(text, kind) for text in texts]
    return pa.array(values, ARROW[kind])
