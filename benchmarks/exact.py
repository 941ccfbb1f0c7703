"""Exact search over random vectors in blocks: time, and the memory that it takes.

    python benchmarks/exact.py                                     (1,000,000 x 384, 64 questions)
    python benchmarks/exact.py --passages 100000 --questions 1000

Peak memory is the process's own (VmHWM), which counts the vectors' pages of the file that are mapped at once.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from pathlib import Path

import numpy as np
from mine import unit, write

from searchfit.fusion import rank
from searchfit.keyword import Analyzer, KeywordIndex
from searchfit.records import Engine
from searchfit.search import ArrayCorpus

ROWS = 50_000  # sorted plainly at once


def peak_mb() -> int:
    """The most memory that this process has had so far."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found.group(1)) >> 10 if found else 0


def main() -> None:
    """Rank the questions, check some of them against a plain sort, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--questions", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        vectors = write(Path(folder) / "passages.npy", options.passages, options.dimension)
        rows = np.arange(options.passages + 1, dtype=np.int64)
        keyword = KeywordIndex.build([], Analyzer("none"), 1.2, 0.75)
        corpus = ArrayCorpus(vectors, vectors, rows, rows[:-1].astype(np.int32), keyword)
        asked = unit(np.random.default_rng(1), options.questions, options.dimension)
        engine = Engine("dense", units="passage", keyword_weight=0.0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        before, started = peak_mb(), time.perf_counter()
        found = rank([engine], corpus, asked, [""] * len(asked), 10)[0].rows
        seconds = time.perf_counter() - started
        print(f"{options.questions} questions over {options.passages} x {options.dimension}: {seconds:.1f} s")
        print(f"peak memory {peak_mb()} MB, {before} MB when the search began")
        for row, vector in zip(found[:3], asked[:3], strict=True):
            scores = np.concatenate([vectors[i : i + ROWS] @ vector for i in range(0, len(vectors), ROWS)])
            if not np.allclose(scores[row], np.sort(scores)[::-1][:10], atol=1e-5):
                raise SystemExit("the ranking is not that of a plain sort")
    print("equal to a plain sort")


if __name__ == "__main__":
    main()
