"""Every setting, told from the classes that hold them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from searchfit.config.base import Section
from searchfit.errors import SettingsError
from searchfit.toml import toml_value

_HEAD = """# Settings

Every setting with its default, told from the code. Set one with `--set section.key=value`, or several in a
TOML file that `--config` names. These lines print the same as a file to start from, and this page:

```bash
searchfit settings
searchfit settings train
searchfit settings --markdown
```
"""
_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting: its name in the section, its type and limits in words, its default, what it means."""

    section: str
    name: str
    type: str
    default: Any
    description: str

    @property
    def key(self) -> str:
        """As --set names it."""
        return f"{self.section}.{self.name}" if self.section else self.name

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return {
            "key": self.key,
            "type": self.type,
            "default": self.default,
            "description": self.description,
        }


@dataclass(frozen=True, slots=True)
class Group:
    """A section with its settings; the one without a name holds what is in none."""

    name: str
    meaning: str
    settings: tuple[Setting, ...]


def groups(root: Section) -> list[Group]:
    """The settings of all sections, in their order."""
    found, single = [], []
    for name, field in type(root).model_fields.items():
        value = getattr(root, name)
        if isinstance(value, Section):
            told = [_setting(name, own, each) for own, each in type(value).model_fields.items()]
            found.append(Group(name, " ".join((type(value).__doc__ or "").split()), tuple(told)))
        else:
            single.append(_setting("", name, field))
    return [Group("", "Outside of all sections.", tuple(single)), *found]


def only(found: list[Group], section: str) -> list[Group]:
    """Those of one section, or all where it is empty. Raises SettingsError for a section that is none."""
    kept = [group for group in found if section in ("", group.name)]
    if not kept:
        names = ", ".join(group.name for group in found if group.name)
        raise SettingsError(f"there is no section {section!r}.", f"The sections are: {names}.")
    return kept


def reference_toml(found: list[Group]) -> str:
    """The settings as TOML that `load_settings` reads, each with a comment before it."""
    parts = []
    for group in found:
        lines = [f"# {group.meaning}"] + ([f"[{group.name}]"] if group.name else [])
        for one in group.settings:
            said = f"{one.description} ({one.type})" if one.description else one.type
            lines += [f"# {said}", f"{one.name} = {toml_value(one.default)}"]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def reference_markdown(found: list[Group]) -> str:
    """The settings as tables, one a section."""
    parts = [_HEAD]
    for group in found:
        head = f"## {group.name}\n\n{group.meaning}\n" if group.name else f"{group.meaning}\n"
        rows = [
            f"| `{one.key}` | {_default(one.default)} | {_cell(one.type)} | {_cell(one.description)} |"
            for one in group.settings
        ]
        table = ["| setting | default | type | meaning |", "|---|---|---|---|", *rows]
        parts.append(f"{head}\n" + "\n".join(table) + "\n")
    return "\n".join(parts)


def _default(value: Any) -> str:
    text = toml_value(value)
    return text[1:-1] if isinstance(value, tuple) and len(value) > 1 else text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _setting(section: str, name: str, field: FieldInfo) -> Setting:
    limits = [
        f"{sign} {getattr(limit, key)}"
        for limit in field.metadata
        for key, sign in _SIGNS.items()
        if hasattr(limit, key)
    ]
    type_ = ", ".join([_type(field.annotation), *limits])
    return Setting(section, name, type_, field.default, field.description or "")


def _type(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join("none" if part == "" else str(part) for part in parts)
    if origin is tuple:
        return f"list of {_type(parts[0])}"
    if hasattr(annotation, "__metadata__"):  # Annotated
        return _type(annotation.__origin__)
    if parts:
        return " or ".join(_type(part) for part in parts)
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}[
        annotation.__name__
    ]
