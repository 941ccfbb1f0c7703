from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest
from conftest import Bench, Doc
from sources.mariadb import INSTALL, SERVER, MariaDB
from stores.postgres import Postgres

from searchfit import growth
from searchfit.config import Settings, load_settings, to_toml
from searchfit.errors import SearchfitError, SettingsError, SourceError
from searchfit.sources import BadRow, Row, Source, open_source
from searchfit.sources.sql_connection import Database
from searchfit.stages import Tools, ingest

LISTINGS = [(3, "a house", "12.50", 1), (1, "a flat", "7.25", 0), (2, "a barn", None, None)]


def source(address: str | Path, **sql: Any) -> Source:
    columns = sql.pop("text", ("description",))
    values: dict[str, Any] = {"source.source": str(address), "source.text": columns}
    values |= {f"sql.{name}": value for name, value in sql.items()}
    return open_source(load_settings(values=values))


def values(found: Source) -> list[dict[str, Any]]:
    rows = list(found.rows())
    assert not [row for row in rows if isinstance(row, BadRow)]
    return [dict(row.values) for row in rows if isinstance(row, Row)]


def ids(found: Source) -> list[Any]:
    return [row["id"] for row in values(found)]


@pytest.fixture
def lite(tmp_path: Path) -> Path:
    """An SQLite file with a small table."""
    file = tmp_path / "shop.db"
    with sqlite3.connect(file) as connection:
        connection.execute(
            "CREATE TABLE listings (id INTEGER PRIMARY KEY, description TEXT, price NUMERIC, sold BOOLEAN, "
            "day DATE, at DATETIME, photo BLOB)"
        )
        rows = [(*row, "2024-02-29", f"2024-01-0{row[0]} 10:00:00", b"\x89PNG") for row in LISTINGS]
        connection.executemany("INSERT INTO listings VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    connection.close()
    return file


def change(file: Path, *statements: str) -> None:
    with sqlite3.connect(file) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    if SERVER is None or INSTALL is None:
        pytest.skip("MariaDB is not installed (apt-get install mariadb-server)")
    with tempfile.TemporaryDirectory(prefix="searchfit-") as folder:
        server = MariaDB(Path(folder))
        yield server
        server.stop()


@pytest.fixture
def schema(postgres: Postgres) -> Iterator[str]:
    """A schema of its own in the PostgreSQL of the tests."""
    name = f"sql_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
        yield name
        connection.execute(f"DROP SCHEMA {name} CASCADE")


def postgres_run(postgres: Postgres, *statements: str) -> None:
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def test_a_table_of_sqlite_in_the_order_of_its_ids_with_types(lite: Path) -> None:
    found = source(lite, table="listings")
    assert found.columns.id == "id"
    day, at = date(2024, 2, 29), datetime(2024, 1, 1, 10)
    assert values(found) == [
        {"id": n, "description": text, "price": price, "sold": sold, "day": day, "at": at.replace(day=n)}
        for n, text, price, sold in [
            (1, "a flat", 7.25, False),
            (2, "a barn", None, None),
            (3, "a house", 12.5, True),
        ]
    ]
    assert "column 'photo' of binary values is left out" in found.notes


def test_a_statement_and_a_condition(lite: Path) -> None:
    assert ids(
        source(lite, query="SELECT id, description FROM listings WHERE id > 1 ORDER BY id DESC; ")
    ) == [3, 2]
    assert ids(source(lite, table="listings", where="id <> 2 -- the barn")) == [1, 3]
    assert ids(source(f"sqlite:///{lite}", table="main.listings", where="description LIKE '%a_b%'")) == [2]
    photo = source(lite, query="SELECT id, description, photo FROM listings")
    assert values(photo)[0].keys() == {"id", "description"}
    assert "column 'photo' of binary values is left out" in photo.notes


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ({}, "neither is named"),
        ({"table": "listings", "query": "SELECT 1"}, "both are named"),
        ({"query": "SELECT 1", "where": "id > 1"}, "sql.where goes with sql.table"),
        ({"table": "listings", "since": "1"}, "sql.since goes with sql.updated_column"),
        (
            {"table": "listing"},
            "no table 'listing'. Its tables and views: 'listings'.\nDid you mean 'listings'?",
        ),
        (
            {"table": "listings", "text": ("prize",)},
            "has no column 'prize'. Its columns: 'id', 'description'",
        ),
        ({"table": "listings", "updated_column": "when"}, "has no column 'when'. Its columns: 'id'"),
        ({"table": "listings", "where": "id > (SELECT"}, "refuses"),
        ({"table": "listings", "where": "1=1); DELETE FROM listings; --"}, "refuses"),
        ({"query": "SELECT description, description FROM listings"}, "two columns named 'description'"),
        ({"query": "DELETE FROM listings"}, "refuses"),
        ({"query": "INSERT INTO listings (id) VALUES (9) RETURNING id, description"}, "refuses"),
        ({"query": "SELECT id, description FROM listings; DELETE FROM listings"}, "refuses"),
    ],
)
def test_what_cannot_be_read_is_told(lite: Path, sql: dict[str, Any], said: str) -> None:
    with pytest.raises(SearchfitError) as error:
        list(source(lite, **sql).rows())
    assert said in str(error.value)
    assert ids(source(lite, table="listings")) == [1, 2, 3]


