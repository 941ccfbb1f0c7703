"""Mining at scale: the streaming miner against a plain blocked matrix product with argpartition.

    python benchmarks/mine.py [--passages N] [--dimension D] [--queries Q] [-k K] [--rounds R]

Random unit vectors in a memory-mapped file. Both run in one process, in turn; prints their best seconds by
the clock and of the processor (which other programs disturb less), the ratios, the share of rows on which
they agree, and the peak resident memory, pages of the mapped file included.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from searchfit.mining import nearest

BLOCK = 8192


def main() -> None:
    """Make the vectors, time both, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("-k", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        passages = write(Path(folder) / "passages.npy", options.passages, options.dimension)
        queries = unit(np.random.default_rng(1), options.queries, options.dimension)
        ways: dict[str, Any] = {"plain": plain, "miner": lambda *a: nearest(*a).rows}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        busy: dict[str, list[float]] = {name: [] for name in ways}
        found: dict[str, npt.NDArray[np.int64]] = {}
        for _ in range(options.rounds):
            for name, way in ways.items():
                started, used = time.perf_counter(), time.process_time()
                found[name] = way(queries, passages, options.k)
                seconds[name].append(time.perf_counter() - started)
                busy[name].append(time.process_time() - used)
    for what, each in (("clock", seconds), ("processor", busy)):
        for name, times in each.items():
            rounds = ", ".join(f"{t:.2f}" for t in times)
            print(f"{name}, {what}: {min(times):.2f} s (rounds: {rounds})")
        print(f"miner / plain, {what}: {min(each['miner']) / min(each['plain']):.2f}")
    same = np.mean([np.isin(a, b).mean() for a, b in zip(found["miner"], found["plain"], strict=True)])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"rows in common: {same:.6f}")
    print(f"peak resident memory: {peak:.2f} GiB")


def unit(random: np.random.Generator, count: int, dimension: int) -> npt.NDArray[np.float32]:
    """(count, dimension) float32 random directions."""
    vectors = random.standard_normal((count, dimension), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write(path: Path, count: int, dimension: int) -> npt.NDArray[np.float32]:
    """The passages, mapped for reading from the file that they were written to in pieces."""
    random = np.random.default_rng(0)
    target = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, dimension))
    for start in range(0, count, BLOCK):
        target[start : start + BLOCK] = unit(random, min(BLOCK, count - start), dimension)
    target.flush()
    del target
    mapped: npt.NDArray[np.float32] = np.load(path, mmap_mode="r")
    return mapped


def plain(
    queries: npt.NDArray[np.float32], passages: npt.NDArray[np.float32], k: int
) -> npt.NDArray[np.int64]:
    """(q, k) rows by a matrix product and an argpartition for each block, joined with the best so far."""
    scores = np.empty((len(queries), 0), np.float32)
    rows = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(passages), BLOCK):
        block = queries @ passages[start : start + BLOCK].T
        best = top(block, k)
        scores = np.concatenate([scores, np.take_along_axis(block, best, 1)], 1)
        rows = np.concatenate([rows, best + start], 1)
        best = top(scores, k)
        scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
    return np.take_along_axis(rows, np.argsort(-scores, axis=1), 1)


def top(scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """(q, k) columns of the k highest scores, in no order."""
    width = scores.shape[1]
    return np.argpartition(scores, max(0, width - k), axis=1)[:, max(0, width - k) :]


if __name__ == "__main__":
    main()
