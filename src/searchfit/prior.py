"""The engines that every fit begins from, by the settings and what is known of the encoding."""

from __future__ import annotations

from dataclasses import replace

from searchfit.config import EngineSettings
from searchfit.encoders.corpus import Encoding
from searchfit.records import Engine


def untuned_engine(settings: EngineSettings, encoding: Encoding, name: str = "untuned engine") -> Engine:
    """The engine of the settings over vectors as they are encoded, which every stage begins from."""
    words = settings.token_weight if encoding.words and settings.fusion == "scores" else 0.0
    return Engine(
        name,
        units=settings.units,
        dense_weight=encoding.dense_weight,
        keyword_weight=settings.keyword_weight,
        fusion=settings.fusion,
        token_weight=words,
        token_depth=settings.token_depth if words else 0,
    )


def blend_engine(settings: EngineSettings, encoding: Encoding, name: str) -> Engine:
    """The untuned engine without its words: it is quick enough to teach and to screen by."""
    return replace(
        untuned_engine(settings, encoding, name),
        token_weight=0.0,
        token_depth=0,
        keyword_weight=settings.blend_weight,
    )
