"""Checkpoints of the loop: written beside and renamed, so that one with its name is complete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchfit.writing import sync_file, write_json

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]

Moments = dict[int, dict[str, "torch.Tensor"]]


@dataclass(slots=True)
class State:
    """How far a run is: its losses and scores, the step of its best score (-1: none) and those weights."""

    losses: list[float] = field(default_factory=list)
    scores: list[tuple[int, float]] = field(default_factory=list)
    best_step: int = -1
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    def scored(self, step: int) -> bool:
        """Whether the weights after `step` steps have been measured."""
        return bool(self.scores) and self.scores[-1][0] == step


def write_checkpoint(folder: Path, weights: Tensors, moments: Mapping[int, Any], state: State) -> None:
    """Write folder/step-N with the optimizer's moments by parameter number; older ones are removed."""
    beside, place = folder / "new.tmp", folder / f"step-{len(state.losses):08d}"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    _save(beside / "model.safetensors", weights)
    flat = {f"{number}.{name}": value for number, own in moments.items() for name, value in own.items()}
    _save(beside / "optimizer.safetensors", flat)
    if state.best:
        _save(beside / "best.safetensors", state.best)
    write_json(
        beside / "state.json", {"losses": state.losses, "scores": state.scores, "best_step": state.best_step}
    )
    os.replace(beside, place)
    for old in folder.glob("step-*"):
        if old != place:
            shutil.rmtree(old)


def read_checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], Moments, State] | None:
    """Weights, moments and state of the newest checkpoint, or None where there is none."""
    from safetensors.torch import load_file

    done = max(folder.glob("step-*"), default=None)
    if done is None:
        return None
    moments: Moments = {}
    for key, value in load_file(done / "optimizer.safetensors").items():
        number, _, name = key.partition(".")
        moments.setdefault(int(number), {})[name] = value
    kept = json.loads((done / "state.json").read_text(encoding="utf-8"))
    best = done / "best.safetensors"
    state = State(
        kept["losses"],
        [(step, score) for step, score in kept["scores"]],
        kept["best_step"],
        load_file(best) if best.exists() else {},
    )
    return load_file(done / "model.safetensors"), moments, state


def _save(path: Path, tensors: Tensors) -> None:
    from safetensors.torch import save_file

    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, path)
    sync_file(path)
