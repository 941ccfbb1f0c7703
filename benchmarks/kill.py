"""Kill a fit with SIGKILL at random moments, resume it each time with the same command, and compare what it
made with an undisturbed fit.

    python benchmarks/kill.py [--kills 20] [--seed 1] [--source SOURCE] [--set KEY=VALUE ...]

The moments are spread evenly by chance over the work of the undisturbed fit, stage by stage. Prints one row:
kills, where they struck, seconds undisturbed and in all, differences. Exit status 1 when there is a
difference, or when fewer kills struck than were asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

# Not of the content: times, the lock, and the index, whose version may be numbered; it is compared by search.
_REPORTS = {"report.html", "report.json", "report.md"}
_ASIDE = {"manifest.json", *_REPORTS, "engine.json", "searchfit.toml", ".lock", "index"}
_LIMIT = 3600  # seconds that one attempt may take


def main() -> int:
    """Run the benchmark; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--source", default="pydoc:json,email,argparse")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    sets = [part for item in options.set for part in ("--set", item)]
    with tempfile.TemporaryDirectory() as folder:
        calm, killed = Path(folder) / "calm", Path(folder) / "killed"
        arguments = ["fit", options.source, *sets, "-o"]
        started = time.perf_counter()
        attempt([*arguments, str(calm)])
        undisturbed = time.perf_counter() - started
        moments = draw(stage_seconds(calm), options.kills, random.Random(options.seed))
        started = time.perf_counter()
        struck = []
        for stage, delay in moments:
            say(f"{len(struck)} kills, next in {stage}")
            struck.append(attempt([*arguments, str(killed)], after(killed, stage, delay)))
        attempt([*arguments, str(killed)])
        total = time.perf_counter() - started
        found = differences(calm, killed)
    hit = Counter(stage for stage in struck if stage)
    where = ", ".join(f"{stage} {count}" for stage, count in hit.items())
    print("kills | where | undisturbed s | killed and resumed s | differences")
    print(f"{hit.total()} | {where} | {undisturbed:.1f} | {total:.1f} | {len(found)}")
    for difference in found:
        print(f"differs: {difference}")
    return int(bool(found) or hit.total() < options.kills)


def draw(seconds: dict[str, float], kills: int, chance: random.Random) -> list[tuple[str, float]]:
    """(stage, seconds into it), in order. A stage that draws several kills shares its time among them, for a
    resumed stage does only what is left."""
    stages = sorted(chance.choices(list(seconds), list(seconds.values()), k=kills), key=list(seconds).index)
    drawn = Counter(stages)
    return [(stage, chance.uniform(0, seconds[stage] / drawn[stage])) for stage in stages]


def stage_seconds(workspace: Path) -> dict[str, float]:
    """How long each stage took; short ones count a little, so that they too are struck."""
    stages = manifest_stages(workspace)
    return {name: max(float(entry["seconds"]), 0.05) for name, entry in stages.items()}


def manifest_stages(workspace: Path) -> dict[str, dict[str, object]]:
    """The stages that the manifest vouches for."""
    try:
        manifest = json.loads((workspace / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return dict(manifest["stages"])


def after(workspace: Path, stage: str, delay: float) -> Callable[[], str]:
    """A moment: `delay` seconds after `stage` was seen at work, or as soon as it is seen done."""
    seen = 0.0

    def come() -> str:
        nonlocal seen
        if stage in manifest_stages(workspace):
            return at_work(workspace)
        if (workspace / ".partial" / stage / "key").exists():
            seen = seen or time.perf_counter()
            return stage if time.perf_counter() - seen >= delay else ""
        return ""

    return come


def at_work(workspace: Path) -> str:
    """The stage that is at work now."""
    working = [path.parent.name for path in workspace.glob(".partial/*/key")]
    return working[0] if working else "between stages"


def attempt(arguments: Sequence[str], moment: Callable[[], str] | None = None) -> str:
    """Run searchfit; kill it, with all its children, at the moment. Where it was struck; "" when it ended
    before. Raises RuntimeError when it fails."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "searchfit", *arguments], stderr=errors, start_new_session=True
        )
        deadline = time.perf_counter() + _LIMIT
        while process.poll() is None and time.perf_counter() < deadline:
            where = moment() if moment else ""
            if where:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return where
            time.sleep(0.002)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        if process.wait():
            errors.seek(0)
            raise RuntimeError(errors.read().decode("utf-8", "replace"))
    return ""


def differences(one: Path, other: Path) -> list[str]:
    """The files in which two workspaces differ: Parquet by the tables in them, all else byte by byte, and the
    index by what it answers."""
    ours, theirs = files(one), files(other)
    found = [f"{name} is in one of the two" for name in sorted(ours ^ theirs)]
    found += [name for name in sorted(ours & theirs) if not same(one / name, other / name)]
    return found + answers_differ(one, other)


def files(workspace: Path) -> set[str]:
    """Names of the files that make up a workspace's content."""
    every = (path.relative_to(workspace) for path in workspace.rglob("*") if path.is_file())
    return {path.as_posix() for path in every if path.parts[0] not in _ASIDE}


def same(one: Path, other: Path) -> bool:
    """Whether two files hold the same."""
    import pyarrow.parquet as pq

    if one.read_bytes() == other.read_bytes():
        return True
    return one.suffix == ".parquet" and bool(pq.read_table(one).equals(pq.read_table(other)))


def answers_differ(one: Path, other: Path) -> list[str]:
    """Questions that the two indexes answer differently."""
    import pyarrow.parquet as pq

    from searchfit.search import open_searcher

    searchers = open_searcher(one), open_searcher(other)
    texts = pq.read_table(one / "pairs.parquet", columns=["text"])["text"].to_pylist()[:20] or ["anything"]
    found = []
    for text in texts:
        left, right = (searcher.search(text) for searcher in searchers)
        if left != right:
            found.append(f"search for {text!r}")
    return found


def say(text: str) -> None:
    """Progress, on a terminal only."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
