"""Train each corpus by each recipe, and say what the chosen engine is worth on real questions.

    python benchmarks/recipes.py DIR [DIR ...] [--work FOLDER] [--recipes N,N] [--documents N] [--labels]
                                 [--set KEY=VALUE]

DIR: folders in the BEIR layout. A corpus is read, encoded and written questions for once; each recipe then
trains that workspace again and is measured on the test questions, which no fit sees. With `--labels` the
pairs of qrels/train.tsv train too; with `--documents` a corpus is cut to so many documents first, those of
the labels, of test questions drawn by chance, and then others. Prints a row for each recipe: nDCG@10 of
vectors and engines, untuned and as generated questions alone choose (`choose.proof=0`), what is served then
and what by default, and the seconds of training with what follows. FOLDER keeps the workspaces, so a stopped
benchmark carries on.
"""

from __future__ import annotations

import argparse
import json
import random
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
    "labels alone, mnr, shared": {
        **BOTH,
        "train.data": "labelled",
        "train.objective": "mnr",
        "train.epochs": 2,
        "train.learning_rate": 5e-5,
        "mine.hard": 1,
    },
}
COLUMNS = ("untuned dense", "chosen dense alone", "untuned engine", "chosen engine")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--work", type=Path, help="folder of the workspaces; else a temporary one")
    parser.add_argument("--recipes", default="", help="some of them, by their numbers from 1, with commas")
    parser.add_argument("--documents", type=int, help="cut each corpus to so many")
    parser.add_argument("--labels", action="store_true", help="train on qrels/train.tsv too")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all recipes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        for folder in options.folders:
            print(f"\n**{folder.name}**\n")
            print(f"| recipe | {' | '.join(COLUMNS)} | chosen | by default | seconds |")
            print(f"|---|{'---|' * (len(COLUMNS) + 3)}", flush=True)
            read = cut(folder, work, options.documents, options.labels) if options.documents else folder
            for row in measure(read, work, options):
                print(row, flush=True)


def measure(folder: Path, work: Path, options: argparse.Namespace) -> Iterator[str]:
    """The rows of one corpus."""
    workspace = work / (folder.name + ("-labels" if options.labels and not options.documents else ""))
    recipes = {**LABELLED} if options.labels else {**RECIPES}
    names = [list(recipes)[int(n) - 1] for n in options.recipes.split(",")] if options.recipes else recipes
    own = [part for item in options.set for part in ("--set", item)]
    pairs = ["--pairs", str(folder)] if options.labels else []
    searchfit("fit", str(folder), "-o", str(workspace), "--until", "label", *pairs, *own)
    for name in names:
        sets = [
            part for key, value in recipes[name].items() for part in ("--set", f"{key}={json.dumps(value)}")
        ]
        fit = ("fit", str(folder), "-o", str(workspace), *pairs, *own, *sets)
        start = time.perf_counter()
        searchfit(*fit, "--set", "choose.proof=0")
        seconds = time.perf_counter() - start
        found = json.loads(searchfit("evaluate", str(workspace), str(folder), "--json"))["systems"]
        scores = [next(v["ndcg@10"] for k, v in found.items() if k.startswith(column)) for column in COLUMNS]
        figures = " | ".join(f"{score:.4f}" for score in scores)
        chosen = engine(workspace)
        searchfit(*fit, "--until", "choose")
        yield f"| {name} | {figures} | {chosen} | {engine(workspace)} | {seconds:.0f} |"


def engine(workspace: Path) -> str:
    """The name of the engine that the last fit chose."""
    return str(json.loads((workspace / "evaluation" / "choice.json").read_text("utf-8"))["chosen"]["name"])


def cut(folder: Path, work: Path, documents: int, labels: bool) -> Path:
    """A copy of the corpus with so many documents: with `labels` those of the training pairs, and all
    that are judged for its test questions, drawn by chance."""
    made = work / "corpora" / f"{folder.name}-{documents}{'-labels' * labels}"
    if made.exists():
        return made
    draw = random.Random(0)
    corpus, queries = read_lines(folder / "corpus.jsonl"), read_lines(folder / "queries.jsonl")
    judged = {path.name: path.read_text("utf-8").splitlines() for path in folder.glob("qrels/*.tsv")}
    of_query: dict[str, list[str]] = {}
    for line in judged["test.tsv"][1:]:
        query, document, _ = line.split("\t")
        of_query.setdefault(query, []).append(document)
    kept = {line.split("\t")[1] for line in judged["train.tsv"][1:]} if labels else set()
    left_out: set[str] = set()
    for query in draw.sample(sorted(of_query), len(of_query)):
        if len(kept.union(of_query[query])) <= documents:
            kept.update(of_query[query])
        else:
            left_out.add(query)
    others = [row["_id"] for row in corpus if row["_id"] not in kept]
    kept.update(draw.sample(others, min(len(others), documents - len(kept))))
    (made / "qrels").mkdir(parents=True)
    for name, (head, *lines) in judged.items():
        held = [line for line in lines if (row := line.split("\t"))[0] not in left_out and row[1] in kept]
        (made / "qrels" / name).write_text("\n".join([head, *held, ""]), "utf-8")
    write_lines(made / "corpus.jsonl", [row for row in corpus if row["_id"] in kept])
    write_lines(made / "queries.jsonl", [row for row in queries if row["_id"] not in left_out])
    return made


def read_lines(path: Path) -> list[dict[str, str]]:
    """The rows of a file of JSON lines."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    """Rows as JSON, a line each."""
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), "utf-8")


def searchfit(*arguments: str) -> str:
    """Run a command; what it printed. Raises CalledProcessError, with its messages shown, when it fails."""
    command = [sys.executable, "-m", "searchfit", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
