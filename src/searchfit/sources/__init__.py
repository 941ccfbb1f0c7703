"""Where documents come from: files, folders and `scheme:` names, each streamed row by row."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searchfit.config import PairsSettings, SourceSettings
from searchfit.errors import SourceError
from searchfit.sources.columns import choose_columns
from searchfit.sources.delimited import DelimitedReader
from searchfit.sources.files import unreadable
from searchfit.sources.folder import FolderReader
from searchfit.sources.jsonl import BeirReader, JsonlReader
from searchfit.sources.pair_texts import PairTextsReader
from searchfit.sources.parquet import ParquetReader
from searchfit.sources.pydoc import PydocReader
from searchfit.sources.rows import BadRow, Columns, Reader, Row, Tally

__all__ = ["PAIRS", "BadRow", "Columns", "Reader", "Row", "Source", "Tally", "open_source"]

KNOWN = ".csv, .tsv, .jsonl or .parquet, a folder of .txt and .md files, a BEIR folder, or pydoc:NAME,NAME"
PAIRS = "pairs:"
"""The source that stands for the texts of the labelled pairs."""

_SCHEME = re.compile(r"[a-z][a-z0-9+]+:")


@dataclass(frozen=True, slots=True)
class Source:
    """An opened source: which columns to use, what was guessed (`notes`), and the rows."""

    reader: Reader
    columns: Columns
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The source, for messages."""
        return self.reader.name

    def rows(self) -> Iterator[Row | BadRow]:
        """Every record, streamed. May be called again."""
        return self.reader.rows()

    def fingerprint(self) -> dict[str, Any]:
        """JSON-able values that change when the source does; cheap, no data is read."""
        return self.reader.fingerprint()


def open_source(settings: SourceSettings, pairs: PairsSettings | None = None) -> Source:
    """Open the source that the settings name and choose its columns; "pairs:" are the texts of `pairs`.

    Raises SourceError for one that is absent, unreadable or of an unknown kind, and for columns that are
    not there or cannot be told.
    """
    reader = PairTextsReader(pairs) if pairs and settings.source == PAIRS else _reader(settings)
    columns, guessed = choose_columns(reader, settings)
    return Source(reader, columns, (*reader.notes, *guessed))


def _reader(settings: SourceSettings) -> Reader:
    name = settings.source.strip()
    if not name:
        raise SourceError("no source is named.", f"Expected {KNOWN}.")
    if name.startswith("pydoc:"):
        return PydocReader(name.removeprefix("pydoc:"))
    if "\0" in name:
        raise SourceError(f"{name!r} is no name of a file.", f"Expected {KNOWN}.")
    path = Path(os.path.expanduser(name))  # Path's own raises for an unknown user
    try:
        path.stat()
    except FileNotFoundError as error:
        if _SCHEME.match(name):
            raise SourceError(f"source {name!r} is of an unknown kind.", f"Expected {KNOWN}.") from error
        raise unreadable(path, error) from error
    except OSError as error:
        raise unreadable(path, error) from error
    return _folder(path, settings) if path.is_dir() else _file(path, settings)


def _folder(path: Path, settings: SourceSettings) -> Reader:
    if (path / "corpus.jsonl").is_file():
        return BeirReader(path, settings.max_text_chars)
    return FolderReader(path, settings.max_text_chars)


def _file(path: Path, settings: SourceSettings) -> Reader:
    suffix = path.suffix.lower()
    if not path.is_file():
        raise SourceError(f"{path} is neither a file nor a folder.", f"Expected {KNOWN}.")
    if suffix in {".csv", ".tsv", ".tab"}:
        return DelimitedReader(path, settings.max_text_chars)
    if suffix in {".jsonl", ".ndjson"}:
        return JsonlReader(path, settings.max_text_chars)
    if suffix == ".parquet":
        return ParquetReader(path)
    hints = {
        ".json": "JSON Lines is read (.jsonl, one object a line): jq -c '.[]' FILE.json > FILE.jsonl",
        ".gz": "Decompress it first: gunzip FILE",
        ".xlsx": "Save the sheet as CSV UTF-8.",
        ".txt": "Name the folder that holds it: each file is one document.",
        ".md": "Name the folder that holds it: each file is one document.",
    }
    raise SourceError(
        f"{path} ends in {suffix or 'no extension'}, which is not read. Expected {KNOWN}.",
        hints.get(suffix, ""),
    )
