"""How passages and filters go to PostgreSQL: as binary values and composed SQL, never as pasted text."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from searchfit.filters import Compare, Either, Every, Filter, Member, Missing, Not
from searchfit.keyword import Analyzer
from searchfit.records import encoded_text
from searchfit.stores import Floats
from searchfit.stores.fields import dump
from searchfit.stores.remote import Record, negations_inside

if TYPE_CHECKING:
    import psycopg
    from psycopg.sql import SQL, Composable, Composed

_TSVECTOR = 3614
_MAX_POSITION, _MAX_POSITIONS, _MAX_LEXEME = 16_383, 255, 2_000

FIELDS = ("id", "document_id", "title", "text")
"""The fields of a passage that have a column of their own."""

TYPES = {
    "int": ("bigint", "int8"),
    "float": ("double precision", "float8"),
    "bool": ("boolean", "bool"),
    "string": ('text collate "C"', "text"),
    "date": ("date", "date"),
    "timestamp": ("timestamp", "timestamp"),
}
"""The columns of metadata by their type in the filter language: as they are declared, and copied. Text of
the collation "C" is ordered by its characters' numbers, as filters order it."""


@dataclass(frozen=True, slots=True)
class Terms:
    """A passage's keyword terms by lexeme, with their positions from 1 on."""

    positions: Mapping[str, Sequence[int]]


def lexeme(term: str) -> str:
    """A term as PostgreSQL can hold it: a very long one by its hash."""
    data = term.encode()
    return term if len(data) <= _MAX_LEXEME else f"sha256:{hashlib.sha256(data).hexdigest()}"


def analysed(text: str, analyzer: Analyzer) -> tuple[Terms, dict[str, int]]:
    """The terms of a text, and the frequencies of those that occur more often, or farther behind, than
    positions are kept for."""
    positions: dict[str, list[int]] = {}
    for place, term in enumerate(analyzer.terms(text), 1):
        positions.setdefault(lexeme(term), []).append(place)
    frequent = {
        term: len(places)
        for term, places in positions.items()
        if len(places) > _MAX_POSITIONS or places[-1] > _MAX_POSITION
    }
    for term in frequent:
        kept = [place for place in positions[term] if place < _MAX_POSITION]
        positions[term] = kept[:_MAX_POSITIONS] or [_MAX_POSITION]
    return Terms(positions), frequent


def terms_query(lexemes: Sequence[str]) -> str:
    """The tsquery text for any of these lexemes; it is passed as a parameter."""
    quoted = (each.replace("\\", "\\\\").replace("'", "''") for each in lexemes)
    return " | ".join(f"'{each}'" for each in quoted)


def register(connection: psycopg.Connection[Any]) -> bool:
    """Teach a connection vectors and terms; False when the database has no pgvector."""
    from psycopg.adapt import Dumper
    from psycopg.pq import Format
    from psycopg.types import TypeInfo

    vector_type = TypeInfo.fetch(connection, "vector")
    if vector_type is None:
        return False
    vector_oid = vector_type.oid

    class VectorDumper(Dumper):
        format = Format.BINARY
        oid = vector_oid

        def dump(self, obj: Any) -> bytes:
            return struct.pack(">HH", len(obj), 0) + np.asarray(obj, ">f4").tobytes()

    class TermsDumper(Dumper):
        format = Format.BINARY
        oid = _TSVECTOR

        def dump(self, obj: Any) -> bytes:
            parts = [struct.pack(">I", len(obj.positions))]
            for term, places in obj.positions.items():
                parts += [term.encode(), b"\0", struct.pack(f">{len(places) + 1}H", len(places), *places)]
            return b"".join(parts)

    vector_type.register(connection)
    connection.adapters.register_dumper(np.ndarray, VectorDumper)
    connection.adapters.register_dumper(Terms, TermsDumper)
    return True


def vector_of(data: bytes) -> Floats:
    """A vector as vector_send gives it."""
    return np.frombuffer(data, ">f4", offset=4).astype(np.float32)


