"""What the commands share: the application, arguments, the console and progress."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup

if TYPE_CHECKING:
    from rich.console import Console

    from searchfit.stages import Progress

_FIRST = (
    *("fit", "search", "status", "serve", "check", "evaluate", "compare", "judge", "feedback"),
    *("ingest", "documents", "passages", "generate", "queries", "train"),
)
"""The commands that help lists first, in this order."""

_CONTROL = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")


class _Commands(TyperGroup):
    """The commands in the order in which they are needed."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))


app = typer.Typer(
    name="searchfit",
    cls=_Commands,
    help="Fit a search engine to your own documents: no labels, one command, proven or left unchanged.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def workspace_path(name: str) -> Path:
    """The folder of a workspace that is named by its path or URL."""
    from searchfit.workspace import located

    return located(name)


WorkspacePath = Annotated[
    Path,
    Argument(
        parser=workspace_path, metavar="WORKSPACE", help="folder that `searchfit fit` made, or its s3:// URL"
    ),
]
AsJson = Annotated[bool, Option("--json", help="print JSON")]


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"searchfit {version('searchfit')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    pass


def command_line() -> str:
    """The command as it was typed, without passwords, for the manifest."""
    import shlex

    from searchfit.config.secrets import without_passwords

    return shlex.join(["searchfit", *map(without_passwords, sys.argv[1:])])


def console(stderr: bool = True) -> Console:
    """Where people read."""
    from rich.console import Console

    return Console(stderr=stderr, soft_wrap=True)


def say(line: str, stderr: bool = True) -> None:
    """Print a line for people, as it is."""
    console(stderr).print(line, highlight=False, markup=False)


def one_line(text: str, most: int | None = None) -> str:
    """A text, or its beginning of `most` characters, on one line whatever stands in it."""
    shown = text if most is None or len(text) <= most else f"{text[: most - 3]}..."
    return _CONTROL.sub(" ", shown).strip()


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress bar on a terminal; silence elsewhere."""
    from searchfit.stages import silent

    if not sys.stderr.isatty():
        yield silent
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns: list[Any] = [
        TextColumn("{task.description:9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    ]
    with Bar(*columns, console=console(), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def tell(label: str, done: int, total: int, note: str = "") -> None:
            if label not in tasks:
                for task in tasks.values():
                    bar.update(task, visible=False)
                tasks[label] = bar.add_task(label, total=total or None, note="", rate="")
            speed = bar.tasks[tasks[label]].speed
            rate = f"{speed:.1f}/s" if speed else ""
            bar.update(tasks[label], completed=done, note=note, rate=rate)

        yield tell
