"""Train: tune one tower or two on the mined queries and the user's labels.

By default only the query tower learns, over frozen passages, what the teacher's ranking is: quick, and the
index need not be rebuilt. Steps are a function of the seed alone: a run resumed from a complete checkpoint
gives the weights of an undisturbed one. The untuned weights are step 0 and always among the candidates.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.config import Settings, TrainSettings
from searchfit.encoders import load_encoder
from searchfit.encoders.lora import merged
from searchfit.encoders.sentence import SentenceEncoder
from searchfit.encoders.trained import Trained, pretrained
from searchfit.prior import untuned_engine
from searchfit.records import StageResult
from searchfit.search import ArrayCorpus
from searchfit.splits import pair_splits
from searchfit.stages import Tools
from searchfit.teachers import PassageTexts
from searchfit.training import parallel
from searchfit.training.courses import Course, Frozen, ListCourse, SetCourse, names, on_lists
from searchfit.training.dev import DevPairs, DevQueries, DevScore
from searchfit.training.lessons import ANSWERS, Lessons
from searchfit.training.lists import Lists
from searchfit.training.loop import History, Loop, LoopOptions, Measure
from searchfit.training.towers import Towers, freeze_word_embeddings
from searchfit.trust import Trust
from searchfit.writing import write_bytes

VERSION = 2

_MEASURES = 4  # an epoch, where measuring costs little
_ENOUGH = 30  # labelled dev questions that are scored by themselves


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Write models/trained/ (see Trained) and models/trained/course.csv: epoch, step, loss, dev score; where
    there are labelled dev pairs of both kinds, similarity.csv too (see DevPairs).

    Raises SettingsError for settings that contradict each other or that the data cannot serve.
    """
    folder = tools.output / "models" / "trained"
    options = settings.train
    texts = PassageTexts(inputs["passages.parquet"])
    lessons, rows = Lessons.load(inputs, options.data, texts.take)
    why_not = _why_not(lessons, options)
    if why_not:
        _keep_start(folder, inputs["models/pretrained"])
        return StageResult(counts={"steps": 0}, notes=(why_not,))
    encoder = pretrained(load_encoder(settings.model), inputs["models/pretrained"])
    corpus = ArrayCorpus.load(inputs["encoded"], inputs["keyword"])
    towers = _towers(encoder, options)
    course: Course
    if on_lists(options):
        units, weight = settings.engine.units, corpus.encoding.dense_weight
        lists = Lists.load(inputs["mined"], corpus, units, encoder.similarity, rows, weight)
        course = ListCourse(options, settings.seed, towers, lessons.queries, lists)
    else:
        frozen = Frozen(corpus.passages, encoder.similarity, corpus.encoding.dense_weight)
        course = SetCourse(options, settings.seed, towers, lessons, frozen)
    per_epoch = course.steps(1)
    engine = untuned_engine(settings.engine, corpus.encoding, Trust()).vectors_alone("dev")
    dev = DevScore(towers, settings.model, engine, corpus, texts.take)
    dev = dev.ask(_dev_queries(inputs), options, settings.seed)
    loop = Loop(
        towers.module,
        course.loss,
        _loop_options(settings, course),
        tools.output / "checkpoints",
        _measure(dev, _dev_pairs(inputs, options, settings.seed), encoder, folder, per_epoch),
        [partial(_tell, tools, course.steps(options.epochs)), *_reports(options, folder)],
    )
    history = loop.run()
    history.write_csv(folder / "course.csv", per_epoch)
    if not history.best_step:
        _keep_start(folder, inputs["models/pretrained"])
    else:
        Trained.save(folder, options.towers, {side: merged(part) for side, part in towers.module.items()})
    return _result(options, lessons, history)


def _why_not(lessons: Lessons, settings: TrainSettings) -> str:
    if not settings.enabled:
        return "Training is switched off (train.enabled = false)."
    outside = int((lessons.labelled["passage"].to_numpy() < 0).sum())
    count = len(lessons) + outside * (settings.towers != "query")
    if count < settings.min_queries:
        least = settings.min_queries
        return f"Too few training queries: {count}, train.min_queries is {least}. Nothing was tuned."
    return ""


def _keep_start(folder: Path, start: Path) -> None:
    """Nothing was learnt: what pretraining left is the result, if anything."""
    if Trained.load(start).towers:
        own = shutil.ignore_patterns("course.csv")  # that is the course of pretraining
        shutil.copytree(start, folder, ignore=own, dirs_exist_ok=True)
    else:
        Trained.save(folder, "", {})
    if not (folder / "course.csv").exists():
        write_bytes(folder / "course.csv", b"epoch,step,loss,score\n")


