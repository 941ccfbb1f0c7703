"""The recipe: STAGES in order, with what each reads, writes and depends on."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from searchfit.config import Settings

Outside = Callable[[Settings], Any]


def _source(settings: Settings) -> Any:
    from searchfit.sources import open_source

    return open_source(settings).fingerprint()


def _model(settings: Settings) -> Any:
    from searchfit.encoders import fingerprint

    return fingerprint(settings.model)


def _generators(settings: Settings) -> Any:
    from searchfit.generators import outside

    return outside(settings)


def _screen(settings: Settings) -> Any:
    from searchfit.encoders import model_digest

    reranker = settings.screen.reranker
    return [_model(settings), model_digest(reranker) if reranker else None]


def _holdout(settings: Settings) -> Any:
    from searchfit.splits import judging_generator

    return judging_generator(settings)


def _pairs(settings: Settings) -> Any:
    from searchfit import feedback
    from searchfit.sources import pairs, queries

    asked = queries.fingerprint(settings.queries) if settings.queries.file else None
    return [pairs.fingerprint(settings.pairs), asked, feedback.fingerprint(settings.feedback)]


def _pretrain(settings: Settings) -> Any:
    from searchfit.training.pretrain import check_pretrain

    check_pretrain(settings.model, settings.pretrain)
    return _model(settings)


def _mine(settings: Settings) -> Any:
    from searchfit.teachers import outside

    return [_model(settings), outside(settings.mine.teacher)]


def _train(settings: Settings) -> Any:
    from searchfit.training.courses import check

    check(settings)
    return _model(settings)


def _queries(settings: Settings) -> Any:
    from searchfit.rivals import outside
    from searchfit.sources.queries import fingerprint

    asked = fingerprint(settings.queries) if settings.queries.file else None
    return [*_choose(settings), asked, outside(settings)]


def _choose(settings: Settings) -> Any:
    from searchfit.encoders import model_digest

    reranker = settings.rerank.model
    return [_model(settings), model_digest(reranker) if reranker else None]


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage by name: the settings sections and artefacts it reads, the artefacts it writes ({key} makes
    a new version of each run), what it depends on outside of both, and whether it trains, which several
    processes can do together."""

    name: str
    sections: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    outside: Outside | None = None
    trains: bool = False

    def names(self, version: str) -> list[str]:
        """The artefacts it writes as a version."""
        return [name.format(key=version) for name in self.writes]

    @property
    def module(self) -> Any:
        """The module with `run` and `VERSION`."""
        return importlib.import_module(f"searchfit.stages.{self.name}")


_EVALUATION = (
    "evaluation/systems.json",
    "evaluation/queries.parquet",
    "evaluation/metrics.parquet",
    "evaluation/top.parquet",
    "evaluation/places.parquet",
)

_READING = ("source", "sql", "dataset", "files", "clean", "pairs")

STAGES = (
    Stage("ingest", _READING, (), ("documents.parquet",), _source),
    Stage("split", ("split", "model"), ("documents.parquet",), ("passages.parquet",), _model),
    Stage("keyword", ("keyword",), ("passages.parquet",), ("keyword",)),
    Stage("encode", ("model",), ("passages.parquet",), ("encoded",), _model),
    Stage("gauge", ("model", "seed"), ("passages.parquet", "encoded", "keyword"), ("trust.json",), _model),
    Stage(
        "generate",
        ("generate", "t5", "prompt", "chat", "openai", "seed"),
        ("passages.parquet", "keyword"),
        ("queries",),
        _generators,
    ),
    Stage(
        "screen",
        ("screen", "model", "engine"),
        ("queries", "passages.parquet", "encoded", "keyword", "trust.json"),
        ("pairs.parquet", "pair_vectors.npy", "screened.parquet"),
        _screen,
    ),
    Stage(
        "holdout",
        ("holdout", "generate", "seed"),
        ("documents.parquet", "passages.parquet"),
        ("holdout.parquet",),
        _holdout,
    ),
    Stage(
        "label",
        ("pairs", "queries", "feedback", "holdout", "seed"),
        ("documents.parquet", "passages.parquet", "holdout.parquet"),
        ("labelled.parquet", "asked.json"),
        _pairs,
    ),
    Stage(
        "pretrain",
        ("pretrain", "model", "seed"),
        ("passages.parquet",),
        ("models/pretrained",),
        _pretrain,
        trains=True,
    ),
    Stage(
        "mine",
        ("mine", "engine", "model", "seed"),
        (
            "passages.parquet",
            "pairs.parquet",
            "pair_vectors.npy",
            "labelled.parquet",
            "holdout.parquet",
            "encoded",
            "keyword",
            "trust.json",
        ),
        ("mined",),
        _mine,
    ),
    Stage(
        "train",
        ("train", "engine", "model", "seed"),
        (
            "passages.parquet",
            "pairs.parquet",
            "labelled.parquet",
            "holdout.parquet",
            "mined",
            "encoded",
            "keyword",
            "models/pretrained",
        ),
        ("models/trained",),
        _train,
        trains=True,
    ),
    Stage(
        "reencode",
        ("reencode", "model"),
        ("passages.parquet", "models/trained"),
        ("encoded_tuned",),
        _model,
    ),
    Stage(
        "evaluate",
        ("evaluate", "queries", "reencode", "engine", "rerank", "model", "seed"),
        (
            "documents.parquet",
            "passages.parquet",
            "pairs.parquet",
            "pair_vectors.npy",
            "labelled.parquet",
            "asked.json",
            "holdout.parquet",
            "mined",
            "encoded",
            "encoded_tuned",
            "keyword",
            "trust.json",
            "models/trained",
        ),
        _EVALUATION,
        _queries,
    ),
    Stage(
        "choose",
        ("choose", "rerank", "model", "seed"),
        ("keyword", "models/trained", *_EVALUATION),
        ("evaluation/choice.json", "models/tuned", "models/reranker"),
        _choose,
    ),
    Stage(
        "index",
        ("model", "index", "split"),
        (
            "documents.parquet",
            "passages.parquet",
            "pair_vectors.npy",
            "encoded",
            "encoded_tuned",
            "keyword",
            "evaluation/choice.json",
            "models/tuned",
            "models/reranker",
        ),
        ("index/{key}", "engine.json"),
    ),
    Stage(
        "report",
        ("choose", "model", "seed"),
        (
            "documents.parquet",
            "passages.parquet",
            "screened.parquet",
            "encoded",
            "encoded_tuned",
            "keyword",
            "models/trained",
            "evaluation/choice.json",
            *_EVALUATION,
            "manifest.json",
        ),
        ("report.html", "report.json", "report.md"),
        _model,
    ),
)
"""The recipe, in order. Which stages run again after a change follows from what each reads."""
