"""Batches on a Ray cluster, by a pool of actors of which each loads the model once.

No other file imports ray. Actors compute; this process reads the batches and takes the results. So all that
a kill could cut short, files, ledger and marks of progress, is where it is without Ray, and either carries
on what the other began.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from searchfit.config import ExecutorSettings
from searchfit.errors import MissingExtraError, SearchfitError
from searchfit.executors import B, R, Work

AHEAD = 2
"""How many times what the actors hold is read ahead of the result that is waited for."""

_TRIES = 3
"""Actors in a row that may end before they work, or over the same batch."""


class RayExecutor:
    """See `Executor`. A batch whose actor or machine is lost is given to another one."""

    def __init__(self, settings: ExecutorSettings) -> None:
        """Join the cluster at `executor.address`, or take the one that this process has joined before.

        Raises MissingExtraError without ray, SearchfitError where there is no cluster.
        """
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("executor.name = ray", "ray") from error
        self._settings = settings
        self._joined = not ray.is_initialized()
        if self._joined:
            _join(settings.address)
        self._pool: _Pool | None = None

    def map_batches(self, work: Work[B, R], batches: Iterable[B]) -> Iterator[R]:
        """See `Executor.map_batches`. Until `release`, equal work finds its actors again."""
        from ray import cloudpickle

        # A pool that is busy belongs to a caller that has given up: what is under way in it is of no use.
        if self._pool is None or self._pool.busy or self._pool.work != work:
            self.release()
            self._pool = _Pool(work, self._settings)
        pool = self._pool
        pool.busy = True
        try:
            # As bytes of our own: arrays out of Ray's store are read-only and keep their place in it.
            for packed in pool.map(map(cloudpickle.dumps, batches)):
                yield cloudpickle.loads(packed)
            pool.busy = False
        finally:
            if pool.busy:
                pool.end()

    def release(self) -> None:
        """End the actors."""
        if self._pool is not None:
            self._pool.end()
        self._pool = None

    def close(self) -> None:
        """End the actors, and leave the cluster unless somebody else had joined it."""
        import ray

        self.release()
        if self._joined:
            ray.shutdown()


def _join(address: str) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal() and "://" not in address:  # at once, where Ray would try for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (OSError, RuntimeError, ValueError) as error:
        raise SearchfitError(
            f"The Ray cluster at {address!r} cannot be joined: {_first_line(error)}",
            "Start it with `ray start --head`, name it with --address HOST:6379, or say --executor local.",
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


class _Actor:
    """What runs on the cluster."""

    def start(self, packed: bytes, folder: str, theirs: str, gpus: float) -> None:
        """Unpack the work, in the folder in which paths were named. Raises SearchfitError where another
        version of searchfit is installed."""
        from ray import cloudpickle

        own = version("searchfit")
        if own != theirs:
            raise SearchfitError(
                f"A machine of the cluster has searchfit {own}, the one that asks has {theirs}.",
                "Install the same version everywhere.",
            )
        if not gpus:  # else all actors of a machine would crowd its first GPU
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if Path(folder).is_dir():
            os.chdir(folder)
        self._work: Work[Any, Any] = cloudpickle.loads(packed)

    def run(self, packed: bytes) -> bytes:
        """The result of a batch."""
        from ray import cloudpickle

        (result,) = self._work([cloudpickle.loads(packed)])
        return bytes(cloudpickle.dumps(result))


@dataclass(eq=False, slots=True)
class _Job:
    """A batch by its number, and how many actors ended over it."""

    number: int
    packed: bytes
    ended: int = 0


@dataclass(eq=False, slots=True)
class _Hand:
    """An actor, whether it has started, and what it was given and has not answered, in order."""

    actor: Any
    started: bool = False
    jobs: deque[_Job] = field(default_factory=deque)


class _Pool:
    """The actors of one work."""

    def __init__(self, work: Work[Any, Any], settings: ExecutorSettings) -> None:
        self.work, self.busy = work, False
        self._settings = settings
        self._hands: list[_Hand] = []
        self._under_way: dict[Any, tuple[_Hand, _Job | None]] = {}  # by reference; None: the actor's start
        self._stillborn = 0

    def map(self, batches: Iterable[bytes]) -> Iterator[bytes]:
        """The result of each batch, in order. As many are read ahead of the one that is waited for as the
        actors can hold twice, so that a slow one does not let the others fill the memory."""
        source = (_Job(number, packed) for number, packed in enumerate(batches))
        waiting: deque[_Job] = deque()
        done: dict[int, bytes] = {}
        read = taken = 0
        while True:
            if not waiting and read - taken < AHEAD * self._settings.in_flight * max(1, len(self._hands)):
                waiting.extend(islice(source, 1))
                read += len(waiting)
            if read == taken:
                return
            if not self._hands:
                self._begin()
            if waiting and (hand := self._free()):
                self._give(hand, waiting.popleft())
                continue
            done.update(self._news(waiting))
            while taken in done:
                yield done.pop(taken)
                taken += 1

    def end(self) -> None:
        """Stop the actors, whatever they are at."""
        import ray

        for hand in self._hands:
            ray.kill(hand.actor)
        self._hands, self._under_way = [], {}

    def _begin(self) -> None:
        """Start as many actors as are asked for; by default, as have a place in the cluster."""
        import ray

        ours, there = self._settings, ray.cluster_resources()
        places = [there.get("CPU", 0) / ours.cpus]
        if ours.gpus:
            places.append(there.get("GPU", 0) / ours.gpus)
        for _ in range(ours.actors or max(1, int(min(places)))):
            self._add()

    def _add(self) -> None:
        """Start an actor. One for which there is no room waits for it."""
        import ray
        from ray import cloudpickle

        ours = self._settings
        # One that ended is replaced here, for only here it is known which batches it had.
        kind = ray.remote(num_cpus=ours.cpus, num_gpus=ours.gpus, max_restarts=0)(_Actor)
        hand = _Hand(kind.options(scheduling_strategy="SPREAD").remote())
        self._hands.append(hand)
        packed = cloudpickle.dumps(self.work)
        begun = hand.actor.start.remote(packed, str(Path.cwd()), version("searchfit"), ours.gpus)
        self._under_way[begun] = (hand, None)

    def _free(self) -> _Hand | None:
        """The actor with the fewest batches that may get another one."""
        started = [hand for hand in self._hands if hand.started]
        hand = min(started, key=lambda one: len(one.jobs), default=None)
        return hand if hand and len(hand.jobs) < self._settings.in_flight else None

    def _give(self, hand: _Hand, job: _Job) -> None:
        hand.jobs.append(job)
        self._under_way[hand.actor.run.remote(job.packed)] = (hand, job)

    def _news(self, waiting: deque[_Job]) -> Iterator[tuple[int, bytes]]:
        """Wait for an actor: gives its result with its number, or puts what it had back among those that
        wait."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        patience = None if any(hand.started for hand in self._hands) else self._settings.patience
        ready, _ = ray.wait(list(self._under_way), timeout=patience)
        if not ready:
            raise self._no_room()
        hand, job = self._under_way.pop(ready[0])
        try:
            result: bytes = ray.get(ready[0])
        except RayTaskError as error:
            if isinstance(error.cause, SearchfitError):
                raise error.cause from None
            raise
        except RayError as error:
            self._lose(hand, error)
            waiting.extendleft(reversed(hand.jobs))
            return
        if job is None:
            hand.started, self._stillborn = True, 0
        else:
            hand.jobs.remove(job)
            yield job.number, result

    def _lose(self, hand: _Hand, error: Exception) -> None:
        """Replace an actor that has ended. Raises SearchfitError where that happens time and again."""
        import ray

        if hand.jobs:
            hand.jobs[0].ended += 1  # the one that it was at
        self._stillborn += not hand.started
        if self._stillborn == _TRIES or any(job.ended == _TRIES for job in hand.jobs):
            raise SearchfitError(
                f"{_TRIES} workers on the cluster ended, the last one so: {_first_line(error)}",
                "Look whether their machines have searchfit with its extras, and memory enough for the model "
                "(executor.cpus, executor.gpus: what a worker gets). The same command carries on.",
            ) from error
        ray.kill(hand.actor)
        self._hands.remove(hand)
        self._under_way = {ref: (one, job) for ref, (one, job) in self._under_way.items() if one is not hand}
        self._add()

    def _no_room(self) -> SearchfitError:
        import ray

        ours, free = self._settings, ray.available_resources()
        return SearchfitError(
            f"No worker started on the cluster in {ours.patience:g} seconds: each asks for {ours.cpus:g} "
            f"CPUs and {ours.gpus:g} GPUs, and {free.get('CPU', 0):g} and {free.get('GPU', 0):g} are free.",
            "Ask for less with executor.cpus and executor.gpus, or wait longer with executor.patience.",
        )
