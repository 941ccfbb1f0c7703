"""Dynamic batching: texts of concurrent requests go through the model together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

from searchfit.config import ServeSettings
from searchfit.server.telemetry import Telemetry

_T = TypeVar("_T")


class Batcher(Generic[_T]):
    """Encodes texts for many requests at once, on a thread.

    The first text of a batch waits `batch_window` milliseconds for others, and none at all when nothing else
    was asked shortly before; while one batch is encoded the next one gathers. A request of many texts is
    divided, so that short ones pass it.
    """

    def __init__(
        self,
        thread: Executor,
        settings: ServeSettings,
        telemetry: Telemetry,
        encode: Callable[[Sequence[str]], Sequence[_T]],
    ) -> None:
        self._thread, self._encode, self._telemetry = thread, encode, telemetry
        self._window, self._most = settings.batch_window / 1000, settings.batch_texts
        self._waiting: deque[tuple[Sequence[str], asyncio.Future[Sequence[_T]]]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._last = 0  # requests in the batch before

    async def encode(self, texts: Sequence[str]) -> Sequence[_T]:
        """What the model makes of each text. Raises what the model raises, to each request of the batch."""
        if len(texts) <= self._most:
            return await self._one(texts)
        parts = [await self._one(texts[i : i + self._most]) for i in range(0, len(texts), self._most)]
        return [one for part in parts for one in part]

    def _one(self, texts: Sequence[str]) -> asyncio.Future[Sequence[_T]]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Sequence[_T]] = loop.create_future()
        self._waiting.append((texts, future))
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        return future

    async def _work(self) -> None:
        try:
            while self._waiting:
                if self._last > 1 and len(self._waiting) < self._last:
                    await asyncio.sleep(self._window)
                await self._batch()
        finally:
            self._worker = None

    async def _batch(self) -> None:
        taken: list[tuple[Sequence[str], asyncio.Future[Sequence[_T]]]] = []
        count = 0
        while self._waiting and count + len(self._waiting[0][0]) <= self._most:
            texts, future = self._waiting.popleft()
            if not future.done():  # the request has gone
                taken.append((texts, future))
                count += len(texts)
        self._last = len(taken)
        if not taken:
            return
        every = [text for texts, _ in taken for text in texts]
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._encode, every)
        [made] = await asyncio.gather(work, return_exceptions=True)
        self._telemetry.batch(len(taken), count)
        start = 0
        for texts, future in taken:
            if future.done():
                pass  # the request has gone
            elif isinstance(made, BaseException):
                future.set_exception(made)
            else:
                future.set_result(made[start : start + len(texts)])
            start += len(texts)
