"""What the commands of all examples share: their options, and running searchfit in sight of the reader."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from models import KINDS

from searchfit.cli import main
from searchfit.config import load_settings
from searchfit.sources import open_source
from searchfit.sources.rows import Row

# Before torch is imported: no example asks a hub for anything, unless real models are wanted.
if "real" not in sys.argv:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def options(about: str) -> argparse.ArgumentParser:
    """The options of every example: --models and --out."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument(
        "--models",
        choices=KINDS,
        default="tiny",
        help="stand-ins made on the spot (tiny), what comes with searchfit, or what the config names (real)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out") / Path(sys.argv[0]).parent.name, help="folder to make"
    )
    return parser


def searchfit(*words: str | Path) -> None:
    """Print a searchfit command and run it. Ends the program where it fails, which searchfit has told."""
    told = [str(word) for word in words]
    print("\n$ " + shlex.join(["searchfit", *told]), flush=True)
    before, sys.argv = sys.argv, ["searchfit", *told]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
    finally:
        sys.argv = before


def texts_of(config: Path, source: str) -> list[str]:
    """The texts of a source, as a config says to read it: what stand-ins take their words from."""
    opened = open_source(load_settings(config, values={"source.source": source}))
    names = opened.columns.text
    rows = (row for row in opened.rows() if isinstance(row, Row))
    return [" ".join(str(row.values.get(name) or "") for name in names) for row in rows]
