"""Where documents come from: files, folders and `scheme:` names, each streamed row by row."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searchfit.config import Settings, SourceSettings, SqlSettings
from searchfit.errors import SettingsError, SourceError
from searchfit.places import Place, local, unreadable
from searchfit.sources.columns import choose_columns
from searchfit.sources.finding import Chooser, split_glob
from searchfit.sources.folder import FolderReader
from searchfit.sources.huggingface import DatasetReader
from searchfit.sources.jsonl import BeirReader
from searchfit.sources.pair_texts import PairTextsReader
from searchfit.sources.pydoc import PydocReader
from searchfit.sources.rows import BadRow, Columns, Reader, Row, Tally
from searchfit.sources.sql import SqlReader
from searchfit.sources.sql_connection import FORMS, is_database, is_sqlite
from searchfit.sources.tables import open_table, open_tables, table_places

__all__ = ["PAIRS", "BadRow", "Columns", "Reader", "Row", "Source", "Tally", "open_source"]

KNOWN = (
    "a file (.pdf, .docx, .html, .md, .txt, e-mail, .csv, .tsv, .jsonl, .parquet), a folder or glob of them, "
    "s3://, gs:// or abfs://, a BEIR folder, a database, hf:NAME or pydoc:NAME,NAME"
)
PAIRS = "pairs:"
"""The source that stands for the texts of the labelled pairs."""

_SCHEME = re.compile(r"[a-z][a-z0-9+]+:")


@dataclass(frozen=True, slots=True)
class Source:
    """An opened source: which columns to use, what was guessed, and the rows."""

    reader: Reader
    columns: Columns
    guessed: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What was guessed, for people; some readers know more of it once their rows have been read."""
        return (*self.reader.notes, *self.guessed)

    @property
    def key(self) -> str:
        """What `seen` is known by; "" for sources that cannot tell what changed."""
        return self.reader.key if isinstance(self.reader, SqlReader) else ""

    @property
    def seen(self) -> Mapping[str, str]:
        """Once the rows have been read: how far, see `SqlReader.seen`; empty for sources that cannot tell."""
        return self.reader.seen if isinstance(self.reader, SqlReader) else {}

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


def open_source(settings: Settings) -> Source:
    """Open the source that `settings.source` names and choose its columns; "pairs:" are the
    texts of the labelled pairs.

    Raises SourceError for one that is absent, unreadable or of an unknown kind, and for columns that are
    not there or cannot be told.
    """
    named = settings.source
    database = _database(named)
    reader: Reader
    if database is not None:
        reader = SqlReader(database, settings.sql)
    elif settings.sql != SqlSettings():
        raise SettingsError(
            f"{named.source!r} is no database, and there are settings of the section sql.",
            f"Leave out --sql, --table and the like, or name a database: {FORMS}, or a file of SQLite.",
        )
    else:
        reader = PairTextsReader(settings.pairs) if named.source == PAIRS else _reader(settings)
    columns, guessed = choose_columns(reader, named)
    return Source(reader, columns, guessed)


def _database(settings: SourceSettings) -> SourceSettings | None:
    """The settings with the address of the database that the source is; None where it is none."""
    name = settings.source.strip()
    if is_database(name):
        return settings
    path = os.path.expanduser(name)
    if os.path.isfile(path) and is_sqlite(Path(path)):
        return settings.model_copy(update={"source": f"sqlite:///{os.path.abspath(path)}"})
    return None


def _reader(settings: Settings) -> Reader:
    name = settings.source.source.strip()
    if not name:
        raise SourceError("no source is named.", f"Expected {KNOWN}.")
    if name.startswith("pydoc:"):
        return PydocReader(name.removeprefix("pydoc:"))
    if "\0" in name:
        raise SourceError(f"{name!r} is no name of a file.", f"Expected {KNOWN}.")
    if name.startswith("hf:"):
        return DatasetReader(name.removeprefix("hf:"), settings.dataset)
    if tables := table_places(name):
        return open_tables(name, tables, settings.source.max_text_chars)
    path = Path(local(name))
    try:
        path.stat()
    except FileNotFoundError as error:
        root, glob = split_glob(str(path))
        if glob and Path(root).is_dir():
            return FolderReader(Path(root), settings, glob)
        if _SCHEME.match(name):
            raise SourceError(f"source {name!r} is of an unknown kind.", f"Expected {KNOWN}.") from error
        raise unreadable(path, error) from error
    except OSError as error:
        raise unreadable(path, error) from error
    return _folder(path, settings) if path.is_dir() else _file(path, settings)


def _folder(path: Path, settings: Settings) -> Reader:
    if (path / "corpus.jsonl").is_file():
        return BeirReader(path, settings.source.max_text_chars)
    return FolderReader(path, settings)


def _file(path: Path, settings: Settings) -> Reader:
    if not path.is_file():
        raise SourceError(f"{path} is neither a file nor a folder.", f"Expected {KNOWN}.")
    if Chooser(settings.files).kind(path, path.name)[0]:
        return FolderReader(path, settings)
    return open_table(Place(str(path)), settings.source.max_text_chars)
