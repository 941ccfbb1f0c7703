"""Commands that change the index of a fitted workspace: add, update, remove, optimize."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from searchfit.cli.app import AsJson, WorkspacePath, app, console, progress_bar
from searchfit.cli.fitting import Ident, Sets, Text, Title

if TYPE_CHECKING:
    from searchfit.config import Settings
    from searchfit.growth import Growth

Documents = Annotated[str, Argument(metavar="SOURCE", help="file or folder, as for fit")]


@app.command()
def add(
    workspace: WorkspacePath,
    source: Documents,
    text: Text = None,
    id_: Ident = "",
    title: Title = "",
    set_: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Add documents to a fitted workspace. Those whose id is there already are replaced if they changed."""
    from searchfit import growth

    settings = _settings(workspace, source, text, (id_, title), set_)
    with progress_bar() as progress:
        _tell(growth.add(workspace, settings, progress), as_json)


@app.command()
def update(
    workspace: WorkspacePath,
    source: Documents,
    text: Text = None,
    id_: Ident = "",
    title: Title = "",
    set_: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Make the index equal to a source. Adds what is new, replaces what changed, removes what is gone."""
    from searchfit import growth

    settings = _settings(workspace, source, text, (id_, title), set_)
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


def _settings(
    workspace: Path, source: str, text: list[str] | None, names: tuple[str, str], sets: list[str] | None
) -> Settings:
    from searchfit.growth import source_settings

    id_, title = names
    named = {"source.text": tuple(text or ()), "source.id": id_, "source.title": title}
    values = {key: value for key, value in named.items() if value}
    return source_settings(workspace, {**values, "source.source": source}, sets or ())


def _tell(growth: Growth, as_json: bool) -> None:
    if as_json:
        print(json.dumps(growth.to_dict(), ensure_ascii=False))
        return
    screen = console()
    for note in (*growth.notes, *(f"not there: {id_}" for id_ in growth.missing)):
        screen.print(note, highlight=False, markup=False)
    console(stderr=False).print(
        f"{growth.added} added, {growth.changed} changed, {growth.removed} removed, "
        f"{growth.unchanged} unchanged; {growth.encoded} passages encoded, "
        f"{growth.reused} kept their vectors; version {growth.generation} has {growth.passages} passages",
        highlight=False,
        markup=False,
    )
