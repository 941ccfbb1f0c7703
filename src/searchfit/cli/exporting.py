"""The command that hands out what a workspace holds, in formats that other tools read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from searchfit.cli.app import AsJson, WorkspacePath, app
from searchfit.cli.judging import QueriesFile
from searchfit.errors import SettingsError

Folder = Path | None


@app.command()
def export(
    workspace: WorkspacePath,
    pairs: Annotated[
        Folder, Option(metavar="DIR", help="folder to make, for the kept queries with passages")
    ] = None,
    model: Annotated[
        Folder, Option(metavar="DIR", help="folder to make, for the model: SentenceTransformer(DIR)")
    ] = None,
    runs: Annotated[
        Folder, Option(metavar="DIR", help="folder to make, for a TREC run of every system")
    ] = None,
    format_: Annotated[
        str,
        Option(
            "--format",
            help="of --pairs: jsonl, tsv, csv, passages (CSV, one to a row), parquet, sentence-transformers, "
            "beir",
        ),
    ] = "",
    split: Annotated[
        str, Option(help="of --pairs: train, dev, test or all; of --runs: which qrels of a BEIR folder")
    ] = "",
    queries: QueriesFile = "",
    as_json: AsJson = False,
) -> None:
    """Write queries, model or runs for other tools. Kept queries with their passages (--pairs), the model, or
    a TREC run of every system."""
    named = [folder for folder in (pairs, model, runs) if folder]
    if len(named) != 1:
        raise SettingsError(
            f"{len(named)} things to export are named, one is expected.",
            "Give one of --pairs DIR, --model DIR and --runs DIR.",
        )
    stray = {"--format": format_ and not pairs, "--split": split and model, "--queries": queries and not runs}
    if any(stray.values()):
        names = " and ".join(name for name, wrong in stray.items() if wrong)
        raise SettingsError(f"{names} does not go with this export.", "See searchfit export --help.")
    counts: dict[str, int] = {}
    if pairs:
        from searchfit.export import export_pairs

        done = export_pairs(workspace, pairs, format_ or "jsonl", split or "all")
        counts, files = {"pairs": done.pairs}, done.files
    elif model:
        from searchfit.exchange import export_model

        files = export_model(workspace, model)
    else:
        from searchfit.exchange import export_runs
        from searchfit.judging import questions

        asked = questions(workspace, queries, split)
        counts, files = {"queries": len(asked.queries)}, export_runs(workspace, named[0], asked)
    if as_json:
        print(json.dumps({**counts, "files": list(files)}, ensure_ascii=False))
    else:
        said = "".join(f"{name} {count}, " for name, count in counts.items())
        print(f"{said}files {len(files)}: {named[0]}", file=sys.stderr)


@app.command()
def download(
    url: Annotated[str, Argument(metavar="URL", help="s3:// URL of a workspace")],
    folder: Annotated[Path, Argument(metavar="FOLDER", help="folder to make")],
) -> None:
    """Make a folder of a workspace in an object store. What is fitted or changed there later stays here."""
    from searchfit.mirror import download as copy

    copy(url, folder)
    print(f"{url} is in {folder}", file=sys.stderr)
