"""What a fit takes on several machines like this one, from its forecast on this one alone.

Batches are as large as they are, so that machines wait for the last of them; what is not shared out, starting
actors, and reading and writing by the machine that asks get no shorter (Amdahl 1967, "Validity of the
single processor approach to achieving large scale computing capabilities").
"""

from __future__ import annotations

import math
import os
import pickle
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from searchfit.config import ExecutorSettings, Settings
from searchfit.encoders import load_encoder
from searchfit.encoders.corpus import Read, Vectored, encode_corpus, load_words
from searchfit.errors import SettingsError
from searchfit.executors.ray import AHEAD
from searchfit.preflight.forecast import BATCH, Cost, Forecast
from searchfit.recipe import STAGES
from searchfit.workspace import Workspace

_PROCESS = 1.4  # seconds to start an actor without a model (docs/scale.md)

_TRAINS = frozenset(stage.name for stage in STAGES if stage.trains)
_ENCODES = ("encode", "reencode")


@dataclass(frozen=True, slots=True)
class Machines:
    """So many machines, and what an hour of one costs, in any currency; None: not named."""

    nodes: int = 1
    price_per_hour: float | None = None

    def __post_init__(self) -> None:
        """Raises SettingsError for numbers that are none of machines or prices."""
        if self.nodes < 1:
            raise SettingsError(f"{self.nodes} machines are none.", "--nodes is 1 or more.")
        if self.price_per_hour is not None and not 0 <= self.price_per_hour < math.inf:
            raise SettingsError(f"{self.price_per_hour} is not a price.", "--price-per-hour is 0 or more.")


@dataclass(frozen=True, slots=True)
class Handling:
    """What was measured beside the forecast: seconds to start an actor with its model, and to read, hand
    over, take back and write a batch of passages; bytes of the batch as it comes back; the memory of an actor
    (MiB)."""

    start: float
    batch: float
    batch_bytes: int
    actor_mb: int


@dataclass(frozen=True, slots=True)
class Share:
    """A stage on the cluster: its seconds, and those of them in which one machine works alone (`here`) or
    actors start; `by` says who shares the rest, "executor" or "torchrun", or nobody ("")."""

    stage: str
    seconds: float
    here: float
    start: float
    by: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """A fit on so many machines, by stage and together, against `alone` on one. With `enough` machines half
    of the time is what no machine more shortens. `memory_mb` is that of the process that asks, `actors_mb`
    that of the actors of one machine. The cost is None where no price is."""

    nodes: int
    actors: int
    stages: tuple[Share, ...]
    seconds: float
    alone: float
    enough: int
    node_hours: float
    price_per_hour: float | None
    cost: float | None
    memory_mb: int
    actors_mb: int


def on_cluster(told: Forecast, machines: Machines, executor: ExecutorSettings, handling: Handling) -> Cluster:
    """Share the forecast out."""
    plan = _Plan(told, executor, handling)
    nodes = machines.nodes
    stages = tuple(plan.share(cost, nodes) for cost in told.stages)
    seconds = plan.seconds(nodes)
    hours, price = nodes * seconds / 3600, machines.price_per_hour
    return Cluster(
        nodes=nodes,
        actors=plan.actors(nodes),
        stages=stages,
        seconds=round(seconds, 1),
        alone=told.seconds,
        enough=plan.enough(),
        node_hours=round(hours, 3),
        price_per_hour=price,
        cost=None if price is None else round(hours * price, 2),
        memory_mb=plan.memory(nodes),
        actors_mb=plan.places * handling.actor_mb,
    )


