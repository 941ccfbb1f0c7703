"""What the tests of the page share."""

from __future__ import annotations

import shutil
from pathlib import Path


def whole(folder: Path, made: Path) -> Path:
    """A workspace with all that the page shows, from the folder in which the stages ran."""
    names = ("screened.parquet", "pairs.parquet", "holdout.parquet", "pair_vectors.npy", "trust.json")
    for name in (*names, "evaluation", "encoded", "keyword"):
        source = made / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)
    (folder / "report.html").write_text("<!doctype html><title>report</title>", encoding="utf-8")
    return folder
