"""What the server holds: the workspaces, opened, and the threads that work for them."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from searchfit.config import ServeSettings
from searchfit.errors import SearchfitError, SettingsError, WorkspaceError
from searchfit.fusion import Floats, Vectors
from searchfit.request import Answer, Request
from searchfit.search import Read, Searcher, open_searcher
from searchfit.server.answers import Answers
from searchfit.server.auth import Guard
from searchfit.server.batching import Batcher
from searchfit.server.errors import NotThereError
from searchfit.server.telemetry import Telemetry
from searchfit.stores.versions import stamp
from searchfit.workspace import Workspace, mirrored

if TYPE_CHECKING:
    from searchfit.mirror import Mirror

_T = TypeVar("_T")
_log = logging.getLogger("searchfit.server")

_WATCHED = ("engine.json", "store.json")

PULL = 60.0
"""Seconds between two looks into an object store."""


class Threads:
    """Where work is done off the event loop: one thread for the models, which would only share the processor,
    a bounded number for searching, and one for changes."""

    def __init__(self, settings: ServeSettings) -> None:
        self.models = ThreadPoolExecutor(1, "model")
        self.search = ThreadPoolExecutor(settings.threads or min(8, 2 * (os.cpu_count() or 1)), "search")
        self.changes = ThreadPoolExecutor(1, "change")

    def close(self) -> None:
        """Let running work end; what waits is dropped."""
        for pool in (self.models, self.search, self.changes):
            pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, eq=False)
class Opened:
    """A searcher, the models warm, and the batchers of what it reads to search and of its two towers."""

    searcher: Searcher
    questions: Batcher[Read]
    queries: Batcher[Floats]
    documents: Batcher[Floats]


class Served:
    """One workspace as it is served; `opened` is what answers now, to be kept for the whole of a request.

    Its engine.json is looked at with each request: when a fit has swapped in another index, that one is
    opened and warmed beside, then takes the place of the old. Requests that run keep the one that they began
    with. Additions to an index need no opening: each search sees the newest version.
    """

    def __init__(self, name: str, path: Path, state: State) -> None:
        self.name, self.path, self.state = name, path, state
        self._stamp = self._look()
        self.opened = self._open()
        self._opening: asyncio.Task[None] | None = None
        self._mirror = mirrored(path)
        self._pulling: asyncio.Task[None] | None = None
        self._pulled = time.monotonic()
        self._answers = Answers(state.settings.cache)

    async def search(self, request: Request) -> Answer:
        """Hits, and the version of the index that all of them are from. Concurrent queries are encoded
        together; equal requests over one version are answered once.

        Raises SettingsError and FilterError as Searcher.search does, WorkspaceError for a damaged index.
        """
        self.refresh()
        opened = self.opened
        try:
            return await self._search(opened, request)
        except SettingsError:
            raise
        except (SearchfitError, OSError, RuntimeError, ValueError):
            # Files of an index that two newer ones have replaced are removed: the newest answers then.
            if self._opening is None and opened is self.opened and not self._moved():
                raise
        self.refresh()
        if self._opening is not None:
            await asyncio.shield(self._opening)  # others wait for it too
        return await self._search(self.opened, request)

    async def work(self, call: Callable[[Searcher], _T]) -> _T:
        """Do something with the searcher of now on a thread of the search pool; again, should the version of
        the index that it began with be removed meanwhile by two newer ones."""
        self.refresh()
        return await self.state.on(self.state.threads.search, partial(_steadily, call, self.opened.searcher))

    async def encode(self, texts: Sequence[str], task: str) -> Vectors:
        """(len(texts), dimension) by the tower of the task, "query" or "document"."""
        self.refresh()
        batcher = self.opened.queries if task == "query" else self.opened.documents
        return np.array(await batcher.encode(texts))

    async def rerank(self, query: str, texts: Sequence[str]) -> Floats:
        """(len(texts)) scores in 0..1 by the engine's re-ranker. Raises NotThereError where it has none."""
        self.refresh()
        searcher = self.opened.searcher
        if not searcher.engine.reranker:
            raise NotThereError(
                f"the engine of {self.name} has no re-ranker.", "Fit with --reranker to have one."
            )
        scores = searcher.reranker.scores
        step = self.state.settings.batch_texts  # so that queries pass between
        parts = [texts[start : start + step] for start in range(0, len(texts), step)]
        on = partial(self.state.on, self.state.threads.models)
        return np.concatenate([await on(partial(scores, query, part)) for part in parts])

    def refresh(self) -> None:
        """Look whether another index is to be served, and begin to open it. Into an object store one looks
        every minute, for a workspace that is there."""
        if self._mirror and self._pulling is None and time.monotonic() - self._pulled >= PULL:
            self._pulling = asyncio.get_running_loop().create_task(self._pull(self._mirror[0]))
        if self._opening is None and self._moved():
            self._opening = asyncio.get_running_loop().create_task(self._reopen())

    async def _pull(self, mirror: Mirror) -> None:
        try:
            await asyncio.to_thread(mirror.pull)
        except SearchfitError as error:
            _log.error("workspace %s: %s", self.name, error.message)
        self._pulled, self._pulling = time.monotonic(), None

    async def _search(self, opened: Opened, request: Request) -> Answer:
        request.check()
        engine = request.switches.applied(opened.searcher.engine)
        version = opened.searcher.folder, stamp(opened.searcher.folder)
        known = self._answers.get(version, request)
        self.state.telemetry.cached(known is not None)
        if known is not None:
            return known
        model = engine.dense_weight or engine.token_weight
        read = (await opened.questions.encode([request.query]))[0] if model else None
        call = partial(opened.searcher.answer, request, read)
        answer = await self.state.on(self.state.threads.search, call)
        self._answers.put(version, request, answer)
        return answer

    def _look(self) -> tuple[tuple[int, int], ...]:
        stamps = []
        for name in _WATCHED:
            try:
                status = os.stat(self.path / name)
            except OSError:
                stamps.append((0, 0))
            else:
                stamps.append((status.st_mtime_ns, status.st_ino))
        return tuple(stamps)

    def _moved(self) -> bool:
        return self._look() != self._stamp

    def _open(self) -> Opened:
        searcher = open_searcher(self.path)
        searcher.encoder.encode_queries(["warm"])
        searcher.encoder.encode_documents(["warm"])
        if searcher.engine.reranker:
            searcher.reranker.scores("warm", ["warm"])
        batcher = partial(Batcher, self.state.threads.models, self.state.settings, self.state.telemetry)
        encoder = searcher.encoder
        questions = partial(searcher.read, searcher.engine)
        queries, documents = partial(_rows, encoder.encode_queries), partial(_rows, encoder.encode_documents)
        return Opened(searcher, batcher(questions), batcher(queries), batcher(documents))

    async def _reopen(self) -> None:
        looked = self._look()
        [opened] = await asyncio.gather(asyncio.to_thread(self._open), return_exceptions=True)
        if isinstance(opened, BaseException):
            told = "workspace %s: the new index cannot be opened, the old one stays"
            _log.error(told, self.name, exc_info=opened)
        else:
            self.opened = opened
            self.state.telemetry.swapped(self.name)
            _log.info("workspace %s: now serves %s", self.name, opened.searcher.folder.name)
        self._stamp = looked
        self._opening = None


