"""Training speed on a CPU or GPU: the library's trainer with its defaults against ours with shared towers.

    python benchmarks/train.py [--folder BEIR] [--steps N] [--batch N] [--turns N] [--every N]
                               [--ways NAME...]

Pairs of a passage's first sentence and the rest of it, multiple negatives ranking loss, fp32, equal batch
size. In turn, each in a process of its own (our allocator settings cannot be taken back): the library's
SentenceTransformerTrainer as in the tutorials (needs `datasets`), our loop with shared towers, the same
without chunks, the same with frozen word embeddings, and our loop on the query tower alone. Prints pairs per
second, the ratio to the first, the mean loss and the peak memory. Without --folder the standard library's
documentation is read.

With --every N, nDCG@10 is measured every N steps on questions that are not trained on, off the clock, and the
seconds of training are printed after which each way was first at the score that all of them reached.
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

from searchfit.config import ModelSettings, Settings, SourceSettings
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
    parser.add_argument("--every", type=int, default=0, help="measure nDCG@10 every so many steps")
    parser.add_argument("--dev", type=int, default=300, help="questions and passages that it is measured on")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(_run(given)))
        return
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in given.ways}
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
    if given.every:
        _to_a_score(found)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


def _median(runs: list[dict[str, Any]], name: str) -> float:
    return float(np.median([run[name] for run in runs]))


def _to_a_score(found: dict[str, list[dict[str, Any]]]) -> None:
    """Print when each way was first at the best score that all of them reached."""
    courses = {way: runs[0]["course"] for way, runs in found.items()}
    target = min(max(score for _, _, score in course) for course in courses.values())
    base = None
    for way, course in courses.items():
        step, seconds, score = next(point for point in course if point[2] >= target)
        base = base or seconds
        start = course[0][2]
        print(
            f"{way:22} nDCG@10 {start:.4f} at first, {score:.4f} (asked {target:.4f}) after {step} steps, "
            f"{seconds:.1f} s of training, {base / max(seconds, 1e-9):.1f}x"
        )


class Watch:
    """Measures nDCG@10 of held-out pairs off the clock: (step, seconds of training, score)."""

    def __init__(self, given: argparse.Namespace, held_out: tuple[list[str], list[str]]) -> None:
        self.queries, self.texts = held_out
        self.every, self.course = given.every, []
        self.encode_queries: Any = None
        self.encode_texts: Any = None
        self._paused = 0.0
        self._begin = time.perf_counter()

    def start(self) -> None:
        """The clock runs from here on."""
        self._paused, self._begin = 0.0, time.perf_counter()

    def measure(self, step: int) -> float:
        """The score of the weights as they are."""
        begin = time.perf_counter()
        seconds = begin - self._begin - self._paused
        scores = self.encode_queries(self.queries) @ self.encode_texts(self.texts).T
        ranks = (scores >= np.diag(scores)[:, None]).sum(axis=1)
        score = float(np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0).mean())
        self.course.append((step, seconds, score))
        self._paused += time.perf_counter() - begin
        return score

    @property
    def seconds(self) -> float:
        """Seconds since the start, without those of measuring."""
        return time.perf_counter() - self._begin - self._paused


def _run(given: argparse.Namespace) -> dict[str, Any]:
    """Pairs per second and per second of CPU time (which a busy machine disturbs less), mean loss and peak
    memory of one way. Loading the model is not in the time, tokenising is."""
    many = given.steps * given.batch
    queries, texts, _, _ = _pairs(given.folder, many + (given.dev if given.every else 0))
    data = TrainingSet.from_mined(
        queries[:many], texts[:many], np.arange(len(texts[:many])), np.empty((len(texts[:many]), 0), int)
    )
    watch = Watch(given, (queries[many:], texts[many:]))
    if given.one == WAYS[0]:
        from sentence_transformers import SentenceTransformer

        # As in the tutorials: nothing of ours has touched the process.
        model = SentenceTransformer(str(locate(given.model)), device="cpu" if not _cuda() else "cuda")
    else:
        model = load_encoder(ModelSettings(name=given.model, precision="fp32")).model
    model.max_seq_length = min(WINDOW, model.max_seq_length or WINDOW)
    vectors = None
    if given.one == "query":
        vectors = _encode(model)(data.texts)
        if given.every:
            held = _encode(model)(watch.texts)
            watch.encode_texts = lambda _texts: held
    cpu = time.process_time()
    watch.start()
    if given.one == WAYS[0]:
        losses = _library(model, data, given, watch)
    else:
        losses = _ours(given.one, model, data, vectors, (given, watch))
    seconds, cpu = watch.seconds, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rates = {"pairs/s": len(data) / seconds, "pairs/cpu s": len(data) / cpu}
    return {**rates, "loss": float(np.mean(losses)), "peak MiB": peak, "course": watch.course}


def _encode(model: Any) -> Any:
    return lambda texts: model.encode(texts, normalize_embeddings=True, show_progress_bar=False)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _pairs(folder: Path | None, count: int) -> tuple[list[str], list[str], Any, Any]:
    """First sentences as queries, the rest of each document as its passage."""
    name = str(folder) if folder else "pydoc:json,email,logging,argparse,unittest,asyncio,http,xml,decimal"
    source = open_source(Settings(source=SourceSettings(source=name)))
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


def _library(model: Any, data: TrainingSet, given: argparse.Namespace, watch: Watch) -> list[float]:
    """SentenceTransformerTrainer as in the tutorials: defaults, but for the batch size and the step count."""
    import copy

    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import TrainerCallback

    own = copy.deepcopy(model)
    watch.encode_queries = watch.encode_texts = _encode(own)

    class Measuring(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            if state.global_step % given.every == 0:
                watch.measure(state.global_step)

    if given.every:
        watch.measure(0)
    positives = [data.texts[i] for i in data.rows[:, 0]]
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=given.steps,
            per_device_train_batch_size=given.batch,
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
            callbacks=[Measuring()] if given.every else None,
        )
        with contextlib.redirect_stdout(sys.stderr):
            trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _ours(
    way: str, model: Any, data: TrainingSet, vectors: Any, run: tuple[argparse.Namespace, Watch]
) -> list[float]:
    """Our loop over the same pairs."""
    given, watch = run
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

    if given.every:
        watch.encode_queries = _encode(towers.part("query"))
        watch.encode_texts = watch.encode_texts or _encode(towers.part("document"))
    with tempfile.TemporaryDirectory() as folder:
        own = LoopOptions(
            steps=given.steps,
            learning_rate=RATE,
            warmup=0.0,
            weight_decay=0.0,
            measure_steps=given.every or 1,
        )
        measure = watch.measure if given.every else None
        return list(Loop(towers.module, loss, own, Path(folder), measure).run().losses)


if __name__ == "__main__":
    main()