def test_a_connection_to_sqlite_cannot_write(lite: Path) -> None:
    before = lite.read_bytes()
    for statement in ("DELETE FROM listings", "DROP TABLE listings", f"VACUUM INTO '{lite}.copy'"):
        with (
            pytest.raises(SourceError, match="refuses"),
            Database(f"sqlite:///{lite}").reading() as connection,
        ):
            connection.exec_driver_sql(statement)
    assert lite.read_bytes() == before
    assert not lite.with_name("shop.db.copy").exists()


def test_no_database(tmp_path: Path, lite: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("id,description\n1,x\n")
    with pytest.raises(SettingsError, match="is no database, and there are settings of the section sql"):
        source(table, table="listings")
    empty = tmp_path / "no.db"
    empty.write_bytes(b"SQLite format 2\0")
    with pytest.raises(SourceError, match=r"no\.db is not an SQLite database"):
        source(f"sqlite:///{empty}", table="x")
    for address in (
        "sqlite://",
        "sqlite:////nowhere/x.db",
        "postgresql+psycopg2://h/d",
        "postgresql://h:port/d",
    ):
        with pytest.raises(SourceError):
            source(address, table="x")
    torn = tmp_path / "torn.db"
    torn.write_bytes(lite.read_bytes()[:4096] + b"\xff" * 4096)
    with pytest.raises(SourceError, match=r"refuses|broke off"):
        list(source(torn, table="listings").rows())


def test_bad_bytes_are_bad_rows(lite: Path) -> None:
    change(lite, "UPDATE listings SET description = CAST(x'ff41' AS TEXT) WHERE id = 2")
    bad = [row for row in source(lite, table="listings").rows() if isinstance(row, BadRow)]
    assert [(row.where, row.reason) for row in bad] == [("row 2", "bad UTF-8")]


def test_names_that_have_to_be_quoted(tmp_path: Path) -> None:
    file = tmp_path / "a ?%b.db"
    change(
        file,
        'CREATE TABLE "or""der.x%s" ("se""lect" TEXT, "a:b.c%(d)s" TEXT)',
        """INSERT INTO "or""der.x%s" VALUES ('x', '50 %')""",
    )
    found = source(file, table='or"der.x%s', text=('se"lect',))
    assert values(found) == [{'se"lect': "x", "a:b.c%(d)s": "50 %"}]
    assert "no id and no primary key" in " ".join(found.notes)


def test_a_changed_sqlite_is_noticed(lite: Path) -> None:
    told = [source(lite, table="listings").fingerprint() for _ in range(2)]
    assert told[0] == told[1] == json.loads(json.dumps(told[0]))
    writer = sqlite3.connect(lite)
    writer.execute("PRAGMA journal_mode = WAL")
    first = source(lite, table="listings").fingerprint()
    with writer:
        writer.execute("UPDATE listings SET price = 1")
    assert source(lite, table="listings").fingerprint() != first  # it stands in the log alone
    writer.close()
    kept = source(lite, table="listings").fingerprint()
    assert list(source(lite, table="listings").rows())
    assert source(lite, table="listings").fingerprint() == kept  # reading changes nothing


POSTGRES_TYPES = """
CREATE TABLE {0}.listings (
  id uuid PRIMARY KEY, description text, price numeric(10,2), area float8, rooms int, sold boolean, day date,
  at timestamp, seen timestamptz, tags text[], more jsonb, photo bytea, until interval)
"""


def test_types_of_postgresql(postgres: Postgres, schema: str) -> None:
    one, two = uuid.UUID(int=1), uuid.UUID(int=2)
    postgres_run(
        postgres,
        POSTGRES_TYPES.format(schema),
        f"INSERT INTO {schema}.listings (id, description) VALUES ('{two}', 'x')",
        f"""INSERT INTO {schema}.listings VALUES ('{one}', 'a house', 12.50, 80.5, 3, true, '2024-02-29',
        '2024-02-29 10:00', '2024-02-29 10:00+02', '{{pool,"sea view"}}', '{{"floor": 2}}', '\\x00',
        '2 days')""",
        f"UPDATE {schema}.listings SET day = 'infinity', seen = '-infinity' WHERE description = 'x'",
    )
    found = source(postgres.url, table=f"{schema}.listings")
    first, second = values(found)
    assert first == {
        "id": str(one),
        "description": "a house",
        "price": Decimal("12.50"),
        "area": 80.5,
        "rooms": 3,
        "sold": True,
        "day": date(2024, 2, 29),
        "at": datetime(2024, 2, 29, 10),
        "seen": datetime(2024, 2, 29, 8, tzinfo=timezone.utc),
        "tags": ["pool", "sea view"],
        "more": {"floor": 2},
        "until": "2 days, 0:00:00",
    }
    assert set(second.values()) == {str(two), "x", None}
    assert any("'photo' of binary values" in note for note in found.notes)
    assert any("--force ingest" in note for note in found.notes)
    asked = source(
        postgres.url, query=f"SELECT id, description, photo FROM {schema}.listings WHERE 5 % 2 = 1"
    )
    assert asked.reader.columns() == ("id", "description")


def test_postgresql_is_read_in_batches_of_one_state(postgres: Postgres, schema: str) -> None:
    postgres_run(
        postgres,
        f"CREATE TABLE {schema}.t AS SELECT n AS id, 'text ' || n AS description "
        "FROM generate_series(1, 2500) n",
    )
    rows = source(postgres.url, table=f"{schema}.t", batch_rows=100).rows()
    first = next(rows)
    postgres_run(
        postgres, f"UPDATE {schema}.t SET description = 'other'", f"DELETE FROM {schema}.t WHERE id = 2000"
    )
    rest = [first, *rows]
    assert len(rest) == 2500
    assert all(
        isinstance(row, Row) and row.values["description"] == f"text {row.values['id']}" for row in rest
    )


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM {0}.t",
        "INSERT INTO {0}.t VALUES (9, 'x') RETURNING *",
        "WITH gone AS (DELETE FROM {0}.t RETURNING *) SELECT * FROM gone",
        "SELECT * FROM {0}.t; COMMIT; DELETE FROM {0}.t",
        "SELECT * FROM {0}.t) AS a; COMMIT; DELETE FROM {0}.t; SELECT * FROM (SELECT 1",
        "SELECT id, description, nextval('{0}.s') FROM {0}.t",
    ],
)
def test_postgresql_is_never_changed(postgres: Postgres, schema: str, query: str) -> None:
    postgres_run(
        postgres,
        f"CREATE TABLE {schema}.t (id int, description text)",
        f"INSERT INTO {schema}.t VALUES (1, 'x')",
        f"CREATE SEQUENCE {schema}.s",
    )
    with pytest.raises(SourceError, match=r"refuses|broke off"):
        list(source(postgres.url, query=query.format(schema)).rows())
    with pytest.raises(SourceError, match="read-only"), Database(postgres.url).reading() as connection:
        connection.exec_driver_sql(f"DELETE FROM {schema}.t")
    assert ids(source(postgres.url, table=f"{schema}.t")) == [1]


