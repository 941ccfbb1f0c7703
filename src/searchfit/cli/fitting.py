"""Commands that work on a workspace: fit, ingest, train, generate."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from searchfit.cli.app import (
    AsJson,
    WorkspacePath,
    app,
    command_line,
    console,
    progress_bar,
    say,
    workspace_path,
)
from searchfit.cli.options import (
    Computing,
    Config,
    Documents,
    Effort,
    Pairs,
    Questions,
    Reading,
    Sets,
    Writing,
    given,
    grouped,
)
from searchfit.errors import SettingsError

if TYPE_CHECKING:
    from searchfit.config import Settings
    from searchfit.pipeline import Step
    from searchfit.workspace import Workspace


Output = Annotated[
    Path,
    Option(
        "--output",
        "-o",
        parser=workspace_path,
        metavar="WORKSPACE",
        help="folder to make or carry on, or an s3:// URL",
    ),
]
Again = Annotated[
    str, Argument(metavar="[SOURCE]", help="as for fit; left out, WORKSPACE's own source and settings hold")
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
@grouped
def fit(
    output: Output,
    source: Documents = "",
    *,
    reading: Reading,
    queries: Questions = "",
    pairs: Pairs = "",
    feedback: Feedback = False,
    model: Model = None,
    reranker: Annotated[str, Option(help="cross-encoder, a folder or a hub id, that competes")] = "",
    effort: Effort = "normal",
    writing: Writing,
    computing: Computing,
    config: Config = None,
    set_: Sets = None,
    force: Force = None,
    until: Annotated[str, Option(metavar="STAGE", help="stop after this stage")] = "report",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Fit a search engine to documents. Reads them, writes questions, tunes, proves, and leaves an engine."""
    named = {
        **reading.values(source or ("pairs:" if pairs else "")),
        "queries.file": queries,
        "pairs.file": pairs,
        "feedback.workspace": _of_readers(output) if feedback else "",
        "model.name": model[0] if model else "",
        "rerank.model": reranker,
        **writing.values(),
        **computing.values(),
    }
    settings = settings_of(None, config, set_, named, effort)
    run = Run(force, until, dry_run, as_json)
    if model and len(model) > 1:
        _compare(output, settings, tuple(model), run)
    else:
        _work(output, settings, run)


@app.command()
@grouped
def train(
    workspace: WorkspacePath,
    pairs: Pairs = "",
    feedback: Feedback = False,
    *,
    computing: Computing,
    config: Config = None,
    set_: Sets = None,
    force: Force = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train again with other settings. What wins is served, and what holds is not redone."""
    named = {
        "pairs.file": pairs,
        "feedback.workspace": _of_readers(workspace) if feedback else "",
        **computing.values(),
    }
    settings = settings_of(workspace, config, set_, named)
    _work(workspace, settings, Run(force, "report", dry_run, as_json))


@app.command()
@grouped
def ingest(
    output: Output,
    source: Again = "",
    *,
    reading: Reading,
    config: Config = None,
    set_: Sets = None,
    force: Force = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Only read documents and cut them into passages. `searchfit documents` and `searchfit passages` show
    them; the same fit goes on from there."""
    settings = settings_of(None if source else output, config, set_, reading.values(source))
    _work(output, settings, Run(force, "split", dry_run, as_json))


@app.command()
@grouped
def generate(
    output: Output,
    source: Again = "",
    *,
    reading: Reading,
    writing: Writing,
    computing: Computing,
    config: Config = None,
    set_: Sets = None,
    force: Force = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Only write questions and screen them. `searchfit queries` and `searchfit export` show them."""
    named = {**reading.values(source), **writing.values(), **computing.values()}
    settings = settings_of(None if source else output, config, set_, named)
    _work(output, settings, Run(force, "screen", dry_run, as_json))


@dataclass(frozen=True, slots=True)
class Run:
    """How to run: what again, until where, only in words, and what to print."""

    force: list[str] | None
    until: str
    dry_run: bool
    as_json: bool


def settings_of(
    workspace: Path | None,
    config: Path | None,
    sets: list[str] | None,
    named: dict[str, Any],
    effort: str = "normal",
) -> Settings:
    """Settings from the options that were given, over those of a workspace where one is named, or else those
    of an effort."""
    from searchfit.config import effort_values, load_settings
    from searchfit.workspace import Workspace

    base = load_settings(values=effort_values(effort))
    if workspace is not None:
        place = Workspace(workspace)
        place.require()
        base = load_settings(place.settings_file)
    return load_settings(config, sets or (), given(named), base)


def _of_readers(workspace: Path) -> str:
    """Where the feedback of a workspace is kept. Raises SettingsError where none can be."""
    from searchfit.workspace import mirrored

    if mirrored(workspace):
        raise SettingsError(
            "a workspace in an object store keeps no feedback.",
            "Serve a folder (searchfit download URL FOLDER); --set feedback.workspace=FOLDER learns from it.",
        )
    return str(workspace.resolve())


def _only_data() -> AbstractContextManager[object]:
    """Standard output is for data: what libraries print (Ray, of workers that ended) goes to people."""
    return redirect_stdout(sys.stderr)


def _work(output: Path, settings: Settings, run: Run) -> None:
    from searchfit.pipeline import Fit
    from searchfit.workspace import Workspace

    workspace = Workspace(output)
    with _only_data(), progress_bar() as progress:
        work = Fit(workspace, settings, frozenset(run.force or ()), run.until, progress, command_line())
        steps = [_said(step, run.dry_run) for step in (work.plan() if run.dry_run else work.run())]
    if run.as_json:
        print(json.dumps([{"stage": s.stage, "why": s.why, "seconds": s.seconds} for s in steps]))
    elif not run.dry_run:
        _close(workspace, steps, run.until)


def _compare(output: Path, settings: Settings, models: tuple[str, ...], run: Run) -> None:
    from searchfit.contest import Contest
    from searchfit.pipeline import Fit
    from searchfit.workspace import Workspace

    root = Workspace(output)
    with _only_data(), progress_bar() as progress:
        work = Fit(root, settings, frozenset(run.force or ()), run.until, progress, command_line())
        contest = Contest(work, models)
        before, steps = "", []
        for model, step in contest.plan() if run.dry_run else contest.run():
            if model != before:
                say(f"model {model}")
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
    say(said)


def _said(step: Step, dry_run: bool) -> Step:
    if dry_run:
        say(f"{step.stage:9} " + (f"would run: {step.why}" if step.why else "up to date"))
    elif step.result is not None:
        figures = ", ".join(f"{name} {value}" for name, value in step.result.counts.items())
        say(f"{step.stage:9} {step.seconds:6.1f} s  {figures}")
        for note in step.result.notes:
            say(f"{'':9} {note}")
        for drop in step.result.drops:
            sample = f", for example {drop.samples[0]!r:.80}" if drop.samples else ""
            say(f"{'':9} left out {drop.count}: {drop.reason}{sample}")
    return step


def _close(workspace: Workspace, steps: list[Step], until: str) -> None:
    name = workspace.name
    if not any(step.why for step in steps):
        say(f"{name}: nothing to do, everything is up to date.")
    if until == "report":
        say(f"report: {workspace.artefact('report.html')}")
        say(f'next:   searchfit search {name} "your question"')
    if until == "split":
        say(f"next:   searchfit passages {name}")
    if until == "screen":
        say(f"next:   searchfit queries {name}")
