"""The command line: parse, call, print. Data goes to stdout, progress and messages to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer import Argument, Option

from searchfit.errors import SearchfitError, SettingsError

if TYPE_CHECKING:
    from rich.console import Console

    from searchfit.pipeline import Step
    from searchfit.records import Hit
    from searchfit.stages import Progress

app = typer.Typer(
    name="searchfit",
    help="Fit a search engine to your own documents: no labels, one command, proven or left unchanged.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

WorkspacePath = Annotated[Path, Argument(metavar="WORKSPACE", help="folder that `searchfit fit` made")]
AsJson = Annotated[bool, Option("--json", help="print JSON")]


def main() -> None:
    """Run the command line. Exit status: 0 ok, 1 failure, 2 usage, 130 interrupted."""
    try:
        app()
    except SettingsError as error:
        _fail(error, 2)
    except SearchfitError as error:
        _fail(error, 1)
    except SystemExit as end:
        if end.code == 130:  # typer's, for KeyboardInterrupt
            print("\ninterrupted; the same command carries on", file=sys.stderr)
        raise
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


def _fail(error: SearchfitError, status: int) -> NoReturn:
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(error.hint, file=sys.stderr)
    sys.exit(status)


@app.command()
def fit(
    source: Annotated[str, Argument(metavar="SOURCE", help="file, folder or pydoc:NAME,NAME...")],
    output: Annotated[Path, Option("--output", "-o", metavar="WORKSPACE", help="folder to make or carry on")],
    text: Annotated[list[str] | None, Option(help="column of the text; may be repeated")] = None,
    id_: Annotated[str, Option("--id", help="column of the document id")] = "",
    title: Annotated[str, Option(help="column of the title")] = "",
    queries: Annotated[str, Option(help="your own questions: .txt, .csv, .jsonl or a BEIR folder")] = "",
    model: Annotated[str, Option(help='"minilm", a model folder or a hub id')] = "",
    config: Annotated[Path | None, Option(help="settings as TOML")] = None,
    set_: Annotated[
        list[str] | None, Option("--set", metavar="KEY=VALUE", help="any setting, section.key=value")
    ] = None,
    force: Annotated[list[str] | None, Option(metavar="STAGE", help="run this stage again")] = None,
    until: Annotated[str, Option(metavar="STAGE", help="stop after this stage")] = "report",
    dry_run: Annotated[bool, Option(help="say what would run and why, and stop")] = False,
    as_json: AsJson = False,
) -> None:
    """Read documents, write questions, tune, prove, and leave a search engine."""
    from searchfit.config import load_settings
    from searchfit.pipeline import Fit
    from searchfit.workspace import Workspace

    named = {
        "source.source": source,
        "source.text": tuple(text or ()),
        "source.id": id_,
        "source.title": title,
        "queries.file": queries,
        "model.name": model,
    }
    values = {key: value for key, value in named.items() if value}
    settings = load_settings(config, set_ or (), values)
    workspace = Workspace(output)
    with _progress() as progress:
        work = Fit(workspace, settings, frozenset(force or ()), until, progress, _command())
        steps = [_said(step, dry_run) for step in (work.plan() if dry_run else work.run())]
    if as_json:
        print(json.dumps([{"stage": s.stage, "why": s.why, "seconds": s.seconds} for s in steps]))
    elif not dry_run:
        _close(workspace.path, steps, until)


def _said(step: Step, dry_run: bool) -> Step:
    console = _console()
    if dry_run:
        console.print(
            f"{step.stage:9}", f"would run: {step.why}" if step.why else "up to date", highlight=False
        )
    elif step.result is not None:
        figures = ", ".join(f"{name} {value}" for name, value in step.result.counts.items())
        console.print(f"{step.stage:9} {step.seconds:6.1f} s  {figures}", highlight=False, markup=False)
        for note in step.result.notes:
            console.print(f"{'':9} {note}", highlight=False, markup=False)
        for drop in step.result.drops:
            sample = f", for example {drop.samples[0]!r:.80}" if drop.samples else ""
            console.print(
                f"{'':9} left out {drop.count}: {drop.reason}{sample}", highlight=False, markup=False
            )
    return step


def _close(path: Path, steps: list[Step], until: str) -> None:
    console = _console()
    if not any(step.why for step in steps):
        console.print(f"{path}: nothing to do, everything is up to date.", highlight=False, markup=False)
    if until == "report":
        console.print(f"report: {path / 'report.html'}", highlight=False, markup=False)
        console.print(f'next:   searchfit search {path} "your question"', highlight=False, markup=False)


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

    console = _console(stderr=False)
    head = hit.title if hit.title and hit.title != hit.document_id else ""
    console.print(
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
    console.print(Text("   ") + Text(" ").join(line.split()))


@app.command()
def status(workspace: WorkspacePath, as_json: AsJson = False) -> None:
    """Show what a workspace holds and which engine it serves."""
    from searchfit.workspace import Workspace

    place = Workspace(workspace)
    place.require()
    manifest = place.manifest()
    if as_json:
        print(json.dumps(manifest, ensure_ascii=False))
        return
    console = _console(stderr=False)
    for name, entry in manifest["stages"].items():
        figures = ", ".join(f"{key} {value}" for key, value in entry["counts"].items())
        console.print(
            f"{name:9} {entry['seconds']:7.1f} s {entry['peak_memory_mb']:6} MB  {figures}",
            highlight=False,
            markup=False,
        )
    served = place.served()
    console.print(
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
    console = _console(stderr=False)
    console.print(table)
    for note in outcome.notes:
        _console().print(note, highlight=False, markup=False)


def _command() -> str:
    import shlex

    return shlex.join(["searchfit", *sys.argv[1:]])


def _console(stderr: bool = True) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, soft_wrap=True)


@contextmanager
def _progress() -> Iterator[Progress]:
    """A progress bar on a terminal; silence elsewhere."""
    from searchfit.stages import silent

    if not sys.stderr.isatty():
        yield silent
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns: list[Any] = [
        TextColumn("{task.description:9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    ]
    with Bar(*columns, console=_console(), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def tell(label: str, done: int, total: int) -> None:
            if label not in tasks:
                for task in tasks.values():
                    bar.update(task, visible=False)
                tasks[label] = bar.add_task(label, total=total or None)
            bar.update(tasks[label], completed=done)

        yield tell
