"""Simulate the schedule of a stage on a cluster:

    python benchmarks/scale.py --simulate [--passages 100000000] [--nodes 1 4 16 64 256]
                                          [--straggler 0.05:4] [--mtbf-hours 200] [--seed 1]

The executor is the real one, searchfit.executors.ray; what it asks of Ray is answered by machines that exist
in a queue of events and on a clock of their own. So how far it reads ahead, what it gives to whom and what it
does about slow and failing machines is what it would do. Seconds by default are those of encoding with MiniLM
on two cores, see docs/scale.md. Printed by number of machines: hours, and how many times those in which
nobody waits; the share of its time in which an actor does what is of use, and in which the process that asks
reads and writes; machines that failed, batches given again, and the most results that lay ready behind
one that was waited for.
"""

from __future__ import annotations

import argparse
import heapq
import math
import pickle
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

from searchfit.config import ExecutorSettings
from searchfit.executors.ray import RayExecutor


@dataclass(frozen=True, slots=True)
class Plan:
    """Batches for so many machines of so many actors, in seconds: to start an actor, for an actor to do a
    batch, and for the process that asks to read one and to write one. The share `slow` of the machines takes
    `slower` times as long for a batch. Machines fail by chance, once in `mtbf_hours` each; that is noticed
    after `noticed`, and the machine is back after `back` seconds."""

    batches: int
    nodes: int = 1
    actors: int = 2
    batch: float = 29.5
    start: float = 9.5
    read: float = 0.01
    write: float = 0.055
    in_flight: int = 2
    slow: float = 0.0
    slower: float = 1.0
    mtbf_hours: float = math.inf
    noticed: float = 30.0
    back: float = 600.0
    seed: int = 1

    @property
    def factors(self) -> list[float]:
        """By how much each machine is slower."""
        slow = round(self.slow * self.nodes)
        factors = [self.slower] * slow + [1.0] * (self.nodes - slow)
        random.Random(self.seed).shuffle(factors)
        return factors

    @property
    def ideal(self) -> float:
        """Seconds if nobody ever waited."""
        return self.batches * self.batch / sum(self.actors / factor for factor in self.factors)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds from the first batch read to the last one written, the share of them in which actors work on
    what is of use, and in which the process that asks reads or writes; batches given again, the
    machines that failed, and the most results that lay ready behind one that was waited for."""

    seconds: float
    working: float
    asking: float
    again: int
    failures: int
    most_ready: int


def simulate(plan: Plan) -> Outcome:
    """Run the executor on the machines of a plan. Raises RuntimeError should a batch be missing, come twice
    or out of order."""
    world = _World(plan)
    settings = ExecutorSettings(name="ray", in_flight=plan.in_flight, patience=1e9)
    most = done = 0
    with mock.patch.dict(sys.modules, world.modules):
        executor = RayExecutor(settings)
        for answer in executor.map_batches(iter, world.reading()):
            if answer != done:
                raise RuntimeError(f"Batch {answer} came in the place of {done}.")
            done += 1
            most = max(most, world.answered - done)
            world.spend(plan.write)
        executor.close()
    if done != plan.batches:
        raise RuntimeError(f"{done} of {plan.batches} batches came.")
    actors = plan.nodes * plan.actors * world.now
    return Outcome(
        world.now, world.useful / actors, world.spent / world.now, world.again, world.failures, most
    )


@dataclass(eq=False, slots=True)
class _Node:
    factor: float
    up: bool = True
    actors: list[_Actor] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class _Ref:
    """What an actor was asked for: its start, or a batch, and the seconds that it takes."""

    actor: _Actor
    answer: bytes = b""
    seconds: float = 0.0
    failed: bool = False


class _Actor:
    """A handle as Ray gives it. `node` is None while there is no place for it."""

    def __init__(self, world: _World) -> None:
        self._world = world
        self.node: _Node | None = None
        self.free_at, self.lost_at = 0.0, math.inf
        self.ended = False
        self.pending: deque[_Ref] = deque()
        self.start = SimpleNamespace(remote=lambda *_: self._ask(b"", world.plan.start))
        self.run = SimpleNamespace(remote=lambda packed: self._ask(packed, world.plan.batch))

    def _ask(self, answer: bytes, seconds: float) -> _Ref:
        ref = _Ref(self, answer, seconds)
        self.pending.append(ref)
        if self.lost_at < math.inf:
            self._world.at(max(self._world.now, self.lost_at), lambda _: self.lose(ref))
        elif self.node:
            self.begin(ref, self.node.factor, self._world.now)
        return ref

    def begin(self, ref: _Ref, factor: float, now: float) -> None:
        """One thing after another, on a machine that is slower by a factor."""
        ref.seconds *= factor if ref.answer else 1.0
        self.free_at = max(now, self.free_at) + ref.seconds
        self._world.at(self.free_at, lambda _: self._answer(ref))

    def _answer(self, ref: _Ref) -> None:
        """Unless the machine failed before."""
        if self.lost_at == math.inf and not self.ended:
            self.pending.remove(ref)
            self._world.ready.append(ref)
            self._world.answered += bool(ref.answer)
            self._world.useful += ref.seconds if ref.answer else 0.0

    def lose(self, ref: _Ref) -> None:
        """It is noticed that the machine failed."""
        if not self.ended:
            ref.failed = True
            self._world.ready.append(ref)
            self._world.again += bool(ref.answer)


class _World:
    """The clock, what happens when, and the part of Ray's interface that the executor uses."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.now = plan, 0.0
        self.answered = self.again = self.failures = 0
        self.spent = self.useful = 0.0
        self.ready: deque[_Ref] = deque()
        self._chance, self._order = random.Random(plan.seed), count()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._nodes = [_Node(factor) for factor in plan.factors]
        self._without_place: deque[_Actor] = deque()
        for node in self._nodes:
            self._doom(node, 0.0)

    @property
    def modules(self) -> dict[str, Any]:
        """What `import ray` finds."""
        faults = ModuleType("ray.exceptions")
        error = type("RayError", (Exception,), {})
        vars(faults).update(RayError=error, RayTaskError=type("RayTaskError", (error,), {}))
        self._error = error
        ray = ModuleType("ray")
        names = ("is_initialized", "cluster_resources", "remote", "wait", "get", "kill")
        vars(ray).update({name: getattr(self, name) for name in names}, cloudpickle=pickle, exceptions=faults)
        return {"ray": ray, "ray.exceptions": faults}

    def at(self, time: float, what: Callable[[float], None]) -> None:
        """Let something happen; it is told the time, for that of the process that asks may be later."""
        heapq.heappush(self._events, (time, next(self._order), what))

    def spend(self, seconds: float) -> None:
        """The process that asks is busy."""
        self.now += seconds
        self.spent += seconds

    def reading(self) -> Iterator[int]:
        """The batches, as they are asked for."""
        for number in range(self.plan.batches):
            self.spend(self.plan.read)
            yield number

    def is_initialized(self) -> bool:
        """The cluster has been joined."""
        return True

    def cluster_resources(self) -> dict[str, float]:
        """A processor an actor."""
        return {"CPU": float(self.plan.nodes * self.plan.actors)}

    def remote(self, **_: Any) -> Callable[[type], Any]:
        """A kind of actor; `options(...).remote()` makes one."""
        return lambda _: SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._actor))

    def _actor(self) -> _Actor:
        actor = _Actor(self)
        self._without_place.append(actor)
        self._place(self.now)
        return actor

    def _place(self, now: float) -> None:
        """Actors in their turn to the machines with the most room."""
        while self._without_place:
            there = [node for node in self._nodes if node.up]
            node = min(there, key=lambda one: len(one.actors), default=None)
            if node is None or len(node.actors) >= self.plan.actors:
                return
            actor = self._without_place.popleft()
            actor.node = node
            node.actors.append(actor)
            for ref in actor.pending:
                actor.begin(ref, node.factor, now)

    def wait(self, refs: list[_Ref], timeout: float | None = None) -> tuple[list[_Ref], list[_Ref]]:
        """The first that is answered or lost."""
        until = math.inf if timeout is None else self.now + timeout
        while True:
            while self._events and self._events[0][0] <= self.now:
                time, _, what = heapq.heappop(self._events)
                what(time)
            while self.ready:
                ref = self.ready.popleft()
                if not ref.actor.ended:
                    return [ref], []
            if not self._events or self._events[0][0] > until:
                return [], refs
            self.now = self._events[0][0]

    def get(self, ref: _Ref) -> bytes:
        """A batch comes back as it went."""
        if ref.failed:
            raise self._error("the machine failed")
        return ref.answer

    def kill(self, actor: _Actor) -> None:
        """Its place is free again, unless its machine is gone."""
        actor.ended = True
        if actor.node and actor in actor.node.actors:
            actor.node.actors.remove(actor)
        if actor in self._without_place:
            self._without_place.remove(actor)
        self._place(self.now)

    def _doom(self, node: _Node, now: float) -> None:
        if self.plan.mtbf_hours < math.inf:
            lives = self._chance.expovariate(1 / (3600 * self.plan.mtbf_hours))
            self.at(now + lives, partial(self._fail, node))

    def _fail(self, node: _Node, now: float) -> None:
        node.up = False
        self.failures += 1
        for actor in node.actors:
            actor.lost_at = now + self.plan.noticed
            for ref in actor.pending:
                self.at(actor.lost_at, lambda _, ref=ref: ref.actor.lose(ref))  # type: ignore[misc]
        node.actors = []
        self.at(now + self.plan.back, partial(self._return, node))

    def _return(self, node: _Node, now: float) -> None:
        node.up = True
        self._doom(node, now)
        self._place(now)


