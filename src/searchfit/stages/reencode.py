"""Reencode: where tuning changed the document tower, the vectors of passages and sentences under it.

One folder by share of the tuned weights, each an encoding of the whole corpus; nothing where only the query
tower was tuned.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from searchfit.config import Settings
from searchfit.encoders import load_encoder
from searchfit.encoders.corpus import encode_corpus, encode_passages
from searchfit.encoders.sentence import SentenceEncoder
from searchfit.encoders.trained import Trained
from searchfit.executors import Portable
from searchfit.records import StageResult
from searchfit.stages import Tools
from searchfit.writing import write_json

VERSION = 3


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Read passages.parquet and models/trained, write encoded_tuned/SHARE/ and encoded_tuned/shares.json."""
    trained = Trained.load(inputs["models/trained"])
    folder = tools.output / "encoded_tuned"
    folder.mkdir(parents=True, exist_ok=True)
    shares = sorted({*settings.reencode.merges, 1.0}) if trained.both else []
    untuned = Portable(partial(load_encoder, settings.model))
    for share in shares:
        told = partial(tools.progress, f"encode, tuned {share:.0%}")
        tuned = Portable(partial(_tuned, untuned, trained, share))
        encode = partial(tools.executor.map_batches, partial(encode_passages, tuned))
        encode_corpus(tuned.model, inputs["passages.parquet"], folder / f"{share:g}", told, encode)
    write_json(folder / "shares.json", shares)
    return StageResult(counts={"encodings": len(shares)})


def _tuned(untuned: Portable[SentenceEncoder], trained: Trained, share: float) -> SentenceEncoder:
    return trained.encoder(untuned.model, share)
