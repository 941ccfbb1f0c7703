"""Encode: the vector of every passage and sentence under the untuned model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from searchfit.config import Settings
from searchfit.encoders import load_encoder
from searchfit.encoders.corpus import encode_corpus, encode_passages
from searchfit.executors import Portable
from searchfit.records import StageResult
from searchfit.stages import Tools

VERSION = 3


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Read passages.parquet, write encoded/. Raises ModelError when the model cannot be loaded."""
    portable = Portable(partial(load_encoder, settings.model))
    encoder = portable.model
    passages, sentences = encode_corpus(
        encoder,
        inputs["passages.parquet"],
        tools.output / "encoded",
        lambda done, total: tools.progress("encode", done, total),
        partial(tools.executor.map_batches, partial(encode_passages, portable)),
    )
    return StageResult(
        counts={
            "passages": passages,
            "sentences": sentences,
            "dimension": encoder.dimension,
            "arithmetic": f"{'bf16' if encoder.bf16 else 'fp32'} on {encoder.model.device.type}",
        },
        notes=encoder.remarks,
    )