def _towers(encoder: SentenceEncoder, settings: TrainSettings) -> Towers:
    towers = Towers.of(settings.towers, encoder.model, autocast=encoder.autocast)
    if settings.lora_rank:
        from searchfit.encoders.lora import lora_modules

        for part in {id(part): part for part in towers.module.values()}.values():
            lora_modules(part, settings.lora_rank, 2 * settings.lora_rank)
    if settings.freeze_embeddings:
        freeze_word_embeddings(towers.module)
    return towers


def _dev_queries(inputs: Mapping[str, Path]) -> DevQueries:
    """The user's labelled questions of the dev split that a passage answers; where those are few, the
    generated ones of dev documents too."""
    pairs = pq.read_table(inputs["pairs.parquet"], columns=["text", "passage"])
    dev = pair_splits(inputs["pairs.parquet"], inputs["holdout.parquet"]) == "dev"
    known = [row for row in pq.read_table(inputs["labelled.parquet"]).to_pylist() if row["passage"] >= 0]
    theirs = [row for row in known if row["split"] == "dev" and row["label"] >= ANSWERS]
    texts, own = [row["query"] for row in theirs], [row["passage"] for row in theirs]
    if len(theirs) < _ENOUGH:
        generated = pairs.filter(pa.array(dev))
        texts += generated["text"].to_pylist()
        own += generated["passage"].to_pylist()
    return DevQueries(texts, np.array(own, np.int64))


def _dev_pairs(inputs: Mapping[str, Path], options: TrainSettings, seed: int) -> list[tuple[str, str, float]]:
    """The user's labelled pairs of the dev split, their negatives with 0; none where all have one label. At
    most as many as dev questions are scored."""
    table = pq.read_table(inputs["labelled.parquet"])
    pairs: list[tuple[str, str, float]] = []
    for row in table.filter(pa.array(table["split"].to_numpy() == "dev")).to_pylist():
        pairs.append((row["query"], row["text"], row["label"]))
        pairs += [(row["query"], text, 0.0) for text in row["negatives"]]
    order = np.random.default_rng(seed).permutation(len(pairs))[: options.dev_queries]
    chosen = [pairs[i] for i in np.sort(order)]
    return chosen if len({label for _, _, label in chosen}) > 1 else []


def _measure(
    dev: DevScore,
    pairs: list[tuple[str, str, float]],
    untuned: SentenceEncoder,
    folder: Path,
    per_epoch: int,
) -> Measure | None:
    """By what checkpoints are told apart, if there is anything."""
    if not len(dev):
        return None
    return DevPairs(dev, pairs, untuned, folder / "similarity.csv", per_epoch) if pairs else dev


def _loop_options(settings: Settings, course: Course) -> LoopOptions:
    train = settings.train
    steps = course.steps(train.epochs)
    often = train.measure_steps or max(1, course.steps(1) // (_MEASURES if train.towers == "query" else 1))
    return LoopOptions(
        steps=steps,
        learning_rate=train.learning_rate or (1e-4 if train.towers == "query" else 2e-5),
        weight_decay=train.weight_decay,
        warmup=train.warmup,
        schedule=train.schedule,
        accumulate=train.accumulate,
        checkpoint_steps=train.checkpoint_steps,
        measure_steps=often,
        patience=train.patience,
        seed=settings.seed,
    )


def _tell(tools: Tools, steps: int, step: int, values: Mapping[str, float]) -> None:
    note = f"dev nDCG@10 {values['score']:.4f}" if "score" in values else ""
    tools.progress("train", step, steps, note)


def _reports(settings: TrainSettings, folder: Path) -> list[Callable[[int, Mapping[str, float]], None]]:
    """Where else losses and scores are told of, by the first of several processes."""
    if not parallel.is_first():
        return []
    from searchfit.training.reporting import load_report

    return [load_report(name, folder, settings.model_dump(mode="json")) for name in settings.report_to]


def _result(options: TrainSettings, lessons: Lessons, history: History) -> StageResult:
    tail = history.losses[-max(1, len(history.losses) // 10) :]
    counts: dict[str, Any] = {
        "queries": len(lessons),
        "labelled ones": int((lessons.origins == "labelled").sum()),
        "steps": len(history.losses),
        "first loss": round(history.losses[0], 4),
        "last losses, mean": round(sum(tail) / len(tail), 4),
    }
    if history.scores:
        best = dict(history.scores)[history.best_step]
        counts |= {"dev before": round(history.scores[0][1], 4), "dev best": round(best, 4)}
        counts["best step"] = history.best_step
    notes = []
    if not history.best_step:
        notes.append("No step was better on dev than the start, which is kept.")
    elif history.stopped_early:
        notes.append("Stopped early: dev scores rose no more.")
    return StageResult(counts, notes=tuple(notes), details={"objectives": ", ".join(names(options))})