def test_a_connection_that_breaks_off_is_told(postgres: Postgres, schema: str) -> None:
    postgres_run(
        postgres,
        f"CREATE TABLE {schema}.t AS SELECT n AS id, 'text' AS description FROM generate_series(1, 5000) n",
    )
    rows = source(postgres.url, table=f"{schema}.t", batch_rows=10).rows()
    next(rows)
    postgres_run(
        postgres,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
        f"AND state = 'idle in transaction' AND query LIKE '%{schema}%' OR query LIKE 'FETCH%'",
    )
    with pytest.raises(SourceError, match=r"broke off after row [0-9]+.*\n.*reads from the start"):
        list(rows)


def test_nobody_answers() -> None:
    with pytest.raises(SourceError) as error:
        source("postgresql://me:hush@127.0.0.1:1/shop", table="x")
    assert "database 'shop' at 127.0.0.1, port 1, cannot be reached" in str(error.value)
    assert "hush" not in str(error.value)


def test_changed_rows_of_a_server_are_noticed_by_the_updated_column(postgres: Postgres, schema: str) -> None:
    postgres_run(
        postgres,
        f"CREATE TABLE {schema}.t (id int PRIMARY KEY, description text, at timestamptz DEFAULT now())",
        f"INSERT INTO {schema}.t VALUES (1, 'x', '2024-01-01')",
    )
    named = {"table": f"{schema}.t", "updated_column": "at"}
    first = source(postgres.url, **named).fingerprint()
    assert source(postgres.url, **named).fingerprint() == first
    postgres_run(postgres, f"UPDATE {schema}.t SET at = '2024-01-02'")
    second = source(postgres.url, **named)
    assert second.fingerprint() != first
    list(second.rows())
    assert second.seen == {second.key: "'2024-01-02 00:00:00+00:00'"}
    assert ids(source(postgres.url, since="'2024-01-02 00:00:00+00:00'", **named)) == [1]
    assert ids(source(postgres.url, since="'2024-01-02 00:00:00.000001+00:00'", **named)) == []