class _Plan:
    """One machine does what was forecast, in this process; more have actors."""

    def __init__(self, told: Forecast, executor: ExecutorSettings, handling: Handling) -> None:
        self.told, self.executor, self.handling = told, executor, handling
        self.places = _places(executor)

    def actors(self, nodes: int) -> int:
        """In all."""
        there = nodes * self.places
        return min(self.executor.actors, there) if self.executor.actors else there

    def seconds(self, nodes: int) -> float:
        """Of all stages."""
        return sum(self.share(cost, nodes).seconds for cost in self.told.stages)

    def share(self, cost: Cost, nodes: int) -> Share:
        """A stage. Actors of a machine are together as quick as this process was; of processes that train
        each machine has one."""
        if nodes == 1 or not cost.pieces:
            return Share(cost.stage, cost.seconds, cost.seconds, 0.0, "")
        here, piece = cost.seconds - cost.shared, cost.shared / cost.pieces
        if cost.stage in _TRAINS:
            shared = math.ceil(cost.pieces / nodes) * piece
            return Share(cost.stage, round(here + shared, 2), round(here, 2), 0.0, "torchrun")
        handled = self.handling.batch if cost.stage in _ENCODES else 0.0
        each = max(0.0, piece - handled) * self.places
        shared = max(math.ceil(cost.pieces / self.actors(nodes)) * each, handled * cost.pieces)
        start = self.handling.start if cost.stage != "generate" else _PROCESS
        return Share(cost.stage, round(here + start + shared, 2), round(here, 2), round(start, 2), "executor")

    def enough(self) -> int:
        """The fewest machines that take at most twice the time that the most that have work would take."""
        most = max([2, *(cost.pieces for cost in self.told.stages)])
        bound = 2 * min(self.seconds(1), self.seconds(most))
        if self.seconds(1) <= bound:
            return 1
        low, high = 2, most
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.seconds(middle) <= bound else (middle + 1, high)
        return low

    def memory(self, nodes: int) -> int:
        """The forecast's, and the vectors of the batches that may lie ready behind one that is waited for."""
        waiting = AHEAD * self.executor.in_flight * self.actors(nodes) if nodes > 1 else 0
        held = {
            cost.stage: min(waiting, cost.pieces) * self.handling.batch_bytes
            for cost in self.told.stages
            if cost.stage in _ENCODES
        }
        return max(cost.memory_mb + (held.get(cost.stage, 0) >> 20) for cost in self.told.stages)


def _places(executor: ExecutorSettings) -> int:
    """Actors that a machine like this one has room for."""
    places = [(os.cpu_count() or 1) / executor.cpus]
    if executor.gpus:
        import torch

        places.append(torch.cuda.device_count() / executor.gpus)
    return max(1, int(min(places)))


def measure_handling(space: Workspace, settings: Settings, start: float) -> Handling:
    """Measured in a fitted workspace, whose vectors are handed out in the place of an actor; `start` are the
    seconds to load libraries and model."""
    encoder = load_encoder(settings.model)
    vectors, words = space.artefact("encoded"), load_words(space.artefact("encoded"))
    passages, sentences, offsets = (
        np.load(vectors / f"{name}.npy", mmap_mode="r") for name in ("passages", "sentences", "offsets")
    )
    bytes_back = 0

    def answered(batches: Iterable[Read]) -> Iterator[Vectored]:
        nonlocal bytes_back
        first = 0
        for batch in batches:
            end = first + len(pickle.loads(pickle.dumps(batch))[0])
            own = words.take(np.arange(first, end)) if words else None
            units = np.array(sentences[offsets[first] : offsets[end]])
            packed = pickle.dumps((np.array(passages[first:end]), units, own))
            bytes_back += len(packed)
            yield pickle.loads(packed)
            first = end

    with tempfile.TemporaryDirectory(prefix="searchfit-handling-") as scratch:
        centre = words.centre if words else None
        begun = time.perf_counter()
        encode_corpus(
            encoder, space.artefact("passages.parquet"), Path(scratch), lambda *_: None, answered, centre
        )
        seconds = time.perf_counter() - begun
    full = BATCH["encode"] / max(1, len(passages))
    peak = int(space.manifest()["stages"]["encode"]["peak_memory_mb"])
    return Handling(start + _PROCESS, seconds * full, int(bytes_back * full), peak)