def condition(where: Filter, names: Mapping[str, str]) -> tuple[Composed, dict[str, Any]]:
    """The filter as an SQL expression over stored columns of the passages `p`, and its parameters."""
    from psycopg import sql

    values: dict[str, Any] = {}

    def compiled(part: Filter) -> Composed:
        if isinstance(part, (Every, Either)):
            join = sql.SQL(" and " if isinstance(part, Every) else " or ")
            return sql.SQL("({})").format(join.join(map(compiled, part.parts)))
        if isinstance(part, Not):
            return sql.SQL("(not {})").format(compiled(part.part))
        column = sql.Identifier("p", names[part.column])
        if isinstance(part, Missing):
            return sql.SQL("({} is null)").format(column)
        name = f"f{len(values)}"
        values[name] = list(part.values) if isinstance(part, Member) else part.value
        form = "({} = any({}))" if isinstance(part, Member) else _FORMS[part.operator]
        return sql.SQL(form).format(column, sql.Placeholder(name))

    return compiled(negations_inside(where)), values


_FORMS: dict[str, Any] = {sign: f"({{}} {sign} {{}})" for sign in ("=", "!=", "<", "<=", ">", ">=")}
_FORMS |= {"contains": "(strpos({}, {}) > 0)", "starts with": "starts_with({}, {})"}


def has_nul(atom: Compare | Member | Missing) -> bool:
    """Whether a comparison is with text that PostgreSQL cannot hold."""
    if isinstance(atom, Missing):
        return False
    values = atom.values if isinstance(atom, Member) else (atom.value,)
    return any(isinstance(value, str) and "\0" in value for value in values)


def composed(template: str, *parts: str | Composable) -> Composed:
    """SQL of a template of ours; texts among the parts are names, and become identifiers."""
    from psycopg import sql

    named = [sql.Identifier(part) if isinstance(part, str) else part for part in parts]
    return sql_of(template).format(*named)


def tables(name: str, info: Mapping[str, Any]) -> list[Composed]:
    """The statements that create the tables of an index."""
    size = sql_of(f"vector({int(info['dimension'])})")
    filled = [(each["column"], TYPES[each["type"]][0]) for each in info["metadata"] if each["type"] in TYPES]
    metadata = [composed(", {} {}", column, sql_of(kind)) for column, kind in filled]
    passages = composed(
        'create table {} (row bigint primary key, id text not null, document_id text collate "C", '
        'title text collate "C", text text collate "C", fields text not null, terms tsvector not null, '
        "frequent jsonb, vector {} not null{})",
        name,
        size,
        sql_of("").join(metadata),
    )
    sentences = composed(
        "create table {} (row bigint references {} on delete cascade, place int, vector {} not null, "
        "primary key (row, place))",
        f"{name}_sentences",
        name,
        size,
    )
    record = "create table {} (one boolean primary key check (one), record text not null)"
    return [passages, sentences, composed(record, f"{name}_info")]


def sql_of(text: str) -> SQL:
    """Text of ours as SQL."""
    from psycopg import sql

    # The type asks for a literal, so that nobody pastes values; names and types here are ours.
    return sql.SQL(text)


def passage(record: Record, filled: Sequence[str], analyzer: Analyzer) -> tuple[Any, ...]:
    """A line of the passages: what PostgreSQL cannot hold as it is stands in `fields` too."""
    from psycopg.types.json import Jsonb

    fields = dict(record.fields)
    terms, frequent = analysed(encoded_text(fields["title"] or "", fields["text"]), analyzer)
    own = [_held(fields[name]) for name in FIELDS]
    rest = {name: value for name, value in fields.items() if name not in FIELDS or _held(value) != value}
    metadata = [_held(record.values.get(column)) for column in filled]
    often = Jsonb(frequent) if frequent else None
    return (record.row, *own, dump(rest), terms, often, record.vector, *metadata)


def _held(value: Any) -> Any:
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value
