"""What people judged: the record of it in a workspace, and how they agree."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from itertools import combinations
from pathlib import Path
from statistics import median_low

import numpy as np

from searchfit.errors import SettingsError
from searchfit.journal import Journal
from searchfit.workspace import Workspace

JUDGEMENTS = "judgements.jsonl"

GRADES = (0, 1, 2, 3)
"""Not relevant, relevant, highly relevant, perfect."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one judge said of a document for a query; a grade of None takes back what was said before."""

    query_id: str
    query: str
    document_id: str
    grade: int | None
    judge: str
    at: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @property
    def key(self) -> tuple[str, str, str]:
        """What the last judgement counts for. A query is its words: the number of a line may change."""
        return self.judge, self.query, self.document_id


class Record:
    """The judgements of a workspace: judgements.jsonl, to which each is added and synced at once. Several
    people may judge at the same time."""

    def __init__(self, workspace: Path) -> None:
        Workspace(workspace).require()
        self._journal = Journal(workspace / JUDGEMENTS)

    def add(self, judgement: Judgement) -> None:
        """Write a judgement to the disk. Raises SettingsError for a grade that is none, WorkspaceError when
        it cannot be written."""
        if judgement.grade is not None and judgement.grade not in GRADES:
            raise SettingsError(f"a grade of {judgement.grade} was given.", "Grades are 0, 1, 2 and 3.")
        self._journal.add(asdict(judgement))

    def judgements(self) -> list[Judgement]:
        """What holds, in the order in which it was said. Raises WorkspaceError for a damaged file."""
        held: dict[tuple[str, str, str], Judgement] = {}
        for number, line in self._journal.lines():
            try:
                judgement = Judgement(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise self._journal.damaged(number, line, "judgement") from error
            whole = all(isinstance(part, str) for part in (judgement.query_id, *judgement.key))
            if not whole or judgement.grade not in (None, *GRADES):
                raise self._journal.damaged(number, line, "judgement")
            held.pop(judgement.key, None)
            if judgement.grade is not None:
                held[judgement.key] = judgement
        return list(held.values())


def settled(judgements: Iterable[Judgement]) -> dict[str, dict[str, int]]:
    """The grade of each document by the words of the query. Where judges differ the median holds, of two the
    lower."""
    grades: dict[str, dict[str, list[int]]] = {}
    for said in judgements:
        if said.grade is not None:
            grades.setdefault(said.query, {}).setdefault(said.document_id, []).append(said.grade)
    return {
        query: {document: median_low(each) for document, each in documents.items()}
        for query, documents in grades.items()
    }


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two judges agree on the documents that both judged: the share of equal grades, and kappa, 1 for
    full agreement and 0 for that of chance; None where both gave one and the same grade throughout."""

    judges: tuple[str, str]
    both: int
    equal: float
    kappa: float | None


def agreements(judgements: Sequence[Judgement]) -> list[Agreement]:
    """The agreement of every two judges who share a document, by linearly weighted kappa: a grade beside
    counts as half of one two away; for two grades it is Cohen's plain one (Cohen 1960, "A coefficient of
    agreement for nominal scales"; 1968, "Weighted kappa")."""
    by_judge: dict[str, dict[tuple[str, str], int]] = {}
    for said in judgements:
        if said.grade is not None:
            by_judge.setdefault(said.judge, {})[said.query, said.document_id] = said.grade
    found = []
    for one, other in combinations(sorted(by_judge), 2):
        mine, theirs = by_judge[one], by_judge[other]
        shared = [key for key in mine if key in theirs]
        if shared:
            a, b = (np.array([side[key] for key in shared]) for side in (mine, theirs))
            of_a, of_b = (np.bincount(side, minlength=len(GRADES)) / len(shared) for side in (a, b))
            chance = float(of_a @ np.abs(np.subtract.outer(GRADES, GRADES)) @ of_b)
            kappa = 1 - float(np.abs(a - b).mean()) / chance if chance else None
            found.append(Agreement((one, other), len(shared), float((a == b).mean()), kappa))
    return found
