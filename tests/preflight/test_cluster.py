"""The forecast for several machines: figures that can be worked out by hand, and what is measured for it."""

from __future__ import annotations

import os

import pytest

from searchfit import ranking
from searchfit.config import ExecutorSettings
from searchfit.encoders import corpus
from searchfit.errors import SettingsError
from searchfit.generators import phrases
from searchfit.preflight.cluster import Handling, Machines, on_cluster
from searchfit.preflight.forecast import BATCH, Cost, Forecast

# Reading alone; ten batches of ten seconds, and ten to load the model; 64 queries a step, and six.
COSTS = (
    Cost("ingest", 10.0, 100),
    Cost("encode", 110.0, 500, 100.0, 10),
    Cost("train", 70.0, 300, 64.0, 64),
)
TOLD = Forecast(COSTS, 190.0, 500, 1000)
HANDLING = Handling(start=5.0, batch=1.0, batch_bytes=1 << 20, actor_mb=200)
CORES = os.cpu_count() or 1
WHOLE = ExecutorSettings(cpus=CORES)  # an actor has a machine


def seconds(nodes: int, executor: ExecutorSettings = WHOLE) -> dict[str, float]:
    cluster = on_cluster(TOLD, Machines(nodes), executor, HANDLING)
    found = {share.stage: share.seconds for share in cluster.stages}
    assert cluster.seconds == pytest.approx(sum(found.values()))
    return found


def test_one_machine_is_this_one_as_it_is() -> None:
    found = on_cluster(TOLD, Machines(1, 2.0), WHOLE, HANDLING)
    assert (found.seconds, found.alone, found.memory_mb) == (190.0, 190.0, 500)
    assert all(share.here == share.seconds and not share.by for share in found.stages)
    assert found.cost == round(190 / 3600 * 2, 2)


def test_four_machines() -> None:
    found = on_cluster(TOLD, Machines(4, 3.6), WHOLE, HANDLING)
    shares = {share.stage: share for share in found.stages}
    # Ten batches on four machines are three rounds, of nine seconds beside the second of handling.
    assert shares["encode"].seconds == 10 + 5 + 3 * 9
    assert (shares["encode"].here, shares["encode"].start, shares["encode"].by) == (10, 5, "executor")
    assert (shares["train"].seconds, shares["train"].by) == (6 + 16, "torchrun")
    assert (shares["ingest"].seconds, shares["ingest"].by) == (10, "")
    assert found.seconds == 74
    assert found.node_hours == round(4 * 74 / 3600, 3)
    assert found.cost == round(4 * 74 / 3600 * 3.6, 2)
    assert (found.actors, found.memory_mb, found.actors_mb) == (4, 500 + 10, 200)


def test_no_number_of_machines_is_quicker_than_the_one_that_asks() -> None:
    # A batch each is nine seconds, but ten batches are read and written in ten.
    assert seconds(10)["encode"] == seconds(1000)["encode"] == 10 + 5 + 10
    assert seconds(64)["train"] == seconds(1000)["train"] == 6 + 1
    # With all work shared out 42 seconds are left: three machines take 89, four 74.
    assert {on_cluster(TOLD, Machines(n), WHOLE, HANDLING).enough for n in (1, 4, 1000)} == {4}
    alone = Forecast(COSTS[:1], 10.0, 100, 10)
    assert on_cluster(alone, Machines(8), WHOLE, HANDLING).enough == 1


def test_actors_share_a_machine() -> None:
    two = ExecutorSettings(cpus=CORES / 2)
    # Two actors a machine take twice as long each: eight take ten batches in two rounds of eighteen seconds.
    assert seconds(4, two)["encode"] == 10 + 5 + 2 * 18
    assert seconds(4, ExecutorSettings(cpus=CORES, actors=2))["encode"] == 10 + 5 + 5 * 9


@pytest.mark.parametrize(("nodes", "price"), [(0, None), (-3, 1.0), (2, -0.5), (2, float("nan"))])
def test_no_machines_and_no_prices(nodes: int, price: float | None) -> None:
    with pytest.raises(SettingsError, match=r"machines|price"):
        Machines(nodes, price)


def test_batches_are_as_large_as_the_stages_make_them() -> None:
    assert BATCH["encode"] == BATCH["reencode"] == corpus._CHUNK
    assert BATCH["generate"] == phrases._GROUP
    assert BATCH["screen"] == BATCH["mine"] == BATCH["evaluate"] == ranking._BATCH
