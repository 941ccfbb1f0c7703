"""The engine that every fit begins from, by the settings and what is known of the model on the corpus, and
those that are compared with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from searchfit.config import EngineSettings, Settings
from searchfit.encoders.corpus import Encoding
from searchfit.encoders.trained import Trained
from searchfit.records import Engine
from searchfit.rerank import with_reranker
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


def systems(
    settings: Settings,
    trained: Trained,
    encoding: Callable[[float], Encoding],
    trust: Trust,
    prior: Engine,
) -> list[tuple[Engine, str]]:
    """The engines that are compared, each with its kind; `encoding` tells that of a document tower, `prior`
    is the untuned engine.

    The candidates differ in their towers alone: units and weights stay at the prior, for generated questions
    copy words from their passages and would over-reward keyword search and sentence vectors.
    """
    blend = blend_engine(settings.engine, encoding(0.0), trust, "untuned engine without words")
    engines = [
        (replace(prior.vectors_alone("untuned dense"), units="passage"), "baseline"),
        (Engine("keyword", dense_weight=0), "baseline"),
        (replace(blend, name="untuned blend", units="passage"), "baseline"),
        (prior.vectors_alone("untuned dense, engine's units"), "baseline"),
        (prior, "candidate"),
    ]
    if prior.token_weight:
        engines.append((blend, "baseline"))
    engines += [
        (replace(prior, name=f"untuned engine, keyword weight {w:g}", keyword_weight=w), "baseline")
        for w in settings.evaluate.keyword_weights
        if w != prior.keyword_weight
    ]
    merges = settings.reencode.merges if trained.both else settings.evaluate.merges
    for share in sorted({*merges, 1.0}) if trained.towers else ():
        tower = "tuned" if share == 1 else f"tuned {share:.0%}"
        document = share if trained.both else 0.0
        tuned = replace(
            prior,
            name=f"{tower} engine",
            query_tower=share,
            document_tower=document,
            dense_weight=encoding(document).dense_weight,
        )
        engines.append((tuned.vectors_alone(f"{tower} dense, engine's units"), "baseline"))
        engines.append((tuned, "candidate"))
    candidates = [engine for engine, kind in engines if kind == "candidate"]
    return engines + [
        (reranked, "re-ranked") for own in candidates for reranked in with_reranker(own, settings.rerank)
    ]
