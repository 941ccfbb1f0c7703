"""Steady load for long: neither memory nor open files of the server grow."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import psutil
import pytest
from page_tools import whole
from server_tools import Make

SECONDS = float(os.environ.get("SEARCHFIT_STEADY_SECONDS", "1800"))
"""How long; thirty minutes say something about days, two find what leaks fast."""

WORDS = ["anchor", "rose", "hedge", "glacier", "hut", "cello", "bow", "signal", "box", "garlic", "broth"]
CLIENTS = 4
GROWN_MIB = 40
"""Of 700: what the allocator and the caches, which are bounded, may take after a quarter of the time."""

GROWN_FILES = 100
"""Additions leave up to eight segments of ten files each before they are merged."""


@contextmanager
def server(place: Path, log: Path) -> Iterator[tuple[int, psutil.Process]]:
    """A server of its own process; its port."""
    command = [
        sys.executable,
        "-m",
        "searchfit",
        "serve",
        str(place),
        "--port",
        "0",
        "--writable",
        "--clicks",
    ]
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        told = re.search(r":(\d+)/", process.stdout.readline())
        try:
            assert told is not None, log.read_text(encoding="utf-8")
            yield int(told[1]), psutil.Process(process.pid)
        finally:
            process.terminate()


class Reader:
    """A client that asks one thing after another, and now and then connects anew."""

    def __init__(self, port: int, number: int) -> None:
        self.port, self.rng, self.number = port, random.Random(number), number
        self.statuses: Counter[tuple[str, int]] = Counter()

    def run(self, end: float) -> None:
        """Ask until then."""
        while time.monotonic() < end:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            for _ in range(50):
                method, path, body = self.asked()
                kind = "application/x-www-form-urlencoded" if isinstance(body, str) else "application/json"
                data = body if body is None or isinstance(body, str) else json.dumps(body)
                connection.request(method, path, data, {"content-type": kind})
                answer = connection.getresponse()
                answer.read()
                self.statuses[path.partition("?")[0].partition("/steady")[0], answer.status] += 1
                if time.monotonic() > end:
                    break
                time.sleep(0.02)  # steady, not as much as can be
            connection.close()

    def asked(self) -> tuple[str, str, Any]:
        """The next request, of all kinds; queries hardly ever come twice."""
        rng = self.rng
        query = " ".join(rng.choices(WORDS, k=4)) + f" {rng.randrange(10**6)}"
        document = f"steady-{self.number}-{rng.randrange(20)}"
        return rng.choices(
            [
                ("POST", "/search", {"query": query, "filter": f"price < {rng.randrange(99)}"}),
                ("POST", "/search", {"query": query, "explain": True, "limit": 20}),
                ("POST", "/v1/embeddings", {"input": [query] * rng.randint(1, 8)}),
                ("POST", "/v1/rerank", {"query": query, "documents": WORDS[:5]}),
                ("POST", "/feedback", {"query": query, "document_id": "garden-0", "grade": 1}),
                ("GET", "/?" + urlencode({"q": query}), None),
                ("GET", "/document?" + urlencode({"id": "garden-0", "q": query}), None),
                ("GET", "/compare?" + urlencode({"q": query}), None),
                ("GET", "/queries", None),
                ("GET", "/metrics", None),
                ("GET", "/nothing", None),
                ("POST", "/search", {"query": ""}),
                ("POST", "/mark", urlencode({"q": query, "document": "garden-0", "grade": "0"})),
                ("POST", "/documents", {"documents": [{"id": document, "text": f"The {query} is new."}]}),
                ("DELETE", f"/documents/{document}", None),
            ],
            weights=[20, 20, 10, 5, 5, 10, 5, 2, 1, 2, 2, 2, 2, 1, 1],
        )[0]


def sampled(process: psutil.Process, seconds: float) -> list[tuple[float, int, int]]:
    """(seconds since the start, MiB of memory, open files and connections) of a process all along."""
    started, samples = time.monotonic(), []
    while (passed := time.monotonic() - started) < seconds:
        samples.append((passed, process.memory_info().rss / 2**20, process.num_fds()))
        time.sleep(max(0.2, seconds / 400))
    return samples


@pytest.mark.slow
def test_nothing_grows_under_steady_load(make_workspace: Make, bench: Any, tmp_path: Path) -> None:
    place = whole(make_workspace(tmp_path / "notes", reranked=True), bench.folder)
    log = tmp_path / "log"
    with server(place, log) as (port, process):
        end = time.monotonic() + SECONDS
        readers = [Reader(port, number) for number in range(CLIENTS)]
        threads = [threading.Thread(target=reader.run, args=(end,)) for reader in readers]
        [thread.start() for thread in threads]
        samples = sampled(process, SECONDS)
        [thread.join() for thread in threads]
    statuses: Counter[tuple[str, int]] = sum((reader.statuses for reader in readers), Counter())
    every = np.array(samples)
    quarters = [part[:, 1:].mean(axis=0) for part in np.array_split(every, 4)]
    told = "; ".join(f"{memory:.0f} MiB, {files:.0f} files" for memory, files in quarters)
    print(f"{sum(statuses.values())} requests in {SECONDS:.0f} s, by quarters: {told}; {dict(statuses)}")
    wrong = {key: count for key, count in statuses.items() if key[1] >= 500}
    assert not wrong, log.read_text(encoding="utf-8")[-3000:]
    assert {path for path, status in statuses if status < 400} >= {
        "/search",
        "/v1/embeddings",
        "/",
        "/documents",
    }
    # The first quarter warms up. What leaks goes on to grow, so the last is held against the second.
    (memory, files), (last_memory, last_files) = quarters[1], quarters[3]
    assert last_memory - memory < GROWN_MIB, told
    assert last_files - files < GROWN_FILES, told
