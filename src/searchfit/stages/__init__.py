"""The stages of a fit, one file each: `run(settings, inputs, tools) -> StageResult`.

A stage gets the settings sections it declared, the paths of the artefacts it reads (by name, see
`workspace.ARTEFACTS`) and its tools. It writes its artefacts below `tools.output`, under the names they
have in the workspace, and never opens the workspace. What it finds in `tools.output` is its own work of a
run that was killed, made with equal settings and inputs, and may be carried on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from searchfit.executors import LOCAL, Executor


class Progress(Protocol):
    """Told how far a stage is; `total` 0 means unknown, `note` stands beside it, for example a cost."""

    def __call__(self, label: str, done: int, total: int, note: str = "") -> None: ...


def silent(label: str, done: int, total: int, note: str = "") -> None:
    """A Progress that says nothing."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What the pipeline lends a stage: the folder to write to, the key of this run (a hash of settings and
    inputs), whom to tell of progress, the ledger of generators (outlives runs; None: beside the output),
    whether the user forced the stage, a folder of vectors that outlive runs (None: beside the output), and
    who works on batches."""

    output: Path
    key: str = ""
    progress: Progress = silent
    ledger: Path | None = None
    forced: bool = False
    cache: Path | None = None
    executor: Executor = LOCAL