def test_types_of_mariadb(mariadb: MariaDB, monkeypatch: pytest.MonkeyPatch) -> None:
    mariadb.run(
        "CREATE TABLE shop.`list``ings` (id INT PRIMARY KEY, description LONGTEXT, price DECIMAL(10,2), "
        "day DATE, at DATETIME(6), seen TIMESTAMP NULL, more JSON, photo BLOB, state ENUM('new', 'old'), "
        "old TEXT CHARACTER SET latin1)",
        "SET time_zone = '+02:00'",
        "INSERT INTO shop.`list``ings` VALUES (2, 'zwei 50 % \U0001f3e0', 12.50, '2024-02-29', "
        "'2024-02-29 10:00:00.5', '2024-02-29 10:00', '{\"a\": 1}', x'00ff', 'old', 'café')",
        "INSERT INTO shop.`list``ings` (id, description, day) VALUES (1, 'eins', '0000-00-00')",
    )
    monkeypatch.setenv("SEARCHFIT_SQL_PASSWORD", mariadb.password)
    address = f"mariadb://reader@127.0.0.1:{mariadb.port}/shop"
    found = source(address, table="list`ings", updated_column="seen", batch_rows=1)
    first, second = values(found)
    assert second == {
        "id": 2,
        "description": "zwei 50 % \U0001f3e0",
        "price": Decimal("12.50"),
        "day": date(2024, 2, 29),
        "at": datetime(2024, 2, 29, 10, 0, 0, 500_000),
        "seen": datetime(2024, 2, 29, 8, tzinfo=timezone.utc),
        "more": '{"a": 1}',
        "state": "old",
        "old": "café",
    }
    assert set(first.values()) == {1, "eins", None}
    since = found.seen[found.key]
    assert ids(source(address, table="list`ings", updated_column="seen", since=since)) == [
        1,
        2,
    ]  # one is NULL
    with pytest.raises(SourceError, match="has no table 'listings'"):
        source(address, table="listings")


