"""A fit on a Ray cluster of three nodes on this machine, which loses one again and again."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pipeline_tools import one_thread, tiny_model
from ray_cluster import NODE, nodes

from searchfit.config import load_settings
from searchfit.executors.ray import RayExecutor, _Hand, _Job, _Pool
from searchfit.pipeline import Fit
from searchfit.workspace import Workspace

SQUAD = Path(__file__).parents[3] / "shared" / "data" / "squad_dev"
STAGES = {"encode", "gauge", "generate", "screen", "mine", "evaluate"}

ray = pytest.importorskip("ray")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors do not see the tests
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="other loopback addresses are Linux's"),
    pytest.mark.skipif(not SQUAD.is_dir(), reason="shared/data/squad_dev is not there"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes that work, and a head that does not, so that any that works can be killed."""
    with nodes({**NODE, "num_cpus": 0}, 3) as made:
        yield made


@dataclass
class Seen:
    """What was killed, by stage and work, and of each call the batches read and the results taken."""

    stage: str = ""
    killed: list[tuple[str, str]] = field(default_factory=list)
    batches: list[tuple[int, int]] = field(default_factory=list)


def losing_nodes(patch: pytest.MonkeyPatch, cluster: Any) -> Seen:
    """From here on the node whose actor gets a pool's third batch is killed while it is at that."""
    seen, given = Seen(), Counter[_Pool]()
    give, map_batches, run = _Pool._give, RayExecutor.map_batches, Fit._run

    def deadly_give(pool: _Pool, hand: _Hand, job: _Job) -> None:
        given[pool] += 1
        if given[pool] != 3:
            give(pool, hand, job)
            return
        where = ray.get(hand.actor.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()))
        node = next(node for node in cluster.worker_nodes if node.node_id == where)
        give(pool, hand, job)
        cluster.remove_node(node, allow_graceful=False)
        seen.killed.append((seen.stage, getattr(pool.work, "func", pool.work).__name__))
        cluster.add_node(**NODE)

    def counting_map(executor: RayExecutor, work: Any, batches: Iterable[Any]) -> Iterator[Any]:
        read = taken = 0

        def counted() -> Iterator[Any]:
            nonlocal read
            for batch in batches:
                read += 1
                yield batch

        for result in map_batches(executor, work, counted()):
            taken += 1
            yield result
        seen.batches.append((read, taken))

    def telling_run(fit: Fit, stage: Any, *rest: Any) -> Any:
        seen.stage = stage.name
        return run(fit, stage, *rest)

    patch.setattr(_Pool, "_give", deadly_give)
    patch.setattr(RayExecutor, "map_batches", counting_map)
    patch.setattr(Fit, "_run", telling_run)
    return seen


def artefacts(workspace: Path) -> dict[str, str]:
    """The digest of each artefact."""
    return {
        name: made["digest"]
        for stage in Workspace(workspace).manifest()["stages"].values()
        for name, made in stage["artefacts"].items()
    }


def test_a_fit_that_loses_a_node_in_each_stage_equals_the_one_made_here(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "source.source": str(SQUAD),
        "model.name": str(tiny_model(tmp_path / "tiny")),
        "model.precision": "fp32",
    }
    there = {"executor.name": "ray", "executor.address": cluster.address, "executor.actors": 2}
    here = load_settings(values=values)
    with one_thread():
        list(Fit(Workspace(tmp_path / "here"), here, until="choose").run())
        seen = losing_nodes(monkeypatch, cluster)
        list(Fit(Workspace(tmp_path / "ray"), load_settings(base=here, values=there), until="choose").run())
    for name in (
        *(f"queries/{part.name}" for part in (tmp_path / "here" / "queries").glob("*.parquet")),
        *("screened.parquet", "pairs.parquet", "mined/queries.parquet"),
        *(f"evaluation/{table}.parquet" for table in ("queries", "metrics", "top", "places")),
    ):
        one, two = (pq.read_table(tmp_path / where / name) for where in ("here", "ray"))
        assert one.num_rows > 100, name
        assert two.equals(one), name
    for name in ("encoded/passages.npy", "encoded/sentences.npy", "pair_vectors.npy", "mined/scores.npy"):
        one, two = (np.load(tmp_path / where / name) for where in ("here", "ray"))
        np.testing.assert_allclose(two, one, atol=1e-3)
    assert artefacts(tmp_path / "ray") == artefacts(tmp_path / "here")
    assert {stage for stage, _ in seen.killed} == STAGES
    assert {("screen", "_ranked"), ("evaluate", "_answered"), ("evaluate", "_ranked")} <= {*seen.killed}
    assert all(read == taken for read, taken in seen.batches)
