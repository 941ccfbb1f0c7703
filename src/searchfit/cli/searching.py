"""Commands over a fitted workspace: search, status, evaluate."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from searchfit.cli.app import AsJson, WorkspacePath, app, console
from searchfit.cli.fitting import show_leaderboard

if TYPE_CHECKING:
    from searchfit.records import Hit


@app.command()
def search(
    workspace: WorkspacePath,
    query: Annotated[str, Argument(help="words or a question")],
    k: Annotated[int, Option("-k", min=1, help="how many results")] = 10,
    where: Annotated[str | None, Option(help='filter, for example "price < 300000 and rooms >= 3"')] = None,
    passages: Annotated[bool, Option(help="every passage, not the best one of each document")] = False,
    as_json: AsJson = False,
) -> None:
    """Search a fitted workspace."""
    from searchfit.search import open_searcher

    hits = open_searcher(workspace).search(query, k, where, passages)
    if as_json:
        print(json.dumps([hit.to_dict() for hit in hits], ensure_ascii=False, default=str))
        return
    if not hits:
        print("no results" + (" pass the filter" if where else ""), file=sys.stderr)
    for hit in hits:
        _print_hit(hit)


def _print_hit(hit: Hit) -> None:
    from rich.text import Text

    screen = console(stderr=False)
    head = hit.title if hit.title and hit.title != hit.document_id else ""
    screen.print(
        Text.assemble(
            (f"{hit.rank}. ", "bold"),
            (head or hit.document_id, "bold"),
            (f"  {hit.document_id}" if head else "", "dim"),
            (f"  {hit.score:.3f}", "dim"),
        )
    )
    line = Text(hit.snippet)
    for start, end in hit.highlights:
        line.stylize("bold cyan", start, end)
    screen.print(Text("   ") + Text(" ").join(line.split()))


@app.command()
def status(workspace: WorkspacePath, as_json: AsJson = False) -> None:
    """Show what a workspace holds and which engine it serves."""
    from searchfit.workspace import Workspace

    place = Workspace(workspace)
    place.require()
    manifest = place.manifest()
    board = place.artefact("leaderboard.json")
    if as_json:
        compared = {"leaderboard": json.loads(board.read_text(encoding="utf-8"))} if board.exists() else {}
        print(json.dumps({**manifest, **compared}, ensure_ascii=False))
        return
    if board.exists():
        show_leaderboard(place)
    screen = console(stderr=False)
    for name, entry in manifest["stages"].items():
        figures = ", ".join(f"{key} {value}" for key, value in entry["counts"].items())
        screen.print(
            f"{name:9} {entry['seconds']:7.1f} s {entry['peak_memory_mb']:6} MB  {figures}",
            highlight=False,
            markup=False,
        )
    served = place.served()
    screen.print(
        f"serves    {served['engine']['name']} from {served['index']}"
        if served
        else "not finished: run the same fit again to carry on",
        highlight=False,
        markup=False,
    )


@app.command()
def evaluate(
    workspace: WorkspacePath,
    folder: Annotated[Path, Argument(metavar="BEIR_DIR", help="folder with queries.jsonl and qrels/")],
    split: Annotated[str, Option(help="which qrels/SPLIT.tsv")] = "test",
    run: Annotated[Path | None, Option(help="write the chosen engine's TREC run here")] = None,
    as_json: AsJson = False,
) -> None:
    """Score the chosen engine and the baselines on judged questions."""
    from searchfit.judged import evaluate_judged

    outcome = evaluate_judged(workspace, folder, split, run)
    if as_json:
        print(json.dumps(outcome.to_dict(), ensure_ascii=False))
        return
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    table.add_column("system")
    for name in next(iter(outcome.systems.values())):
        table.add_column(name, justify="right")
    for system, row in outcome.systems.items():
        table.add_row(system, *(f"{value:.4f}" for value in row.values()))
    screen = console(stderr=False)
    screen.print(table)
    for note in outcome.notes:
        console().print(note, highlight=False, markup=False)
