"""A table, a view or a SELECT of a database, streamed by a cursor of the server."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchfit.config import SourceSettings, SqlSettings
from searchfit.errors import SettingsError, SourceError
from searchfit.places import unreadable
from searchfit.sources.columns import ID_NAMES, listed
from searchfit.sources.files import BAD_UTF8, fingerprint_files, is_sound
from searchfit.sources.rows import BadRow, Columns, Row
from searchfit.sources.sql_connection import Database, reason
from searchfit.sources.values import from_text, kind_of_text, to_text

if TYPE_CHECKING:
    from sqlalchemy import Connection, Inspector

_PLAIN = frozenset({str, int, float, bool, Decimal, date, datetime, type(None)})
_LISTED = 30
_BYTEA = 17
_OPTIONS: dict[str, Any] = {"no_parameters": True, "sqlite_raw_colnames": True}
Convert = Callable[[Any], Any]


class SqlReader:
    """The rows of a statement. Types are the database's own; binary values are left out.

    Reading happens in one transaction that sees one state of the database and cannot change it.
    """

    untyped = False
    known: Columns | None = None

    def __init__(self, source: SourceSettings, sql: SqlSettings) -> None:
        """Connect and learn the columns; no row is read. Raises SettingsError for settings that contradict
        each other, SourceError for a database that cannot be reached or refuses, and for a table or column
        that is not there."""
        _check(sql)
        self._settings = sql
        self._database = Database(source.source.strip(), sql.password_file)
        self.name = f"{self._database.name} ({f'table {sql.table}' if sql.table else 'sql.query'})"
        self.seen: dict[str, str] = {}
        """After `rows`: the highest value of sql.updated_column as an SQL literal, by what was read."""
        self._converts: dict[str, Convert] = {}
        self._notes: list[str] = []
        self._left_out: dict[str, None] = {}
        with self._database.reading() as connection:
            self._whole = self._of_table(connection, source.id) if sql.table else _one_statement(sql.query)
            self._columns = self._described(connection)
        if sql.updated_column and sql.updated_column not in self._columns:
            raise SourceError(
                f"{self.name} has no column {sql.updated_column!r}. Its columns: {listed(self._columns)}.",
                "Mend sql.updated_column, or add the column to the statement.",
            )
        if not sql.updated_column and self._database.file is None:
            self._notes.append(
                "no sql.updated_column is named: that rows changed is not noticed; "
                "to read them again: --force ingest"
            )

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Reader.notes`; binary columns of a statement are known once its rows have been read."""
        left_out = [f"column {name!r} of binary values is left out" for name in self._left_out]
        return (*self._notes, *left_out)

    def columns(self, everything: bool = False) -> tuple[str, ...]:  # noqa: ARG002 - there are no others
        """See `Reader.columns`."""
        return self._columns

    def fingerprint(self) -> dict[str, Any]:
        """The database, the statement, and what tells cheaply whether rows changed: of SQLite the size, time
        of change and change counter of the file, else the number of rows and the highest
        sql.updated_column where one is named."""
        told: dict[str, Any] = {"database": self._database.name, "statement": self._statement()}
        if self._database.file is not None:
            return {**told, **_file_witness(self._database.file)}
        if self._settings.updated_column:
            with self._database.reading() as connection:
                told["rows"], highest = self._witness(connection)
                told["highest"] = str(highest)
        return told

    def rows(self) -> Iterator[Row | BadRow]:
        """See `Reader.rows`. Raises SourceError when the connection breaks off."""
        from sqlalchemy.exc import SQLAlchemyError

        number = 0
        with self._database.reading() as connection:
            seen = self._highest(connection)
            options = {**_OPTIONS, "yield_per": self._settings.batch_rows}
            result = connection.exec_driver_sql(self._statement(), execution_options=options)
            names = self._distinct(result.keys())
            batches = result.partitions(self._settings.batch_rows)
            while True:
                try:
                    batch = next(batches, None)
                except (SQLAlchemyError, ValueError, OverflowError, AttributeError) as error:
                    raise self._broken_off(error, number) from error
                if batch is None:
                    break
                for record in batch:
                    number += 1
                    yield self._row(number, dict(zip(names, record, strict=True)))
        self.seen = seen

    @property
    def key(self) -> str:
        """What `seen` is known by: a hash of the database, of what is read from it, and of the column."""
        file = self._database.file
        parts = (
            str(file.absolute()) if file else self._database.name,
            self._whole,
            self._settings.updated_column,
        )
        return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()

    def _row(self, number: int, values: dict[str, Any]) -> Row | BadRow:
        dropped = []
        for name, value in values.items():
            if type(value) in _PLAIN:
                if value is not None and (convert := self._converts.get(name)):
                    values[name] = convert(value)
            elif isinstance(value, (bytes, memoryview, bytearray)):
                dropped.append(name)
            else:
                values[name] = _flat(value)
            if not _sound(values[name]):
                return BadRow(f"row {number}", BAD_UTF8)
        for name in dropped:
            del values[name]
            self._left_out[name] = None
        return Row(f"row {number}", number, values)

    def _of_table(self, connection: Connection, ident: str) -> str:
        """The statement that reads the table of the settings."""
        from sqlalchemy import inspect
        from sqlalchemy.types import LargeBinary

        inspector = inspect(connection)
        table, schema = self._found(inspector)
        columns = inspector.get_columns(table, schema)
        for column in columns:
            if isinstance(column["type"], LargeBinary):
                self._left_out[column["name"]] = None
        names = [column["name"] for column in columns if column["name"] not in self._left_out]
        if self._database.kind == "sqlite":
            self._converts = _sqlite_converts({column["name"]: column["type"] for column in columns})
        key = list(inspector.get_pk_constraint(table, schema)["constrained_columns"] or ())
        # As columns.choose_columns takes it: named, else the one column with the name of an id.
        guessed = [name for name in names if name.lower() in ID_NAMES]
        order = [ident] if ident in names else guessed if len(guessed) == 1 else key
        if not order:
            self._notes.append(
                f"table {self._settings.table} has no id and no primary key: rows come in no certain order"
            )
        quoted = self._database.quoted
        where = f" WHERE (\n{self._settings.where}\n)" if self._settings.where else ""
        by = f" ORDER BY {', '.join(map(quoted, order))}" if order else ""
        place = quoted(*filter(None, (schema, table)))
        return f"SELECT {', '.join(map(quoted, names))} FROM {place}{where}{by}"

    def _found(self, inspector: Inspector) -> tuple[str, str | None]:
        """The table and its schema. Raises SourceError, listing what is there."""
        named = self._settings.table
        schema, dot, table = named.rpartition(".")
        if inspector.has_table(named):
            return named, None
        known = inspector.get_schema_names() if dot else []
        if schema in known and inspector.has_table(table, schema):
            return table, schema
        inside = schema if schema in known else None
        there = sorted({*inspector.get_table_names(inside), *inspector.get_view_names(inside)})
        near = difflib.get_close_matches(table, there, n=3)
        shown = ", ".join(map(repr, there[:_LISTED])) + (", ..." if len(there) > _LISTED else "")
        raise SourceError(
            f"{self._database.name} has no table {named!r}. Its tables and views: {shown or 'none'}.",
            f"Did you mean {' or '.join(map(repr, near))}?" if near else "Name one with --table.",
        )

    def _described(self, connection: Connection) -> tuple[str, ...]:
        """The columns of the statement. As a part of another one, it can only be one SELECT; a server that
        takes several statements at once does not take them with parameters."""
        probe = _around(self._whole, tail="LIMIT 0")
        if self._database.kind == "postgresql":
            from psycopg import Error

            raw: Any = connection.connection.driver_connection
            try:
                cursor = raw.execute(probe, binary=True)
            except Error as error:
                raise self._database.refused(error) from error
            names = [column.name for column in cursor.description]
            binary = [column.name for column in cursor.description if column.type_code == _BYTEA]
            self._left_out |= dict.fromkeys(binary)
        else:
            names = list(connection.exec_driver_sql(probe, execution_options=_OPTIONS).keys())
        return tuple(name for name in self._distinct(names) if name not in self._left_out)

    def _distinct(self, names: Iterable[str]) -> tuple[str, ...]:
        found = tuple(names)
        if twice := [name for name in found if found.count(name) > 1]:
            raise SourceError(
                f"{self.name} has two columns named {twice[0]!r}.", "Name them apart: SELECT a.id AS id, ..."
            )
        return found

    def _statement(self) -> str:
        """What is read: all rows, or those since sql.since and those whose time of change is not known."""
        if not self._settings.since:
            return self._whole
        column = self._database.quoted(self._settings.updated_column)
        return _around(self._whole, tail=f"WHERE {column} >= {self._settings.since} OR {column} IS NULL")

    def _witness(self, connection: Connection) -> tuple[int, Any]:
        """The number of rows and the highest value of the updated column."""
        column = self._database.quoted(self._settings.updated_column)
        asked = _around(self._whole, f"count(*), max({column})")
        count, highest = connection.exec_driver_sql(asked, execution_options=_OPTIONS).one()
        return int(count), highest

    def _highest(self, connection: Connection) -> dict[str, str]:
        """See `seen`. Told before the rows are read, for what changes meanwhile is to be read again."""
        if not self._settings.updated_column:
            return {}
        _, highest = self._witness(connection)
        return {} if highest is None else {self.key: self._database.literal(highest)}

    def _broken_off(self, error: Exception, number: int) -> SourceError:
        return SourceError(
            f"reading {self.name} broke off after row {number}: {reason(error)}",
            "Nothing was changed. Give the same command again: it reads from the start.",
        )


