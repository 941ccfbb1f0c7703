"""Connections to databases that can only read."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from searchfit.config.secrets import options_of, password_of
from searchfit.errors import MissingExtraError, SourceError
from searchfit.places import unreadable

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

PASSWORD = "SEARCHFIT_SQL_PASSWORD"
"""The environment variable with the password of a database."""

FORMS = "postgresql://USER@HOST/DATABASE, mysql://..., mariadb://... or sqlite:///FILE"
MAGIC = b"SQLite format 3\0"

_DRIVERS = {
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mysql+pymysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
    "mariadb+pymysql": "mariadb+pymysql",
}
_KINDS = {
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "mysql": "mysql",
    "mariadb": "mysql",
    "sqlite": "sqlite",
}
# Seconds to wait before the next attempt to connect: a server may be starting.
_WAITS = (0.2, 0.6, 0.0)
_CONNECT_SECONDS = 15
# Wrong user or password, no right to, or no such database: another attempt changes nothing.
_FINAL_STATES = ("28", "3D", "42")
_FINAL_CODES = frozenset({1044, 1045, 1049, 1698})
_MYSQL_SESSION = (
    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    "SET SESSION TRANSACTION READ ONLY",
    "SET SESSION time_zone = '+00:00'",  # a TIMESTAMP is then told in UTC
    "SET SESSION net_write_timeout = 3600",  # the server waits while a batch is worked on
)


def is_database(source: str) -> bool:
    """Whether a source is named by the address of a database."""
    scheme, mark, _ = source.partition("://")
    return bool(mark) and scheme.partition("+")[0] in _KINDS


def is_sqlite(path: Path) -> bool:
    """Whether a file is an SQLite database, told by its first bytes. Raises SourceError when it cannot be
    read."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise unreadable(path, error) from error


