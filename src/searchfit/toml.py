"""TOML as the settings use it: a file, a single value, and back."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from searchfit.errors import SettingsError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(file: Path) -> dict[str, Any]:
    """The tables of a file. Raises SettingsError when it is absent, cannot be read or is not TOML."""
    try:
        tree: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
        return tree
    except FileNotFoundError as error:
        raise SettingsError(f"settings file {file} does not exist.") from error
    except OSError as error:
        raise SettingsError(f"settings file {file} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {file} is not valid TOML: {error}.") from error


def toml_or_text(value: str) -> Any:
    """A --set value: TOML's own syntax where it parses, else the bare string."""
    try:
        return tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return value


def toml_value(value: Any) -> str:
    """A string, number, truth value, list or tuple as TOML text."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # TOML's basic strings take JSON's escapes, except that DEL must be escaped too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
