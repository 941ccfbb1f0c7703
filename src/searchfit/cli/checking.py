"""Commands that look before and after: check a source, similar passages or texts, compare workspaces."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from searchfit.cli.app import AsJson, app, console, progress_bar
from searchfit.cli.fitting import Config, Ident, Sets, Sql, TableName, Text, Title, Updated, Where, sql_values
from searchfit.errors import SettingsError

if TYPE_CHECKING:
    from rich.table import Table

    from searchfit.compare import Board
    from searchfit.preflight import Check
    from searchfit.similar import Pair

_SHOWN = 160


@app.command()
def check(
    source: Annotated[
        str,
        Argument(
            metavar="[SOURCE]",
            help="file, folder or glob of documents (PDF, DOCX, HTML, text, e-mail) or tables, URL, "
            "database, hf:NAME or pydoc:NAME,NAME; left out, the texts of --pairs",
        ),
    ] = "",
    text: Text = None,
    id_: Ident = "",
    title: Title = "",
    sql: Sql = "",
    table: TableName = "",
    where: Where = "",
    updated_column: Updated = "",
    queries: Annotated[str, Option(help="your own questions: .txt, .csv, .jsonl or a BEIR folder")] = "",
    pairs: Annotated[
        str, Option(help="labelled pairs to train on: a table, a folder of them or of BEIR")
    ] = "",
    model: Annotated[str, Option(help='"minilm", a model folder or a hub id')] = "",
    config: Config = None,
    set_: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Look at documents before a fit. What they are like, whether tuning may pay, time and memory."""
    from searchfit.config import load_settings
    from searchfit.preflight import check as look

    named = {
        "source.source": source or ("pairs:" if pairs else ""),
        "source.text": tuple(text or ()),
        "source.id": id_,
        "source.title": title,
        **sql_values(sql, table, where, updated_column),
        "queries.file": queries,
        "pairs.file": pairs,
        "model.name": model,
    }
    settings = load_settings(config, set_ or (), {key: value for key, value in named.items() if value})
    with progress_bar() as progress:
        found = look(settings, progress)
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        _show_check(found)


def _show_check(found: Check) -> None:
    screen = console(stderr=False)
    corpus, near = found.corpus, found.near

    def say(head: str, said: str) -> None:
        screen.print(f"{head:12}{said}", highlight=False, markup=False)

    say("documents", f"{corpus.documents:,} of {corpus.characters:,} characters")
    for reason, count in corpus.left_out.items():
        say("", f"left out {count:,}: {reason}")
    say("lengths", ", ".join(f"{name} {chars:,}" for name, chars in corpus.chars.items()) + " characters")
    say("duplicates", f"{corpus.same_text:,} with the text of an earlier one")
    say("", f"{near.near_duplicates:,} of {near.documents:,} with a passage nearly the same as another's")
    say("languages", ", ".join(f"{name} {share:.0%}" for name, share in corpus.languages.items()))
    say("window", f"{corpus.window} tokens; longer: {_percent(corpus.beyond_window)} of the documents,")
    say("", f"{_percent(near.beyond_window)} of the {near.passages:,} passages that they are cut into")
    if found.headroom:
        say("untuned", f"on {found.headroom.questions} generated questions, best: {found.headroom.best}")
        screen.print(_systems(found.headroom.systems))
        say("", "Generated questions copy words from their documents and flatter keyword search.")
    say("tuning", f"{found.verdict.tuning} to pay" if found.verdict.tuning != "open" else "may pay or not")
    for reason in found.verdict.reasons:
        say("", reason)
    costs = [cost for cost in found.forecast.stages if cost.seconds >= 0.5]
    say("fit", f"about {_duration(found.forecast.seconds)}, {found.forecast.memory_mb:,} MB of memory,")
    say("", f"{found.forecast.disk_mb:,} MB on disk; by stage:")
    for cost in costs:
        say("", f"{cost.stage:10}{cost.seconds:9,.0f} s {cost.memory_mb:8,} MB")
    for note in found.notes:
        say("note", note)
    say("", f"(this check took {_duration(found.seconds)})")


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
        Path | None, Option(help="compare two texts by the model that this workspace serves")
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
    shown = (f"   {id_}: {_line(text)}" for id_, text in ((pair.id_a, pair.text_a), (pair.id_b, pair.text_b)))
    return "\n".join([f"{pair.score:.4f}", *shown])


def _line(text: str) -> str:
    """The beginning of a text on one line, whatever stands in it."""
    line = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", text[: 2 * _SHOWN]).strip()
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."


@app.command()
def compare(
    workspaces: Annotated[
        list[Path],
        Argument(metavar="WORKSPACE WORKSPACE...", help="finished ones; the first is the reference"),
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
        console().print(line, highlight=False, markup=False)
