"""The command that trains a re-ranker on a fitted workspace."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from searchfit.cli.app import AsJson, WorkspacePath, app, progress_bar, say
from searchfit.cli.fitting import settings_of
from searchfit.cli.options import Config, Sets

if TYPE_CHECKING:
    from searchfit.reranking import RerankerResult


@app.command("train-reranker")
def train_reranker(
    workspace: WorkspacePath,
    base: Annotated[str, Option(help='an encoder ("minilm", a folder, a hub id) or a cross-encoder')] = "",
    output: Annotated[
        Path | None, Option("--output", "-o", metavar="FOLDER", help="instead of WORKSPACE/reranker")
    ] = None,
    objective: Annotated[str, Option(help="listwise, bce or margin-mse")] = "",
    config: Config = None,
    set_: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Train a re-ranker for a workspace. A cross-encoder, on its questions and mined negatives; says what it
    brings."""
    named = {"rerank_training.base": base, "rerank_training.objective": objective}
    settings = settings_of(workspace, config, set_, named)
    from searchfit.reranking import train_reranker as work

    with progress_bar() as progress:
        result = work(workspace, output or workspace / "reranker", settings, progress)
    if as_json:
        print(json.dumps(result.to_dict(), ensure_ascii=False))
        return
    _tell(workspace, result)


def _tell(workspace: Path, result: RerankerResult) -> None:
    say(f"{result.queries} queries, {result.steps} steps, the best weights after step {result.best_step}")
    for split, found in result.comparisons.items():
        if math.isnan(found.mean_a):
            say(f"{split:4} no questions")
            continue
        means = f"nDCG@10 {found.mean_a:.4f} -> {found.mean_b:.4f} on {found.n} {result.kind} questions"
        how = f"the first {result.depth} re-ranked, weight {result.weight:g}"
        say(f"{split:4} {means}, p = {found.p:.4f} ({how})")
    say(f"model: {result.folder}")
    say(f"next:  searchfit train {workspace} --set rerank.model={result.folder}")
