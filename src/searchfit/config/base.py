"""What all groups of settings share."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _writable(cls, value: Any) -> Any:
        # Names of files may hold bytes that are not UTF-8; searchfit.toml could not.
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, str) and any("\ud800" <= char <= "\udfff" for char in item):
                raise ValueError("it holds bytes that are not UTF-8")
        return value
