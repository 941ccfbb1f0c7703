"""The commands over what was read: documents, passages."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from searchfit.cli.app import AsJson, WorkspacePath, app, console

if TYPE_CHECKING:
    from searchfit.views import View

_CONTROL = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")
_SHOWN = 20
_LINE = 200
"""How many rows are listed unless --limit says else, and characters of a text that are listed."""

Where = Annotated[str, Option(help='filter, for example "price < 300000 and rooms >= 3"')]
Contains = Annotated[str, Option(metavar="TEXT", help="only those with this in title or text")]
Limit = Annotated[
    int | None, Option(min=0, help=f"how many; 0: all; left out, {_SHOWN} are listed and all are written")
]
Target = Annotated[
    Path | None, Option("--output", "-o", metavar="FILE", help="write them: .csv, .jsonl or .parquet")
]
Replace = Annotated[bool, Option("--force", help="replace FILE where it is there")]
Raw = Annotated[
    bool, Option("--raw", help="in CSV, no apostrophe before text that a spreadsheet takes for a formula")
]


@app.command()
def documents(
    workspace: WorkspacePath,
    id_: Annotated[list[str] | None, Option("--id", help="only this document; may be repeated")] = None,
    where: Where = "",
    contains: Contains = "",
    limit: Limit = None,
    output: Target = None,
    force: Replace = False,
    raw: Raw = False,
    as_json: AsJson = False,
) -> None:
    """List or write the documents of a workspace. What was read, with additions and without removals.

    The list shows the beginning of each text; --json prints a line of JSON for each, with all columns.
    """
    from searchfit import views

    chosen = views.documents(workspace).select(where, contains, id_ or ())
    _show(chosen, limit, Way(output, force, raw, as_json))


@app.command()
def passages(
    workspace: WorkspacePath,
    document: Annotated[
        list[str] | None, Option(metavar="ID", help="only of this document; may be repeated")
    ] = None,
    where: Where = "",
    contains: Contains = "",
    limit: Limit = None,
    output: Target = None,
    force: Replace = False,
    raw: Raw = False,
    as_json: AsJson = False,
) -> None:
    """List or write the passages of a workspace. The pieces of its documents that are searched.

    Each has the columns of its document too; `start` and `end` are its place in the document's text.
    """
    from searchfit import views

    chosen = views.passages(workspace).select(where, contains, document or ())
    _show(chosen, limit, Way(output, force, raw, as_json))


@dataclass(frozen=True, slots=True)
class Way:
    """Where rows go: into a file, or to stdout as JSON or as a list."""

    output: Path | None
    force: bool
    raw: bool
    as_json: bool


def _show(view: View, limit: int | None, way: Way) -> None:
    if view.note:
        print(view.note, file=sys.stderr)
    if way.output:
        count = view.first(limit or 0).save(way.output, way.force, not way.raw)
        if way.as_json:
            print(json.dumps({"rows": count, "file": str(way.output)}, ensure_ascii=False))
        else:
            print(f"{count} rows: {way.output}", file=sys.stderr)
        return
    wanted = _SHOWN if limit is None else limit
    rows = iter(view)
    shown = _print(islice(rows, wanted or None), list(view.schema.names), way.as_json)
    if not shown:
        print("there is none", file=sys.stderr)
    elif wanted and next(rows, None) is not None:
        print(f"the first {wanted}; all with --limit 0", file=sys.stderr)


def _print(rows: Any, names: list[str], as_json: bool) -> int:
    """Print rows as they come; how many."""
    if as_json or not sys.stdout.isatty():
        count = 0
        for row in rows:
            print(_json(row) if as_json else "\t".join(_cells(row)))
            count += 1
        return count
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold")
    for name in ("id", "title", "text"):
        table.add_column(name, no_wrap=True, overflow="ellipsis", ratio=3 if name == "text" else 1)
    for row in rows:
        table.add_row(*map(Text, _cells(row)))
    if table.row_count:
        console(stderr=False).print(table, soft_wrap=False)
        others = [name for name in names if name not in ("id", "title", "text")]
        if others:
            print(f"other columns, see --json: {', '.join(others)}", file=sys.stderr)
    return table.row_count


def _json(row: dict[str, Any]) -> str:
    from searchfit.saving import plain

    return json.dumps({name: plain(value) for name, value in row.items()}, ensure_ascii=False)


def _cells(row: dict[str, Any]) -> list[str]:
    """Id, title and the beginning of the text, each on one line whatever stands in it."""
    text = row["text"] if len(row["text"]) <= _LINE else f"{row['text'][:_LINE]}..."
    return [_CONTROL.sub(" ", cell).strip() for cell in (row["id"], row["title"], text)]
