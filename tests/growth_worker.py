"""Adds, removes and merges in a workspace until it is killed, and says what it begins and what is done."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from searchfit import growth


def main() -> None:
    """Take the workspace and a number that no other worker has."""
    workspace, run = Path(sys.argv[1]), sys.argv[2]
    source = Path(tempfile.mkdtemp()) / "batch.jsonl"
    growth.optimize(workspace)  # loads all there is to load
    print("ready", flush=True)
    for number in range(10_000):
        batch = f"b{run}-{number}"
        docs = [
            {"id": f"{batch}:{i}", "title": "", "text": f"periscope {batch} {i}", "price": 1}
            for i in range(4)
        ]
        source.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
        settings = growth.source_settings(workspace, {"source.source": str(source)})
        print("begin add", batch, flush=True)
        growth.add(workspace, settings)
        print("done add", batch, flush=True)
        if number % 3 == 2:
            batch = f"b{run}-{number - 1}"
            print("begin remove", batch, flush=True)
            growth.remove(workspace, [f"{batch}:{i}" for i in range(4)])
            print("done remove", batch, flush=True)
        if number % 4 == 3:
            growth.optimize(workspace)


if __name__ == "__main__":
    main()
