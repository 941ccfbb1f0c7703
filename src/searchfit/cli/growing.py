"""Commands that change the index of a fitted workspace: add, update, remove, optimize."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from searchfit.cli.app import AsJson, WorkspacePath, app, progress_bar, say
from searchfit.cli.options import Reading, Sets, given, grouped

if TYPE_CHECKING:
    from searchfit.config import Settings
    from searchfit.growth import Growth

Documents = Annotated[str, Argument(metavar="SOURCE", help="documents, tables or a database, as for fit")]


@app.command()
@grouped
def add(
    workspace: WorkspacePath,
    source: Documents,
    *,
    reading: Reading,
    set_: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Add documents to a fitted workspace. Those whose id is there already are replaced if they changed."""
    from searchfit import growth

    settings = _settings(workspace, reading.values(source), set_)
    with progress_bar() as progress:
        _tell(growth.add(workspace, settings, progress), as_json)


@app.command()
@grouped
def update(
    workspace: WorkspacePath,
    source: Documents,
    *,
    reading: Reading,
    set_: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Make the index equal to a source. Adds what is new, replaces what changed, removes what is gone."""
    from searchfit import growth

    settings = _settings(workspace, reading.values(source), set_)
    with progress_bar() as progress:
        _tell(growth.update(workspace, settings, progress), as_json)


@app.command()
def remove(
    workspace: WorkspacePath,
    id_: Annotated[list[str] | None, Option("--id", help="id of a document; may be repeated")] = None,
    where: Annotated[str, Option(help='filter, for example "sold or price is null"')] = "",
    as_json: AsJson = False,
) -> None:
    """Remove documents by id or by a filter."""
    from searchfit import growth

    with progress_bar() as progress:
        _tell(growth.remove(workspace, id_ or (), where, progress), as_json)


@app.command()
def optimize(workspace: WorkspacePath, as_json: AsJson = False) -> None:
    """Tidy the index after many changes. Merges what additions left in pieces, drops what was removed."""
    from searchfit import growth

    with progress_bar() as progress:
        _tell(growth.optimize(workspace, progress), as_json)


def _settings(workspace: Path, values: dict[str, Any], sets: list[str] | None) -> Settings:
    from searchfit.growth import source_settings

    return source_settings(workspace, given(values), sets or ())


def _tell(growth: Growth, as_json: bool) -> None:
    if as_json:
        print(json.dumps(growth.to_dict(), ensure_ascii=False))
        return
    for note in (*growth.notes, *(f"not there: {id_}" for id_ in growth.missing)):
        say(note)
    say(
        f"{growth.added} added, {growth.changed} changed, {growth.removed} removed, "
        f"{growth.unchanged} unchanged; {growth.encoded} passages encoded, "
        f"{growth.reused} kept their vectors; version {growth.generation} has {growth.passages} passages",
        stderr=False,
    )
