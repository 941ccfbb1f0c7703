"""The loop that every fitting stage runs: AdamW, checkpoints, early stopping, several processes.

What a step does follows from the seed and the step's number alone, so a run that was killed and goes on from
a complete checkpoint ends with the weights and the losses of an undisturbed one. Under `torch.distributed`
(started by torchrun) the gradients are averaged over the processes, and only the first one writes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from searchfit.errors import SearchfitError, SettingsError
from searchfit.training import parallel
from searchfit.training.checkpoints import State, read_checkpoint, write_checkpoint
from searchfit.writing import write_bytes

if TYPE_CHECKING:
    import torch

Loss = Callable[[int, int], "torch.Tensor"]
Measure = Callable[[int], float]
Report = Callable[[int, Mapping[str, float]], None]
Schedule = Literal["linear", "constant", "cosine"]


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """How to take the steps. `warmup` is a share of `steps`; `accumulate` the parts of a step.

    `measure_steps` and `patience` (measurements in a row without a better score; 0: never stop early) count
    only where the loop is given a measure. `autocast` makes the context that each loss is computed in.
    Raises SettingsError for numbers that make no run.
    """

    steps: int
    learning_rate: float = 2e-5
    weight_decay: float = 0.01
    warmup: float = 0.1
    schedule: Schedule = "linear"
    accumulate: int = 1
    max_grad_norm: float = 1.0
    checkpoint_steps: int = 500
    measure_steps: int = 100
    patience: int = 0
    seed: int = 0
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext

    def __post_init__(self) -> None:
        """Refuse what makes no run."""
        for name in ("steps", "accumulate", "checkpoint_steps", "measure_steps"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; at least 1 is needed.")
        if not 0 <= self.warmup <= 1:
            raise SettingsError(f"warmup is {self.warmup}; it is a share of the steps, from 0 to 1.")
        if self.schedule not in ("linear", "constant", "cosine"):
            raise SettingsError(
                f"The schedule {self.schedule!r} is unknown.", "Choose linear, constant or cosine."
            )

    def rate(self, step: int) -> float:
        """The learning rate of a step (counted from 0): linear warm-up, then the schedule's way to zero."""
        warm = max(1, round(self.steps * self.warmup))
        left = (self.steps - step) / max(1, self.steps - warm)
        after = {"linear": left, "constant": 1.0, "cosine": (1 - math.cos(math.pi * min(1.0, left))) / 2}
        return self.learning_rate * min((step + 1) / warm, after[self.schedule])


@dataclass(frozen=True, slots=True)
class History:
    """What a run left: the loss of each step, (step, score) of each measurement, and the step whose weights
    the module holds: that of the best score, or the last one where nothing was measured."""

    losses: tuple[float, ...]
    scores: tuple[tuple[int, float], ...]
    best_step: int
    stopped_early: bool

    def write_csv(self, path: Path, steps_per_epoch: int) -> None:
        """Write epoch, step, loss, score: a row for each step, empty fields where there is no number.

        `step` counts the steps taken, so a score stands beside the loss of the step before it.
        """
        scores = dict(self.scores)
        lines = ["epoch,step,loss,score"]
        for step in range(len(self.losses) + 1):
            if step or step in scores:
                loss = repr(self.losses[step - 1]) if step else ""
                score = repr(scores[step]) if step in scores else ""
                lines.append(f"{step / steps_per_epoch:.6g},{step},{loss},{score}")
        write_bytes(path, ("\n".join(lines) + "\n").encode())


