"""What was generated: queries kept and dropped, with a few of each, from the table of the screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

EACH, GROUPS = 4, 24
_BATCH = 8192


def asked(file: Path, seed: int) -> dict[str, Any]:
    """Kept queries by style and dropped ones by reason, as {"name", "count", "samples"}, most first; samples
    are drawn evenly. Reads a few thousand rows at a time."""
    random = np.random.default_rng(seed)
    groups: dict[tuple[bool, str], _Group] = {}
    for batch in pq.ParquetFile(file).iter_batches(_BATCH, columns=["text", "style", "reason"]):
        columns = (batch[name].to_pylist() for name in ("text", "style", "reason"))
        for text, style, reason, lot in zip(*columns, random.random(batch.num_rows).tolist(), strict=True):
            key = (not reason, reason or style or "-")
            group = groups.get(key)
            if group is None:
                group = groups[key] = _Group()
            group.add(text or "", lot)

    def listed(kept: bool) -> list[dict[str, Any]]:
        mine = [(name, group) for (own, name), group in groups.items() if own is kept]
        mine.sort(key=lambda item: (-item[1].count, item[0]))
        return [
            {"name": name, "count": group.count, "samples": group.samples()} for name, group in mine[:GROUPS]
        ]

    count = {
        kept: sum(group.count for (own, _), group in groups.items() if own is kept) for kept in (True, False)
    }
    return {"kept": count[True], "dropped": count[False], "styles": listed(True), "reasons": listed(False)}


class _Group:
    """Counts texts, and keeps the few that drew the lowest lots."""

    def __init__(self) -> None:
        self.count = 0
        self._drawn: list[tuple[float, str]] = []

    def add(self, text: str, lot: float) -> None:
        self.count += 1
        if len(self._drawn) < EACH or lot < self._drawn[-1][0]:
            self._drawn = sorted([*self._drawn, (lot, text[:300])])[:EACH]

    def samples(self) -> list[str]:
        return list(dict.fromkeys(text for _, text in self._drawn))
