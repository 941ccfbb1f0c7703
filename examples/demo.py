"""Fit a search engine to Python documentation on this machine, then search it before and after.

    make demo        or        python examples/demo.py [WORKSPACE]

Nothing is downloaded: the corpus is the docstrings of well-known standard library modules and of some
packages that searchfit depends on. Run it again and only the searches run, for the fit is done.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import searchfit
from searchfit.config import ModelSettings
from searchfit.encoders import load_encoder
from searchfit.fusion import rank
from searchfit.records import Engine
from searchfit.search import Searcher

STDLIB = """
argparse asyncio base64 bisect builtins calendar collections concurrent configparser contextlib copy
csv dataclasses datetime enum fnmatch functools getpass glob hashlib heapq hmac html io itertools
json logging math multiprocessing operator os pathlib pickle pprint queue random re secrets shlex
shutil signal smtplib sqlite3 string struct subprocess sys tempfile textwrap threading time timeit
traceback types urllib uuid warnings weakref webbrowser zipfile zoneinfo
"""
OURS = "filelock psutil typer"
SOURCE = "pydoc:" + ",".join(f"{STDLIB} {OURS}".split())

QUESTIONS = (
    "run a command and get its output",
    "cache the results of a function",
    "temporary file that is deleted when closed",
    "convert a timestamp to a date",
    "store an object on disk and load it later",
)


def main(workspace: Path) -> None:
    started = time.perf_counter()
    # Fewer questions than the default, for a demo should be over soon.
    options = ["-o", str(workspace), "--set", "generate.max_queries=2400"]
    print("$ searchfit fit pydoc:argparse,asyncio,base64, ... ,typer", *options, flush=True)
    command = [sys.executable, "-m", "searchfit", "fit", SOURCE, *options]
    # The command line rather than searchfit.fit(), because it tells of each stage as it ends.
    subprocess.run(command, check=True)
    fitted = time.perf_counter()
    ws = searchfit.open(workspace)
    before = untuned(ws, QUESTIONS, 3)
    after = [[hit.document_id for hit in ws.search(question, k=3)] for question in QUESTIONS]
    console = Console(soft_wrap=True)
    for question, left, right in zip(QUESTIONS, before, after, strict=True):
        table = Table("untuned dense model", f"fitted: {ws.engine.name}", box=None, title_justify="left")
        table.title = f"\n[bold]{escape(question)}[/bold]"
        table.columns[0].min_width = 46
        for row in zip(left, right, strict=True):
            table.add_row(*row)
        console.print(table)
    print(f"\nfit {fitted - started:.0f} s, searches {time.perf_counter() - fitted:.0f} s")
    print(f"report: {workspace / 'report.html'}")
    program = os.path.relpath(Path(sys.executable).with_name("searchfit"))
    print(f'yours:  {program} search {workspace} "your question"')


def untuned(ws: Searcher, questions: Sequence[str], k: int) -> list[list[str]]:
    """The ids that the embedding model finds as it came: one vector a passage, no keywords, no tuning."""
    vectors = load_encoder(ModelSettings()).encode_queries(questions)
    engine = Engine("untuned dense", units="passage", keyword_weight=0)
    found = rank([engine], ws.corpus, vectors, questions, k)[0]
    return [ws.document_ids(rows) for rows in found.rows]


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-search"))
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # what went wrong has been said
    except searchfit.SearchfitError as error:
        sys.exit(f"error: {error}")
