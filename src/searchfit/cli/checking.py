"""Commands that look before and after: check a source, similar passages or texts, compare workspaces."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from searchfit.cli.app import AsJson, app, console, one_line, progress_bar, say, workspace_path
from searchfit.cli.options import (
    Config,
    Documents,
    Effort,
    Pairs,
    Questions,
    Reading,
    Sets,
    given,
    grouped,
)
from searchfit.errors import SettingsError

if TYPE_CHECKING:
    from rich.table import Table

    from searchfit.compare import Board
    from searchfit.preflight import Check
    from searchfit.preflight.cluster import Cluster
    from searchfit.similar import Pair

_SHOWN = 160


@app.command()
@grouped
def check(
    source: Documents = "",
    *,
    reading: Reading,
    queries: Questions = "",
    pairs: Pairs = "",
    model: Annotated[str, Option(help='"minilm", a model folder or a hub id')] = "",
    effort: Effort = "normal",
    nodes: Annotated[
        int | None, Option(metavar="N", help="forecast the fit on N machines like this one, too")
    ] = None,
    price_per_hour: Annotated[
        float | None, Option(metavar="X", help="of one machine, in any currency: tells what the fit costs")
    ] = None,
    config: Config = None,
    set_: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Look at documents before a fit. What they are like, whether tuning may pay, time and memory."""
    from searchfit.config import effort_values, load_settings
    from searchfit.preflight import check as look
    from searchfit.preflight.cluster import Machines

    named = {
        **reading.values(source or ("pairs:" if pairs else "")),
        "queries.file": queries,
        "pairs.file": pairs,
        "model.name": model,
    }
    base = load_settings(values=effort_values(effort))
    settings = load_settings(config, set_ or (), given(named), base)
    asked = nodes is not None or price_per_hour is not None
    machines = Machines(1 if nodes is None else nodes, price_per_hour) if asked else None
    with progress_bar() as progress:
        found = look(settings, progress, machines)
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        _show_check(found)


def _show_check(found: Check) -> None:
    screen = console(stderr=False)
    corpus, near = found.corpus, found.near

    def tell(head: str, said: str) -> None:
        say(f"{head:12}{said}", stderr=False)

    tell("documents", f"{corpus.documents:,} of {corpus.characters:,} characters")
    for reason, count in corpus.left_out.items():
        tell("", f"left out {count:,}: {reason}")
    tell("lengths", ", ".join(f"{name} {chars:,}" for name, chars in corpus.chars.items()) + " characters")
    tell("duplicates", f"{corpus.same_text:,} with the text of an earlier one")
    tell("", f"{near.near_duplicates:,} of {near.documents:,} with a passage nearly the same as another's")
    tell("languages", ", ".join(f"{name} {share:.0%}" for name, share in corpus.languages.items()))
    tell("window", f"{corpus.window} tokens; longer: {_percent(corpus.beyond_window)} of the documents,")
    tell("", f"{_percent(near.beyond_window)} of the {near.passages:,} passages that they are cut into")
    if found.headroom:
        tell("untuned", f"on {found.headroom.questions} generated questions, best: {found.headroom.best}")
        screen.print(_systems(found.headroom.systems))
        tell("", "Generated questions copy words from their documents and flatter keyword search.")
    tell("tuning", f"{found.verdict.tuning} to pay" if found.verdict.tuning != "open" else "may pay or not")
    for reason in found.verdict.reasons:
        tell("", reason)
    costs = [cost for cost in found.forecast.stages if cost.seconds >= 0.5]
    tell("fit", f"about {_duration(found.forecast.seconds)}, {found.forecast.memory_mb:,} MB of memory,")
    tell("", f"{found.forecast.disk_mb:,} MB on disk; by stage:")
    for cost in costs:
        tell("", f"{cost.stage:10}{cost.seconds:9,.0f} s {cost.memory_mb:8,} MB")
    if found.cluster:
        _show_cluster(found.cluster, tell)
    for note in found.notes:
        tell("note", note)
    tell("", f"(this check took {_duration(found.seconds)})")


