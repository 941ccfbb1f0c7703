"""What the mine stage and the user's labels give to learn from, as training sets for an objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.fusion import Floats, Rows
from searchfit.objectives import Need
from searchfit.records import LabelledPair
from searchfit.training.data import ABSENT, TrainingSet

ANSWERS = 0.5
"""The label from which a text answers."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A training set, and the rows of the corpus that its texts are; None where they need not be in it."""

    data: TrainingSet
    passages: Rows | None


@dataclass(frozen=True, slots=True)
class Lessons:
    """The mined queries (n) with their own passages (n), hard negatives (n, k; -1 absent), and the teacher's
    scores of both; and the user's labelled pairs of the train split. `texts` gives passages by row."""

    queries: list[str]
    origins: npt.NDArray[np.str_]
    own: Rows
    hard: Rows
    own_scores: Floats
    hard_scores: Floats
    labelled: pa.Table
    texts: Callable[[Rows], Sequence[str]]

    @classmethod
    def load(
        cls, inputs: Mapping[str, Path], which: str, texts: Callable[[Rows], Sequence[str]]
    ) -> tuple[Lessons, Rows]:
        """The lessons of "all", "generated" or "labelled" queries, and their rows among the mined ones."""
        folder = inputs["mined"]
        table = pq.read_table(folder / "queries.parquet")
        origins = np.array(table["origin"].to_pylist(), dtype=np.str_)
        rows = np.flatnonzero((origins == which) | (which == "all"))
        own_scores, hard, hard_scores = (
            np.load(folder / f"{name}.npy")[rows] for name in ("own_scores", "hard", "hard_scores")
        )
        labelled = pq.read_table(inputs["labelled.parquet"])
        mine = (labelled["split"].to_numpy() == "train") & (which != "generated")
        chosen = table.take(rows)
        lessons = cls(
            chosen["text"].to_pylist(),
            origins[rows],
            chosen["passage"].to_numpy().astype(np.int64),
            hard,
            own_scores,
            hard_scores,
            labelled.filter(pa.array(mine)),
            texts,
        )
        return lessons, rows

    def __len__(self) -> int:
        """How many queries with a passage of the corpus."""
        return len(self.queries)

    def sets(self, needs: Need, frozen: bool) -> list[Lesson]:
        """The training sets of an objective. `frozen`: only texts of the corpus, whose vectors are known."""
        if needs in ("scores", "negatives"):
            scores = np.concatenate([self.own_scores[:, None], self.hard_scores], axis=1)
            lesson = self._mined(scores if needs == "scores" else None)
            # Asked of the set: it drops negatives that are known to answer the query elsewhere.
            some = np.flatnonzero(lesson.data.widths > 1)
            return [Lesson(lesson.data.take(some), lesson.passages)] if len(some) else []
        if "labels" in needs:
            return self._judged(frozen)
        found = [self._mined(None)]
        outside = [pair for pair, row in self._pairs() if row == ABSENT and pair.label >= ANSWERS]
        if outside and not frozen:
            # Their labels have done their work: what is left answers.
            pairs = [LabelledPair(pair.query, pair.text, 1.0, pair.negatives) for pair in outside]
            found.append(Lesson(TrainingSet.from_pairs(pairs), None))
        return [lesson for lesson in found if len(lesson.data)]

    def _mined(self, scores: Floats | None) -> Lesson:
        rows = np.concatenate([self.own[:, None], self.hard], axis=1)
        used = np.unique(rows[rows != ABSENT])
        place = np.searchsorted(used, rows)
        place[rows == ABSENT] = ABSENT
        data = TrainingSet(self.queries, list(self.texts(used)), place, scores)
        return Lesson(data, used)

    def _judged(self, frozen: bool) -> list[Lesson]:
        """Pairs with labels: of the generated queries the own passage (1) and the negatives (0), and the
        user's pairs with theirs."""
        generated = np.flatnonzero(self.origins == "generated")
        found = []
        if len(generated):
            lesson = self._mined(None)
            found.append(Lesson(lesson.data.take(generated).as_labelled(), lesson.passages))
        theirs = [(pair, row) for pair, row in self._pairs() if not frozen or row != ABSENT]
        if theirs:
            # A negative of the user's is a text of its own, whose vector is not known.
            pairs = [
                LabelledPair(pair.query, pair.text, pair.label, () if frozen else pair.negatives)
                for pair, _ in theirs
            ]
            data = TrainingSet.from_pairs(pairs)
            if data.labels is None:
                ones = np.ones(len(data), np.float32)
                data = TrainingSet(data.queries, data.texts, data.rows, ones)
            by_text = {pair.text: row for pair, row in theirs}
            rows = np.array([by_text.get(text, ABSENT) for text in data.texts])
            found.append(Lesson(data.as_labelled(), rows if frozen else None))
        return found

    def _pairs(self) -> list[tuple[LabelledPair, int]]:
        """The labelled pairs and the rows of their passages; a text of the corpus as the corpus has it."""
        rows = self.labelled["passage"].to_numpy().astype(np.int64)
        inside = np.flatnonzero(rows != ABSENT)
        texts = self.labelled["text"].to_pylist()
        for place, text in zip(inside.tolist(), self.texts(rows[inside]), strict=True):
            texts[place] = text
        names = ("query", "label", "negatives")
        columns = (self.labelled[name].to_pylist() for name in names)
        return [
            (LabelledPair(query, text, label, tuple(negatives)), int(row))
            for query, label, negatives, text, row in zip(*columns, texts, rows, strict=True)
        ]
