"""Train each corpus by each recipe, and say what the chosen engine is worth on real questions.

    python benchmarks/recipes.py DIR [DIR ...] [--work FOLDER] [--recipes N,N] [--labels] [--set KEY=VALUE]

DIR: folders in the BEIR layout. A corpus is read, encoded and written questions for once; each recipe then
trains that workspace again and is measured on the test questions, which no fit sees. With `--labels` the
pairs of qrels/train.tsv train too. Prints a row for each recipe: nDCG@10 of vectors and engines, untuned and
chosen, and the seconds of training with what follows. FOLDER keeps the workspaces, so a stopped benchmark
carries on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

BOTH = {"train.towers": "shared", "train.batch_size": 32, "train.epochs": 1, "mine.max_queries": 1000}
"""Tuning passages takes hours on a CPU, so these learn from fewer questions."""

RECIPES: dict[str, dict[str, object]] = {
    "distill, query tower": {},
    "mnr, query tower": {"train.objective": "mnr"},
    "margin-mse, query tower": {"train.objective": "margin-mse"},
    "distill, keyword teacher's negatives": {"mine.legs": "keyword", "train.objective": "margin-mse"},
    "mnr, shared": {**BOTH, "train.objective": "mnr", "mine.hard": 1},
    "margin-mse, shared": {**BOTH, "train.objective": "margin-mse", "mine.hard": 1},
    "tsdae + mnr, shared": {
        **BOTH,
        "pretrain.objective": "tsdae",
        "train.objective": "mnr",
        "mine.hard": 1,
    },
}
LABELLED: dict[str, dict[str, object]] = {
    "labels beside questions, query tower": {},
    "labels alone, distill, query tower": {"train.data": "labelled", "train.epochs": 4},
    "labels alone, mnr, query tower": {"train.data": "labelled", "train.objective": "mnr", "train.epochs": 4},
    "labels alone, mnr, shared": {**BOTH, "train.data": "labelled", "train.objective": "mnr", "mine.hard": 1},
}
COLUMNS = ("untuned dense", "chosen dense alone", "untuned engine", "chosen engine")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--work", type=Path, help="folder of the workspaces; else a temporary one")
    parser.add_argument("--recipes", default="", help="some of them, by their numbers from 1, with commas")
    parser.add_argument("--labels", action="store_true", help="train on qrels/train.tsv too")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all recipes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        for folder in options.folders:
            print(f"\n**{folder.name}**\n")
            print(f"| recipe | {' | '.join(COLUMNS)} | served | seconds |")
            print(f"|---|{'---|' * (len(COLUMNS) + 2)}", flush=True)
            for row in measure(folder, work, options):
                print(row, flush=True)


def measure(folder: Path, work: Path, options: argparse.Namespace) -> Iterator[str]:
    """The rows of one corpus."""
    workspace = work / (folder.name + ("-labels" if options.labels else ""))
    recipes = {**LABELLED} if options.labels else {**RECIPES}
    names = [list(recipes)[int(n) - 1] for n in options.recipes.split(",")] if options.recipes else recipes
    own = [part for item in options.set for part in ("--set", item)]
    pairs = ["--pairs", str(folder)] if options.labels else []
    searchfit("fit", str(folder), "-o", str(workspace), "--until", "label", *pairs, *own)
    for name in names:
        sets = [
            part for key, value in recipes[name].items() for part in ("--set", f"{key}={json.dumps(value)}")
        ]
        start = time.perf_counter()
        searchfit(
            *("fit", str(folder), "-o", str(workspace), *pairs, *own, *sets),
        )
        seconds = time.perf_counter() - start
        found = json.loads(searchfit("evaluate", str(workspace), str(folder), "--json"))["systems"]
        scores = [next(v["ndcg@10"] for k, v in found.items() if k.startswith(column)) for column in COLUMNS]
        served = next(key for key in found if key.startswith("chosen engine")).removeprefix("chosen engine ")
        figures = " | ".join(f"{score:.4f}" for score in scores)
        yield f"| {name} | {figures} | {served.strip('()')} | {seconds:.0f} |"


def searchfit(*arguments: str) -> str:
    """Run a command; what it printed. Raises CalledProcessError, with its messages shown, when it fails."""
    command = [sys.executable, "-m", "searchfit", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
