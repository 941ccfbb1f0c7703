"""Kill a run of three generators at random moments: nothing is lost, doubled, or asked for again."""

from __future__ import annotations

import csv
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from generators.faulty_server import FaultyServer
from generators.test_t5 import WORDS, save_model
from pipeline_tools import cli, environment, tiny_model

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kill -9")

DOCUMENTS = 100
IN_FLIGHT = 4


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`searchfit generate` over made-up documents with phrases, a tiny T5 and a server, but for the server's
    address and the workspace."""
    folder = tmp_path_factory.mktemp("source")
    chance = random.Random(3)
    with (folder / "made-up.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "text"])
        rows.writerows([i, " ".join([f"number{i}", *chance.choices(WORDS, k=20)])] for i in range(DOCUMENTS))
    t5 = save_model(folder / "t5", 1)
    sets = {
        "generate.generator": f'"phrases,t5:{t5.as_posix()},openai:some-model"',
        "generate.per_passage": 2,
        "t5.engine": '"transformers"',
        "t5.max_new_tokens": 6,
        "t5.batch_tokens": 200,
        "openai.concurrency": IN_FLIGHT,
        "model.name": f'"{tiny_model(folder).as_posix()}"',
    }
    parts = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    return ["generate", str(folder / "made-up.csv"), *parts]


def recorded(workspace: Path) -> int:
    """Answers in the ledger."""
    try:
        with sqlite3.connect(f"file:{workspace / 'ledger.sqlite'}?mode=ro", uri=True) as base:
            return int(base.execute("select count(*) from answers").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def run(command: list[str], workspace: Path, url: str) -> None:
    """Run to the end, in this process."""
    done = cli(*command, "--base-url", url, "-o", workspace)
    assert done.returncode == 0, done.stderr


def killed(command: list[str], workspace: Path, url: str, moment: int) -> bool:
    """Run in a process that is killed when the ledger holds so many answers; whether it was killed."""
    arguments = [sys.executable, "-m", "searchfit", *command, "--base-url", url, "-o", str(workspace)]
    with subprocess.Popen(arguments, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            if recorded(workspace) >= moment:
                process.kill()
                return True
            time.sleep(0.002)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return False


def queries(workspace: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted((workspace / "queries").iterdir()))


def check(command: list[str], folder: Path, kills: int) -> None:
    chance = random.Random(11)
    server = FaultyServer(latency=0.02)
    try:
        run(command, folder / "calm", server.url)
        calm = queries(folder / "calm")
        calls_calm = Counter(server.calls)
        server.calls.clear()
        moments = sorted(chance.sample(range(1, DOCUMENTS - 2 * IN_FLIGHT), kills))
        struck = [killed(command, folder / "killed", server.url, moment) for moment in moments]
        run(command, folder / "killed", server.url)
    finally:
        server.close()
    assert sum(struck) >= 0.8 * kills  # a batch may carry the ledger past the next moment
    carried = queries(folder / "killed")
    assert carried.equals(calm)
    assert set(calm["generator"].to_pylist()) >= {"phrases", "openai:some-model"}
    assert len(set(calm["generator"].to_pylist())) == 3
    assert len(set(carried["id"].to_pylist())) == len(carried)
    assert len(set(carried["passage_id"].to_pylist())) >= 0.95 * DOCUMENTS  # a tiny T5 may have no words
    assert set(calls_calm.values()) == {1}
    assert server.calls.keys() == calls_calm.keys()
    assert server.calls.total() <= len(calls_calm) + kills * IN_FLIGHT


def test_kill_9_once(command: list[str], tmp_path: Path) -> None:
    check(command, tmp_path, 1)


@pytest.mark.slow
def test_kill_9_at_twenty_moments(command: list[str], tmp_path: Path) -> None:
    check(command, tmp_path, 20)
