"""Fits in two processes, as torchrun starts them, by the command line."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pipeline_tools import environment, one_thread

from searchfit.config import Settings, load_settings, to_toml
from searchfit.pipeline import Fit
from searchfit.training import courses
from searchfit.training.batches import BatchOptions
from searchfit.workspace import Workspace

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "searchfit")
FORKED = (str(Path(__file__).with_name("forked_crew.py")),)
TIMEOUT = 150


@pytest.fixture(scope="module")
def settings(
    small_settings: Settings, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    """Settings whose losses do not depend on the number of processes: nothing is dropped out."""
    model = shutil.copytree(tiny_model, tmp_path_factory.mktemp("still") / "model")
    for file in model.rglob("config.json"):
        config = json.loads(file.read_text())
        if "hidden_dropout_prob" in config:
            config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
            file.write_text(json.dumps(config))
    values = {
        "model.name": str(model),
        "mine.max_queries": 64,
        "train.towers": "shared",
        "train.objective": "mnr",
        "train.measure_steps": 8,
        "train.patience": 0,
        "train.checkpoint_steps": 5,
    }
    return load_settings(base=small_settings, values=values)


@pytest.fixture(scope="module")
def mined(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of all that comes before training."""
    path = tmp_path_factory.mktemp("mined") / "ws"
    with one_thread():
        list(Fit(Workspace(path), settings, until="mine").run())
    return path


def two(
    workspace: Path, settings: Settings, *arguments: str, start: tuple[str, ...] = FORKED
) -> subprocess.Popen[str]:
    """`searchfit fit` in two processes; a group of its own, so that the test can end all of it."""
    config = workspace.with_name(f"{workspace.name}.toml")
    config.write_text(to_toml(settings), encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, *start, "fit", "-o", workspace, "--config", config, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit status and all that was printed; nothing is left running."""
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
        return process.returncode, output
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def course(workspace: Path) -> list[dict[str, str]]:
    with (workspace / "models" / "trained" / "course.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def column(rows: list[dict[str, str]], name: str) -> list[float]:
    return [float(row[name]) for row in rows if row[name]]


def even(named: dict[str, Any]) -> dict[str, Any]:
    return {**named, "multiple": 2}


def test_two_processes_take_the_steps_of_one(
    mined: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = shutil.copytree(mined, tmp_path / "two")
    process = two(workspace, settings, "--until", "train", start=TORCHRUN)
    alone = shutil.copytree(mined, tmp_path / "one")
    # Of an odd batch two processes leave out a row: so does the one that they are compared with.
    monkeypatch.setattr(courses, "BatchOptions", lambda *args, **named: BatchOptions(*args, **even(named)))
    with one_thread():
        list(Fit(Workspace(alone), settings, until="train").run())
    status, output = ended(process)
    assert status == 0, output
    assert output.count("train ") == 1, output  # one process tells

    expected, found = course(alone), course(workspace)
    assert len(column(expected, "loss")) > 4
    assert len(found) == len(expected)
    assert column(found, "loss") == pytest.approx(column(expected, "loss"), abs=1e-3)
    assert column(found, "score") == pytest.approx(column(expected, "score"), abs=0.05)
    assert not (workspace / ".partial" / "train").exists()
    entry = Workspace(workspace).manifest()["stages"]["train"]
    assert entry["counts"]["steps"] == len(column(found, "loss"))


@pytest.mark.slow
def test_two_processes_pretrain_and_say_once_what_is_refused(
    mined: Path, settings: Settings, tmp_path: Path
) -> None:
    """In one run, for most of its time goes into starting processes."""
    workspace = shutil.copytree(mined, tmp_path / "ws")
    sets = ["--set", "pretrain.objective=mlm", "--set", "train.learning_rate=1e30"]
    status, output = ended(two(workspace, settings, *sets, "--until", "train"))
    assert status == 1, output
    assert output.count("error: The loss is") == 1, output
    assert "train" not in Workspace(workspace).manifest()["stages"]
    with (workspace / "models" / "pretrained" / "course.csv").open(encoding="utf-8") as file:
        losses = column(list(csv.DictReader(file)), "loss")
    passages = int(Workspace(workspace).manifest()["stages"]["encode"]["counts"]["passages"])
    assert len(losses) == -(-passages // (8 * 2))  # each step reads a batch in both processes


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [int(child) for child in found]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_helper_ends_all_and_the_same_command_carries_on(
    mined: Path, settings: Settings, tmp_path: Path
) -> None:
    slow = load_settings(base=settings, values={"train.epochs": 500})
    workspace = shutil.copytree(mined, tmp_path / "ws")
    process = two(workspace, slow, "--until", "train", start=TORCHRUN)
    checkpoints = workspace / ".partial" / "train" / "checkpoints"
    deadline = time.monotonic() + TIMEOUT
    while not (checkpoints.exists() and any(checkpoints.iterdir())):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    status, output = ended(process)
    assert status == 1, output
    assert output.count("Traceback (most recent call last)") == 1, output  # torchrun's own
    assert any(checkpoints.iterdir())
    with Workspace(workspace).lock():  # free again
        pass