def _show_cluster(cluster: Cluster, tell: Callable[[str, str], None]) -> None:
    machines = "1 machine" if cluster.nodes == 1 else f"{cluster.nodes:,} machines, {cluster.actors:,} actors"
    price = "" if cluster.cost is None else f", {cluster.cost:,.2f} at {cluster.price_per_hour:g} an hour"
    took = f"about {_duration(cluster.seconds)} on {machines}, against {_duration(cluster.alone)} on one"
    tell("cluster", f"{took};")
    tell("", f"{cluster.node_hours:,.2f} hours of machines{price}; by stage:")
    for share in cluster.stages:
        if share.by:
            shared = max(0.0, share.seconds - share.here - share.start)
            parts = f"{shared:,.0f} shared by {share.by}, {share.here:,.0f} here, {share.start:,.0f} to start"
            tell("", f"{share.stage:10}{share.seconds:9,.0f} s: {parts}")
    here = sum(share.here for share in cluster.stages)
    tell("", f"{_duration(here)} are work of the machine that asks alone. It holds {cluster.memory_mb:,} MB,")
    tell("", f"the actors of each machine {cluster.actors_mb:,} MB. With {cluster.enough:,} or more machines")
    tell("", "half of the time, or more, is what no further machine shortens.")


def _percent(share: float) -> str:
    return f"{share:.1%}" if 0 < share < 0.1 else f"{share:.0%}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _systems(systems: dict[str, dict[str, float]]) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(" " * 12 + "system")
    for name in next(iter(systems.values())):
        table.add_column(name, justify="right")
    for system, row in systems.items():
        table.add_row(" " * 12 + system, *(f"{value:.3f}" for value in row.values()))
    return table


@app.command()
def similar(
    texts: Annotated[
        list[str], Argument(metavar="WORKSPACE | TEXT TEXT", help="a fitted workspace, or two texts")
    ],
    k: Annotated[int, Option("-k", min=0, help="how many pairs; 0: all above --threshold")] = 10,
    threshold: Annotated[float | None, Option(help="only pairs whose cosine is this or more")] = None,
    documents: Annotated[
        bool, Option("--documents", help="documents, by the mean of their passages")
    ] = False,
    within: Annotated[bool, Option("--within", help="pairs of passages of one document too")] = False,
    workspace: Annotated[
        Path | None,
        Option(parser=workspace_path, help="compare two texts by the model that this workspace serves"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List similar passages, or compare two texts. The most similar pairs of a workspace, or the
    cosine of two texts."""
    from searchfit.similar import similar_passages, similarity

    if len(texts) > 2:
        raise SettingsError(f"{len(texts)} texts were given.", "Name one workspace, or give two texts.")
    if len(texts) == 2:
        cosine = similarity(*texts, workspace=workspace)
        print(json.dumps({"cosine": cosine}) if as_json else f"{cosine:.4f}")
        return
    with progress_bar() as progress:
        pairs = similar_passages(
            texts[0],
            k,
            threshold,
            documents=documents,
            within=within,
            tell=lambda done, total: progress("compare", done, total),
        )
    if not pairs:
        print("no such pairs", file=sys.stderr)
    for pair in pairs:
        print(json.dumps(pair.to_dict(), ensure_ascii=False) if as_json else _pair(pair))


def _pair(pair: Pair) -> str:
    shown = (
        f"   {id_}: {one_line(text, _SHOWN)}"
        for id_, text in ((pair.id_a, pair.text_a), (pair.id_b, pair.text_b))
    )
    return "\n".join([f"{pair.score:.4f}", *shown])


@app.command()
def compare(
    workspaces: Annotated[
        list[Path],
        Argument(
            parser=workspace_path,
            metavar="WORKSPACE WORKSPACE...",
            help="finished ones; the first is the reference",
        ),
    ],
    queries: Annotated[
        Path | None, Option(metavar="BEIR_DIR", help="put these judged questions to all of them")
    ] = None,
    split: Annotated[str, Option(help="which qrels/SPLIT.tsv of --queries")] = "test",
    common: Annotated[
        bool, Option("--common", help="where test questions differ, take those that all have")
    ] = False,
    markdown: Annotated[bool, Option("--markdown", help="print Markdown")] = False,
    as_json: AsJson = False,
) -> None:
    """Rank workspaces on the same questions. One leaderboard over all of them."""
    from searchfit.compare import compare_on, compare_workspaces

    board = compare_on(workspaces, queries, split) if queries else compare_workspaces(workspaces, common)
    if as_json:
        print(json.dumps(board.to_dict(), ensure_ascii=False))
    elif markdown:
        print(board.to_markdown(), end="")
    else:
        _show_board(board)


def _show_board(board: Board) -> None:
    from rich.table import Table

    from searchfit.compare import COLUMNS, cells

    table = Table(box=None, header_style="bold")
    same = len({row.model for row in board.rows}) == 1
    shown = [place for place, name in enumerate(COLUMNS) if name != "model" or not same]
    for name in (COLUMNS[place] for place in shown):
        table.add_column(name, justify="left" if name in COLUMNS[:3] else "right", overflow="fold")
    for row in board.rows:
        table.add_row(*(cells(row)[place] for place in shown))
    console(stderr=False).print(table)
    for line in (board.legend, *board.notes):
        say(line)
