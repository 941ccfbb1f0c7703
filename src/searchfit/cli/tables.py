"""The commands over what was read: documents, passages."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from searchfit.cli.app import AsJson, WorkspacePath, app, console, one_line
from searchfit.cli.options import grouped

if TYPE_CHECKING:
    from searchfit.views import View

_SHOWN = 20
_LINE = 200
"""How many rows are listed unless --limit says else, and characters of a text that are listed."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows are wanted, and where they go: into a file, or to stdout as JSON or as a list."""

    where: Annotated[str, Option(help='filter, for example "price < 300000 and rooms >= 3"')] = ""
    contains: Annotated[str, Option(metavar="TEXT", help="only those with this in title or text")] = ""
    limit: Annotated[
        int | None,
        Option(min=0, help=f"how many; 0: all; left out, {_SHOWN} are listed and all are written"),
    ] = None
    output: Annotated[
        Path | None, Option("--output", "-o", metavar="FILE", help="write them: .csv, .jsonl or .parquet")
    ] = None
    force: Annotated[bool, Option("--force", help="replace FILE where it is there")] = False
    raw: Annotated[
        bool,
        Option("--raw", help="in CSV, no apostrophe before text that a spreadsheet takes for a formula"),
    ] = False
    as_json: AsJson = False


@app.command()
@grouped
def documents(
    workspace: WorkspacePath,
    id_: Annotated[list[str] | None, Option("--id", help="only this document; may be repeated")] = None,
    *,
    rows: Rows,
) -> None:
    """List or write the documents of a workspace. What was read, with additions and without removals.

    The list shows the beginning of each text; --json prints a line of JSON for each, with all columns.
    """
    from searchfit import views

    chosen = views.documents(workspace).select(rows.where, rows.contains, id_ or ())
    _show(chosen, rows)


@app.command()
@grouped
def passages(
    workspace: WorkspacePath,
    document: Annotated[
        list[str] | None, Option(metavar="ID", help="only of this document; may be repeated")
    ] = None,
    *,
    rows: Rows,
) -> None:
    """List or write the passages of a workspace. The pieces of its documents that are searched.

    Each has the columns of its document too; `start` and `end` are its place in the document's text.
    """
    from searchfit import views

    chosen = views.passages(workspace).select(rows.where, rows.contains, document or ())
    _show(chosen, rows)


def _show(view: View, wanted: Rows) -> None:
    if view.note:
        print(view.note, file=sys.stderr)
    if wanted.output:
        count = view.first(wanted.limit or 0).save(wanted.output, wanted.force, not wanted.raw)
        if wanted.as_json:
            print(json.dumps({"rows": count, "file": str(wanted.output)}, ensure_ascii=False))
        else:
            print(f"{count} rows: {wanted.output}", file=sys.stderr)
        return
    limit = _SHOWN if wanted.limit is None else wanted.limit
    rows = iter(view)
    shown = _print(islice(rows, limit or None), list(view.schema.names), wanted.as_json)
    if not shown:
        print("there is none", file=sys.stderr)
    elif limit and next(rows, None) is not None:
        print(f"the first {limit}; all with --limit 0", file=sys.stderr)


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
    return [one_line(row["id"]), one_line(row["title"]), one_line(row["text"], _LINE)]