def test_mariadb_is_never_changed(mariadb: MariaDB) -> None:
    mariadb.run("CREATE TABLE shop.t (id INT, description TEXT)", "INSERT INTO shop.t VALUES (1, 'x')")
    address = f"mysql://reader:{mariadb.password}@127.0.0.1:{mariadb.port}/shop"
    for query in (
        "DELETE FROM t",
        "INSERT INTO t VALUES (2, 'y') RETURNING *",
        "SELECT * FROM t; DELETE FROM t",
        "SELECT * FROM t) a; DELETE FROM t; SELECT * FROM (SELECT 1",
    ):
        with pytest.raises(SourceError, match="refuses"):
            list(source(address, query=query).rows())
    for statement in ("DELETE FROM t", "DROP TABLE t"):
        with (
            pytest.raises(SourceError, match="READ ONLY"),
            Database(load_settings(values={"source.source": address}).source.source).reading() as connection,
        ):
            connection.exec_driver_sql(statement)
    rows = source(address, table="t").rows()
    next(rows)
    rows.close()  # a reader that stops early leaves the server alone
    assert ids(source(address, query="SELECT * FROM t")) == [1]


def test_passwords_by_file_and_wrong_ones(mariadb: MariaDB, tmp_path: Path) -> None:
    mariadb.run("CREATE TABLE IF NOT EXISTS shop.t (id INT, description TEXT)")
    address = f"mysql+pymysql://reader@127.0.0.1:{mariadb.port}/shop"
    file = tmp_path / "password"
    file.write_text(mariadb.password + "\n")
    assert source(address, table="t", password_file=str(file)).columns.text == ("description",)
    file.write_text("wr:ong")
    with pytest.raises(SourceError, match="Access denied") as error:
        source(address, table="t", password_file=str(file))
    assert "wr:ong" not in str(error.value)
    with pytest.raises(SourceError, match="does not exist"):
        source(address, table="t", password_file=str(tmp_path / "none"))


def test_a_password_is_written_nowhere(postgres: Postgres, schema: str, tmp_path: Path) -> None:
    postgres_run(postgres, f"CREATE TABLE {schema}.t AS SELECT 1 AS id, 'text' AS description")
    secret = postgres.url.replace("postgres@", "postgres:hu%40sh-hush@")
    workspace = tmp_path / "ws"
    command = [sys.executable, "-m", "searchfit", "fit", secret, "--until", "ingest", "--json"]

    def fit(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], capture_output=True, text=True, check=False)

    done, wrong = (
        fit("-o", str(workspace), "--table", f"{schema}.t"),
        fit("-o", str(workspace), "--table", "no"),
    )
    assert (done.returncode, wrong.returncode) == (0, 1), done.stderr
    for told in (done.stdout, done.stderr, wrong.stdout, wrong.stderr):
        assert "hush" not in told
    written = [file for file in workspace.rglob("*") if file.is_file()]
    assert {"searchfit.toml", "manifest.json", "documents.parquet"} <= {file.name for file in written}
    assert not [file for file in written if b"hush" in file.read_bytes()]
    assert postgres.url in (workspace / "searchfit.toml").read_text()


def test_documents_of_a_database(lite: Path, tmp_path: Path) -> None:
    settings = load_settings(
        values={"source.source": str(lite), "source.text": ("description",), "sql.table": "listings"}
    )
    result = ingest.run(settings, {}, Tools(tmp_path))
    assert result.counts["documents"] == 3
    table = pq.read_table(tmp_path / "documents.parquet")
    assert table["id"].to_pylist() == ["1", "2", "3"]
    types = {field.name: str(field.type) for field in table.schema}
    assert (
        types.items()
        >= {
            "metadata.price": "double",
            "metadata.sold": "bool",
            "metadata.day": "date32[day]",
            "metadata.at": "timestamp[us]",
        }.items()
    )


