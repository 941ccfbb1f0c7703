"""Quality on judged sets: fit each corpus from its documents alone, then score on its questions.

    python benchmarks/quality.py FOLDER [FOLDER...] [--keep WORKSPACES] [--set KEY=VALUE ...] [--json FILE]

Each FOLDER is in BEIR layout. The fit runs in a process of its own, as a user would run it, and never sees
queries.jsonl or qrels/. Prints for each set: the untuned model on whole documents cut at its window (as
`SentenceTransformer.encode` does), and through the served index untuned dense, keyword, untuned blend,
untuned engine, chosen dense alone and chosen engine; with the seconds and the peak memory of the fit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from searchfit.config import ModelSettings, QueriesSettings
from searchfit.encoders import load_encoder
from searchfit.judged import evaluate_judged
from searchfit.metrics import NAMES, means, score_ranking
from searchfit.records import encoded_text
from searchfit.sources.queries import read_queries

SHOWN = ("ndcg@10", "mrr@10", "recall@100")


def main() -> None:
    """Fit, score and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--keep", type=Path, help="keep the workspaces here; a finished fit is not repeated")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of the fit")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    outcome: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for folder in options.folders:
            workspace = (options.keep or Path(scratch)) / folder.name
            seconds, peak = fit(folder, workspace, options.set)
            systems = {"untuned, documents cut at the window": plain(folder)}
            systems |= evaluate_judged(workspace, folder).systems
            outcome[folder.name] = {"seconds": seconds, "peak_memory_mb": peak, "systems": systems}
            show(folder.name, outcome[folder.name])
    if options.json:
        options.json.write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")


def fit(folder: Path, workspace: Path, settings: list[str]) -> tuple[float, int]:
    """Seconds and peak resident memory (MB) of `searchfit fit` on the corpus alone."""
    command = [sys.executable, "-m", "searchfit", "fit", str(folder / "corpus.jsonl"), "-o", str(workspace)]
    for setting in settings:
        command += ["--set", setting]
    started = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"the fit of {folder} failed")
    return time.perf_counter() - started, usage.ru_maxrss >> 10


def plain(folder: Path) -> dict[str, float]:
    """Metrics of the built-in model as a tutorial would use it: a vector a document, cut at the window."""
    with (folder / "corpus.jsonl").open(encoding="utf-8") as lines:
        documents = [json.loads(line) for line in lines]
    ids = [document["_id"] for document in documents]
    asked = read_queries(QueriesSettings(file=str(folder)))
    queries = [(id_, text) for id_, text in asked.queries if max(asked.qrels.get(id_, {"": 0}).values()) > 0]
    encoder = load_encoder(ModelSettings())
    corpus = encoder.encode_documents([encoded_text(d.get("title") or "", d["text"]) for d in documents])
    vectors = encoder.encode_queries([text for _, text in queries])
    scores = {}
    for (id_, _), vector in zip(queries, vectors, strict=True):
        best = np.argsort(-(corpus @ vector), kind="stable")[:100]
        scores[id_] = score_ranking([ids[i] for i in best], asked.qrels[id_])
    return {name: means(scores)[name] for name in NAMES}


def show(name: str, figures: dict[str, Any]) -> None:
    """Print one set as a Markdown table."""
    print(f"\n{name}: fit {figures['seconds']:.0f} s, peak memory {figures['peak_memory_mb']} MB\n")
    print("| system | " + " | ".join(SHOWN) + " |\n|---|" + "---|" * len(SHOWN))
    for system, row in figures["systems"].items():
        print(f"| {system} | " + " | ".join(f"{row[metric]:.4f}" for metric in SHOWN) + " |")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
