"""The parser of the filter language."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timezone
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import NoReturn

from searchfit.errors import FilterError
from searchfit.filters.tree import (
    COMPARE,
    TYPES,
    Compare,
    Either,
    Every,
    Filter,
    Member,
    Missing,
    Not,
    Operator,
    Scalar,
)

MAX_CHARS = 100_000
MAX_DEPTH = 50  # of parentheses: stores overflow their stack on deep expressions


def parse(text: str, columns: Mapping[str, str]) -> Filter:
    """The filter that `text` spells, over `columns`: name -> "int", "float", "bool", "string", "date" or
    "timestamp".

    Raises FilterError for a syntax error (with its place), a column that is not there, a value or an
    operator that does not fit the column's type, and a filter that is too long or too deeply nested.
    """
    if len(text) > MAX_CHARS:
        raise FilterError(f"the filter has {len(text):,} characters, at most {MAX_CHARS:,} are read.")
    return _Parser(text, columns).whole()


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    place: int

    def __str__(self) -> str:
        shown = self.text if len(self.text) <= 40 else f"{self.text[:40]}..."
        return "the end" if self.kind == "end" else shown if self.kind == "string" else repr(shown)

    def says(self, *words: str) -> bool:
        """Whether this is one of these words of the language, or of these signs."""
        return self.kind in {"word", "sign"} and self.text.lower() in words


_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number> [+-]? (?: [0-9]+ (?:\.[0-9]*)? | \.[0-9]+ ) (?: [eE][+-]?[0-9]{1,3} )? (?![\w.]) )
    | (?P<string> "(?: [^"\\] | "" | \\. )*" | '(?: [^'\\] | '' | \\. )*' )
    | (?P<column> `(?: [^`] | `` )+` )
    | (?P<sign>   <= | >= | != | <> | == | [=<>(),] )
    | (?P<word>   [^\W\d][\w.]* )
    | (?P<end>    \Z )
    )""",
    re.VERBOSE | re.DOTALL,
)

_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", "'": "'", '"': '"'}
_SIGNS: dict[str, Operator] = {sign: sign for sign in COMPARE} | {"==": "=", "<>": "!="}
_WORDS = frozenset({"and", "or", "not", "in", "is", "null", "contains", "starts", "with", "true", "false"})
_QUOTING = "Column names with odd characters go between backticks, text between quotes."


