"""The questions that engines are compared on: the user's own, labelled ones, or generated ones."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from searchfit.config import Settings
from searchfit.keyword import KeywordIndex
from searchfit.overlap import overlaps
from searchfit.records import encoded_text
from searchfit.sources.queries import UserQueries, read_queries
from searchfit.splits import asked_split, pair_splits
from searchfit.training.lessons import ANSWERS


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions that engines are compared on: `relevant[i]` holds the judged documents of `texts[i]`.
    `held_out` says whether their documents of dev and test are kept out of training; those of the user's
    judged ones are not."""

    kind: str
    ids: list[str]
    texts: list[str]
    styles: list[str]
    splits: list[str]
    relevant: list[Mapping[str, int]]
    unjudged: list[str]
    held_out: bool = True

    def without(self, places: Sequence[int]) -> Questions:
        """The same without some of the judged questions."""
        left = [place for place in range(len(self.ids)) if place not in set(places)]
        return replace(
            self,
            ids=[self.ids[place] for place in left],
            texts=[self.texts[place] for place in left],
            styles=[self.styles[place] for place in left],
            splits=[self.splits[place] for place in left],
            relevant=[self.relevant[place] for place in left],
        )

    def at_most(self, most: int, seed: int) -> Questions:
        """At most so many of each split, and of those without judgements, drawn by the seed."""
        random = np.random.default_rng(seed)
        out: list[int] = []
        for split in ("dev", "test"):
            mine = [place for place, own in enumerate(self.splits) if own == split]
            out += random.permutation(mine)[most:].tolist()
        return replace(self.without(out), unjudged=self.unjudged[:most])


def gather(settings: Settings, inputs: Mapping[str, Path], document_ids: list[str]) -> Questions:
    """The user's judged questions when there are any, else their held-out labelled ones when they are enough,
    else generated ones."""
    unjudged: list[str] = []
    own = _asked(settings, inputs["asked.json"])
    if own.queries:
        known = set(document_ids)
        judged = [
            (id_, text)
            for id_, text in own.queries
            if any(grade > 0 and document in known for document, grade in own.qrels.get(id_, {}).items())
        ]
        if judged:
            ids, texts = [id_ for id_, _ in judged], [text for _, text in judged]
            splits = [asked_split(id_) for id_ in ids]
            relevant = [own.qrels[id_] for id_ in ids]
            judged_ids = set(ids)
            others = [text for id_, text in own.queries if id_ not in judged_ids]
            return Questions("judged", ids, texts, ["yours"] * len(ids), splits, relevant, others, False)
        unjudged = [text for _, text in own.queries]
    if labelled := _labelled(settings, inputs, document_ids, unjudged):
        return labelled
    pairs = pq.read_table(inputs["pairs.parquet"], columns=["id", "text", "style", "document"])
    of_pair = pair_splits(inputs["pairs.parquet"], inputs["holdout.parquet"])
    random = np.random.default_rng(settings.seed)
    chosen = np.sort(
        np.concatenate(
            [
                random.permutation(np.flatnonzero(of_pair == name))[: settings.evaluate.max_queries]
                for name in ("dev", "test")
            ]
        )
    )
    held = pairs.take(chosen)
    relevant = [{document_ids[row]: 1} for row in held["document"].to_pylist()]
    return Questions(
        "generated",
        held["id"].to_pylist(),
        held["text"].to_pylist(),
        held["style"].to_pylist(),
        of_pair[chosen].tolist(),
        relevant,
        unjudged,
    )


def _asked(settings: Settings, file: Path) -> UserQueries:
    """The user's own questions, and behind them what readers judged; of the same words as one."""
    own = read_queries(settings.queries)
    ids = {text: id_ for id_, text in reversed(own.queries)}
    texts, qrels = dict(own.queries), {id_: dict(grades) for id_, grades in own.qrels.items()}
    for told in json.loads(file.read_text(encoding="utf-8")):
        id_ = ids.get(told["text"], told["id"])
        texts.setdefault(id_, told["text"])
        if told["grades"]:
            qrels[id_] = qrels.get(id_, {}) | told["grades"]
    return UserQueries(tuple(texts.items()), qrels)


def _labelled(
    settings: Settings, inputs: Mapping[str, Path], document_ids: list[str], unjudged: list[str]
) -> Questions | None:
    """The user's held-out labelled queries, in two styles: of documents that a pair that trains names too
    ("known"), and of others ("new"). None where they are too few to judge by."""
    relevant: dict[tuple[str, str], dict[str, int]] = {}
    known: set[str] = set()
    for row in pq.read_table(inputs["labelled.parquet"]).to_pylist():
        if row["document"] < 0 or row["label"] < ANSWERS:
            continue
        if row["split"] == "train":
            known.add(document_ids[row["document"]])
        else:
            found = relevant.setdefault((row["split"], row["query"]), {})
            # Whole grades, as judgements are: 0.5 of 1 counts less than 1.
            found[document_ids[row["document"]]] = max(1, round(2 * row["label"]))
    counts = Counter(split for split, _ in relevant)
    if min(counts["dev"], counts["test"]) < settings.evaluate.min_labelled:
        return None
    splits, texts = [split for split, _ in relevant], [text for _, text in relevant]
    ids = [f"labelled/{number}" for number in range(len(texts))]
    styles = [
        f"labelled, {'known' if known & found.keys() else 'new'} document" for found in relevant.values()
    ]
    return Questions("judged", ids, texts, styles, splits, list(relevant.values()), unjudged)


def wording(inputs: Mapping[str, Path], questions: Questions) -> npt.NDArray[np.float64]:
    """(n) how much of each question's wording stands in a passage that answers it."""
    wanted = {id_ for relevant in questions.relevant for id_, grade in relevant.items() if grade > 0}
    columns = ["document_id", "title", "text"]
    passages: dict[str, list[int]] = {}
    texts: dict[int, str] = {}
    row = 0
    for batch in pq.ParquetFile(inputs["passages.parquet"]).iter_batches(4096, columns=columns):
        for record in batch.to_pylist():
            if record["document_id"] in wanted:
                passages.setdefault(record["document_id"], []).append(row)
                texts[row] = encoded_text(record["title"], record["text"])
            row += 1
    answers = [
        [row for id_, grade in relevant.items() if grade > 0 for row in passages.get(id_, ())]
        for relevant in questions.relevant
    ]
    return overlaps(questions.texts, answers, texts, KeywordIndex.load(inputs["keyword"]).analyzer)
