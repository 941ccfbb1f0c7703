"""What all groups of settings share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from searchfit.errors import SettingsError

_Settings = TypeVar("_Settings", bound="Section")


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


def checked(kind: type[_Settings], values: Mapping[str, Any]) -> _Settings:
    """The settings of these values. Raises SettingsError for a wrong one."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"setting {key}: {first['msg']}, got {first['input']!r}.") from error
