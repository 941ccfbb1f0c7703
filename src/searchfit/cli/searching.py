"""Commands over a fitted workspace: search, status, evaluate."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from searchfit.cli.app import AsJson, WorkspacePath, app, console, say
from searchfit.cli.fitting import show_leaderboard
from searchfit.errors import SearchfitError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from searchfit.records import Hit
    from searchfit.search import Searcher
    from searchfit.workspace import Workspace


@app.command()
def search(
    workspace: WorkspacePath,
    query: Annotated[str, Argument(help="words or a question")] = "",
    k: Annotated[int, Option("-k", min=1, help="how many results")] = 10,
    where: Annotated[str | None, Option(help='filter, for example "price < 300000 and rooms >= 3"')] = None,
    passages: Annotated[
        bool, Option("--passages", help="every passage, not the best one of each document")
    ] = False,
    rerank: Annotated[bool, Option(help="by the engine's re-ranker, if it has one")] = True,
    offset: Annotated[int, Option(min=0, help="leave out so many of the first results")] = 0,
    dense: Annotated[bool, Option(help="search by vectors")] = True,
    keyword: Annotated[bool, Option(help="search by words")] = True,
    explain: Annotated[
        bool, Option("--explain", help="show every score and rank that led to a result")
    ] = False,
    queries: Annotated[
        str, Option(help="a file of questions to answer at once: .txt, .csv, .jsonl or a BEIR folder")
    ] = "",
    run: Annotated[Path | None, Option(help="where their rankings go, in TREC format")] = None,
    as_json: AsJson = False,
) -> None:
    """Search a fitted workspace. One question, or with --queries and --run many at once."""
    from searchfit.request import Switches
    from searchfit.search import open_searcher

    if bool(queries) != (run is not None) or bool(queries) == bool(query):
        raise SettingsError("expected a question, or a file of questions with --queries and --run.")
    switches = Switches(dense=dense, keyword=keyword, rerank=rerank, explain=explain)
    if run is not None and (passages or offset or as_json or switches != Switches()):
        raise SettingsError(
            "--queries and --run write the rankings of documents as the engine gives them.",
            "Of the other options only -k and --where go with them.",
        )
    searcher = open_searcher(workspace)
    if run is not None:
        _batch(searcher, (queries, run), k, where)
        return
    hits = searcher.search(query, k, where, passages, offset, switches)
    if as_json:
        print(json.dumps([hit.to_dict() for hit in hits], ensure_ascii=False, default=str))
        return
    if not hits:
        print("no results" + (" pass the filter" if where else ""), file=sys.stderr)
    for hit in hits:
        _print_hit(hit, explain)


def _batch(searcher: Searcher, files: tuple[str, Path], k: int, where: str | None) -> None:
    from searchfit.config import QueriesSettings
    from searchfit.metrics import write_run
    from searchfit.sources.queries import read_queries

    asked = read_queries(QueriesSettings(file=files[0])).queries
    found = searcher.search_many([text for _, text in asked], k, where)
    names = iter(searcher.document_ids(found.rows[found.rows >= 0]))
    rankings = {
        id_: [(next(names), float(score)) for row, score in zip(rows, scores, strict=True) if row >= 0]
        for (id_, _), rows, scores in zip(asked, found.rows, found.scores, strict=True)
    }
    try:
        write_run(files[1], "searchfit", rankings)
    except OSError as error:
        raise SearchfitError(f"the run {files[1]} cannot be written: {error.strerror}.") from error
    say(f"{len(asked)} questions answered in {files[1]}")


def _place(metadata: Mapping[str, Any]) -> str:
    """Where in its document a passage stands, as one cites it, after what names the document."""
    page, heading = metadata.get("page"), metadata.get("heading")
    return (f", page {page}" if page else "") + (f", {heading}" if heading else "")


def _print_hit(hit: Hit, explain: bool) -> None:
    from rich.text import Text

    screen = console(stderr=False)
    head = hit.title if hit.title and hit.title != hit.document_id else ""
    screen.print(
        Text.assemble(
            (f"{hit.rank}. ", "bold"),
            (head or hit.document_id, "bold"),
            (f"  {hit.document_id}" if head else "", "dim"),
            (_place(hit.metadata), "dim"),
            (f"  {hit.score:.3f}", "dim"),
        )
    )
    line = Text(hit.snippet)
    for start, end in hit.highlights:
        line.stylize("bold cyan", start, end)
    screen.print(Text("   ") + Text(" ").join(line.split()))
    if explain:
        scores = ", ".join(f"{name} {value:g}" for name, value in hit.scores.items())
        say(f"   {scores}", stderr=False)


@app.command()
def status(workspace: WorkspacePath, as_json: AsJson = False) -> None:
    """Show what a workspace holds and serves."""
    from searchfit.workspace import Workspace

    place = Workspace(workspace)
    place.require()
    manifest = place.manifest()
    board = place.artefact("leaderboard.json")
    if as_json:
        more: dict[str, Any] = {"leaderboard": json.loads(board.read_text("utf-8"))} if board.exists() else {}
        print(json.dumps({**manifest, **more, **_index(place), **_store(place)}, ensure_ascii=False))
        return
    if board.exists():
        show_leaderboard(place)
    for name, entry in manifest["stages"].items():
        figures = ", ".join(f"{key} {value}" for key, value in entry["counts"].items())
        say(
            f"{name:9} {entry['seconds']:7.1f} s {entry['peak_memory_mb']:6} MB  {figures}",
            stderr=False,
        )
    served = place.served()
    say(
        f"serves    {served['engine']['name']} from {served['index']}"
        if served
        else "not finished: run the same fit again to carry on",
        stderr=False,
    )
    if found := _store(place):
        error = found["store_error"]
        told = f"search cannot read from there: {error}" if error else "search reads from there"
        say(f"store     {found['store']}: {told}", stderr=False)
    for index in _index(place).values():
        say(
            f"index     version {index['generation']} in {index['segments']} segments: {index['passages']} "
            f"passages; since the fit {index['added']} added, {index['removed']} removed, "
            f"{index['share']:.1%} changed" + ("; a new fit would pay" if index["refit"] else ""),
            stderr=False,
        )


def _store(place: Workspace) -> dict[str, str]:
    """The address, without a password, of the store elsewhere that is searched, and why it cannot be, ""
    where it can; nothing for the own index."""
    from searchfit.stores.address import Address
    from searchfit.stores.push import kept, standing
    from searchfit.stores.versions import open_index

    url, served = kept(place.path), place.served()
    if url is None or served is None:
        return {}
    error = standing(place.path, open_index(place.artefact(served["index"])).store)
    return {"store": str(Address(url)), "store_error": error}


def _index(place: Workspace) -> dict[str, dict[str, Any]]:
    """The version of the index that is served and how far it has moved from the fit, as {"index": ...}."""
    from dataclasses import asdict

    from searchfit.stores.versions import drift, open_index
    from searchfit.workspace import mirrored

    served = place.served()
    if served is None or (mirrored(place.path) and not (place.path / served["index"]).exists()):
        return {}  # a look at an object store fetches no index
    opened = open_index(place.artefact(served["index"]))
    moved = drift(opened)
    known = {"generation": opened.version.generation, "segments": len(opened.version.segments)}
    return {"index": {**known, "passages": opened.store.count(), **asdict(moved), "refit": moved.refit}}


_SHOWN = ("ndcg@10", "mrr@10", "recall@10")
"""The metrics of the table; the others are in the JSON."""


@app.command()
def evaluate(
    workspace: WorkspacePath,
    folder: Annotated[Path, Argument(metavar="BEIR_DIR", help="folder with queries.jsonl and qrels/")],
    split: Annotated[str, Option(help="which qrels/SPLIT.tsv")] = "test",
    run: Annotated[Path | None, Option(help="write the chosen engine's TREC run here")] = None,
    model: Annotated[list[str] | None, Option(help="another model to compare; repeatable")] = None,
    run_file: Annotated[list[Path] | None, Option(help="a TREC run to compare; repeatable")] = None,
    metric: Annotated[list[str] | None, Option(help="one more metric, say precision@5; repeatable")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a workspace on judged questions. The chosen engine, the baselines, and what else you name.

    The table shows the main metrics and those of --metric; --json has all.
    """
    from searchfit.judged import Beside, evaluate_judged

    beside = Beside(tuple(model or ()), tuple(run_file or ()), tuple(metric or ()))
    outcome = evaluate_judged(workspace, folder, split, run, beside)
    if as_json:
        print(json.dumps(outcome.to_dict(), ensure_ascii=False))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold")
    table.add_column("system", overflow="fold")
    shown = [
        name
        for name in next(iter(outcome.systems.values()))
        if name in _SHOWN or name in {one.lower() for one in beside.metrics}
    ]
    for name in shown:
        table.add_column(name, justify="right")
    for name in ("gain", "p"):
        table.add_column(name, justify="right")
    for system, row in outcome.systems.items():
        found = outcome.compared.get(system)
        gain = (f"{found['gain']:+.4f}", f"{found['p_holm']:.4f}") if found else ("", "")
        table.add_row(Text(system), *(f"{row[name]:.4f}" for name in shown), *gain)
    screen = console(stderr=False)
    screen.print(table)
    for note in (*outcome.notes, outcome.said()):
        say(note)
