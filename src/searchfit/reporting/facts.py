"""Figures of the report by key, so that what a page shows is what report.json holds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from searchfit.markup import Markup, number_or_nan, tag, text


class Facts:
    """A report's value, or a part of it, that knows where in the whole it stands."""

    def __init__(self, value: Any, key: str = "") -> None:
        self.value = value
        self.key = key

    def at(self, *keys: str | int) -> Facts:
        """The part under some keys; one that is not there holds None."""
        value, path = self.value, self.key
        for key in keys:
            if isinstance(value, Mapping):
                value = value.get(str(key))
            elif isinstance(value, list) and isinstance(key, int) and 0 <= key < len(value):
                value = value[key]
            else:
                value = None
            path = f"{path}/{key}".lstrip("/")
        return Facts(value, path)

    def all(self) -> list[Facts]:
        """The parts of a list, in order; none where there is no list."""
        return [self.at(number) for number in range(len(self.value))] if isinstance(self.value, list) else []

    @property
    def number(self) -> float:
        """The value as a number, NaN where it is none."""
        return number_or_nan(self.value)

    @property
    def words(self) -> str:
        """The value as text, empty for None."""
        return "" if self.value is None else str(self.value)

    def show(self, form: str = ".3f") -> Markup:
        """The figure for people, marked with its key and its full value; "-" when there is none."""
        if not math.isfinite(self.number):
            return Markup("-")
        named = {"data-key": self.key, "value": json.dumps(self.value)}
        return tag("data", format(self.value, form), **named)

    def count(self) -> Markup:
        """A count, a measure or a word, as the stages give them."""
        if math.isfinite(self.number):
            return self.show(",.6g" if isinstance(self.value, float) else ",")
        return text("-" if self.value is None or isinstance(self.value, float) else self.value, 60)

    def interval(self, form: str = "+.3f") -> Markup:
        """`low` to `high`; "-" when there is none."""
        low, high = self.at("low"), self.at("high")
        if not math.isfinite(low.number):
            return Markup("-")
        return Markup(low.show(form) + " to " + high.show(form))
