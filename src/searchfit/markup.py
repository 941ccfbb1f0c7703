"""HTML from Python values: elements, escaped text and figures. Nothing that is not Markup goes unescaped."""

from __future__ import annotations

import html
import math
import re

# Control characters, surrogates, non-characters, and marks that reorder the text around them.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")

_VOID = frozenset({"input", "link", "meta"})  # elements without an end


class Markup(str):
    """HTML that is already escaped."""


def tag(element: str, *children: object, **attributes: str) -> Markup:
    """An element, named as in `p` or `p.class.another`; children that are not Markup are escaped, as `text`
    does."""
    name, _, kind = element.partition(".")
    named = {"class": kind.replace(".", " "), **attributes} if kind else attributes
    marks = "".join(f' {key}="{html.escape(value)}"' for key, value in named.items())
    if name in _VOID:
        return Markup(f"<{name}{marks}>")
    inside = "".join(child if isinstance(child, Markup) else text(child) for child in children)
    return Markup(f"<{name}{marks}>{inside}</{name}>")


def text(value: object, limit: int = 300) -> Markup:
    """Any value as one line of escaped text; what is beyond `limit` characters is shown as an ellipsis."""
    raw = str(value)
    clean = _UNSAFE.sub("\ufffd", re.sub(r"\s+", " ", raw[:limit]))
    return Markup(html.escape(clean) + ("…" if len(raw) > limit else ""))


def figure(value: object, form: str = ".3f") -> str:
    """A number for people; "-" when there is none."""
    number = number_or_nan(value)
    return format(number, form) if math.isfinite(number) else "-"


def number_or_nan(value: object) -> float:
    """A number as float; NaN for anything else."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
