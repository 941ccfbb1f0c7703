"""The command that judges results in the terminal, or by keys from a pipe, one a line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Option

from searchfit.cli.app import AsJson, WorkspacePath, app, console, say
from searchfit.errors import SettingsError

if TYPE_CHECKING:
    from searchfit.judgements import Record
    from searchfit.judging import Entry, Pool, Questions, Session

HELP = "y relevant (or 1, 2, 3: how much), n not (0), s skip, u undo, m whole document, q quit"
_GRADES = {"y": 1, "n": 0, "0": 0, "1": 1, "2": 2, "3": 3}
_SHOWN_CHARS = 20_000
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")

QueriesFile = Annotated[
    str, Option(help="questions: .txt, .csv, .tsv, .jsonl or a BEIR folder; default: the fit's own")
]
Split = Annotated[str, Option(help="which qrels/SPLIT.tsv of a BEIR folder of questions; default: test")]


@app.command()
def judge(
    workspace: WorkspacePath,
    queries: QueriesFile = "",
    split: Split = "",
    judge_: Annotated[
        str | None,
        Option(
            "--judge", metavar="NAME", help="who judges; default: me. With --export: only what they judged"
        ),
    ] = None,
    depth: Annotated[
        int | None, Option(min=1, max=100, help="judge the best so many of every system; default: 10")
    ] = None,
    limit: Annotated[
        int | None, Option(min=0, help="how many questions, the first ones; 0: all; default: 50")
    ] = None,
    export: Annotated[Path | None, Option(metavar="DIR", help="judge nothing; write what was judged")] = None,
    format_: Annotated[
        Literal["beir", "trec"] | None, Option("--format", help="of --export; default: beir")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge results by hand, blinded. What was judged is kept, and the same command goes on."""
    from searchfit.judgements import Record
    from searchfit.judging import questions

    name = "me" if judge_ is None else judge_.strip()
    if not name:
        raise SettingsError("the judge has no name.", "Name one: --judge NAME")
    if export is None and format_:
        raise SettingsError("--format goes with --export.", "Name a folder: --export DIR")
    if export is not None and not (depth is None and limit is None):
        raise SettingsError("--export writes all that was judged.", "Leave --depth and --limit out.")
    asked = questions(workspace, queries, split)
    if export is not None:
        from searchfit.exchange import export_judgements

        only = "" if judge_ is None else name
        files = export_judgements(workspace, export, asked, only, format_ == "trec")
        said = json.dumps({"files": list(files)}) if as_json else f"files {len(files)}: {export}"
        print(said, file=sys.stdout if as_json else sys.stderr)
        return
    record = Record(workspace)
    asked = _first(asked, 50 if limit is None else limit)
    session, pool = _session(workspace, record, asked, name, depth or 10)
    _judge(session, pool)
    _tell(session, pool, record, as_json)


def _session(
    workspace: Path, record: Record, asked: Questions, judge_: str, depth: int
) -> tuple[Session, Pool]:
    from searchfit.config import load_settings
    from searchfit.judging import Pool, Session
    from searchfit.workspace import Workspace

    pool = Pool.of(workspace, asked, depth)
    seed = load_settings(Workspace(workspace).settings_file).seed
    kind = "generated questions" if asked.generated else "questions"
    done, total = (session := Session(pool, record, judge_, seed)).progress
    say(
        f"{len(asked.queries)} {kind}, the best {depth} of {len(pool.systems)} systems: {total} documents to"
        f" judge, {done} of them judged by {judge_}."
    )
    return session, pool


def _first(asked: Questions, limit: int) -> Questions:
    if not limit or len(asked.queries) <= limit:
        return asked
    say(f"the first {limit} of {len(asked.queries)} questions; all with --limit 0")
    return replace(asked, queries=asked.queries[:limit])


def _judge(session: Session, pool: Pool) -> None:
    """Show what is to be judged and do what the keys say, to the end of either."""
    keys = _keys()
    if (entry := session.current) is not None:
        say(HELP)
        _show(session, pool, entry)
    while (entry := session.current) is not None:
        key = next(keys, "q")
        if key == "q":
            return
        if key in _GRADES:
            session.judge_it(_GRADES[key])
        elif key == "s":
            session.skip()
        elif key == "u":
            if not session.undo():
                say("nothing to take back")
        elif key != "m":
            say(HELP)
            continue
        if session.current is not None:
            _show(session, pool, session.current, whole=key == "m")


def _keys() -> Iterator[str]:
    """The keys that are pressed, on a terminal; else the lines of the input that are not blank."""
    if sys.stdin.isatty():
        while True:
            try:
                yield typer.getchar().lower()
            except EOFError:
                return
    while True:
        try:
            line = sys.stdin.readline()
        except OSError:  # an input that cannot be read has ended
            return
        if not line:
            return
        if key := line.strip().lower():
            yield key


def _show(session: Session, pool: Pool, entry: Entry, whole: bool = False) -> None:
    from rich.text import Text

    page = pool.page(entry, whole)
    done, total = session.progress
    screen = console()
    screen.print(Text.assemble((f"\n[{done + 1}/{total}] ", "dim"), (_clean(entry.query), "bold")))
    if page.title:
        screen.print(Text(_clean(page.title), "underline"))
    shown = Text(_clean(page.text[:_SHOWN_CHARS]))
    for start, end in page.highlights:
        shown.stylize("bold cyan", start, end)
    screen.print(shown)
    if len(page.text) > _SHOWN_CHARS:
        say(f"... and {len(page.text) - _SHOWN_CHARS} characters more")


def _clean(text: str) -> str:
    """As long as before, without what would steer a terminal."""
    return _CONTROL.sub(" ", text)


def _tell(session: Session, pool: Pool, record: Record, as_json: bool) -> None:
    """What is judged by whom, and how the judges agree."""
    from searchfit.judgements import agreements

    held = record.judgements()
    counts: dict[str, int] = {}
    for judgement in held:
        counts[judgement.judge] = counts.get(judgement.judge, 0) + 1
    found = agreements(held)
    done, total = session.progress
    if as_json:
        told: dict[str, Any] = {"judge": session.judge, "judged": done, "pool": total}
        told |= {"systems": list(pool.systems), "judges": counts, "agreement": [asdict(a) for a in found]}
        print(json.dumps(told, ensure_ascii=False))
        return
    print(f"{done} of {total} judged by {session.judge}")
    for other in sorted(set(counts) - {session.judge}):
        print(f"{counts[other]} judged by {other}")
    for each in found:
        kappa = "not defined: one grade only" if each.kappa is None else f"{each.kappa:.2f}"
        names = " and ".join(each.judges)
        print(f"{names}: {each.both} in common, {each.equal:.0%} equal, kappa {kappa}")
