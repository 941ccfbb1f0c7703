from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "millions.py"


@pytest.mark.slow
def test_the_benchmark_of_millions_on_few(tmp_path: Path) -> None:
    """Of 20,000 passages in place of 5,000 each costs a stage less than 3,000 bytes: words that are new, and
    batches that are not full at 5,000."""
    sizes, told = ["5000", "20000"], tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--passages", *sizes, "--dimension", "64", "--json", str(told)]
    place = {"PYTHONPATH": str(SCRIPT.parents[1] / "src"), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [*command, "--queries", "900"],
        env={**os.environ, **place},
        capture_output=True,
        text=True,
        check=True,
    )
    figures = json.loads(told.read_text())
    assert list(figures) == sizes
    assert [*figures["20000"]] == [
        *("ingest", "split", "keyword", "gauge", "generate", "screen", "holdout", "label", "index")
    ]
    for name in ("ingest", "split", "keyword", "generate", "holdout", "label"):
        few, many = (figures[size][name]["peak_mib"] for size in sizes)
        assert (many - few) * 2**20 / 15_000 < 3000, name
        assert f"| 20,000 | {name} |" in done.stdout
    assert "growth over linear" in done.stdout
    assert not list(tmp_path.glob("millions-*"))
