from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from training_tools import make_model

sys.path.insert(0, str(Path(__file__).parent))

from two_processes import COURSES, STEPS, train


def start(model: Path, out: Path, rank: int, port: int) -> Any:
    """One of two processes, as torchrun would start it."""
    environment = {
        **os.environ,
        **{"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        "OMP_NUM_THREADS": "1",
    }
    program = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, str(program), str(model), str(out)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow  # test_crew.py does it for the default objective
def test_two_processes_take_the_steps_of_one(tiny_model: Path, tmp_path: Path) -> None:
    """The same global batches, with the texts of both processes as negatives; a kill of both is made good."""
    model, out = tmp_path / "model", tmp_path / "two"
    make_model(tiny_model, tmp_path / "bert").save_pretrained(str(model), create_model_card=False)
    out.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    processes = [start(model, out, rank, port) for rank in range(2)]
    try:
        alone = {name: train(model, tmp_path / name, name)[0] for name in COURSES}
        for process in processes:
            output, _ = process.communicate(timeout=150)
            assert process.returncode == 0, output.decode()
    finally:
        for process in processes:
            process.kill()
            process.wait()

    both = [json.loads((out / f"losses-{rank}.json").read_text()) for rank in range(2)]
    assert both[0] == both[1]
    assert both[0]["cut"] == both[0]["mnr"]
    for name in COURSES:
        assert len(alone[name]) == STEPS
        assert alone[name][-1] < alone[name][0]
        assert both[0][name] == pytest.approx(alone[name], abs=1e-3)
        assert (out / name / "measured-0").exists()
        assert not (out / name / "measured-1").exists()
    whole = load_file(out / "mnr-0.safetensors")
    for other in ("mnr-1", "cut-0", "cut-1"):
        found = load_file(out / f"{other}.safetensors")
        for name, value in whole.items():
            np.testing.assert_array_equal(found[name], value)
