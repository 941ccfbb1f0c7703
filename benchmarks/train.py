"""Training speed on a CPU or GPU: the library's trainer with its defaults against ours with shared towers.

    python benchmarks/train.py [--folder BEIR] [--steps N] [--batch N] [--turns N] [--ways NAME...]

Pairs of a passage's first sentence and the rest of it, multiple negatives ranking loss, fp32, equal batch
size. In turn, each in a process of its own (our allocator settings cannot be taken back): the library's
SentenceTransformerTrainer as in the tutorials (needs `datasets`), our loop with shared towers, the same
without chunks, the same with frozen word embeddings, and our loop on the query tower alone. Prints pairs per
second, the ratio to the first, the mean loss and the peak memory. Without --folder the standard library's
documentation is read.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from searchfit.config import ModelSettings, SourceSettings
from searchfit.encoders import load_encoder, locate
from searchfit.objectives import load_objective
from searchfit.sources import Row, open_source
from searchfit.text import sentences
from searchfit.training.batches import Batches, BatchOptions, Mixture
from searchfit.training.data import Feed, TrainingSet
from searchfit.training.loop import Loop, LoopOptions
from searchfit.training.towers import Kind, Towers, freeze_word_embeddings

RATE = 2e-5
WINDOW = 256
WAYS = ("library trainer", "shared", "shared, one chunk", "shared, frozen words", "query")


def main() -> None:
    """Train in turn, each in a process of its own, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="a BEIR folder with corpus.jsonl")
    parser.add_argument("--steps", type=int, default=8, help="steps of each turn")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(_run(given)))
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in given.ways}
    for turn in range(given.turns):
        for way in given.ways:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", way]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"turn {turn + 1}  {way:22} {found[way][-1]}", file=sys.stderr, flush=True)
    base, base_cpu = (_median(found[given.ways[0]], name) for name in ("pairs/s", "pairs/cpu s"))
    for way, runs in found.items():
        rate, cpu = _median(runs, "pairs/s"), _median(runs, "pairs/cpu s")
        loss, memory = _median(runs, "loss"), _median(runs, "peak MiB")
        print(
            f"{way:22} {rate:7.1f} pairs/s {rate / base:5.2f}x  CPU time {cpu / base_cpu:5.2f}x  "
            f"mean loss {loss:.4f}  {memory:5.0f} MiB"
        )
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


def _median(runs: list[dict[str, float]], name: str) -> float:
    return float(np.median([run[name] for run in runs]))


def _run(given: argparse.Namespace) -> dict[str, float]:
    """Pairs per second and per second of CPU time (which a busy machine disturbs less), mean loss and peak
    memory of one way. Loading the model is not in the time,
    tokenising is."""
    data = TrainingSet.from_mined(*_pairs(given.folder, given.steps * given.batch))
    if given.one == WAYS[0]:
        from sentence_transformers import SentenceTransformer

        # As in the tutorials: nothing of ours has touched the process.
        model = SentenceTransformer(str(locate(given.model)), device="cpu" if not _cuda() else "cuda")
    else:
        model = load_encoder(ModelSettings(name=given.model, precision="fp32")).model
    model.max_seq_length = min(WINDOW, model.max_seq_length or WINDOW)
    vectors = None
    if given.one == "query":
        vectors = model.encode(data.texts, normalize_embeddings=True, show_progress_bar=False)
    begin, cpu = time.perf_counter(), time.process_time()
    if given.one == WAYS[0]:
        course = _library(model, data, given.steps, given.batch)
    else:
        course = _ours(given.one, model, data, vectors, given)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rates = {"pairs/s": len(data) / seconds, "pairs/cpu s": len(data) / cpu}
    return {**rates, "loss": float(np.mean(course)), "peak MiB": peak}


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _pairs(folder: Path | None, count: int) -> tuple[list[str], list[str], Any, Any]:
    """First sentences as queries, the rest of each document as its passage."""
    name = str(folder) if folder else "pydoc:json,email,logging,argparse,unittest,asyncio,http,xml,decimal"
    source = open_source(SourceSettings(source=name))
    queries, texts = [], []
    for row in source.rows():
        text = "\n\n".join(str(row.values[c]) for c in source.columns.text) if isinstance(row, Row) else ""
        bounds = sentences(text)
        if len(bounds) > 1:
            queries.append(text[slice(*bounds[0])])
            texts.append(text[bounds[1][0] :])
    chosen = np.random.default_rng(0).permutation(len(texts))[:count]
    rows = np.arange(len(chosen))
    return [queries[i] for i in chosen], [texts[i] for i in chosen], rows, np.empty((len(rows), 0), int)


def _library(model: Any, data: TrainingSet, steps: int, batch: int) -> list[float]:
    """SentenceTransformerTrainer as in the tutorials: defaults, but for the batch size and the step count."""
    import copy

    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    own = copy.deepcopy(model)
    positives = [data.texts[i] for i in data.rows[:, 0]]
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch,
            learning_rate=RATE,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SentenceTransformerTrainer(
            model=own,
            args=arguments,
            train_dataset=Dataset.from_dict({"anchor": data.queries, "positive": positives}),
            loss=MultipleNegativesRankingLoss(own),
        )
        with contextlib.redirect_stdout(sys.stderr):
            trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _ours(way: str, model: Any, data: TrainingSet, vectors: Any, given: argparse.Namespace) -> list[float]:
    """Our loop over the same pairs."""
    options: dict[str, Any] = {"chunk_tokens": None} if way == "shared, one chunk" else {}
    kind: Kind = "query" if way == "query" else "shared"
    towers = Towers.of(kind, model, **options)
    if way == "shared, frozen words":
        freeze_word_embeddings(towers.module)
    feed = Feed(data, towers, vectors)
    batches = Mixture([Batches(data, feed.lengths, BatchOptions(given.batch))])
    objective = load_objective("mnr", towers)

    def loss(step: int, _part: int) -> Any:
        return objective.loss(*feed.batch(batches.batch(step)[1]))

    with tempfile.TemporaryDirectory() as folder:
        own = LoopOptions(steps=given.steps, learning_rate=RATE, warmup=0.0, weight_decay=0.0)
        return list(Loop(towers.module, loss, own, Path(folder)).run().losses)


if __name__ == "__main__":
    main()
