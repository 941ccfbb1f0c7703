"""The command over the generated queries."""

from __future__ import annotations

import json
import sys
from itertools import islice
from typing import Annotated, Any

from typer import Option

from searchfit.cli.app import AsJson, WorkspacePath, app, one_line


@app.command()
def queries(
    workspace: WorkspacePath,
    kept: Annotated[bool | None, Option("--kept/--dropped", help="only kept or only dropped ones")] = None,
    reason: Annotated[str, Option(help="only dropped ones with this in the reason")] = "",
    style: Annotated[str, Option(help="only of this style")] = "",
    generator: Annotated[str, Option(help="only by this generator")] = "",
    document: Annotated[str, Option(metavar="ID", help="only of this document")] = "",
    contains: Annotated[str, Option(metavar="TEXT", help="only those with this text in them")] = "",
    limit: Annotated[int, Option(min=0, help="how many; 0: all")] = 50,
    as_json: AsJson = False,
) -> None:
    """List the generated queries. Kept ones and dropped ones, with the reasons."""
    from searchfit.screened import Wanted, screened_queries

    found = screened_queries(workspace, Wanted(kept, reason, style, generator, document, contains))
    shown = 0
    for record in islice(found, limit or None):
        print(json.dumps(record, ensure_ascii=False) if as_json else _line(record))
        shown += 1
    if not shown:
        print("no such query", file=sys.stderr)
    elif limit and next(found, None) is not None:
        print(f"the first {limit}; all with --limit 0", file=sys.stderr)


def _line(record: dict[str, Any]) -> str:
    """One line, whatever stands in the texts."""
    verdict = f"dropped: {record['reason']}" if record["reason"] else "kept"
    cells = (record["passage_id"], record["style"], record["generator"], verdict, record["text"])
    passage, style, generator, said, text = (one_line(str(cell)) for cell in cells)
    return f"{passage:24}  {style:12}  {generator:10}  {said:40}  {text}"