class Loop:
    """Trains the parameters of a module that require gradients.

    `loss(step, part)` gives a mean loss over the examples of part `part` of step `step`; what is random in it
    follows from the step, the part and torch's generator, which is seeded anew for each step. `measure(step)`
    scores the weights after `step` steps, higher is better: at step 0, every `measure_steps` and at the end.
    The module is in training mode while it steps and in evaluation mode while it is measured and afterwards.
    Each of `reports` is told (step, {"loss": ..., "score": ...}) of what is new after each step.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        loss: Loss,
        options: LoopOptions,
        folder: Path,
        measure: Measure | None = None,
        reports: Sequence[Report] = (),
    ) -> None:
        import torch

        self.module, self.loss, self.options, self.folder = module, loss, options, folder
        self.measure, self.reports = measure, reports
        self.weights = _trained(module)
        self.parameters = [value for value in module.parameters() if value.requires_grad]
        if not self.parameters:
            raise ValueError("the module has no parameter that requires a gradient")
        # Decay pulls matrices to zero; biases and norms are no matrices (the practice since BERT).
        groups = [
            {"params": [p for p in self.parameters if p.ndim > 1], "weight_decay": options.weight_decay},
            {"params": [p for p in self.parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=options.learning_rate, fused=True
        )

    def run(self) -> History:
        """Train to the end, or until patience is out; the module then holds the best weights.

        Raises SearchfitError when the loss is no longer a finite number.
        """
        state, resumed = self._start()
        self.module.train()
        while True:
            step = len(state.losses)
            last = step == self.options.steps
            if self.measure and not state.scored(step) and (last or step % self.options.measure_steps == 0):
                self._measure(state, step)
            stopped = self._out_of_patience(state)
            if last or stopped:
                break
            if step > resumed and step % self.options.checkpoint_steps == 0:
                self._checkpoint(state)
            state.losses.append(self._step(step))
            self._report(step + 1, {"loss": state.losses[-1]})
        self.module.eval()
        if self.measure:
            self._load(state.best)
        best_step = state.best_step if self.measure else step
        return History(tuple(state.losses), tuple(state.scores), best_step, stopped and not last)

    def _step(self, step: int) -> float:
        import torch

        torch.manual_seed(parallel.seed(self.options.seed, step))
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in range(self.options.accumulate):
            with self.options.autocast():
                loss = self.loss(step, part)
            (loss / self.options.accumulate).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach()) / self.options.accumulate
        parallel.average_gradients(self.parameters)
        total = parallel.mean(total)
        if not math.isfinite(total):
            raise SearchfitError(
                f"The loss is {total} at step {step + 1}.",
                "Try a lower learning rate, more warm-up or full precision (fp32).",
            )
        torch.nn.utils.clip_grad_norm_(self.parameters, self.options.max_grad_norm)
        self.optimizer.step()
        return total

    def _measure(self, state: State, step: int) -> None:
        self.module.eval()
        score = self.measure(step) if self.measure and parallel.is_first() else 0.0
        score = parallel.first(score)
        self.module.train()
        if state.best_step < 0 or score > dict(state.scores)[state.best_step]:
            state.best_step = step
            # A copy on the CPU: the best weights stay while training goes on.
            state.best = {name: value.detach().cpu().clone() for name, value in self.weights.items()}
        state.scores.append((step, score))
        self._report(step, {"score": score})

    def _out_of_patience(self, state: State) -> bool:
        since = sum(step > state.best_step for step, _ in state.scores)
        return bool(self.measure and self.options.patience and since >= self.options.patience)

    def _report(self, step: int, values: Mapping[str, float]) -> None:
        if parallel.is_first():
            for report in self.reports:
                report(step, values)

    def _checkpoint(self, state: State) -> None:
        if parallel.is_first():
            write_checkpoint(self.folder, self.weights, self.optimizer.state_dict()["state"], state)

    def _start(self) -> tuple[State, int]:
        """The state to go on from, read by the first process for all of them, and its step."""
        found = parallel.first(read_checkpoint(self.folder) if parallel.is_first() else None)
        if found is None:
            # Every process starts from the weights of the first one, however it came by its own.
            self._load(parallel.first({name: value.detach().cpu() for name, value in self.weights.items()}))
            return State(), 0
        weights, moments, state = found
        self._load(weights)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        return state, len(state.losses)

    def _load(self, weights: Mapping[str, torch.Tensor]) -> None:
        import torch

        with torch.no_grad():
            for name, value in self.weights.items():
                value.copy_(weights[name])


def _trained(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What training changes: parameters that require gradients and the buffers that a model saves."""
    saved = module.state_dict().keys()
    found: dict[str, torch.Tensor] = {n: p for n, p in module.named_parameters() if p.requires_grad}
    return found | {name: buffer for name, buffer in module.named_buffers() if name in saved}
