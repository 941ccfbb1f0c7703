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
from searchfit.encoders.corpus import encode_corpus
from searchfit.encoders.trained import Trained
from searchfit.records import StageResult
from searchfit.stages import Tools
from searchfit.workspace import write_json

VERSION = 2


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Read passages.parquet and models/trained, write encoded_tuned/SHARE/ and encoded_tuned/shares.json."""
    trained = Trained.load(inputs["models/trained"])
    folder = tools.output / "encoded_tuned"
    folder.mkdir(parents=True, exist_ok=True)
    shares = sorted({*settings.reencode.merges, 1.0}) if trained.both else []
    encoder = load_encoder(settings.model) if shares else None
    for share in shares:
        if encoder is not None:
            told = partial(tools.progress, f"encode, tuned {share:.0%}")
            encode_corpus(
                trained.encoder(encoder, share), inputs["passages.parquet"], folder / f"{share:g}", told
            )
    write_json(folder / "shares.json", shares)
    return StageResult(counts={"encodings": len(shares)})
