"""What the server did: counters for Prometheus, and an access log of JSON lines."""

from __future__ import annotations

import json
import logging
import time
from bisect import bisect_left
from collections import Counter
from contextvars import ContextVar
from datetime import datetime, timezone
from itertools import accumulate
from threading import Lock
from typing import TYPE_CHECKING, Any

from searchfit.server.errors import response_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

access_log = logging.getLogger("searchfit.access")
"""One JSON line a request. No address, agent or token; the query only where that was asked for."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128)
_HELP = {
    "searchfit_requests_total": ("counter", "requests by route, method and status"),
    "searchfit_refused_total": ("counter", "requests that were refused for too many at once"),
    "searchfit_cache_total": ("counter", "searches by whether the answer was known"),
    "searchfit_swaps_total": ("counter", "indexes that were swapped in"),
    "searchfit_running": ("gauge", "requests at work"),
    "searchfit_request_seconds": ("histogram", "seconds that a request took, by route"),
    "searchfit_batch_requests": ("histogram", "requests whose texts were encoded together"),
    "searchfit_batch_texts": ("histogram", "texts that were encoded together"),
}

Labels = tuple[tuple[str, str], ...]


class _Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Telemetry:
    """Counters, told in Prometheus' text format. Labels take few values: the route is its template."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts: Counter[tuple[str, Labels]] = Counter()
        self._histograms: dict[tuple[str, Labels], _Histogram] = {}
        self.running = 0

    def cached(self, hit: bool) -> None:
        """A search, and whether its answer was known."""
        self._count("searchfit_cache_total", result="hit" if hit else "miss")

    def refused(self) -> None:
        """A request too many."""
        self._count("searchfit_refused_total")

    def swapped(self, workspace: str) -> None:
        """Another index is served."""
        self._count("searchfit_swaps_total", workspace=workspace)

    def batch(self, requests: int, texts: int) -> None:
        """Texts of so many requests were encoded together."""
        self._observe("searchfit_batch_requests", requests, _TEXTS)
        self._observe("searchfit_batch_texts", texts, _TEXTS)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """A request has ended."""
        self._count("searchfit_requests_total", route=route, method=method, status=str(status))
        self._observe("searchfit_request_seconds", seconds, _SECONDS, route=route)

    def text(self) -> str:
        """All of them, for GET /metrics."""
        with self._lock:
            lines = {
                name: [f"# HELP {name} {told}", f"# TYPE {name} {kind}"]
                for name, (kind, told) in _HELP.items()
            }
            lines["searchfit_running"].append(f"searchfit_running {self.running}")
            for (name, labels), value in sorted(self._counts.items()):
                lines[name].append(f"{name}{_braces(labels)} {value}")
            for (name, labels), held in sorted(self._histograms.items(), key=lambda item: item[0]):
                bounds = [f"{bound:g}" for bound in held.bounds] + ["+Inf"]
                for bound, count in zip(bounds, accumulate(held.counts), strict=True):
                    lines[name].append(f"{name}_bucket{_braces((*labels, ('le', bound)))} {count}")
                lines[name].append(f"{name}_sum{_braces(labels)} {held.sum:.6f}")
                lines[name].append(f"{name}_count{_braces(labels)} {sum(held.counts)}")
        return "\n".join(line for own in lines.values() for line in own) + "\n"

    def _count(self, name: str, **labels: str) -> None:
        with self._lock:
            self._counts[name, tuple(labels.items())] += 1

    def _observe(self, name: str, value: float, bounds: tuple[float, ...], **labels: str) -> None:
        with self._lock:
            key = name, tuple(labels.items())
            if key not in self._histograms:
                self._histograms[key] = _Histogram(bounds)
            self._histograms[key].add(value)


def _braces(labels: Labels) -> str:
    inner = ",".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in labels)
    return f"{{{inner}}}" if inner else ""


_noted: ContextVar[dict[str, Any]] = ContextVar("noted")


def note(**fields: Any) -> None:
    """Add fields to the access log's line of the request that runs."""
    _noted.get({}).update(fields)


class JsonLines(logging.Formatter):
    """A line of the log as JSON; those of the access log are already."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        if record.name == access_log.name:
            return record.getMessage()
        line = {"time": _now(), "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


class Watch:
    """The outermost layer: times and logs each request, and turns what nobody caught into an answer."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self.app, self.telemetry = app, telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        sent = {"status": 0, "bytes": 0, "ended": 0}
        noted: dict[str, Any] = {}
        _noted.set(noted)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent["status"] = message["status"]
            elif message["type"] == "http.response.body":
                sent["bytes"] += len(message.get("body", b""))
                sent["ended"] = not message.get("more_body", False)
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            if sent["status"] and not sent["ended"]:
                raise  # half of an answer is out: the connection has to be closed
            if not sent["status"]:
                await response_of(error)(scope, receive, watched)
        finally:
            self._tell(scope, sent, time.perf_counter() - started, noted)

    def _tell(self, scope: Scope, sent: dict[str, int], seconds: float, noted: dict[str, Any]) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = _route(scope)
        self.telemetry.request(route, method, sent["status"], seconds)
        line = {
            "time": _now(),
            "method": method,
            "route": route,
            "status": sent["status"],
            "ms": round(seconds * 1000, 1),
            "bytes": sent["bytes"],
            **noted,
        }
        access_log.info(json.dumps(line, ensure_ascii=False))


def _route(scope: Scope) -> str:
    """The template of the route that a request took, "other" where it took none."""
    if "route" in scope:
        return str(getattr(scope["route"], "path", "other"))
    # FastAPI names its own routes only. Those of the page have no parameters: path and template are one.
    return str(scope["path"]) if "endpoint" in scope and not scope.get("path_params") else "other"


_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
