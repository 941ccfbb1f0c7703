"""What a report is made from, read from the artefacts, and which two systems are its before and after."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.errors import WorkspaceError

Json = Mapping[str, Any]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """The manifest, the evaluation's files and the course of training (CSV). Rows of `queries`, `top` and
    `places` are the questions; below them `top` holds the user's unjudged ones."""

    manifest: Json
    systems: Json
    choice: Json
    queries: pa.Table
    metrics: pa.Table = field(default_factory=lambda: pa.table({}))
    top: pa.Table = field(default_factory=lambda: pa.table({}))
    places: pa.Table = field(default_factory=lambda: pa.table({}))
    course: str = ""
    _columns: dict[str, Floats] = field(default_factory=dict)

    @classmethod
    def read(cls, inputs: Mapping[str, Path]) -> Evidence:
        """Open the artefacts. Raises WorkspaceError for one that is absent or damaged."""
        course = inputs["models/trained"] / "course.csv"
        manifest, systems, choice = (
            _read(inputs[name])
            for name in ("manifest.json", "evaluation/systems.json", "evaluation/choice.json")
        )
        tables = {
            name: _read(inputs[f"evaluation/{name}.parquet"])
            for name in ("queries", "metrics", "top", "places")
        }
        said = course.read_text(encoding="utf-8") if course.is_file() else ""
        return cls(manifest, systems, choice, **tables, course=said)

    @property
    def stages(self) -> Mapping[str, Json]:
        """The manifest's entries by stage."""
        return self.manifest.get("stages") or {}

    @property
    def chosen(self) -> str:
        """The name of the chosen system."""
        return str(self.choice.get("system", "-"))

    @property
    def untuned(self) -> str:
        """The name of the system that gains are measured from."""
        return str(self.choice.get("untuned") or "untuned dense")

    @property
    def judged(self) -> bool:
        """Whether the questions are the user's own."""
        return self.systems.get("questions") == "judged"

    @property
    def proof(self) -> Json:
        """The comparison on test that the headline may claim; empty when there is none. On generated
        questions the whole engine's gain is mostly that of keyword search, which they flatter: there it is
        the gain of the tuned model by itself."""
        found = self.choice.get("dense_leg")
        if self.judged:
            whole = (self.choice.get("test") or {}).get(self.untuned) or {}
            found = {"before": self.untuned, "after": self.chosen, **whole} if whole else {}
        return found if found and found.get("n") and found.get("before") != found.get("after") else {}

    @cached_property
    def pair(self) -> tuple[str, str] | None:
        """The systems shown as before and after: those of the proof; where the untuned model was kept, those
        that the choice on dev compared, so that the page shows what was not better; None without any."""
        found = self.proof or self.choice.get("dev") or {}
        names = str(found.get("before")), str(found.get("after"))
        there = set(self.queries.column_names)
        return names if set(names) <= there and names[0] != names[1] else None

    @cached_property
    def test(self) -> npt.NDArray[np.int64]:
        """The rows of the test questions."""
        return np.array(
            [row for row, split in enumerate(self.queries["split"].to_pylist()) if split == "test"], int
        )

    def scores(self, system: str) -> Floats:
        """nDCG@10 of a system on every question; NaN where unknown."""
        if system not in self._columns:
            self._columns[system] = np.array(self.queries[system].to_pylist(), dtype=float)
        return self._columns[system]

    @property
    def alone(self) -> Json | None:
        """The system that is the chosen engine without keywords, words and re-ranker: what the vectors do by
        themselves."""
        keys = ("query_tower", "document_tower", "units")
        wanted = [self.engine(self.chosen).get(key) for key in keys]
        for row in self.systems.get("systems") or []:
            engine = row.get("engine") or {}
            plain = engine.get("keyword_weight") == 0 and not any(
                map(engine.get, ("reranker", "token_weight"))
            )
            if plain and [engine.get(key) for key in keys] == wanted:
                found: Json = row
                return found
        return None

    def engine(self, system: str) -> Json:
        """The engine of a system, as values; empty for one that is not there."""
        rows = self.systems.get("systems") or []
        found = next((row.get("engine") for row in rows if row.get("name") == system), None)
        return found or {}


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path)
        return {**json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError) as error:  # TypeError: JSON that is not an object
        hint = "Make it anew: fit with --force evaluate."
        raise WorkspaceError(f"the report cannot read {path}: {error}.", hint) from error
