"""The pages that are told from the code: docs/cli.md and docs/api.md. `make docs` writes them anew."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import typer.main

import searchfit
from searchfit import config, errors, export, filters, growth, records, request, search, views
from searchfit.cli import app

DOCS = Path(__file__).parent

PUBLIC: dict[ModuleType, tuple[str, ...]] = {
    searchfit: tuple(name for name in searchfit.__all__ if name not in ("SearchfitError", "__version__")),
    search: ("Searcher",),
    records: ("Hit", "Engine"),
    request: ("Switches",),
    views: ("View", "documents", "passages"),
    growth: ("source_settings", "add", "update", "remove", "optimize", "Growth"),
    config: ("load_settings",),
    export: ("export_pairs",),
    filters: ("parse", "from_json", "to_json", "matches"),
    errors: tuple(name for name, one in vars(errors).items() if inspect.isclass(one)),
}
"""What is promised to stay, by module."""

_KINDS = {"int": "N", "float": "X", "Path": "PATH"}

_CLI = """# Commands

Every command with its options, told from the code. `searchfit COMMAND --help` prints the same. Data goes to
stdout, progress and messages to stderr. Exit
status 0 is success, 1 failure, 2 wrong usage, 130 an interruption.
Settings that have no option of their own are given with `--set`, see [Settings](settings.md).
"""
_API = """# Python

What a program may rely on, told from the code. All else may change between versions. Nothing heavy is
loaded before it is needed. Every error that a user can mend is a `SearchfitError` with `message` and `hint`.
[Search](search.md) and [Sources](sources.md) show examples.
"""


def cli_page() -> str:
    """The commands as Markdown."""
    group = typer.main.get_command(app)
    parts = [_CLI]
    for name in group.list_commands(None):
        command = group.commands[name]
        hints = get_type_hints(command.callback)
        params = [param for param in command.params if param.name != "help"]
        places = [_place(param) for param in params if param.param_type_name == "argument"]
        usage = " ".join(["searchfit", name, *places, "[OPTIONS]"])
        parts.append(f"## {name}\n\n{_text(inspect.cleandoc(command.help or ''))}\n\n`{usage}`\n")
        rows = [_row(param, hints) for param in params]
        parts.append("\n".join(["| option | meaning |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def _place(param: Any) -> str:
    name = (param.metavar or param.name.upper()).strip("[]")
    return name if param.required else f"[{name}]"


def _row(param: Any, hints: dict[str, Any]) -> str:
    said = _text(" ".join((param.help or "").split())).replace("|", "\\|")
    if param.param_type_name == "argument":
        return f"| `{_place(param)}` | {said} |"
    names = ", ".join(param.opts) + "".join(f" / {name}" for name in param.secondary_opts)
    kind = str(getattr(hints[param.name], "__name__", hints[param.name]))
    value = next((short for name, short in _KINDS.items() if name in kind), "TEXT")
    value = "" if param.is_flag else f" {param.metavar or value}"
    if param.required:
        said += "; required"
    elif param.default not in (None, "", 0, False, True) or (param.default == 0 and not param.is_flag):
        said += f" (default: {param.default})"
    elif param.secondary_opts:
        said += f" (default: {(param.opts if param.default else param.secondary_opts)[0]})"
    return f"| `{names}{value}` | {said} |"


def _text(text: str) -> str:
    """Text of the code as Markdown: what is not between backticks may hold signs that it would take for its
    own."""
    parts = text.split("`")
    for place in range(0, len(parts), 2):
        parts[place] = re.sub(r"([\[*_])", r"\\\1", parts[place].replace("<", "&lt;"))
    return "`".join(parts)


def api_page() -> str:
    """The public names as Markdown."""
    parts = [_API]
    for module, names in PUBLIC.items():
        parts.append(f"## {module.__name__}\n")
        for name in names:
            one = getattr(module, name)
            parts += [_entry(name, one, 3)]
            parts += [_entry(f"{name}.{inner}", member, 4) for inner, member in _members(one)]
    return "\n".join(parts)


def _members(one: Any) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class defines itself."""
    for name, member in vars(one).items() if inspect.isclass(one) else ():
        plain = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
        shown = isinstance(plain, property) or inspect.isfunction(plain) or hasattr(plain, "func")
        if shown and not name.startswith("_"):
            yield name, plain


def _entry(name: str, one: Any, level: int) -> str:
    own = getattr(one, "func", None) or (one.fget if isinstance(one, property) else one)
    text = inspect.cleandoc(own.__doc__ or "")
    signature = ""
    if isinstance(one, property) or hasattr(one, "func"):
        signature = f"    {name} -> {inspect.signature(own).return_annotation}\n\n"
    elif inspect.isfunction(one) or (inspect.isclass(one) and not issubclass(one, Exception)):
        signature = f"    {name}{_signature(one)}\n\n"
    return f"{'#' * level} {name}\n\n{signature}{_text(text)}\n"


def _signature(one: Any) -> str:
    """One line where it is short, else a line for each parameter."""
    signature = inspect.signature(one)
    parts: list[str] = []
    for part in signature.parameters.values():
        if part.kind is part.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        default = (
            ""
            if part.default is part.empty
            else f" = {getattr(part.default, '__name__', repr(part.default))}"
        )
        if part.name != "self" and part.name[0] != "_":
            parts.append(f"{part.name}: {part.annotation}{default}")
    returns = "" if signature.return_annotation in (signature.empty, "None") else signature.return_annotation
    end = f" -> {returns}" if returns else ""
    line = f"({', '.join(parts)}){end}"
    return line if len(line) < 80 else "(\n" + "".join(f"        {part},\n" for part in parts) + f"    ){end}"


PAGES = {"cli.md": cli_page, "api.md": api_page}

if __name__ == "__main__":
    for page, told in PAGES.items():
        (DOCS / page).write_text(told(), encoding="utf-8")
        print(f"docs/{page}", file=sys.stderr)
