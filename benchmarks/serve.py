"""Time the server under load: python benchmarks/serve.py WORKSPACE [--clients 1,8,32] [--seconds 10]

The server and the clients are processes of their own, on the loopback. First the engine is called in a loop
in this process, one question at a time; then so many clients each ask the server, one question after another,
with no cache, with queries encoded together and, for comparison, one at a time; then `--overload` times as
many clients as may be at work. WORKSPACE is a fitted one, or an index of benchmarks/search.py (a folder with
info.json and questions.json). Clients that get 429 wait as they are told, a tenth of a second at most. Times
are the wall's; `cpu ms` is the processor's time of the server for an answer, all threads, for a machine that
has other work.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from searchfit.search import open_searcher
from searchfit.workspace import Workspace
from searchfit.writing import write_json


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--overload", type=int, default=10, help="times the concurrency; 0 leaves it out")
    parser.add_argument("--concurrency", type=int, default=32, help="requests at work, in the overload")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = _workspace(options.workspace.resolve(), Path(folder))
        questions = _questions(workspace)
        print(f"{len(questions)} questions, {options.seconds:g} s each")
        print(f"{'':34} queries/s   p50 ms   p95 ms   p99 ms   429    MiB   cpu ms")
        _in_process(workspace, questions, options.seconds)
        counts = [int(count) for count in options.clients.split(",")]
        for name, settings in (("together", {}), ("one at a time", {"batch_texts": 1, "threads": 1})):
            with _server(workspace, {"cache": 0, "concurrency": max(counts), **settings}) as (port, process):
                _load(port, questions, 2, 2)  # warm
                for count in counts:
                    _row(
                        f"served {name}, {count} clients", port, process, (questions, count, options.seconds)
                    )
        if options.overload:
            limits = {"cache": 0, "concurrency": options.concurrency}
            with _server(workspace, limits) as (port, process):
                for times in (1, options.overload):
                    count = times * options.concurrency
                    name = f"overload x{times}, {count} clients"
                    _row(name, port, process, (questions, count, options.seconds))


def _workspace(given: Path, scratch: Path) -> Path:
    """The workspace, or one around an index."""
    if not (given / "info.json").exists():
        Workspace(given).require()
        return given
    made = scratch / given.name
    (made / "index").mkdir(parents=True)
    (made / "index" / "v1").symlink_to(given)
    engine = json.loads((given / "info.json").read_text(encoding="utf-8"))["engine"]
    write_json(made / "engine.json", {"engine": engine, "index": "index/v1"})
    write_json(made / "manifest.json", {"format": 1, "stages": {}})
    return made


def _questions(workspace: Path) -> list[str]:
    """Generated questions of the fit; the benchmark's index has its own."""
    import pyarrow.parquet as pq

    file = workspace / "index" / "v1" / "questions.json"
    if file.exists():
        return list(json.loads(file.read_text(encoding="utf-8")))
    return list(
        dict.fromkeys(pq.read_table(workspace / "pairs.parquet", columns=["text"])["text"].to_pylist())
    )


def _in_process(workspace: Path, questions: Sequence[str], seconds: float) -> None:
    searcher = open_searcher(workspace)
    for question in questions[:5]:
        searcher.search(question)
    times = []
    used = _cpu(psutil.Process())
    end = time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        searcher.search(questions[len(times) % len(questions)])
        times.append(time.perf_counter() - started)
    _print("in process, a loop", times, seconds, "", _Used(psutil.Process(), used))


@contextmanager
def _server(workspace: Path, settings: dict[str, Any]) -> Iterator[tuple[int, psutil.Process]]:
    """A server of its own process, and its port."""
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "searchfit", "serve", str(workspace), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        told = re.search(r":(\d+)/", process.stdout.readline())
        if told is None:
            raise SystemExit("the server did not start")
        try:
            yield int(told[1]), psutil.Process(process.pid)
        finally:
            process.terminate()


def _row(name: str, port: int, process: psutil.Process, load: tuple[Sequence[str], int, float]) -> None:
    questions, count, seconds = load
    used = _cpu(process)
    times, statuses = _load(port, questions, count, seconds)
    other = {status: count for status, count in statuses.items() if status not in (200, 429)}
    refused = f"{statuses[429]}" + (f" failed: {other}" if other else "")
    _print(name, times, seconds, refused, _Used(process, used))


@dataclass(frozen=True)
class _Used:
    """A process, and the processor's seconds that it had used before."""

    process: psutil.Process
    before: float


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _print(name: str, times: Sequence[float], seconds: float, refused: str, used: _Used) -> None:
    p50, p95, p99 = np.percentile(times or [0.0], [50, 95, 99]) * 1e3
    rate = len(times) / seconds
    memory = used.process.memory_info().rss >> 20
    cpu = 1e3 * (_cpu(used.process) - used.before) / max(1, len(times))
    figures = f"{rate:9.1f} {p50:8.1f} {p95:8.1f} {p99:8.1f} {refused:>5} {memory:6} {cpu:8.1f}"
    print(f"{name:34} {figures}", flush=True)


def _load(
    port: int, questions: Sequence[str], clients: int, seconds: float
) -> tuple[list[float], Counter[int]]:
    """Times of the answered requests of so many clients, and how often each status came."""
    processes = min(4, clients)
    shares = [range(number, clients, processes) for number in range(processes)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes) as pool:
        start = time.time() + 1.0 + 0.2 * processes  # when all are there
        jobs = [(port, list(questions), list(share), start, seconds) for share in shares]
        parts = pool.starmap(_clients, jobs)
    return [one for times, _ in parts for one in times], sum((own for _, own in parts), Counter())


def _clients(
    port: int, questions: list[str], numbers: list[int], start: float, seconds: float
) -> tuple[list[float], Counter[int]]:
    """Threads of one process, a client each. Late starters are still within the time."""
    times: list[float] = []
    statuses: Counter[int] = Counter()
    time.sleep(max(0.0, start - time.time()))
    end = time.perf_counter() + seconds
    threads = [
        threading.Thread(
            target=_client, args=(port, questions[number:] + questions[:number], end, times, statuses)
        )
        for number in numbers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, statuses


def _client(port: int, questions: list[str], end: float, times: list[float], statuses: Counter[int]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"content-type": "application/json"}
    for question in _again(questions):
        if (started := time.perf_counter()) >= end:
            break
        try:
            connection.request("POST", "/search", json.dumps({"query": question[:500]}), headers)
            answer = connection.getresponse()
            answer.read()
        except OSError:
            statuses[0] += 1
            connection.close()
            continue
        statuses[answer.status] += 1
        if answer.status == 200:
            times.append(time.perf_counter() - started)
        elif answer.status == 429:
            time.sleep(min(0.1, float(answer.headers["retry-after"])))
    connection.close()


def _again(questions: list[str]) -> Iterator[str]:
    while True:
        yield from questions


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
