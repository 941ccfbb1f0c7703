"""What Ray costs: one actor on a cluster of this machine against this process, on encode and generate.

    python benchmarks/scale.py [--passages 300] [--model minilm] [--batch 32]

Both work on the same batches of --batch passages with one thread. "all" is a stage from its start, with the
libraries and the model that an actor loads; "after" is what follows its first batch, by passage. The passages
are the standard library's docstrings. The rows are compared, too.

Two more have options of their own, which --help tells after the first word:

    python benchmarks/scale.py --simulate [--passages 100000000] [--nodes 1 4 16 64 256]
                                          [--straggler 0.05:4] [--mtbf-hours 200] [--seed 1]
    python benchmarks/scale.py --sizes WORKSPACE

simulates the schedule on many machines (schedule.py), and tells how large a fit gets (sizes.py).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

os.environ.update({"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"})

import ray
import schedule
import sizes

from searchfit.config import Settings, load_settings
from searchfit.encoders import corpus, load_encoder
from searchfit.executors import load_executor
from searchfit.generators import phrases
from searchfit.pipeline import Fit
from searchfit.recipe import STAGES
from searchfit.sources.pydoc import PydocReader
from searchfit.sources.rows import Row
from searchfit.stages import Tools
from searchfit.stages import encode as encode_stage
from searchfit.stages import generate as generate_stage
from searchfit.workspace import Workspace, digest

WRITES = {encode_stage: "encoded", generate_stage: "queries"}


def main() -> None:
    """Measure and print."""
    for word, other in {"--simulate": schedule, "--sizes": sizes}.items():
        if word in sys.argv:
            return other.main()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passages", type=int, default=300)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    corpus._CHUNK = phrases._GROUP = options.batch
    with tempfile.TemporaryDirectory(prefix="scale-") as scratch:
        folder = Path(scratch)
        settings = prepared(folder, options.passages, options.model)
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
        ray.init(num_cpus=1, object_store_memory=80 << 20, _node_ip_address="127.0.0.1", **quiet)
        cluster = settings.executor.model_copy(update={"name": "ray", "actors": 1})
        load_encoder(settings.model).encode_queries(["warm"])  # this process's libraries are no cost of Ray
        for stage, artefact in WRITES.items():
            times, made = {}, {}
            for where in (settings.executor, cluster):
                output = folder / f"{where.name}-{artefact}"
                with contextlib.closing(load_executor(where)) as executor:
                    tools = Tools(output, executor=executor)
                    times[where.name] = timed(stage, settings, folder / "ws", tools)
                made[where.name] = digest(output / artefact)
            told(stage.__name__.rpartition(".")[2], times, made["local"] == made["ray"])
        ray.shutdown()


def prepared(folder: Path, count: int, model: str) -> Settings:
    """A workspace in folder/ws with so many short documents, each a passage, and the keyword index."""
    texts = (row.values for row in PydocReader("stdlib").rows() if isinstance(row, Row))
    kept = ((values["id"], values["text"]) for values in texts if 200 < len(str(values["text"])) < 900)
    with (folder / "documents.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "text"])
        rows.writerows(row for _, row in zip(range(count), kept, strict=False))
    values = {"source.source": str(folder / "documents.csv"), "model.name": model, "model.precision": "fp32"}
    settings = load_settings(values=values)
    list(Fit(Workspace(folder / "ws"), settings, until="keyword").run())
    return settings


def timed(stage: ModuleType, settings: Settings, workspace: Path, tools: Tools) -> tuple[float, float]:
    """Seconds of a stage, and milliseconds a passage after its first batch."""
    entry = next(entry for entry in STAGES if entry.module is stage)
    inputs = {name: workspace / name for name in entry.reads}
    marks: list[tuple[float, int]] = []
    watched = replace(tools, progress=lambda _, done, *__: marks.append((time.perf_counter(), done)))
    begun = time.perf_counter()
    stage.run(settings.only(*entry.sections), inputs, watched)
    whole = time.perf_counter() - begun
    (first, some), (last, every) = marks[0], marks[-1]
    return whole, 1000 * (last - first) / max(1, every - some)


def told(name: str, times: dict[str, tuple[float, float]], equal: bool) -> None:
    """Print what was measured, and Ray's share of this process's time."""
    (here, after_here), (there, after_there) = times["local"], times["ray"]
    print(
        f"{name:9} all: {here:6.2f} s here, {there:6.2f} s on Ray ({there / here:.2f}); after: "
        f"{after_here:.2f} ms here, {after_there:.2f} ms on Ray ({after_there / after_here:.2f}); rows "
        + ("are equal" if equal else "DIFFER"),
        flush=True,
    )


if __name__ == "__main__":
    main()