class Database:
    """A database: `name` is its address without password, `kind` postgresql, mysql or sqlite."""

    def __init__(self, address: str, password_file: str = "") -> None:
        """Raises SourceError for an address that is none and MissingExtraError without SQLAlchemy or the
        driver; connects to nothing."""
        self.name = address
        self.kind = _KINDS[address.partition("://")[0].partition("+")[0]]
        self.file = _sqlite_file(address) if self.kind == "sqlite" else None
        self._place = ""
        try:
            import sqlalchemy
        except ImportError as error:
            raise MissingExtraError("A database as the source", "sql") from error
        if self.file is not None:
            file = self.file
            self._engine = self._made(sqlalchemy.make_url("sqlite://"), creator=lambda: _open_sqlite(file))
            return
        try:
            url = sqlalchemy.make_url(address)
        except (sqlalchemy.exc.ArgumentError, ValueError) as error:
            raise SourceError(
                f"{address!r} is not the address of a database.", f"Expected {FORMS}."
            ) from error
        if url.drivername not in _DRIVERS:
            raise SourceError(
                f"the driver of {address!r} is not used here.", f"Leave it out. Expected {FORMS}."
            )
        url = url.set(drivername=_DRIVERS[url.drivername])
        if password := password_of(address) or _password(password_file):
            url = url.set(password=password)
        self._engine = self._made(url, connect_args=self._arguments(url))
        port = url.port or (5432 if self.kind == "postgresql" else 3306)
        self._place = f"the database {url.database or ''!r} at {url.host or 'localhost'}, port {port},"

    def _made(self, url: URL, **options: Any) -> Engine:
        from sqlalchemy import NullPool, create_engine, event

        try:
            engine = create_engine(url, poolclass=NullPool, **options)
        except ImportError as error:
            raise MissingExtraError(f"The source {self.name}", "sql") from error
        prepare = {"postgresql": _prepare_postgresql, "mysql": _prepare_mysql}.get(self.kind)
        if prepare is not None:
            event.listen(engine, "connect", prepare)
        return engine

    def _arguments(self, url: URL) -> dict[str, Any]:
        arguments: dict[str, Any] = dict(options_of(self.name))
        if self.kind == "mysql":
            arguments |= {"charset": "utf8mb4", "conv": _mysql_decoders()}
        else:
            arguments["client_encoding"] = "utf8"
        arguments["connect_timeout"] = _CONNECT_SECONDS
        return {name: value for name, value in arguments.items() if name not in url.query}

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection in a transaction that sees one state of the database and can change nothing.

        Raises SourceError when the database cannot be reached, or refuses a statement in the block.
        """
        from sqlalchemy.exc import SQLAlchemyError

        connection = self._connected()
        try:
            if self.kind == "postgresql":
                connection = connection.execution_options(
                    isolation_level="REPEATABLE READ", postgresql_readonly=True
                )
            elif self.kind == "sqlite":
                connection.exec_driver_sql("BEGIN")
            yield connection
        except SQLAlchemyError as error:
            raise self.refused(error) from error
        finally:
            # Closed for good at once: a driver would otherwise read the rest of an unfinished answer.
            connection.invalidate()
            connection.close()

    def _connected(self) -> Connection:
        from sqlalchemy.exc import SQLAlchemyError

        for wait in _WAITS:
            try:
                return self._engine.connect()
            except SQLAlchemyError as error:
                if not wait or _is_final(getattr(error, "orig", None)):
                    raise self._unreachable(error) from error
                time.sleep(wait)
            except RuntimeError as error:  # PyMySQL, for a way to log in that needs another package
                raise SourceError(f"{self.name}: {error}", 'Run: pip install "PyMySQL[rsa]"') from error
        raise SourceError(f"{self.name} cannot be reached.")

    def _unreachable(self, error: Exception) -> SourceError:
        if self.file is not None:
            return SourceError(
                f"the SQLite database {self.file} cannot be opened: {reason(error)}",
                "A database in WAL mode needs the right to write in its folder.",
            )
        return SourceError(
            f"{self._place} cannot be reached: {reason(error)}",
            f"Is the server running, and are user and password right? A password is read from the address, "
            f"the file sql.password_file, or {PASSWORD}"
            + (", or where libpq looks for it." if self.kind == "postgresql" else "."),
        )

    def refused(self, error: Exception) -> SourceError:
        """The error for a statement that the database does not carry out."""
        return SourceError(
            f"{self.name} refuses: {reason(error)}",
            "Expected one SELECT statement, or a table and a condition, that this user may read; the "
            "database is only read, never changed.",
        )

    def quoted(self, *names: str) -> str:
        """Names as they stand in a statement, joined by dots."""
        mark = "`" if self.kind == "mysql" else '"'
        return ".".join(mark + name.replace(mark, mark * 2) + mark for name in names)

    def literal(self, value: Any) -> str:
        """A number, text or time as it stands in a statement. Raises SourceError for another value."""
        if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, float):
            return repr(value)
        if isinstance(value, datetime):
            # MySQL takes no zone here; what has one there is in UTC, as the session is.
            value = value.replace(tzinfo=None) if self.kind == "mysql" else value
            return f"'{value.isoformat(' ')}'"
        if isinstance(value, date):
            return f"'{value.isoformat()}'"
        if isinstance(value, str):
            plain = value.replace("\\", "\\\\") if self.kind == "mysql" else value
            return "'" + plain.replace("'", "''") + "'"
        raise SourceError(
            f"the highest value of sql.updated_column in {self.name} is {value!r}.",
            "Expected a column of numbers, texts or times that grow when a row changes.",
        )


def reason(error: BaseException) -> str:
    """What a driver says, on one line, without the statement."""
    original = getattr(error, "orig", None) or error
    parts = original.args
    said = str(parts[1] if len(parts) > 1 and isinstance(parts[0], int) else original)
    return " ".join(said.split())[:600]


def _is_final(original: BaseException | None) -> bool:
    state = str(getattr(original, "sqlstate", None) or "")
    code = original.args[0] if original is not None and original.args else None
    said = str(original)  # libpq tells the state of a refused connection in words alone
    refused = "authentication failed" in said or "does not exist" in said or "no password" in said
    return refused or state.startswith(_FINAL_STATES) or (isinstance(code, int) and code in _FINAL_CODES)


def _password(file: str) -> str:
    if not file:
        return os.environ.get(PASSWORD, "")
    path = Path(file).expanduser()
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 text.", "Expected a password alone.") from error


def _sqlite_file(address: str) -> Path:
    named = address.partition("://")[2]
    if len(named) < 2 or not named.startswith("/"):
        raise SourceError(
            f"{address!r} names no file of SQLite.",
            "Expected sqlite:///FILE, with four slashes where the path begins with one.",
        )
    path = Path(named[1:]).expanduser()
    if not path.exists():
        raise unreadable(path, FileNotFoundError())
    if path.is_dir() or not is_sqlite(path):
        raise SourceError(f"{path} is not an SQLite database.", "Its first bytes tell.")
    return path


def _open_sqlite(path: Path) -> Any:
    import sqlite3

    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, isolation_level=None, timeout=30
    )
    connection.execute("PRAGMA query_only = 1")
    # Bytes that are no UTF-8 become lone surrogates, which make a bad row and not an end of the reading.
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    return connection


def _prepare_postgresql(connection: Any, _record: Any) -> None:
    from psycopg import DataError
    from psycopg.adapt import Loader
    from psycopg.types.datetime import DateLoader, TimestampLoader, TimestamptzLoader

    def lenient(base: type[Loader]) -> type[Loader]:
        class Lenient(base):  # type: ignore[valid-type,misc]
            def load(self, data: Any) -> Any:
                try:
                    return super().load(data)
                except DataError:
                    return None  # infinity, or a year that Python's times do not reach

        return Lenient

    for name, base in (
        ("date", DateLoader),
        ("timestamp", TimestampLoader),
        ("timestamptz", TimestamptzLoader),
    ):
        connection.adapters.register_loader(name, lenient(base))
    if connection.info.parameter_status("server_encoding") == "SQL_ASCII":

        class Text(Loader):
            def load(self, data: Any) -> str:
                return bytes(data).decode("utf-8", "surrogateescape")

        for name in ("text", "varchar", "bpchar", "name"):
            connection.adapters.register_loader(name, Text)
    connection.execute("SET TIME ZONE 'UTC'")
    connection.commit()


def _prepare_mysql(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        for statement in _MYSQL_SESSION:
            cursor.execute(statement)
    connection.commit()


def _mysql_decoders() -> dict[Any, Any]:
    """PyMySQL's, but "0000-00-00" is no date, and a TIMESTAMP, which is a moment, has a zone."""
    from pymysql.constants import FIELD_TYPE
    from pymysql.converters import conversions, convert_date, convert_datetime

    def moment(convert: Callable[[Any], Any], zone: timezone | None = None) -> Callable[[Any], Any]:
        def load(data: Any) -> Any:
            value = convert(data)
            if isinstance(value, datetime) and zone:
                return value.replace(tzinfo=zone)
            return value if isinstance(value, date) else None

        return load

    return {
        **conversions,
        FIELD_TYPE.DATE: moment(convert_date),
        FIELD_TYPE.DATETIME: moment(convert_datetime),
        FIELD_TYPE.TIMESTAMP: moment(convert_datetime, timezone.utc),
    }
