from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from searchfit.errors import SearchfitError, SettingsError
from searchfit.training.loop import History, Loop, LoopOptions


class Killed(Exception):
    """Stands for a kill."""


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 12), nn.Dropout(0.3), nn.Tanh(), nn.LayerNorm(12), nn.Linear(12, 1))


def examples(step: int, part: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + part)
    x = torch.randn(8, 6, generator=generator)
    return x, torch.sin(x.sum(dim=1, keepdim=True))


def loss_of(module: nn.Module) -> Callable[[int, int], torch.Tensor]:
    def loss(step: int, part: int) -> torch.Tensor:
        x, y = examples(step, part)
        return nn.functional.mse_loss(module(x), y)

    return loss


def error_of(module: nn.Module) -> Callable[[int], float]:
    def measure(_step: int) -> float:
        assert not module.training
        with torch.no_grad():
            x, y = examples(999, 0)
            return -float(nn.functional.mse_loss(module(x), y))

    return measure


def options(**values: Any) -> LoopOptions:
    own = {"steps": 30, "learning_rate": 0.02, "checkpoint_steps": 4, "measure_steps": 6, "seed": 5}
    return LoopOptions(**{**own, **values})


def train(folder: Path, measure: bool = True, reports: Any = (), **values: Any) -> tuple[History, Any]:
    module = network()
    own = error_of(module) if measure else None
    history = Loop(module, loss_of(module), options(**values), folder, own, reports).run()
    return history, {name: value.numpy().tobytes() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("where", ["loss", "measure", "after measure"])
@pytest.mark.parametrize("kills", [[0], [1], [4, 5], [12, 13, 24], [30]])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_killed_run_goes_on_to_the_same_weights_and_losses(
    tmp_path: Path, kills: list[int], where: str, accumulate: int
) -> None:
    """Killed within a step, within a measurement, and between a measurement and its checkpoint."""
    values = {"accumulate": accumulate, "patience": 50}
    whole = train(tmp_path / "whole", **values)
    waiting = list(kills)

    def attempt() -> tuple[History, Any]:
        module = network()
        loss, measure = loss_of(module), error_of(module)

        def kill(place: str, step: int) -> None:
            if place == where and waiting and step >= waiting[0]:
                waiting.pop(0)
                raise Killed

        def killing_loss(step: int, part: int) -> torch.Tensor:
            if part == accumulate - 1:
                kill("loss", step)
            return loss(step, part)

        def killing_measure(step: int) -> float:
            kill("measure", step)
            return measure(step)

        def report(step: int, told: Any) -> None:
            if "score" in told:
                kill("after measure", step)

        loop = Loop(module, killing_loss, options(**values), tmp_path / "cut", killing_measure, [report])
        history = loop.run()
        return history, {name: value.numpy().tobytes() for name, value in module.state_dict().items()}

    for _ in range(len(kills) + 1):
        try:
            found = attempt()
        except Killed:
            continue
        break
    assert found == whole
    assert not waiting or (where == "loss" and waiting == [30])  # after 30 steps there is no step


def test_a_resumed_run_takes_no_step_twice_but_those_after_the_checkpoint(tmp_path: Path) -> None:
    taken = []

    def attempt(until: int) -> None:
        module = network()
        loss = loss_of(module)

        def counting(step: int, part: int) -> torch.Tensor:
            if step == until:
                raise Killed
            taken.append(step)
            return loss(step, part)

        Loop(module, counting, options(), tmp_path).run()

    with pytest.raises(Killed):
        attempt(11)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000008"]
    attempt(31)
    assert taken == [*range(11), *range(8, 30)]


def test_an_unfinished_checkpoint_is_not_read(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    broken = tmp_path / "cut" / "new.tmp"
    broken.mkdir(parents=True)
    (broken / "model.safetensors").write_bytes(b"half")
    assert train(tmp_path / "cut") == whole


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    module = network()
    scores = {0: 0.1, 6: 0.5, 12: 0.9, 18: 0.9, 24: 0.2, 30: 0.3}
    seen = {}

    def measure(step: int) -> float:
        seen[step] = {name: value.clone() for name, value in module.state_dict().items()}
        return scores[step]

    history = Loop(module, loss_of(module), options(), tmp_path, measure).run()
    assert history.scores == tuple(scores.items())
    assert history.best_step == 12
    assert not history.stopped_early
    assert not module.training
    for name, value in module.state_dict().items():
        assert torch.equal(value, seen[12][name])
    assert not torch.equal(seen[12]["0.weight"], seen[18]["0.weight"])


@pytest.mark.parametrize(("patience", "end"), [(0, 30), (1, 12), (2, 18), (3, 30), (4, 30)])
def test_it_stops_when_patience_is_out(tmp_path: Path, patience: int, end: int) -> None:
    module = network()
    scores = {0: 0.1, 6: 0.5, 12: 0.4, 18: 0.5, 24: 0.6, 30: 0.3}
    history = Loop(module, loss_of(module), options(patience=patience), tmp_path, scores.__getitem__).run()
    assert len(history.losses) == end
    assert history.stopped_early == (end < 30)
    assert history.best_step == (6 if end < 30 else 24)


def test_step_0_can_stay_the_best(tmp_path: Path) -> None:
    module = network()
    before = module[0].weight.detach().clone()
    history = Loop(module, loss_of(module), options(), tmp_path, lambda step: -step).run()
    assert history.best_step == 0
    assert torch.equal(module[0].weight, before)


def test_it_is_plain_adamw(tmp_path: Path) -> None:
    """The library's own optimizer and schedule, written out."""
    mine, other = (nn.Linear(6, 1) for _ in range(2))
    other.load_state_dict(mine.state_dict())
    own = options(steps=20, warmup=0.2, weight_decay=0.1, max_grad_norm=0.5)
    Loop(mine, loss_of(mine), own, tmp_path).run()
    from transformers import get_linear_schedule_with_warmup

    groups = [{"params": [other.weight], "weight_decay": 0.1}, {"params": [other.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.02)
    schedule = get_linear_schedule_with_warmup(optimizer, 4, 20)
    for step in range(20):
        # The library's warm-up begins with a step of rate 0, ours with the first share.
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (step + 1) / 4 if step < 4 else schedule.get_last_lr()[0]
        optimizer.zero_grad()
        loss_of(other)(step, 0).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(mine.state_dict(), other.state_dict())


def test_accumulated_parts_are_one_large_batch(tmp_path: Path) -> None:
    one, parts = (nn.Linear(6, 1) for _ in range(2))
    parts.load_state_dict(one.state_dict())

    def whole(step: int, _part: int) -> torch.Tensor:
        x, y = (torch.cat(both) for both in zip(*(examples(step, part) for part in range(4)), strict=True))
        return nn.functional.mse_loss(one(x), y)

    first = Loop(one, whole, options(), tmp_path / "one").run()
    second = Loop(parts, loss_of(parts), options(accumulate=4), tmp_path / "parts").run()
    assert second.losses == pytest.approx(first.losses, rel=1e-4)
    torch.testing.assert_close(one.state_dict(), parts.state_dict(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
    ],
)
def test_the_schedules(schedule: Any, rates: list[float]) -> None:
    own = LoopOptions(steps=6, learning_rate=1.0, warmup=1 / 3, schedule=schedule)
    assert [own.rate(step) for step in range(6)] == pytest.approx(rates, abs=1e-6)


def test_frozen_parameters_and_their_checkpoints_stay_as_they_are(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    module = network()
    module[0].requires_grad_(False)
    before = module[0].weight.clone()
    Loop(module, loss_of(module), options(checkpoint_steps=29), tmp_path).run()
    assert torch.equal(module[0].weight, before)
    assert "0.weight" not in load_file(tmp_path / "step-00000029" / "model.safetensors")


def test_tied_weights_go_through_a_checkpoint(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))
        torch.manual_seed(1)
        for value in module.parameters():
            nn.init.normal_(value)
        module[2].weight = module[0].weight
        return module

    whole, cut = tied(), tied()
    first = Loop(whole, loss_of(whole), options(), tmp_path / "whole").run()

    def killing(step: int, part: int) -> torch.Tensor:
        if step == 10:
            raise Killed
        return loss_of(cut)(step, part)

    with pytest.raises(Killed):
        Loop(cut, killing, options(), tmp_path / "cut").run()
    again = tied()
    assert Loop(again, loss_of(again), options(), tmp_path / "cut").run() == first
    assert again[2].weight is again[0].weight
    assert torch.equal(again[0].weight, whole[0].weight)


def test_a_loss_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    module = network()
    with pytest.raises(SearchfitError, match="nan at step 3") as caught:
        Loop(
            module, lambda s, p: loss_of(module)(s, p) * (float("nan") if s == 2 else 1), options(), tmp_path
        ).run()
    assert "learning rate" in caught.value.hint


def test_the_csv_and_the_reports_tell_the_same(tmp_path: Path) -> None:
    told: list[tuple[int, str, float]] = []

    def report(step: int, values: Any) -> None:
        told.extend((step, name, value) for name, value in values.items())

    history, _ = train(tmp_path / "run", reports=[report])
    history.write_csv(tmp_path / "run.csv", steps_per_epoch=10)
    with (tmp_path / "run.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "step", "loss", "score"]
    assert [int(row["step"]) for row in rows] == list(range(31))
    assert [float(row["epoch"]) for row in rows] == [step / 10 for step in range(31)]
    assert tuple(float(row["loss"]) for row in rows[1:]) == history.losses
    assert tuple((int(row["step"]), float(row["score"])) for row in rows if row["score"]) == history.scores
    assert sorted(told) == sorted(
        [(step, "loss", loss) for step, loss in enumerate(history.losses, 1)]
        + [(step, "score", score) for step, score in history.scores]
    )


def test_the_seed_decides_what_drops_out(tmp_path: Path) -> None:
    runs = [train(tmp_path / str(place), seed=seed)[0].losses for place, seed in enumerate((1, 2, 1))]
    assert runs[0] == runs[2] != runs[1]


@pytest.mark.parametrize(
    "values", [{"steps": 0}, {"accumulate": 0}, {"warmup": 1.5}, {"schedule": "sine"}, {"measure_steps": 0}]
)
def test_options_that_make_no_run_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        options(**values)
