"""The engines that every fit begins from, by the settings and what is known of the model on the corpus."""

from __future__ import annotations

from dataclasses import replace

from searchfit.config import EngineSettings
from searchfit.encoders.corpus import Encoding
from searchfit.records import Engine
from searchfit.trust import Trust


def untuned_engine(
    settings: EngineSettings, encoding: Encoding, trust: Trust, name: str = "untuned engine"
) -> Engine:
    """The engine of the settings over vectors as they are encoded, which every stage begins from."""
    words = settings.token_weight if encoding.words and settings.fusion == "scores" else 0.0
    weight = settings.keyword_weight if words else settings.blend_weight
    return Engine(
        name,
        units=settings.units,
        dense_weight=encoding.dense_weight,
        keyword_weight=weight * (trust.factor if settings.adapt else 1.0),
        fusion=settings.fusion,
        token_weight=words,
        token_depth=settings.token_depth if words else 0,
    )


def blend_engine(settings: EngineSettings, encoding: Encoding, trust: Trust, name: str) -> Engine:
    """The untuned engine without its words: it is quick enough to teach and to screen by."""
    return untuned_engine(settings, replace(encoding, words=False), trust, name)
