"""What Ray costs: one actor on a cluster of this machine against this process, on encode and generate.

    python benchmarks/scale.py [--passages 600] [--model minilm] [--batch 0] [--stages encode,generate]

Both work on the same batches with one thread; --batch 0 takes those of a fit. "all" is a stage from its
start, with the libraries and the model that an actor loads; "after" is what follows its first batch, by
passage. --model tiny has MiniLM's tokenizer and dimension, one narrow layer in place of six and random
weights: batches and results have their real bytes, and there is less work to hide what Ray costs. The
passages are the standard library's docstrings, numbered anew as often as it takes. Rows are compared, too.

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
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import ModuleType

os.environ.update({"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"})

import ray
import schedule
import sizes

from searchfit.config import Settings, load_settings
from searchfit.encoders import corpus, load_encoder, locate
from searchfit.executors import load_executor
from searchfit.generators import phrases
from searchfit.pipeline import Fit
from searchfit.recipe import STAGES
from searchfit.sources.pydoc import PydocReader
from searchfit.sources.rows import Row
from searchfit.stages import Tools
from searchfit.stages import encode as encode_stage
from searchfit.stages import generate as generate_stage
from searchfit.workspace import Workspace
from searchfit.writing import digest

WRITES = {"encode": (encode_stage, "encoded"), "generate": (generate_stage, "queries")}


def main() -> None:
    """Measure and print."""
    for word, other in {"--simulate": schedule, "--sizes": sizes}.items():
        if word in sys.argv:
            return other.main()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passages", type=int, default=600)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--stages", default=",".join(WRITES))
    options = parser.parse_args()
    corpus._CHUNK, phrases._GROUP = options.batch or corpus._CHUNK, options.batch or phrases._GROUP
    with tempfile.TemporaryDirectory(prefix="scale-") as scratch:
        folder = Path(scratch)
        model = tiny(folder / "tiny") if options.model == "tiny" else options.model
        settings = prepared(folder, options.passages, model)
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
        ray.init(num_cpus=1, object_store_memory=80 << 20, _node_ip_address="127.0.0.1", **quiet)
        cluster = settings.executor.model_copy(update={"name": "ray", "actors": 1})
        load_encoder(settings.model).encode_queries(["warm"])  # this process's libraries are no cost of Ray
        for name in options.stages.split(","):
            stage, artefact = WRITES[name]
            times, made = {}, {}
            for where in (settings.executor, cluster):
                output = folder / f"{where.name}-{artefact}"
                with contextlib.closing(load_executor(where)) as executor:
                    tools = Tools(output, executor=executor)
                    times[where.name] = timed(stage, settings, folder / "ws", tools)
                made[where.name] = digest(output / artefact)
            told(name, times, made["local"] == made["ray"])
        ray.shutdown()


def tiny(folder: Path) -> str:
    """An encoder with MiniLM's tokenizer and dimension and little else, of random weights."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import AutoConfig, BertModel

    torch.manual_seed(0)
    shape = AutoConfig.from_pretrained(locate("minilm"), num_hidden_layers=1, intermediate_size=384)
    BertModel(shape).save_pretrained(folder / "plain")
    for file in locate("minilm").glob("*token*.json"):
        shutil.copy(file, folder / "plain")
    parts = [Transformer(str(folder / "plain"), max_seq_length=256), Pooling(shape.hidden_size), Normalize()]
    SentenceTransformer(modules=parts, device="cpu").save(str(folder / "model"))
    return str(folder / "model")


def prepared(folder: Path, passages: int, model: str) -> Settings:
    """A workspace in folder/ws with so many short documents, each a passage, and the keyword index."""
    with (folder / "documents.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "text"])
        rows.writerows(row for _, row in zip(range(passages), docstrings(), strict=False))
    values = {
        "source.source": str(folder / "documents.csv"),
        "model.name": model,
        "model.precision": "fp32",
        "generate.max_queries": 100 * passages,  # of every passage
    }
    settings = load_settings(values=values)
    list(Fit(Workspace(folder / "ws"), settings, until="keyword").run())
    return settings


def docstrings() -> Iterator[tuple[str, str]]:
    """(id, text) of the standard library's docstrings of a passage's length, again and again, each time with
    another number."""
    read = [row.values for row in PydocReader("stdlib").rows() if isinstance(row, Row)]
    kept = [(values["id"], values["text"]) for values in read if 200 < len(str(values["text"])) < 900]
    for turn in count():
        yield from ((f"{id_}-{turn}", f"{text} {turn}") for id_, text in kept) if turn else kept


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
