"""The fields of a passage as JSON text that gives every value back as it was: dates, decimals, bytes."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

_TAG = "searchfit:type"
_READ: dict[str, Callable[[str], Any]] = {
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda text: timedelta(microseconds=int(text)),
    "Decimal": Decimal,
    "bytes": base64.b64decode,
}


def dump(fields: Mapping[str, Any]) -> str:
    """The fields as JSON text. Raises TypeError for a value of a type that is not known."""
    return json.dumps(fields, default=_tagged, ensure_ascii=False, separators=(",", ":"))


def load(text: str) -> dict[str, Any]:
    """The fields that `dump` wrote."""
    fields: dict[str, Any] = json.loads(text, object_hook=_untagged)
    return fields


def _tagged(value: Any) -> dict[str, str]:
    for kind in (datetime, date, time):
        if isinstance(value, kind):  # a child of it too, as those of pandas are
            return {_TAG: kind.__name__, "value": value.isoformat()}
    if isinstance(value, timedelta):
        return {_TAG: "timedelta", "value": str(value // timedelta(microseconds=1))}
    if isinstance(value, Decimal):
        return {_TAG: "Decimal", "value": str(value)}
    if isinstance(value, bytes):
        return {_TAG: "bytes", "value": base64.b64encode(value).decode("ascii")}
    raise TypeError(f"a value of type {type(value).__name__} cannot be stored: {value!r}")


def _untagged(found: dict[str, Any]) -> Any:
    return _READ[found[_TAG]](found["value"]) if found.keys() == {_TAG, "value"} else found
