"""The command line: parse, call, print. Data goes to stdout, progress and messages to stderr."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn

from searchfit.cli import (
    checking,
    exporting,
    feedback,
    fitting,
    growing,
    judging,
    queries,
    reranking,
    searching,
    serving,
    settings,
    stores,
    tables,
)
from searchfit.cli.app import app
from searchfit.errors import SearchfitError, SettingsError
from searchfit.training.crew import crew

__all__ = [
    "app",
    "checking",
    "exporting",
    "feedback",
    "fitting",
    "growing",
    "judging",
    "main",
    "queries",
    "reranking",
    "searching",
    "serving",
    "settings",
    "stores",
    "tables",
]


_CARRY_ON = ("fit", "ingest", "train", "generate", "train-reranker", "judge", "add", "update", "index")
"""The commands that go on where they were interrupted."""


def main() -> None:
    """Run the command line. Exit status: 0 ok, 1 failure, 2 usage, 130 interrupted."""
    if "RANK" not in os.environ:
        _main()
        return
    status: int | str | None = 0
    try:
        _main()
    except SystemExit as end:
        status = end.code
    # Threads of torch.distributed may outlive the interpreter, and then abort a process that has done all.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


def _main() -> None:
    try:
        with crew() as first:
            if first:
                app()
            else:
                _assist()
    except SettingsError as error:
        _fail(error, 2)
    except SearchfitError as error:
        _fail(error, 1)
    except SystemExit as end:
        if end.code == 130:  # typer's, for KeyboardInterrupt
            more = "; the same command carries on" if sys.argv[1:2] and sys.argv[1] in _CARRY_ON else ""
            print(f"\ninterrupted{more}", file=sys.stderr)
        raise
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


def _assist() -> None:
    from searchfit.pipeline import assist

    try:
        assist()
    except KeyboardInterrupt:
        sys.exit(130)  # the first process says so


def _fail(error: SearchfitError, status: int) -> NoReturn:
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(error.hint, file=sys.stderr)
    sys.exit(status)
