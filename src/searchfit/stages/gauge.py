"""Gauge: how far the model's vectors are to be trusted on this corpus, against keywords."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from searchfit.config import Settings
from searchfit.encoders import load_encoder
from searchfit.encoders.batched import BatchedEncoder
from searchfit.executors import Portable
from searchfit.records import StageResult
from searchfit.search import ArrayCorpus
from searchfit.stages import Tools
from searchfit.trust import gauge

VERSION = 2


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Write trust.json, see trust.Trust. Raises ModelError when the model cannot be loaded."""
    tools.progress("gauge", 0, 1)
    corpus = ArrayCorpus.load(inputs["encoded"], inputs["keyword"])
    encoder = BatchedEncoder.of(Portable(partial(load_encoder, settings.model)), tools.executor)
    trust = gauge(encoder, corpus, inputs["passages.parquet"], settings.seed)
    trust.save(tools.output / "trust.json")
    notes = []
    if trust.factor > 1 and trust.model:
        notes.append(
            f"Of what passages are about, keywords find more than the model (mean reciprocal rank "
            f"{trust.keyword:.2f} against {trust.model:.2f}): they count {trust.factor:.1f} times as much."
        )
    elif trust.factor > 1:
        notes.append(
            f"The model reads {trust.pieces:.1f} pieces for a word, as of a language that it does not know: "
            f"keywords count {trust.factor:.1f} times as much."
        )
    return StageResult(
        counts={
            "questions": trust.questions,
            "keywords": round(trust.keyword, 4),
            "model": round(trust.model, 4),
            "pieces a word": round(trust.pieces, 2),
            "weight of keywords": round(trust.factor, 4),
        },
        notes=tuple(notes),
    )
