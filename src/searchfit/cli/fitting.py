"""Commands that work on a workspace: fit, ingest, train, generate."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from searchfit.cli.app import AsJson, WorkspacePath, app, command_line, console, progress_bar

if TYPE_CHECKING:
    from searchfit.config import Settings
    from searchfit.pipeline import Step
    from searchfit.workspace import Workspace


Output = Annotated[Path, Option("--output", "-o", metavar="WORKSPACE", help="folder to make or carry on")]
Text = Annotated[list[str] | None, Option(help="column of the text; may be repeated")]
Ident = Annotated[str, Option("--id", help="column of the document id")]
Title = Annotated[str, Option(help="column of the title")]
Sql = Annotated[str, Option("--sql", metavar="SELECT", help="of a database: the statement to read by")]
TableName = Annotated[str, Option(metavar="NAME", help="of a database: the table or view to read")]
Where = Annotated[str, Option(metavar="CONDITION", help="which rows of --table, as SQL")]
Updated = Annotated[
    str, Option("--updated-column", help="of a database: tells when a row changed; `add` reads only those")
]
Generators = Annotated[
    str,
    Option(help="who writes the queries: phrases, t5[:MODEL], chat:MODEL, openai:MODEL; several with commas"),
]
BaseUrl = Annotated[str, Option(help="server of openai:MODEL, for example http://127.0.0.1:11434/v1")]
MaxQueries = Annotated[
    int, Option(min=0, help="write about this many queries at most; 0: as generate.max_queries says")
]
MaxCost = Annotated[float, Option(min=0, help="stop writing queries before this much is spent; 0: no limit")]
Config = Annotated[Path | None, Option(help="settings as TOML")]
Sets = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help="any setting of `searchfit settings`, section.key=value"),
]
Force = Annotated[list[str] | None, Option(metavar="STAGE", help="run this stage again")]
Feedback = Annotated[
    bool, Option("--feedback", help="learn from what readers of WORKSPACE judged and clicked")
]
DryRun = Annotated[bool, Option("--dry-run", help="say what would run and why, and stop")]
Model = Annotated[
    list[str] | None, Option(help='"minilm", a model folder or a hub id; several are fitted and compared')
]


@app.command()
def fit(
    output: Output,
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
    feedback: Feedback = False,
    model: Model = None,
    reranker: Annotated[str, Option(help="cross-encoder, a folder or a hub id, that competes")] = "",
    generator: Generators = "",
    base_url: BaseUrl = "",
    max_queries: MaxQueries = 0,
    max_cost: MaxCost = 0,
    config: Config = None,
    set_: Sets = None,
    force: Force = None,
    until: Annotated[str, Option(metavar="STAGE", help="stop after this stage")] = "report",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Fit a search engine to documents. Reads them, writes questions, tunes, proves, and leaves an engine."""
    named = {
        "source.source": source or ("pairs:" if pairs else ""),
        "source.text": tuple(text or ()),
        "source.id": id_,
        "source.title": title,
        **sql_values(sql, table, where, updated_column),
        "queries.file": queries,
        "pairs.file": pairs,
        "feedback.workspace": str(output.resolve()) if feedback else "",
        "model.name": model[0] if model else "",
        "rerank.model": reranker,
        "generate.generator": generator,
        "openai.base_url": base_url,
        "generate.max_queries": max_queries,
        "generate.max_cost": max_cost,
    }
    settings = settings_of(None, config, set_, named)
    run = Run(force, until, dry_run, as_json)
    if model and len(model) > 1:
        _compare(output, settings, tuple(model), run)
    else:
        _work(output, settings, run)


