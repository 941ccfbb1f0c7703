"""What a fit found, as the examples print it: from the files that it leaves in its workspace."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

METRICS = ("mrr@10", "ndcg@10", "recall@10")


def figures(workspace: Path, kinds: Sequence[str] = ("baseline", "candidate", "re-ranked")) -> None:
    """Print how well each system did on the test questions, the untuned ones first."""
    found = json.loads((workspace / "evaluation" / "systems.json").read_text(encoding="utf-8"))
    systems = [system for system in found["systems"] if system["kind"] in kinds]
    print(f"\n{found['counts']['test']} {found['questions']} test questions:")
    row = [system["test"] for system in systems]
    table(
        ("system", *METRICS),
        [(s["name"], *(f"{own[m]:.4f}" for m in METRICS)) for s, own in zip(systems, row, strict=True)],
    )


def similarity(workspace: Path) -> None:
    """Print how the cosines of labelled dev pairs agreed with their labels, epoch by epoch."""
    path = workspace / "models" / "trained" / "similarity.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = ("epoch", "spearman", "accuracy", "f1", "average_precision")
    print(f"\n{path}:")
    table(columns, [[row[name] for name in columns] for row in rows])


def effectiveness(workspace: Path, many: int = 3) -> None:
    """Print questions of high and of low effectiveness, each with the likely reason."""
    cards: dict[str, Any] = json.loads((workspace / "report.json").read_text(encoding="utf-8"))["examples"]
    for kind, head in (("easiest", "high"), ("hardest", "low")):
        print(f"\nquestions of {head} effectiveness:")
        for card in cards[kind][:many]:
            print(f"  {card['after']:.2f}  {card['query']}\n        {card['cause']}: {card['why']}")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns, the first one to the left."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([first.strip().ljust(widths[0]), *others]))
