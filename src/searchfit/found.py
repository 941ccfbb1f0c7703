"""What a search found before anything is fetched: re-ranked where the engine says so, and explained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from searchfit.encoders.cross import sigmoid
from searchfit.fusion import Floats, Rows
from searchfit.interaction import WordScores, reorder
from searchfit.legs import Scored
from searchfit.records import Engine
from searchfit.rerank import PairScores, places


@dataclass(frozen=True, slots=True)
class Found:
    """The passages that were found with their scores, the places among them that are shown, best first, and
    the engine that ranked them. By place, `words` has the scores of late interaction, `read` what a re-ranker
    said (0..1), and `first` the scores before it."""

    engine: Engine
    scored: Scored
    shown: list[int]
    words: Mapping[int, float] = field(default_factory=dict)
    read: Mapping[int, float] = field(default_factory=dict)
    first: Mapping[int, float] = field(default_factory=dict)

    @property
    def rows(self) -> Rows:
        """The rows that are shown, best first."""
        return self.scored.rows[self.shown]

    def met(self, words: WordScores | None) -> Found:
        """The same in the order that the words of the passages give it, see interaction.py; as it is where
        there are none."""
        if words is None or not self.shown:
            return self
        head = np.array(self.shown[: self.engine.token_depth])
        found = words(self.scored.rows[head][None, :])[0]
        stage = self.scored.scores[head] + self.engine.token_weight * found
        moved = self._moved(*reorder(self.scored.scores[self.shown][None, :], stage[None, :]))
        return replace(moved, words=dict(zip(head.tolist(), found.tolist(), strict=True)))

    def reranked(self, query: str, pairs: PairScores) -> Found:
        """The same in the order of the engine's re-ranker; as it is where the engine has none."""
        if not self.engine.reranker or not self.shown:
            return self
        head = self.shown[: self.engine.rerank_depth]
        first, raw = self.scored.scores[self.shown], pairs([query], self.scored.rows[head][None, :])
        return replace(
            self._moved(*places(self.engine, first[None, :], raw)),
            read=dict(zip(head, sigmoid(raw[0]).tolist(), strict=True)),
            first=dict(zip(head, first.tolist(), strict=False)),
        )

    def _moved(self, values: Floats, order: Rows) -> Found:
        """With other scores (1, n) in another order (1, n) of what is shown."""
        shown, scores = np.array(self.shown)[order[0]], self.scored.scores.copy()
        scores[shown] = values[0]
        return replace(self, scored=replace(self.scored, scores=scores), shown=shown.tolist())

    def scores(self, place: int, explain: bool) -> dict[str, float]:
        """The scores that led to a hit: of the legs and, where it was read again, of the re-ranker beside
        that of the first stage. With `explain` also its rank in each leg that gave it, and the weights."""
        scored = self.scored
        scores = {
            "dense": round(float(scored.dense[place]), 6),
            "keyword": round(float(scored.keyword[place]), 6),
        }
        if place in self.words:
            scores["words"] = round(self.words[place], 6)
        if place in self.read:
            scores |= {"first_stage": round(self.first[place], 6), "reranker": round(self.read[place], 6)}
        if explain:
            row = int(scored.rows[place])
            scores |= {f"{leg}_rank": ranks[row] for leg, ranks in scored.ranks.items() if row in ranks}
            engine = self.engine
            scores |= {"dense_weight": engine.dense_weight, "keyword_weight": engine.keyword_weight}
            if engine.token_weight:
                scores["token_weight"] = engine.token_weight
            if engine.reranker:
                scores["rerank_weight"] = engine.rerank_weight
        return scores