@app.command()
def train(
    workspace: WorkspacePath,
    pairs: Annotated[
        str, Option(help="labelled pairs to train on: a table, a folder of them or of BEIR")
    ] = "",
    feedback: Feedback = False,
    config: Config = None,
    set_: Sets = None,
    force: Force = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train again with other settings. What wins is served, and what holds is not redone."""
    named = {"pairs.file": pairs, "feedback.workspace": str(workspace.resolve()) if feedback else ""}
    settings = settings_of(workspace, config, set_, named)
    _work(workspace, settings, Run(force, "report", dry_run, as_json))


@app.command()
def ingest(
    output: Output,
    source: Annotated[
        str,
        Argument(metavar="[SOURCE]", help="as for fit; left out, WORKSPACE's own source and settings hold"),
    ] = "",
    text: Text = None,
    id_: Ident = "",
    title: Title = "",
    sql: Sql = "",
    table: TableName = "",
    where: Where = "",
    updated_column: Updated = "",
    config: Config = None,
    set_: Sets = None,
    force: Force = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Only read documents and cut them into passages. `searchfit documents` and `searchfit passages` show
    them; the same fit goes on from there."""
    named = {
        "source.source": source,
        "source.text": tuple(text or ()),
        "source.id": id_,
        "source.title": title,
        **sql_values(sql, table, where, updated_column),
    }
    settings = settings_of(None if source else output, config, set_, named)
    _work(output, settings, Run(force, "split", dry_run, as_json))


@app.command()
def generate(
    output: Output,
    source: Annotated[
        str,
        Argument(metavar="[SOURCE]", help="as for fit; left out, WORKSPACE's own source and settings hold"),
    ] = "",
    text: Text = None,
    id_: Ident = "",
    title: Title = "",
    sql: Sql = "",
    table: TableName = "",
    where: Where = "",
    updated_column: Updated = "",
    generator: Generators = "",
    base_url: BaseUrl = "",
    max_queries: MaxQueries = 0,
    max_cost: MaxCost = 0,
    config: Config = None,
    set_: Sets = None,
    force: Force = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Only write questions and screen them. `searchfit queries` and `searchfit export` show them."""
    named = {
        "source.source": source,
        "source.text": tuple(text or ()),
        "source.id": id_,
        "source.title": title,
        **sql_values(sql, table, where, updated_column),
        "generate.generator": generator,
        "openai.base_url": base_url,
        "generate.max_queries": max_queries,
        "generate.max_cost": max_cost,
    }
    settings = settings_of(None if source else output, config, set_, named)
    _work(output, settings, Run(force, "screen", dry_run, as_json))


def sql_values(query: str, table: str, where: str, updated_column: str) -> dict[str, str]:
    """The options of a database as settings."""
    return {
        "sql.query": query,
        "sql.table": table,
        "sql.where": where,
        "sql.updated_column": updated_column,
    }


@dataclass(frozen=True, slots=True)
class Run:
    """How to run: what again, until where, only in words, and what to print."""

    force: list[str] | None
    until: str
    dry_run: bool
    as_json: bool


def settings_of(
    workspace: Path | None, config: Path | None, sets: list[str] | None, named: dict[str, Any]
) -> Settings:
    """Settings from the options that were given, over those of a workspace where one is named."""
    from searchfit.config import load_settings
    from searchfit.workspace import Workspace

    base = None
    if workspace is not None:
        place = Workspace(workspace)
        place.require()
        base = load_settings(place.settings_file)
    return load_settings(config, sets or (), {key: value for key, value in named.items() if value}, base)


def _work(output: Path, settings: Settings, run: Run) -> None:
    from searchfit.pipeline import Fit
    from searchfit.workspace import Workspace

    workspace = Workspace(output)
    with progress_bar() as progress:
        work = Fit(workspace, settings, frozenset(run.force or ()), run.until, progress, command_line())
        steps = [_said(step, run.dry_run) for step in (work.plan() if run.dry_run else work.run())]
    if run.as_json:
        print(json.dumps([{"stage": s.stage, "why": s.why, "seconds": s.seconds} for s in steps]))
    elif not run.dry_run:
        _close(workspace.path, steps, run.until)


def _compare(output: Path, settings: Settings, models: tuple[str, ...], run: Run) -> None:
    from searchfit.contest import Contest
    from searchfit.pipeline import Fit
    from searchfit.workspace import Workspace

    root = Workspace(output)
    with progress_bar() as progress:
        work = Fit(root, settings, frozenset(run.force or ()), run.until, progress, command_line())
        contest = Contest(work, models)
        before, steps = "", []
        for model, step in contest.plan() if run.dry_run else contest.run():
            if model != before:
                console().print(f"model {model}", highlight=False, markup=False)
            before = model
            steps.append({"model": model, "stage": step.stage, "why": step.why, "seconds": step.seconds})
            _said(step, run.dry_run)
    if run.as_json:
        print(json.dumps(steps))
    elif not run.dry_run and run.until == "report":
        show_leaderboard(root)


def show_leaderboard(root: Workspace) -> None:
    """Print what several models scored, best first."""
    board = json.loads(root.artefact("leaderboard.json").read_text(encoding="utf-8"))
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in ("model", "engine", "dev", "test", "served"):
        table.add_column(name, justify="right" if name in ("dev", "test") else "left")
    for row in board["rows"]:
        figures = ("-" if row[split] is None else f"{row[split]:.4f}" for split in ("dev", "test"))
        table.add_row(row["model"], row["engine"], *figures, "yes" if row["wins"] else "")
    console(stderr=False).print(table)
    said = f"nDCG@10, {board['compared']}, on {board['questions']['kind']} questions. {board['reason']}"
    console().print(said, highlight=False, markup=False)


def _said(step: Step, dry_run: bool) -> Step:
    screen = console()
    if dry_run:
        screen.print(
            f"{step.stage:9}", f"would run: {step.why}" if step.why else "up to date", highlight=False
        )
    elif step.result is not None:
        figures = ", ".join(f"{name} {value}" for name, value in step.result.counts.items())
        screen.print(f"{step.stage:9} {step.seconds:6.1f} s  {figures}", highlight=False, markup=False)
        for note in step.result.notes:
            screen.print(f"{'':9} {note}", highlight=False, markup=False)
        for drop in step.result.drops:
            sample = f", for example {drop.samples[0]!r:.80}" if drop.samples else ""
            screen.print(
                f"{'':9} left out {drop.count}: {drop.reason}{sample}", highlight=False, markup=False
            )
    return step


def _close(path: Path, steps: list[Step], until: str) -> None:
    screen = console()
    if not any(step.why for step in steps):
        screen.print(f"{path}: nothing to do, everything is up to date.", highlight=False, markup=False)
    if until == "report":
        screen.print(f"report: {path / 'report.html'}", highlight=False, markup=False)
        screen.print(f'next:   searchfit search {path} "your question"', highlight=False, markup=False)
    if until == "split":
        screen.print(f"next:   searchfit passages {path}", highlight=False, markup=False)
    if until == "screen":
        screen.print(f"next:   searchfit queries {path}", highlight=False, markup=False)
