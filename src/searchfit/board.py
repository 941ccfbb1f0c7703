"""What each system of an evaluation scored on each question, and the tables that tell of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from searchfit.fusion import Rows
from searchfit.metrics import means, score_ranking
from searchfit.questions import Questions
from searchfit.rivals import DEPTH
from searchfit.writing import write_table


class Board:
    """What each system scored on each question, as it comes in."""

    def __init__(self, questions: Questions, document_ids: list[str], metrics: tuple[str, ...]) -> None:
        """`metrics` as `metrics.score_ranking` knows them."""
        self.questions, self.metrics = questions, metrics
        # Documents of a run file that are not in the corpus hold their places, see `rivals.read_rankings`.
        self._ids = [*document_ids, *(f"\0{n}" for n in range(DEPTH))]
        self._count = len(document_ids)
        self.scores: dict[str, list[dict[str, float]]] = {}
        self._top: dict[str, Rows] = {}
        self._places: dict[str, list[list[int]]] = {}

    def add(self, name: str, ranked: Rows) -> None:
        """Score a system's ranking (questions, DEPTH) of documents."""
        scores, places = [], []
        for row, relevant in zip(ranked.tolist(), self.questions.relevant, strict=False):
            ids = [self._ids[i] for i in row if i >= 0]
            scores.append(score_ranking(ids, relevant, self.metrics))
            places.append([place for place, id_ in enumerate(ids, 1) if relevant.get(id_, 0) > 0])
        self.scores[name], self._places[name] = scores, places
        top = ranked[:, :10]
        self._top[name] = np.where(top < self._count, top, -1)

    def row(self, name: str, engine: Mapping[str, Any], kind: str) -> dict[str, Any]:
        """What systems.json tells of a system: its means on dev and on test."""
        row: dict[str, Any] = {"name": name, "kind": kind, "engine": engine}
        for split in ("dev", "test"):
            pairs = zip(self.scores[name], self.questions.splits, strict=True)
            row[split] = means({str(n): score for n, (score, own) in enumerate(pairs) if own == split})
        return row

    def on_test(
        self, overlap: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.float64], dict[str, npt.NDArray[np.float64]]]:
        """The overlap and every system's nDCG@10 of the test questions."""
        mine = np.array([split == "test" for split in self.questions.splits], bool)
        every = {name: np.array([row["ndcg@10"] for row in rows]) for name, rows in self.scores.items()}
        return overlap[mine], {name: values[mine] for name, values in every.items()}

    def write(self, folder: Path, overlap: npt.NDArray[np.float64]) -> None:
        """Write the tables."""
        write_table(folder / "queries.parquet", self._by_query(overlap))
        write_table(folder / "metrics.parquet", self._by_query_and_system())
        lists = {name: pa.array(list(rows), pa.list_(pa.int32())) for name, rows in self._top.items()}
        write_table(folder / "top.parquet", pa.table(lists))
        found = {name: pa.array(rows, pa.list_(pa.int32())) for name, rows in self._places.items()}
        write_table(folder / "places.parquet", pa.table(found))

    def _by_query_and_system(self) -> pa.Table:
        """Every metric of every system on every question, one row each."""
        asked, count = self.questions, len(self.questions.ids)
        columns: dict[str, Any] = {
            "query_id": pa.array(asked.ids * len(self.scores), pa.string()),
            "split": pa.array(asked.splits * len(self.scores), pa.string()),
            "system": pa.array([name for name in self.scores for _ in range(count)], pa.string()),
        }
        for metric in self.metrics:
            values = [row[metric] for rows in self.scores.values() for row in rows]
            columns[metric] = pa.array(values, pa.float64())
        return pa.table(columns)

    def _by_query(self, overlap: npt.NDArray[np.float64]) -> pa.Table:
        asked = self.questions
        relevant = [[id_ for id_, grade in judged.items() if grade > 0] for judged in asked.relevant]
        columns: dict[str, Any] = {
            "query_id": pa.array(asked.ids, pa.string()),
            "split": pa.array(asked.splits, pa.string()),
            "text": pa.array(asked.texts, pa.string()),
            "style": pa.array(asked.styles, pa.string()),
            "relevant": pa.array(relevant, pa.list_(pa.string())),
            "overlap": pa.array(overlap, pa.float64(), from_pandas=True),
        }
        for name, rows in self.scores.items():
            columns[name] = pa.array([row["ndcg@10"] for row in rows], pa.float64())
        return pa.table(columns)
