"""The command over what readers judged and clicked."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from searchfit.cli.app import AsJson, WorkspacePath, app, one_line
from searchfit.errors import SettingsError

if TYPE_CHECKING:
    from searchfit.feedback import Feedback, Said


@app.command()
def feedback(
    workspace: WorkspacePath,
    export: Annotated[Path | None, Option(metavar="DIR", help="write it for other tools instead")] = None,
    format_: Annotated[
        Literal["qrels", "pairs"] | None,
        Option("--format", help="of --export: judgements as a BEIR folder, or pairs to train on"),
    ] = None,
    limit: Annotated[int, Option(min=0, help="how many rows; 0: all")] = 20,
    as_json: AsJson = False,
) -> None:
    """List what readers judged and clicked.

    `searchfit fit --feedback` learns from it.
    """
    from searchfit.config import load_settings
    from searchfit.feedback import Feedback, overview
    from searchfit.workspace import Workspace

    if bool(export) != bool(format_):
        raise SettingsError(
            "--export and --format go together.", "Write --export DIR --format qrels, or pairs."
        )
    kept = Feedback(workspace)
    rows = overview(kept, load_settings(Workspace(workspace).settings_file).feedback)
    if export is not None:
        files = _export(workspace, export, format_ == "pairs", rows)
        said = json.dumps({"files": list(files)}) if as_json else f"files {len(files)}: {export}"
        print(said, file=sys.stdout if as_json else sys.stderr)
    elif as_json:
        print(json.dumps({**_counts(kept), "rows": [asdict(row) for row in rows]}, ensure_ascii=False))
    else:
        _show(_counts(kept), rows, limit)


def _export(workspace: Path, folder: Path, pairs: bool, rows: list[Said]) -> tuple[str, ...]:
    from searchfit.exchange import export_feedback, export_judgements
    from searchfit.judging import Questions

    if pairs:
        return export_feedback(workspace, folder, rows)
    return export_judgements(workspace, folder, Questions((), {}))


def _counts(kept: Feedback) -> dict[str, Any]:
    judges = Counter(one.judge for one in kept.judgements())
    return {"judgements": judges.total(), "judges": dict(judges), "clicks": len(kept.clicks())}


def _show(counts: dict[str, Any], rows: list[Said], limit: int) -> None:
    by = ", ".join(f"{count} by {one_line(judge, 30)}" for judge, count in counts["judges"].items())
    print(f"{counts['judgements']} judgements{f' ({by})' if by else ''}, {counts['clicks']} clicks")
    if rows:
        print(f"{'grade':>5} {'clicks':>6} {'weight':>7}  {'document':18}  query")
    for row in rows[: limit or None]:
        grade = "-" if row.grade is None else str(row.grade)
        document, query = one_line(row.document_id, 18), one_line(row.query, 38)
        print(f"{grade:>5} {row.clicks:6} {row.weight:7.1f}  {document:18}  {query}")
    if limit and len(rows) > limit:
        print(f"the first {limit} of {len(rows)}; all with --limit 0", file=sys.stderr)
