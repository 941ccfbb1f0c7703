"""A Ray cluster of several nodes on this machine, reached over its loopback interface only."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any
from unittest import mock

from searchfit.config import ExecutorSettings
from searchfit.executors.ray import RayExecutor

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

NODE: dict[str, Any] = {
    "num_cpus": 1,
    "object_store_memory": 80 << 20,
    "include_dashboard": False,
    # Ray takes 127.0.0.1 for a way to ask for the address in the network.
    "node_ip_address": "127.0.0.2",
}


@contextlib.contextmanager
def nodes(head: dict[str, Any], others: int) -> Iterator[Any]:
    """A cluster of a head and as many other nodes."""
    from ray.cluster_utils import Cluster

    # In a folder of its own, whose name is short, as those of Ray's sockets have to be.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as scratch,
        mock.patch.dict(os.environ, {"RAY_TMPDIR": scratch}),
    ):
        made = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(others):
                made.add_node(**NODE)
            made.wait_for_nodes()
            yield made
        finally:
            made.shutdown()


@contextlib.contextmanager
def joined(cluster: Any, **values: float) -> Iterator[RayExecutor]:
    """An executor of the cluster."""
    settings = ExecutorSettings(name="ray", address=cluster.address, **values)
    with contextlib.closing(RayExecutor(settings)) as made:
        yield made