class _Parser:
    """Recursive descent over the tokens; one method a rule of the grammar."""

    def __init__(self, text: str, columns: Mapping[str, str]) -> None:
        self._text = text
        self._columns = columns
        self._depth = 0
        self._end = 0
        self._next = self._read()

    def whole(self) -> Filter:
        if self._next.kind == "end":
            self._fail("the filter is empty")
        filter = self._either()
        if self._next.kind != "end":
            self._fail(f"expected 'and', 'or' or the end, got {self._next}")
        return filter

    def _either(self) -> Filter:
        parts = [self._every()]
        while self._take("or"):
            parts.append(self._every())
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def _every(self) -> Filter:
        parts = [self._not()]
        while self._take("and"):
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else Every(tuple(parts))

    def _not(self) -> Filter:
        negated = False
        while self._take("not"):
            negated = not negated
        filter = self._group() if self._next.says("(") else self._predicate()
        return Not(filter) if negated else filter

    def _group(self) -> Filter:
        if self._depth == MAX_DEPTH:
            self._fail(f"parentheses are nested more than {MAX_DEPTH} deep")
        self._depth += 1
        self._expect("(")
        filter = self._either()
        self._expect(")")
        self._depth -= 1
        return filter

    def _predicate(self) -> Filter:
        column = self._column()
        if self._take("is"):
            negated = self._take("not")
            self._expect("null")
            return Not(Missing(column)) if negated else Missing(column)
        negated = self._take("not")
        if self._take("in"):
            filter: Filter = Member(column, self._values(column))
        elif sign := self._operator(column):
            filter = Compare(column, sign, self._value(column, sign))
        elif self._columns[column] == "bool" and not negated:
            filter = Compare(column, "=", True)
        else:
            self._fail(f"expected a comparison, 'in', 'is', 'contains' or 'starts with', got {self._next}")
        return Not(filter) if negated else filter

    def _operator(self, column: str) -> Operator | None:
        token, kind = self._next, self._columns[column]
        if token.says(*_SIGNS):
            sign = _SIGNS[token.text.lower()]
        elif self._take("starts") and self._next.says("with"):
            sign = "starts with"
        else:
            return None
        text_only, ordered = sign in {"contains", "starts with"}, sign in {"<", "<=", ">", ">="}
        if (text_only and kind != "string") or (ordered and kind == "bool"):
            self._fail(f"{sign!r} does not go with column {column!r}, which holds {TYPES[kind]}", token.place)
        self._next = self._read()
        return sign

    def _values(self, column: str) -> tuple[Scalar, ...]:
        self._expect("(")
        values = [self._value(column)]
        while self._take(","):
            values.append(self._value(column))
        self._expect(")")
        return tuple(dict.fromkeys(values))

    def _column(self) -> str:
        token = self._next
        if token.kind == "column":
            name = token.text[1:-1].replace("``", "`")
        elif token.kind == "word" and token.text.lower() not in _WORDS:
            name = token.text
        else:
            self._fail(f"expected a column, got {token}", hint=f"{self._there()}\n{_QUOTING}")
        if name not in self._columns:
            self._fail(f"there is no column {name!r}", hint=self._there(name))
        if self._columns[name] not in TYPES:
            self._fail(f"column {name!r} of type {self._columns[name]} cannot be filtered on")
        self._next = self._read()
        return name

    def _there(self, name: str = "") -> str:
        folded = {column.casefold(): column for column in self._columns}
        near = [folded[match] for match in difflib.get_close_matches(name.casefold(), folded, n=3)]
        if near:
            return f"Did you mean: {', '.join(map(quoted, near))}?"
        names = [f"{quoted(column)} ({kind})" for column, kind in self._columns.items()]
        return f"The columns are: {', '.join(names)}." if names else "There are no columns to filter on."

    def _value(self, column: str, sign: Operator = "=") -> Scalar:
        """The next token as a value of the column's type, fit to be compared by `sign`."""
        token, kind = self._next, self._columns[column]
        value: Scalar | None = None
        if kind == "bool" and token.says("true", "false"):
            value = token.text.lower() == "true"
        elif kind in {"int", "float"} and token.kind == "number":
            value = self._int(column, sign) if kind == "int" else self._float()
        elif token.kind == "string" and kind in {"string", "date", "timestamp"}:
            string = self._string()
            value = string if kind == "string" else _moment(string, kind)
        if value is None:
            hint = "For rows without a value, write: is null" if token.says("null") else ""
            self._fail(f"column {column!r} holds {TYPES[kind]}, got {token}", hint=hint)
        self._next = self._read()
        return value

    def _int(self, column: str, sign: Operator) -> int:
        number = Decimal(self._next.text)
        if not -(2**63) <= number <= 2**63 - 1:
            self._fail(f"column {column!r} holds 64-bit whole numbers, {self._next} is beyond them")
        if number != number.to_integral_value() and sign in {"=", "!="}:
            self._fail(f"column {column!r} holds whole numbers, which never equal {self._next}")
        # Among whole numbers x < 2.5 is x < 3, and x > 2.5 is x > 2.
        up = sign in {"<", ">="}
        return int(number.to_integral_value(ROUND_CEILING if up else ROUND_FLOOR))

    def _float(self) -> float:
        number = float(self._next.text) + 0.0  # turns -0.0 into 0.0
        if number in {float("inf"), float("-inf")}:
            self._fail(f"{self._next} is beyond what a number can hold")
        return number

    def _string(self) -> str:
        quote, body = self._next.text[0], self._next.text[1:-1]
        if bad := re.search("[\ud800-\udfff]", body):
            self._fail("the text holds half of a character", self._next.place + 1 + bad.start())

        def plain(match: re.Match[str]) -> str:
            escaped = match[1] or quote
            if escaped not in _ESCAPES:
                place = self._next.place + 1 + match.start()
                self._fail(f"unknown escape {match[0]!r}", place, r"Write \\ for a backslash.")
            return _ESCAPES[escaped]

        return re.sub(rf"\\(.)|{quote * 2}", plain, body, flags=re.DOTALL)

    def _read(self) -> _Token:
        match = _TOKEN.match(self._text, self._end)
        if match is None or match.lastgroup is None:
            rest = self._text[self._end :].lstrip()
            what = "is never closed" if rest[0] in "\"'`" else "is not part of the filter language"
            word = rest.split(maxsplit=1)[0][:20]
            self._fail(f"{word!r} {what}", len(self._text) - len(rest), _QUOTING)
        self._end = match.end()
        return _Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup))

    def _take(self, word: str) -> bool:
        if taken := self._next.says(word):
            self._next = self._read()
        return taken

    def _expect(self, word: str) -> None:
        if not self._take(word):
            self._fail(f"expected {word!r}, got {self._next}")

    def _fail(self, what: str, place: int | None = None, hint: str = "") -> NoReturn:
        """Raise with the line around the place and a caret under it."""
        place = self._next.place if place is None else place
        start = max(0, place - 60)
        shown = re.sub(r"\s", " ", self._text[start : place + 40])
        wide = sum(unicodedata.east_asian_width(sign) in "WF" for sign in shown[: place - start])
        indent = " " * (place - start + wide)
        raise FilterError(f"cannot read the filter: {what}.\n  {shown}\n  {indent}^", hint)


_MOMENT = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
    r"(?P<time>[T ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,6}))?)?(Z|[+-][0-9]{2}:[0-9]{2})?)?"
)


def _moment(text: str, kind: str) -> date | datetime | None:
    """The date or the naive UTC timestamp that a text spells, None where it spells none."""
    match = _MOMENT.fullmatch(text)
    if match is None or (kind == "date" and match["time"]):
        return None
    year, month, day, _, hour, minute, second, fraction, offset = match.groups(default="")
    iso = f"{year}-{month}-{day}T{hour or '00'}:{minute or '00'}:{second or '00'}.{fraction:0<6}"
    try:
        moment = datetime.fromisoformat(iso + ("+00:00" if offset in {"", "Z"} else offset))
        return moment.date() if kind == "date" else moment.astimezone(timezone.utc).replace(tzinfo=None)
    except (ValueError, OverflowError):
        return None


def quoted(column: str) -> str:
    """A column's name as it is written in a filter."""
    bare = re.fullmatch(r"[^\W\d][\w.]*", column) and column.lower() not in _WORDS
    return column if bare else "`" + column.replace("`", "``") + "`"
