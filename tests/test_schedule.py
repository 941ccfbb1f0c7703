"""benchmarks/schedule.py: schedules that can be worked out by hand, and one that Ray itself has run."""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from searchfit.config import ExecutorSettings
from searchfit.executors.ray import RayExecutor


@pytest.fixture(scope="module")
def schedule() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location(
        "schedule", Path(__file__).parents[1] / "benchmarks" / "schedule.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["schedule"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["schedule"]


@pytest.fixture
def plan(schedule: ModuleType) -> Any:
    """Batches of ten seconds; starting, reading and writing cost nothing."""
    return schedule.Plan(10, nodes=1, actors=1, batch=10.0, start=0.0, read=0.0, write=0.0)


def test_one_actor(schedule: ModuleType, plan: Any) -> None:
    assert schedule.simulate(plan) == schedule.Outcome(100.0, 1.0, 0.0, 0, 0, 0)
    # The first batch is read, then the actor starts and never waits, and the last is written.
    found = schedule.simulate(replace(plan, start=5.0, read=1.0, write=2.0))
    assert found.seconds == 1 + 5 + 10 * 10 + 2
    assert found.asking == pytest.approx(10 * 3 / 108)
    assert found.working == pytest.approx(100 / 108)
    # One that reads and writes for longer than the actor works, which only the first and the last wait for.
    assert schedule.simulate(replace(plan, read=6.0, write=6.0)).seconds == pytest.approx(120, abs=10)


@pytest.mark.parametrize(("batches", "seconds"), [(1, 15), (9, 35), (10, 45), (12, 45)])
def test_equal_actors_work_in_rounds(schedule: ModuleType, plan: Any, batches: int, seconds: int) -> None:
    for nodes, actors in ((3, 1), (1, 3)):
        found = schedule.simulate(replace(plan, batches=batches, nodes=nodes, actors=actors, start=5.0))
        assert found.seconds == seconds
        assert found.working == pytest.approx(10 * batches / (3 * seconds))


def test_a_slow_machine_blocks_for_as_long_as_it_takes(schedule: ModuleType, plan: Any) -> None:
    # Four are read ahead of the one that is waited for. While one machine is at one for a hundred seconds,
    # the other does three in thirty and waits; so again. Alone it would have done all eight in eighty.
    slow = replace(plan, batches=8, nodes=2, slow=0.5, slower=10.0, in_flight=1)
    for seed in range(4):  # either machine is the slow one
        found = schedule.simulate(replace(slow, seed=seed))
        assert found.seconds == 200
        assert found.most_ready == 3
    assert slow.ideal == pytest.approx(80 / 1.1)


def test_a_lost_batch_is_done_again(schedule: ModuleType, plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lives = itertools.chain([25.0], itertools.repeat(math.inf))
    monkeypatch.setattr(schedule.random.Random, "expovariate", lambda *_: next(lives))
    two = replace(plan, batches=8, nodes=2, in_flight=1, mtbf_hours=1.0, noticed=5.0, back=100.0)
    # Six are given by 20. The fifth is lost at 25, which is noticed at 30, when the other machine has taken
    # the seventh; it does the fifth at 40 and the eighth at 50. The first one would be back at 125.
    assert schedule.simulate(two) == schedule.Outcome(60.0, 80 / 120, 0.0, 1, 1, 2)
    lives = itertools.chain([25.0], itertools.repeat(math.inf))
    # Back at 35, it does the fifth or the eighth.
    assert schedule.simulate(replace(two, back=10.0)).seconds == 50


def test_each_batch_comes_once_and_the_seed_decides(schedule: ModuleType) -> None:
    hard = schedule.Plan(3000, nodes=16, slow=0.1, slower=3.0, mtbf_hours=10.0)
    found = schedule.simulate(hard)  # raises where one is missing, out of order or there twice
    assert found.failures > 2
    assert found.again >= found.failures
    assert found.seconds > hard.ideal
    assert schedule.simulate(hard) == found
    assert schedule.simulate(replace(hard, seed=2)) != found


def test_the_table(
    schedule: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "--simulate --passages 5120 --nodes 1 4 --actors 1 --batch 36 --start 0 --read 0 --write 0"
    monkeypatch.setattr(sys, "argv", ["scale.py", *line.split(), "--straggler", "0.25:3"])
    schedule.main()
    one, four = (row.split() for row in capsys.readouterr().out.splitlines()[1:])
    assert one == ["1", "0.1", "1.00", "100.0%", "0.0%", "0", "0", "0"]
    # The slow one does two in 216 seconds, the others eight in three rounds, six of them before its first.
    assert four == ["4", "0.1", "2.00", "58.3%", "0.0%", "0", "0", "6"]


class Sleepy:
    """Work that sleeps, in one of several actors for longer. It begins when all are there."""

    def __init__(self, folder: Path, actors: int, seconds: float, slower: float) -> None:
        self.folder, self.actors, self.seconds, self.slower = folder, actors, seconds, slower
        self.mine = -1

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "mine": -1}

    def __call__(self, batches: Iterable[int]) -> Iterator[tuple[int, float]]:
        for batch in batches:
            if self.mine < 0:
                self.mine = next(n for n in range(self.actors) if self._take(n))
                while len(os.listdir(self.folder)) < self.actors:
                    time.sleep(0.005)
            begun = time.time()
            time.sleep(self.seconds * (1.0 if self.mine else self.slower))
            yield batch, begun

    def _take(self, number: int) -> bool:
        try:
            (self.folder / str(number)).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


@pytest.mark.slow
def test_ray_takes_as_long(schedule: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    plan = schedule.Plan(
        40, nodes=3, actors=1, batch=0.2, start=0.0, read=0.0, write=0.02, slow=0.34, slower=6.0
    )
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch) / "there"
        folder.mkdir()
        ray.init(
            num_cpus=3, object_store_memory=80 << 20, _node_ip_address="127.0.0.1", _temp_dir=scratch, **quiet
        )
        try:
            executor = RayExecutor(ExecutorSettings(name="ray", actors=3, patience=60))
            begun = []
            for _, start in executor.map_batches(Sleepy(folder, 3, 0.2, 6.0), range(40)):
                begun.append(start)
                time.sleep(plan.write)
            seconds = time.time() - min(begun)
        finally:
            executor.close()
            ray.shutdown()
    foretold = schedule.simulate(plan).seconds
    print(f"Ray {seconds:.2f} s, foretold {foretold:.2f}, if nobody waited {plan.ideal:.2f}")
    assert foretold > 1.4 * plan.ideal
    assert seconds == pytest.approx(foretold, rel=0.25)
