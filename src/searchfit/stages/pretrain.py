"""Pretrain: adapt the encoder to the passages before it is tuned, without any query."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq

from searchfit.config import Settings
from searchfit.encoders import load_encoder
from searchfit.encoders.trained import Trained
from searchfit.records import StageResult, encoded_text
from searchfit.stages import Tools
from searchfit.training.pretrain import pretrain, warns

VERSION = 1


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Read passages.parquet, write models/pretrained/ (see Trained), empty without an objective.

    Raises SettingsError for a model that cannot learn the objective.
    """
    folder = tools.output / "models" / "pretrained"
    if settings.pretrain.objective == "none":
        Trained.save(folder, "", {})
        return StageResult(counts={"steps": 0})
    done = pretrain(
        load_encoder(settings.model),
        _passages(inputs["passages.parquet"]),
        settings.pretrain,
        settings.seed,
        tools.output / "work",
        tools.progress,
    )
    Trained.save(folder, "shared", {"query": done.encoder.tower("query").state_dict()})
    done.history.write_csv(folder / "course.csv", done.steps_per_epoch)
    losses = done.history.losses
    counts = {
        "objective": settings.pretrain.objective,
        "steps": len(losses),
        "first loss": round(losses[0], 4),
        "last losses, mean": round(sum(losses[-10:]) / len(losses[-10:]), 4),
    }
    return StageResult(counts, notes=warns(settings.model, settings.pretrain))


def _passages(file: Path) -> Iterator[str]:
    with pq.ParquetFile(file) as passages:
        for batch in passages.iter_batches(1024, columns=["title", "text"]):
            for title, text in zip(batch["title"].to_pylist(), batch["text"].to_pylist(), strict=True):
                yield encoded_text(title, text)
