"""The command that puts the index of a workspace into another store: index."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

from typer import Option

from searchfit.cli.app import AsJson, WorkspacePath, app, progress_bar, say

Address = Annotated[
    str | None,
    Option(
        envvar="SEARCHFIT_STORE_URL",
        help="postgresql://, qdrant:// or pinecone:// with the store's address, "
        "or local to search the workspace's own index again; left out, the store that is searched",
    ),
]


@app.command()
def index(
    workspace: WorkspacePath,
    store: Address = None,
    replace: Annotated[bool, Option("--replace", help="in place of another index that is there")] = False,
    drop: Annotated[bool, Option("--drop", help="remove the index from that store instead")] = False,
    batch: Annotated[int, Option(min=1, help="how many passages are sent together")] = 500,
    as_json: AsJson = False,
) -> None:
    """Push the index to a store elsewhere. Search then reads from there.

    After add, update and remove the same command, or `searchfit index WORKSPACE`, sends what changed.
    """
    from searchfit.stores.push import remember, serve_from, target, withdraw
    from searchfit.workspace import Workspace

    Workspace(workspace).require()
    store = target(workspace, store)
    if store == "local" or drop:
        if drop:
            withdraw(workspace, store)
        else:
            remember(workspace, None)
        if as_json:
            print(json.dumps({"store": "" if drop else store}))
        return
    with progress_bar() as progress:
        pushed = serve_from(workspace, store, replace, progress, batch)
    if as_json:
        print(json.dumps(asdict(pushed)))
        return
    figures = f"{pushed.sent} passages sent, {pushed.deleted} deleted, {pushed.kept} were there"
    say(f"{pushed.store}: {figures}")