def _steadily(call: Callable[[Searcher], _T], searcher: Searcher) -> _T:
    for _ in range(4):
        before = stamp(searcher.folder)
        try:
            return call(searcher)
        except WorkspaceError:
            if stamp(searcher.folder) == before:
                raise
    return call(searcher)


@dataclass
class State:
    """The server's workspaces by name, in the order given: the first is the default."""

    settings: ServeSettings
    guard: Guard = field(default_factory=Guard)
    telemetry: Telemetry = field(default_factory=Telemetry)
    served: dict[str, Served] = field(default_factory=dict)
    draining: bool = False

    def __post_init__(self) -> None:
        self.threads = Threads(self.settings)

    @classmethod
    def open(cls, workspaces: Sequence[Path], settings: ServeSettings, guard: Guard | None = None) -> State:
        """Open workspaces; each has the name of its folder. Raises WorkspaceError for one that is not
        finished, SettingsError for two of one name."""
        state = cls(settings, guard or Guard(origins=settings.cors))
        for path in workspaces:
            name = Path(Workspace(path).name).resolve().name
            if name in state.served:
                raise SettingsError(
                    f"two workspaces have the name {name!r}.", "Rename the folder of one, or serve it apart."
                )
            state.served[name] = Served(name, path, state)
        if not state.served:
            raise SettingsError("no workspace is named.")
        return state

    def workspace(self, name: str | None = None) -> Served:
        """A workspace by its name, the first without one. Raises NotThereError."""
        if not name:
            return next(iter(self.served.values()))
        if name not in self.served:
            names = ", ".join(self.served)
            raise NotThereError(f"there is no workspace {name[:100]!r}.", f"Served are: {names}.")
        return self.served[name]

    async def on(self, pool: ThreadPoolExecutor, call: Callable[[], _T]) -> _T:
        """Do something on a thread."""
        return await asyncio.get_running_loop().run_in_executor(pool, call)

    def close(self) -> None:
        """End the threads."""
        self.threads.close()


def _rows(encode: Callable[[Sequence[str]], Floats], texts: Sequence[str]) -> list[Floats]:
    """The vector of each text."""
    return list(encode(texts))