def _check(sql: SqlSettings) -> None:
    if bool(sql.query) == bool(sql.table):
        both = "both are named" if sql.query else "neither is named"
        raise SettingsError(
            f"a database is read by a statement or from a table, and {both}.",
            'Give --sql "SELECT ..." or --table NAME (sql.query or sql.table in the settings).',
        )
    if sql.where and not sql.table:
        raise SettingsError("sql.where goes with sql.table.", "Write the condition into the statement.")
    if sql.since and not sql.updated_column:
        raise SettingsError("sql.since goes with sql.updated_column.", "Name the column: --updated-column.")


def _file_witness(file: Path) -> dict[str, Any]:
    """Size and time of change of a database and of its write-ahead log, and the counter in its header that
    each change moves (two changes of one clock tick leave size and time as they are)."""
    log = file.with_name(f"{file.name}-wal")
    logs = [log] if log.exists() and log.stat().st_size else []  # opening alone leaves an empty one
    try:
        with file.open("rb") as opened:
            counter = int.from_bytes(opened.read(28)[24:], "big")
    except OSError as error:
        raise unreadable(file, error) from error
    return {**fingerprint_files([file, *logs]), "counter": counter}


def _one_statement(query: str) -> str:
    return query.strip().rstrip(";").rstrip()


def _around(statement: str, columns: str = "*", tail: str = "") -> str:
    """A SELECT from a statement; the line breaks end a comment at its end."""
    return f"SELECT {columns} FROM (\n{statement}\n) AS searchfit {tail}".rstrip()


def _sqlite_converts(types: Mapping[str, Any]) -> dict[str, Convert]:
    """SQLite keeps times as texts and truth values as numbers: what columns are declared as tells."""
    from sqlalchemy.types import Boolean, Date, DateTime

    found: dict[str, Convert] = {}
    for name, kind in types.items():
        if isinstance(kind, Boolean):
            found[name] = lambda value: bool(value) if value in (0, 1) else value
        elif isinstance(kind, (Date, DateTime)):
            found[name] = _moment
    return found


def _moment(value: Any) -> Any:
    if isinstance(value, str) and (kind := kind_of_text(value)) in ("date", "timestamp", "timestamp_utc"):
        return from_text(value, kind)
    return value


def _flat(value: Any) -> Any:
    """A value of another type: arrays and JSON as they are, the rest (UUID, interval, address) as text."""
    if isinstance(value, (list, tuple, set)):
        return list(value)
    return value if isinstance(value, dict) else str(value)


def _sound(value: Any) -> bool:
    if isinstance(value, (list, dict)):
        value = to_text(value)
    return not isinstance(value, str) or is_sound(value)
