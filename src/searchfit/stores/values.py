"""Values to filter on, for stores that know text, truth and floating-point numbers only."""

from __future__ import annotations

import math
from datetime import date, datetime, timedelta
from typing import Any

from searchfit.filters import Scalar

_EPOCH = datetime(1970, 1, 1)
_EXACT = 2**53


def flat(value: Scalar) -> bool | int | float | str:
    """A date as its day number, a timestamp as microseconds since 1970; order is kept."""
    if isinstance(value, datetime):
        return (value - _EPOCH) // timedelta(microseconds=1)
    return value.toordinal() if isinstance(value, date) else value


def exact(value: Any) -> bool:
    """Whether the flat value is the same as a floating-point number of 64 bits in JSON."""
    number = flat(value)
    if isinstance(number, float):
        return math.isfinite(number)
    return not isinstance(number, int) or abs(number) < _EXACT
