"""`searchfit ARGUMENTS` in two processes, as torchrun starts them, but forked from one that has loaded the
heavy libraries already: three processes load them once."""

from __future__ import annotations

import sys

import sentence_transformers  # noqa: F401
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from searchfit.cli import main

if __name__ == "__main__":
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="crew",
        max_restarts=0,
        start_method="fork",
    )
    sys.argv[0] = "searchfit"
    elastic_launch(config, main)()
