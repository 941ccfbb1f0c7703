"""A site of questions and answers: read from a BEIR folder, or invented; and what a fit needs of it."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searchfit.config import QueriesSettings
from searchfit.sources.queries import read_queries

TEST_SHARE = 0.4
"""Of the questions: half of them choose between engines (dev), half of them measure (test)."""

ACCEPTED = 2
"""The grade of the accepted answer; 1 is any other good answer."""


@dataclass(frozen=True, slots=True)
class Site:
    """The files of a prepared site and its questions, by id: `test` is a BEIR folder of the questions that
    are kept for evaluation, `triples` a table of (question, accepted answer, 1) and (question, other, 0)."""

    documents: Path
    test: Path
    triples: Path
    questions: dict[str, str]

    def texts(self) -> list[str]:
        """All that is said on the site."""
        return [*self.questions.values(), *(row["text"] for row in _rows(self.documents / "corpus.jsonl"))]


def prepare(data: Path, out: Path, seed: int = 13) -> Site:
    """Divide the questions of a BEIR folder and write the triples.

    Test questions stand among the triples too, as they would in a dump of the site: the fit takes them out.
    """
    judged = read_queries(QueriesSettings(file=str(data)))
    questions = dict(judged.queries)
    rng = random.Random(seed)
    test = set(rng.sample(sorted(questions), int(TEST_SHARE * len(questions))))
    _write_test(out / "test", {id_: questions[id_] for id_ in sorted(test)}, judged.qrels)
    texts = {row["_id"]: row["text"] for row in _rows(data / "corpus.jsonl")}
    accepted = {
        id_: answer
        for id_ in questions
        for answer, grade in judged.qrels[id_].items()
        if grade >= ACCEPTED and answer in texts
    }
    # Wrong answers are those of other questions that train: what answers a test question is never seen.
    others = sorted(answer for id_, answer in accepted.items() if id_ not in test)
    with (out / "triples.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("question_id", "question", "answer_id", "answer", "label"))
        for id_, answer in accepted.items():
            wrong = rng.choice([other for other in others if other not in judged.qrels[id_]])
            writer.writerow((id_, questions[id_], answer, texts[answer], 1))
            writer.writerow((id_, questions[id_], wrong, texts[wrong], 0))
    return Site(data, out / "test", out / "triples.csv", questions)


def _write_test(folder: Path, questions: dict[str, str], qrels: Any) -> None:
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    _write(folder / "queries.jsonl", ({"_id": id_, "text": text} for id_, text in questions.items()))
    lines = [
        f"{id_}\t{answer}\t{grade}\n" for id_ in questions for answer, grade in sorted(qrels[id_].items())
    ]
    (folder / "qrels" / "test.tsv").write_text("query\tanswer\tgrade\n" + "".join(lines), encoding="utf-8")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


PLANTS = (
    *("basil", "orchid", "cactus", "fern", "ivy", "lemon tree", "monstera", "rosemary", "begonia", "palm"),
    *(
        "aloe",
        "fig tree",
        "jasmine",
        "lavender",
        "mint",
        "olive tree",
        "peace lily",
        "azalea",
        "yucca",
        "sage",
    ),
    *(
        "dahlia",
        "oleander",
        "thyme",
        "camellia",
        "hibiscus",
        "agave",
        "croton",
        "geranium",
        "laurel",
        "bamboo",
    ),
)
TROUBLES = {
    "Yellow leaves on my {0}, why?": (
        "Yellow leaves on a {0} mean wet feet: let the soil dry, and pour away what stands in the saucer.",
        "Feed the {0} once in two weeks in summer, a lack of nitrogen pales the oldest leaves first.",
    ),
    "How often is a {0} watered?": (
        "Put a finger into the pot: a {0} wants water when the soil is dry two joints deep, no sooner.",
        "In winter a {0} drinks half as much, so water it every second week at most.",
    ),
    "When is my {0} repotted?": (
        "Move a {0} in early spring, when roots come out of the hole, into a pot two fingers wider.",
        "Do not repot a {0} that flowers; wait until the last blossom has dropped.",
    ),
    "Aphids all over the {0}": (
        "Rinse the {0} under the shower, then spray soap in water on the lice every third day for two weeks.",
        "Ladybird larvae clear a {0} of aphids within days, and nothing has to be sprayed.",
    ),
    "Is a north window fine for a {0}?": (
        "A {0} by a north window lives but grows long and thin; a lamp for four hours makes up for the sun.",
        "Turn the {0} a quarter every week, for it bends to the glass where light is scarce.",
    ),
    "Growing a new {0} from cuttings": (
        "Cut the {0} below a knot, take off the lower leaves and keep it moist under a jar until it roots.",
        "A {0} roots in plain water too, which takes three weeks on a warm sill.",
    ),
}
AGAIN = 8
"""Questions that somebody asks again in nearly the same words."""


def invent(folder: Path, seed: int = 13) -> Path:
    """Write a BEIR folder of invented questions about plants, with an accepted and another answer each."""
    rng = random.Random(seed)
    asked = [(question.format(plant), plant, question) for plant in PLANTS for question in TROUBLES]
    asked += [(f"{text} Thanks", *rest) for text, *rest in rng.sample(asked, AGAIN)]
    corpus, queries, lines = [], [], ["query\tanswer\tgrade\n"]
    for number, (text, plant, question) in enumerate(asked):
        queries.append({"_id": f"q{number}", "text": text})
        for place, answer in enumerate(TROUBLES[question]):
            id_ = f"a{2 * number + place}"
            thanks = rng.choice(("", " It worked for mine.", " My aunt taught me that.", " Be patient."))
            corpus.append({"_id": id_, "title": "", "text": answer.format(plant) + thanks})
            lines.append(f"q{number}\t{id_}\t{ACCEPTED - place}\n")
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    _write(folder / "corpus.jsonl", corpus)
    _write(folder / "queries.jsonl", queries)
    (folder / "qrels" / "test.tsv").write_text("".join(lines), encoding="utf-8")
    return folder