@pytest.fixture(scope="module")
def fitted(small_settings: Settings, corpus: list[Doc], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace fitted to a table of SQLite with a column that tells changes."""
    root = tmp_path_factory.mktemp("fitted")
    change(
        root / "notes.db",
        "CREATE TABLE notes (id TEXT PRIMARY KEY, title TEXT, text TEXT, price INT, at INT)",
    )
    with sqlite3.connect(root / "notes.db") as connection:
        rows = [(doc.id, doc.title, doc.text, doc.price, number // 3) for number, doc in enumerate(corpus)]
        connection.executemany("INSERT INTO notes VALUES (?, ?, ?, ?, ?)", rows)
    connection.close()
    values = {"source.source": str(root / "notes.db"), "sql.table": "notes", "sql.updated_column": "at"}
    settings = load_settings(values=values, base=small_settings)
    work = Bench(root / "ws", settings)
    work.folder.mkdir()
    work.path("engine.json")
    (work.folder / "manifest.json").write_text('{"format": 1, "stages": {}}')
    (work.folder / "searchfit.toml").write_text(to_toml(settings), encoding="utf-8")
    return root


def test_add_reads_what_changed_since_the_fit(fitted: Path, tmp_path: Path) -> None:
    shutil.copytree(fitted, tmp_path, dirs_exist_ok=True)
    place, base = tmp_path / "ws", tmp_path / "notes.db"

    named = {"source.source": str(base), "sql.table": "notes", "sql.updated_column": "at"}

    def add() -> growth.Growth:
        return growth.add(place, growth.source_settings(place, named))

    # The copy is another file: it is read whole, and found unchanged.
    assert replace(add(), generation=0) == replace(growth.Growth(unchanged=72), passages=add().passages)
    change(
        base,
        "UPDATE notes SET text = 'A glacier, a summit and a rope.', at = 23 WHERE id = 'garden-0'",
        "UPDATE notes SET text = 'not told by its time', at = 5 WHERE id = 'kitchen-1'",
        "INSERT INTO notes VALUES ('new', 'n', 'An avalanche near the hut.', 5, 24)",
        "INSERT INTO notes VALUES ('odd', 'o', 'A cairn.', 1, NULL)",
    )
    grown = add()
    assert (grown.added, grown.changed, grown.unchanged) == (2, 1, 3)  # 3: as far as the last time
    change(base, "UPDATE notes SET text = 'A rope and a hut.', at = 24 WHERE id = 'sailing-2'")
    growth.remove(place, ["kitchen-1"])
    grown = add()
    assert (grown.added, grown.changed, grown.unchanged) == (0, 1, 2)  # what was removed does not come back
    assert growth.update(place, growth.source_settings(place, named)).added == 1
    with pytest.raises(SettingsError, match=r"sql\.since leaves most of it out"):
        growth.update(place, growth.source_settings(place, named, ["sql.since='3'"]))


def test_the_first_addition_starts_where_the_fit_ended(fitted: Path) -> None:
    place, base = fitted / "ws", fitted / "notes.db"
    change(base, "UPDATE notes SET text = 'A glacier.', at = 30 WHERE id = 'garden-0'")
    grown = growth.add(place, growth.source_settings(place, {"source.source": str(base)}))
    assert (grown.added, grown.changed, grown.unchanged) == (0, 1, 3)
    change(base, "DELETE FROM notes WHERE at = 30")
    assert growth.add(place, growth.source_settings(place, {"source.source": str(base)})).unchanged == 0
    # Another source is not read as the fit's was.
    more = fitted / "more.csv"
    more.write_text("id,title,text,price,at\nx,t,A tide.,1,2\n")
    assert growth.add(place, growth.source_settings(place, {"source.source": str(more)})).added == 1
