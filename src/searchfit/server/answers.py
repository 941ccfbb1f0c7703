"""The latest answers, kept for equal requests over the same version of an index."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock

from searchfit.request import Answer, Request


class Answers:
    """The latest answers by version and request, bounded by the hits that they hold."""

    def __init__(self, hits: int) -> None:
        self._room = hits
        self._held: OrderedDict[tuple[Hashable, Request], Answer] = OrderedDict()
        self._hits = 0
        self._lock = Lock()

    def get(self, version: Hashable, request: Request) -> Answer | None:
        """The answer to an equal request over the same version."""
        with self._lock:
            answer = self._held.get((version, request))
            if answer is not None:
                self._held.move_to_end((version, request))
            return answer

    def put(self, version: Hashable, request: Request, answer: Answer) -> None:
        """Keep an answer; those that were not asked for longest make room."""
        with self._lock:
            if (version, request) in self._held:
                return
            self._held[version, request] = answer
            self._hits += len(answer.hits) + 1
            while self._hits > self._room:
                _, old = self._held.popitem(last=False)
                self._hits -= len(old.hits) + 1
