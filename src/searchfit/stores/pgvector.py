"""An index in PostgreSQL with pgvector: postgresql://user@host/database?table=NAME.

Three tables: NAME (passages, with `terms`, a tsvector by the index's own analyser), NAME_sentences and
NAME_info. With `index=auto` (the default) passages are compared one by one until there are 50,000 of them,
and found by HNSW (Malkov and Yashunin 2018, "Efficient and robust approximate nearest neighbor search using
hierarchical navigable small world graphs") from then on; `index=hnsw` and `index=exact` decide otherwise.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from searchfit.errors import MissingExtraError, StoreError
from searchfit.filters import Filter
from searchfit.keyword import Analyzer
from searchfit.stores import Floats, Rows, Store, VectorColumn, checked
from searchfit.stores.address import Address
from searchfit.stores.fields import dump, load
from searchfit.stores.pgvector_wire import (
    FIELDS,
    TYPES,
    composed,
    condition,
    has_nul,
    lexeme,
    passage,
    register,
    sql_of,
    tables,
    terms_query,
    vector_of,
)
from searchfit.stores.remote import Atom, Record, RemoteStore, best_first, in_order, retried, stacked

if TYPE_CHECKING:
    import psycopg
    from psycopg.sql import Composed

HNSW_FROM = 50_000
"""Passages from which on `index=auto` builds HNSW indexes."""

_PATIENCE, _READ_PATIENCE = 120.0, 5.0  # seconds to wait for a server that went away, writing and reading
_CONNECT_TIMEOUT = 10
_MIN_EF, _MAX_EF = 400, 1_000  # neighbours that HNSW keeps in view: recall against time
_FULL, _HALF = 2_000, 4_000  # the most dimensions that HNSW takes in single and in half precision
_SIGNS = {"cosine": "<=>", "dot": "<#>"}
_FAMILIES = {"cosine": "cosine_ops", "dot": "ip_ops"}
_TERMS_A_QUERY = 500
_GONE = ("57P01", "57P02", "57P03", "53300")  # shut down, crashed, starting up, out of connections
_HINT = "Check the address and that the server runs; a password comes from PGPASSWORD or SEARCHFIT_STORE_URL."
Result = TypeVar("Result")


class PgVectorStore(RemoteStore):
    """See RemoteStore. Safe to share between threads, which take turns on one connection.

    Raises StoreError when the server cannot be reached or has no pgvector, MissingExtraError without psycopg.
    """

    def __init__(self, address: Address, local: Store | None = None) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise MissingExtraError("the PostgreSQL store", "pgvector") from error
        self._library = psycopg
        self._table = address.name("table")
        self._index = address.choice("index", ("auto", "hnsw", "exact"))
        self._lock = threading.RLock()
        self._connection: psycopg.Connection[Any] | None = None
        self.address = address
        try:
            self._connection = self._connect()
        except psycopg.Error as error:
            raise self._refused(error) from error
        super().__init__(address, local)

    def create(self, record: Mapping[str, Any]) -> None:
        """See RemoteStore."""
        made = tables(self._table, record["info"])

        def work(cursor: psycopg.Cursor[Any]) -> None:
            for table in made:
                cursor.execute(table)
            cursor.execute(
                composed("insert into {} values (true, %s)", f"{self._table}_info"), [dump(record)]
            )

        self._write(composed("create extension if not exists vector"))
        if self._connection is None or not register(self._connection):
            raise StoreError(f"{self.address} has no pgvector extension.", "Install pgvector on the server.")
        try:
            self._run(work, _PATIENCE)
        except StoreError:
            # A server that went away may have done it before it could say so.
            if self._read_record() != record:
                raise
        self.record = dict(record)

    def write_record(self, record: Mapping[str, Any]) -> None:
        """See RemoteStore."""
        self._write(composed("update {} set record = %s", f"{self._table}_info"), [dump(record)])
        self.record = dict(record)

    def upsert(self, records: Sequence[Record]) -> None:
        """See RemoteStore. A transaction a call."""
        kinds = {column["column"]: column["type"] for column in self.info["metadata"]}
        filled = {column: TYPES[kind][1] for column, kind in kinds.items() if kind in TYPES}
        analyzer = Analyzer(self.info["keyword"]["language"])
        passages = [passage(record, list(filled), analyzer) for record in records]
        sentences = [
            (record.row, place, vector) for record in records for place, vector in enumerate(record.sentences)
        ]
        own = dict.fromkeys(FIELDS, "text")
        own = {"row": "int8", **own, "fields": "text", "terms": "tsvector", "frequent": "jsonb"}
        own |= {"vector": "vector", **filled}
        rows = [record.row for record in records]

        def work(cursor: psycopg.Cursor[Any]) -> None:
            cursor.execute(composed("delete from {} where row = any(%s)", self._table), [rows])
            self._copy(cursor, self._table, own, passages)
            kinds = {"row": "int8", "place": "int4", "vector": "vector"}
            self._copy(cursor, f"{self._table}_sentences", kinds, sentences)

        self._run(work, _PATIENCE)

    def delete(self, rows: Rows) -> None:
        """See RemoteStore."""
        self._write(composed("delete from {} where row = any(%s)", self._table), [rows.tolist()])

    def drop(self) -> None:
        """See RemoteStore."""
        if self.record is not None:
            tables = (f"{self._table}_info", f"{self._table}_sentences", self._table)
            self._write(composed("drop table if exists {}, {}, {}", *tables))
        self.record = None

    def ready(self) -> None:
        """See RemoteStore: the keyword index, and HNSW where it is wanted and the dimension allows it."""
        self._write(
            composed(
                "create index if not exists {} on {} using gin (terms)", f"{self._table}_terms", self._table
            )
        )
        size, sentences = self.info["dimension"], f"{self._table}_sentences"
        wanted = self._index == "hnsw" or (self._index == "auto" and self.count() >= HNSW_FROM)
        if wanted and size <= _HALF:
            family = _FAMILIES[self.info["similarity"]]
            on = f"(vector::halfvec({size})) halfvec_{family}" if size > _FULL else f"vector vector_{family}"
            for name, table in ((f"{self._table}_hnsw", self._table), (f"{sentences}_hnsw", sentences)):
                made = composed(
                    "create index if not exists {} on {} using hnsw ({})", name, table, sql_of(on)
                )
                self._write(made)
        self._write(composed("analyze {}", self._table))

    def close(self) -> None:
        """See RemoteStore."""
        if self._connection is not None:
            self._connection.close()

    def rows(self) -> Rows:
        """See RemoteStore."""
        return np.array(
            [row for (row,) in self._read(composed("select row from {} order by row", self._table))], np.int64
        )

    def count(self) -> int:
        """See Store."""
        return int(self._read(composed("select count(*) from {}", self._table))[0][0])

    def nearest(
        self, vector: Floats, column: VectorColumn, k: int, where: Filter | None = None
    ) -> tuple[Rows, Floats]:
        """See Store. Where there is no HNSW index, and with `index=exact`, exact."""
        query = checked(vector, self.info["dimension"])
        if k < 1:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        filtered, parameters = self._filtered(where)
        table = self._table if column == "vector" else f"{self._table}_sentences"
        hnsw = self._index != "exact" and self._has_index(f"{table}_hnsw")
        statement = self._nearest_statement(column, filtered, where is not None, hnsw)
        # Several sentences of one passage may stand among the nearest, and half precision swaps neighbours.
        many = 4 * k if hnsw and (column == "sentence_vectors" or len(query) > _FULL) else k
        while True:
            how = {
                "hnsw.ef_search": str(min(_MAX_EF, max(_MIN_EF, 4 * many))),
                "hnsw.iterative_scan": "strict_order",
            }
            found = self._read(
                statement,
                {"q": query, "many": many, **parameters},
                how if hnsw else {"enable_indexscan": "off"},
            )
            best: dict[int, float] = {}
            for row, distance in found:
                best[row] = min(distance, best.get(row, np.inf))
            if not hnsw or len(best) >= k or len(found) < many:
                break
            many *= 4
        one = 1 if self.info["similarity"] == "cosine" else 0
        near = {row: one - distance for row, distance in best.items() if np.isfinite(distance)}
        return best_first(near.keys(), near.values(), k)

    def matching(self, where: Filter) -> Rows:
        """See Store."""
        filtered, parameters = self._filtered(where)
        found = self._read(
            composed("select p.row from {} p where {} order by 1", self._table, filtered), parameters
        )
        return np.array([row for (row,) in found], np.int64)

    def vectors(self, rows: Rows | Sequence[int]) -> tuple[Floats, Floats, Rows]:
        """See Store."""
        wanted = {"rows": np.unique(np.asarray(rows, np.int64)).tolist()}
        size = self.info["dimension"]
        sent = "select row, vector_send(vector) from {} where row = any(%(rows)s)"
        sentences: dict[int, list[Floats]] = {}
        for row, data in self._read(
            composed(sent + " order by row, place", f"{self._table}_sentences"), wanted
        ):
            sentences.setdefault(row, []).append(vector_of(data))
        found = {
            row: (vector_of(data), np.array(sentences.get(row, ()), np.float32).reshape(-1, size))
            for row, data in self._read(composed(sent, self._table), wanted)
        }
        return stacked(in_order(rows, found), size)

    def postings(self, terms: Sequence[str]) -> dict[str, tuple[Rows, Floats]]:
        """See Store; from the column `terms`."""
        wanted = {lexeme(term): term for term in terms}
        statement = composed(
            "select u.lexeme, array_agg(p.row order by p.row), array_agg(coalesce((p.frequent ->> u.lexeme)"
            "::float4, cardinality(u.positions)) order by p.row) from {} p, unnest(p.terms) u "
            "where p.terms @@ %(query)s::tsquery and u.lexeme = any(%(terms)s) group by 1",
            self._table,
        )
        found: dict[str, tuple[Rows, Floats]] = {}
        for start in range(0, len(wanted), _TERMS_A_QUERY):
            some = list(wanted)[start : start + _TERMS_A_QUERY]
            for each, rows, counts in self._read(statement, {"query": terms_query(some), "terms": some}):
                found[wanted[each]] = np.array(rows, np.int64), np.array(counts, np.float32)
        return found

    def fetch(self, rows: Rows | Sequence[int]) -> list[dict[str, Any]]:
        """See Store."""
        statement = composed(
            "select row, id, document_id, title, text, fields from {} where row = any(%s)", self._table
        )
        wanted = np.unique(np.asarray(rows, np.int64)).tolist()
        found = {
            row: {"row": row, **dict(zip(FIELDS, own, strict=True)), **load(fields)}
            for row, *own, fields in self._read(statement, [wanted])
        }
        return in_order(rows, found)

    def holds(self, column: str, value: Any) -> bool:  # noqa: ARG002
        """See RemoteStore: PostgreSQL has no text with the character 0."""
        return not (isinstance(value, str) and "\0" in value)

    def compiles(self, atom: Atom, kind: str) -> bool:  # noqa: ARG002
        """See RemoteStore."""
        return not has_nul(atom)

    def _filtered(self, where: Filter | None) -> tuple[Composed, dict[str, Any]]:
        """An SQL expression over the passages `p`, and its parameters."""
        if where is None:
            return composed("true"), {}
        if self.expresses(where):
            return condition(where, self.names)
        return composed("p.row = any(%(resolved)s)"), {"resolved": self.resolved(where).tolist()}

    def _nearest_statement(
        self, column: VectorColumn, filtered: Composed, where: bool, hnsw: bool
    ) -> Composed:
        size = self.info["dimension"]
        sign = _SIGNS[self.info["similarity"]]
        half = f"::halfvec({size})" if hnsw and size > _FULL else ""
        alias = "p" if column == "vector" else "v"
        exact = sql_of(f"{alias}.vector {sign} %(q)s::vector")
        order = sql_of(f"{alias}.vector{half} {sign} %(q)s::vector{half}")
        source = composed("{} p", self._table)
        if column == "sentence_vectors":
            source = composed("{} v", f"{self._table}_sentences")
            source += composed(" join {} p on p.row = v.row", self._table) if where else composed("")
        if column == "vector" or hnsw:
            form = "select {}.row, {} from {} where {} order by {} limit %(many)s"
            return composed(form, alias, exact, source, filtered, order)
        form = "select v.row, min({}) from {} where {} group by 1 order by 2 limit %(many)s"
        return composed(form, exact, source, filtered)

    def _copy(
        self,
        cursor: psycopg.Cursor[Any],
        table: str,
        types: Mapping[str, str],
        lines: Sequence[tuple[Any, ...]],
    ) -> None:
        names = sql_of(", ").join(composed("{}", name) for name in types)
        with cursor.copy(composed("copy {} ({}) from stdin (format binary)", table, names)) as copy:
            copy.set_types(list(types.values()))
            for line in lines:
                copy.write_row(line)

    def _read_record(self) -> dict[str, Any] | None:
        there = self._read(composed("select to_regclass(quote_ident(%s))::text"), [f"{self._table}_info"])
        if there[0][0] is None:
            return None
        found = self._read(composed("select record from {}", f"{self._table}_info"))
        return load(found[0][0]) if found else None

    def _has_index(self, name: str) -> bool:
        # Asked each time: another process may have built it.
        return self._read(composed("select to_regclass(quote_ident(%s))::text"), [name])[0][0] is not None

    def _write(self, statement: Composed, parameters: Any = None) -> None:
        self._run(lambda cursor: cursor.execute(statement, parameters), _PATIENCE)

    def _read(
        self, statement: Composed, parameters: Any = None, settings: Mapping[str, str] | None = None
    ) -> list[tuple[Any, ...]]:
        def work(cursor: psycopg.Cursor[Any]) -> list[tuple[Any, ...]]:
            for name, value in (settings or {}).items():
                cursor.execute("select set_config(%s, %s, true)", [name, value])
            return cursor.execute(statement, parameters).fetchall()

        return self._run(work, _READ_PATIENCE)

    def _run(self, work: Callable[[psycopg.Cursor[Any]], Result], patience: float) -> Result:
        """Run in a transaction; a connection that is lost is made anew and the work done again."""

        def once() -> Result:
            with self._lock:
                if self._connection is None or self._connection.closed:
                    self._connection = self._connect()
                with self._connection.transaction(), self._connection.cursor(binary=True) as cursor:
                    return work(cursor)

        try:
            return retried(once, self._transient, (self._library.Error,), patience)
        except self._library.Error as error:
            raise self._refused(error) from error

    def _transient(self, error: Exception) -> bool:
        state = getattr(error, "sqlstate", None)
        if not isinstance(error, self._library.OperationalError):
            return False
        return state is None or state in _GONE or state[:2] in {"08", "40"}

    def _connect(self) -> psycopg.Connection[Any]:
        connection = self._library.connect(
            self.address.without("table", "index"), autocommit=True, connect_timeout=_CONNECT_TIMEOUT
        )
        connection.execute("set timezone to 'UTC'")
        register(connection)
        return connection

    def _refused(self, error: Exception) -> StoreError:
        said = " ".join(str(error).split())
        return StoreError(f"PostgreSQL at {self.address} says: {said}", _HINT)
