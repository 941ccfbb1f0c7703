"""Losses and scores for TensorBoard, Weights & Biases and MLflow, where they are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from searchfit.errors import MissingExtraError, SettingsError

KINDS = ("tensorboard", "wandb", "mlflow")


def check_report(name: str) -> None:
    """Raise SettingsError for an unknown name, MissingExtraError for a library that is not installed."""
    if name not in KINDS:
        raise SettingsError(f"train.report_to {name!r} is not known.", f"There is: {', '.join(KINDS)}.")
    if importlib.util.find_spec(name) is None:
        raise MissingExtraError(f"train.report_to {name}", name)


def load_report(
    name: str, folder: Path, settings: Mapping[str, Any]
) -> Callable[[int, Mapping[str, float]], None]:
    """A function that is told (step, {"loss": ..., "score": ...}). TensorBoard writes below `folder`; the
    others go where their own environment variables say.

    Raises SettingsError for an unknown name, MissingExtraError for a library that is not installed.
    """
    check_report(name)
    return {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}[name](folder, settings)


def _tensorboard(folder: Path, _: Mapping[str, Any]) -> Callable[[int, Mapping[str, float]], None]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def tell(step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)
        writer.flush()

    return tell


def _wandb(folder: Path, settings: Mapping[str, Any]) -> Callable[[int, Mapping[str, float]], None]:
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(project="searchfit", dir=str(folder), config=dict(settings))

    def tell(step: int, values: Mapping[str, float]) -> None:
        run.log(dict(values), step=step)

    return tell


def _mlflow(_: Path, settings: Mapping[str, Any]) -> Callable[[int, Mapping[str, float]], None]:
    import mlflow

    if mlflow.active_run() is None:
        mlflow.start_run()
    mlflow.log_params({key: str(value)[:200] for key, value in settings.items()})

    def tell(step: int, values: Mapping[str, float]) -> None:
        mlflow.log_metrics(dict(values), step=step)

    return tell
