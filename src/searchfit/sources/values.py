"""The types of metadata columns, told from all of their values.

A kind widens with every value: null < bool | int < float | date < timestamp, and string holds everything.
Values are kept as text until the kind is final, so that nothing is lost on the way.
"""

from __future__ import annotations

import json
import math
import re
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any, Literal

import pyarrow as pa

Kind = Literal["null", "bool", "int", "float", "date", "timestamp", "timestamp_utc", "string"]

ARROW: dict[Kind, Any] = {
    "null": pa.string(),
    "bool": pa.bool_(),
    "int": pa.int64(),
    "float": pa.float64(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "timestamp_utc": pa.timestamp("us", "UTC"),
    "string": pa.string(),
}

_WIDER: dict[frozenset[Kind], Kind] = {
    frozenset(("int", "float")): "float",
    frozenset(("date", "timestamp")): "timestamp",
}
# No leading zero, no plus sign, at most 18 digits: codes and telephone numbers are no numbers.
_INT = re.compile(r"0|-?[1-9][0-9]{0,17}")
_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]{0,17})?(?:\.[0-9]+|(?<=[0-9])\.?)(?:[eE][+-]?[0-9]{1,3})?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIMESTAMP = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[T ]([0-9]{2}:[0-9]{2})(:[0-9]{2})?(?:\.([0-9]{1,9}))?"
    r"(?P<zone>Z|[+-][0-9]{2}:?[0-9]{2})?"
)


def widen(kind: Kind, other: Kind) -> Kind:
    """The narrowest kind that holds both."""
    if other in (kind, "null"):
        return kind
    return other if kind == "null" else _WIDER.get(frozenset((kind, other)), "string")


def kind_of_text(text: str) -> Kind:  # noqa: PLR0911
    """The kind that the text of a cell stands for."""
    text = text.strip()
    if not text:
        return "null"
    if text[0] not in "-.0123456789":
        return "bool" if text.lower() in {"true", "false"} else "string"
    if _INT.fullmatch(text):
        return "int"
    if _FLOAT.fullmatch(text):
        return "float" if math.isfinite(float(text)) else "string"
    try:
        if _DATE.fullmatch(text):
            date.fromisoformat(text)
            return "date"
        moment = _moment(text)
    except (ValueError, OverflowError):
        return "string"
    if moment is None:
        return "string"
    return "timestamp_utc" if moment.tzinfo else "timestamp"


def kind_of_value(value: Any) -> Kind:
    """The kind of a Python value. NaN and infinities are null, nested values strings."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -(1 << 63) <= value < 1 << 63 else "string"
    if isinstance(value, (float, Decimal)):
        return "float" if math.isfinite(value) else "null"
    if isinstance(value, datetime):
        return "timestamp_utc" if value.tzinfo else "timestamp"
    return "date" if isinstance(value, date) else "string"


def to_text(value: Any) -> str | None:
    """A value as text that `from_text` reads back; None for null. Nested values become JSON."""
    if isinstance(value, str):
        return value
    if kind_of_value(value) == "null":
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def from_text(text: str, kind: Kind) -> Any:
    """The value of a text whose kind is `kind` or narrower; timestamps with a zone come in UTC."""
    if kind == "string":
        return text
    text = text.strip()
    if kind == "bool":
        return text.lower() == "true"
    if kind in {"int", "float"}:
        return int(text) if kind == "int" else float(text)
    if kind == "date":
        return date.fromisoformat(text)
    return _moment(text) or datetime.fromisoformat(text)


def _moment(text: str) -> datetime | None:
    """An ISO timestamp; Python before 3.11 reads neither Z nor short fractions."""
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        return None
    day, minute, second, fraction, zone = match.groups()
    clock = f"{day}T{minute}{second or ':00'}.{(fraction or '').ljust(6, '0')[:6]}"
    if not zone:
        return datetime.fromisoformat(clock)
    offset = "+00:00" if zone == "Z" else f"{zone[:3]}:{zone[-2:]}"
    return datetime.fromisoformat(clock + offset).astimezone(timezone.utc)