def main() -> None:
    """Simulate and print."""
    plan = Plan(1)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulate", action="store_true", help="how benchmarks/scale.py comes here")
    parser.add_argument("--passages", type=int, default=100_000_000)
    parser.add_argument("--batch-passages", type=int, default=512, help="of one batch")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 4, 16, 64, 256], help="machines")
    parser.add_argument("--actors", type=int, default=plan.actors, help="on a machine")
    parser.add_argument("--straggler", default="0:1", metavar="SHARE:FACTOR", help="slow machines")
    told = {
        "batch": "seconds of an actor for a batch",
        "start": "seconds to start an actor",
        "read": "seconds to read a batch, of the process that asks",
        "write": "seconds to take a batch back and write it",
        "mtbf-hours": "a machine fails once in so many, on average",
        "noticed": "seconds until a failure is noticed",
        "back": "seconds until the machine is back",
    }
    for name, meaning in told.items():
        default = getattr(plan, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=float, default=default, help=f"{meaning} ({default:g})")
    parser.add_argument("--in-flight", type=int, default=plan.in_flight, help="executor.in_flight")
    parser.add_argument("--seed", type=int, default=plan.seed)
    options = vars(parser.parse_args())
    slow, slower = (float(part) for part in options.pop("straggler").split(":"))
    batches = -(-options.pop("passages") // options.pop("batch_passages"))
    del options["simulate"]
    print("machines    hours   of ideal   working   asking   failed    again   ready", flush=True)
    for nodes in options.pop("nodes"):
        show(Plan(batches, nodes, slow=slow, slower=slower, **options))


def show(plan: Plan) -> None:
    """A row of the table."""
    found = simulate(plan)
    print(
        f"{plan.nodes:8,}{found.seconds / 3600:9,.1f}{found.seconds / plan.ideal:11.2f}"
        f"{found.working:10.1%}{found.asking:9.1%}{found.failures:9,}{found.again:9,}{found.most_ready:8,}",
        flush=True,
    )


if __name__ == "__main__":
    main()
