"""How much time a fit may take, in one word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from searchfit.errors import SettingsError

EFFORTS: Mapping[str, Mapping[str, Any]] = {
    "quick": {"train.enabled": False, "generate.max_queries": 1500, "evaluate.max_queries": 500},
    "normal": {},
    "thorough": {"generate.max_queries": 18_000, "mine.max_queries": 12_000, "train.epochs": 4},
}
"""The settings of each effort; what is set otherwise goes before."""


def effort_values(name: str) -> Mapping[str, Any]:
    """The settings of an effort. Raises SettingsError for one that is none."""
    if name not in EFFORTS:
        raise SettingsError(f"there is no effort {name!r}.", f"Use {', '.join(EFFORTS)}.")
    return EFFORTS[name]
