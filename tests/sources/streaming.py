"""Ingests a source in a process of its own and prints its figures as JSON: streaming.py SETTINGS FOLDER."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from searchfit.config import load_settings
from searchfit.stages import Tools, ingest

if __name__ == "__main__":
    settings = load_settings(values=json.loads(sys.argv[1]))
    with tempfile.TemporaryDirectory(dir=sys.argv[2]) as folder:
        started = time.perf_counter()
        result = ingest.run(settings, {}, Tools(Path(folder)))
        seconds = time.perf_counter() - started
    # ru_maxrss may begin with the peak of the process that started this one; VmHWM is this program's own.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            peak = int(line.split()[1]) >> 10
    print(json.dumps({**result.counts, "seconds": round(seconds, 1), "peak_mb": peak}))
