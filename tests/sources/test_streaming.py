"""Sources that are larger than memory should be: streamed at a steady peak, in a process of its own."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PEAK_MB = 1536
WORDS = (
    "house",
    "garden",
    "harbour",
    "quiet",
    "sunny",
    "rooms",
    "pool",
    "terrace",
    "near",
    "beach",
    "old",
    "new",
)


def ingested(folder: Path, settings: dict[str, Any]) -> dict[str, int]:
    script = Path(__file__).with_name("streaming.py")
    command = [sys.executable, str(script), json.dumps(settings), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures: dict[str, int] = json.loads(done.stdout)
    print(figures)
    return figures


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder that is emptied afterwards, where there is room for large files."""
    if shutil.disk_usage(tmp_path).free < 16 << 30:
        pytest.skip(f"{tmp_path} has less than 16 GiB free")
    yield tmp_path
    shutil.rmtree(tmp_path)


def text(number: int, words: int) -> str:
    return " ".join(WORDS[(number * 7 + place * place) % len(WORDS)] for place in range(words))


@pytest.mark.slow
def test_two_million_rows_of_sqlite(room: Path) -> None:
    file = room / "listings.db"
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("CREATE TABLE listings (id INTEGER PRIMARY KEY, description TEXT, price REAL)")
        rows = ((n, f"{n} {text(n, 20)}", n / 7) for n in range(2_000_000))
        connection.executemany("INSERT INTO listings VALUES (?, ?, ?)", rows)
    connection.close()
    figures = ingested(room, {"source.source": str(file), "sql.table": "listings"})
    assert figures["documents"] == 2_000_000
    assert figures["peak_mb"] < PEAK_MB


@pytest.mark.slow
def test_five_gigabytes_of_csv(room: Path) -> None:
    file, rows = room / "large.csv", 0
    pieces = [text(number, 350) for number in range(1000)]
    with file.open("w", encoding="ascii") as out:
        out.write("id,description,price\n")
        size = 0
        while size < 5_000_000_000:
            line = f"{rows},{rows} {pieces[rows % 1000]},{rows % 977}\n"
            out.write(line)
            size += len(line)
            rows += 1
    figures = ingested(room, {"source.source": str(file)})
    assert figures["documents"] == rows
    assert figures["peak_mb"] < PEAK_MB
