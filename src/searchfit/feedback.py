"""What readers of a search engine said and clicked, and what a fit takes from it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from searchfit.config import FeedbackSettings
from searchfit.errors import SettingsError
from searchfit.journal import Journal
from searchfit.judgements import JUDGEMENTS, Judgement, Record, settled
from searchfit.records import LabelledPair
from searchfit.writing import digest

CLICKS = "clicks.jsonl"
MAX_QUERY_CHARS = 2000
MAX_ID_CHARS = 1000
MAX_RANK = 10_000
MOST_OF_A_CLICK = 5.0
"""What one click weighs at most, however far down the document stood."""
SHARE_OF_BEST = 0.25
"""Of the weight of a query's most clicked document, what another one must have to count as an answer."""


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()


@dataclass(frozen=True, slots=True)
class Click:
    """That somebody opened the document at `rank` (from 1) of what was found. The day is kept, no more."""

    query: str
    document_id: str
    rank: int
    day: str = field(default_factory=_today)


def judged(query: str, document_id: str, grade: int | None, judge: str = "reader") -> Judgement:
    """A judgement of a document for a query that has no id; a grade of None takes an earlier one back."""
    return Judgement(query_id(query), query, document_id, grade, judge)


def plain(query: str) -> str:
    """A query as it is kept: one space between its words."""
    return " ".join(query.split())


def query_id(query: str) -> str:
    """The id of a query that was asked, told from its words."""
    return f"asked-{_hashed(query)[:16]}"


class Feedback:
    """The feedback of a workspace: judgements.jsonl, which `searchfit judge` writes too, and clicks.jsonl.

    Kept are the words of the query, the document, and the grade with its judge's name or the rank; nothing
    of who asked. Clicks are refused unless `clicks` is true: whoever serves decides that they are kept.
    """

    def __init__(self, workspace: Path, clicks: bool = False) -> None:
        self._record = Record(workspace)
        self._clicks = _ClickLog(workspace)
        self.keeps_clicks = clicks

    def add(self, said: Judgement | Click) -> None:
        """Write what was said or clicked to the disk before returning; it may wait for another writer.

        Raises SettingsError for an empty or too long query or id, a grade or rank that is none, and a click
        where none are kept; WorkspaceError when it cannot be written or the file is full.
        """
        said = _checked(said)
        if isinstance(said, Judgement):
            self._record.add(said)
        elif self.keeps_clicks:
            self._clicks.add(said)
        else:
            raise SettingsError("clicks are not kept here.", "Who serves the workspace can turn them on.")

    def judgements(self) -> list[Judgement]:
        """The judgements that hold. Raises WorkspaceError for a damaged file."""
        return self._record.judgements()

    def clicks(self) -> list[Click]:
        """All clicks, oldest first. Raises WorkspaceError for a damaged file."""
        return list(self._clicks.read())


class _ClickLog:
    """clicks.jsonl."""

    def __init__(self, workspace: Path) -> None:
        self._journal = Journal(workspace / CLICKS)

    def add(self, click: Click) -> None:
        self._journal.add(asdict(click))

    def read(self) -> Iterator[Click]:
        for number, line in self._journal.lines():
            try:
                click = Click(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise self._journal.damaged(number, line, "click") from error
            texts = (click.query, click.document_id, click.day)
            if not all(isinstance(part, str) for part in texts) or not _is_rank(click.rank):
                raise self._journal.damaged(number, line, "click")
            yield click


@dataclass(frozen=True, slots=True)
class Said:
    """All that was said of a document for a query: the grade that the judges settle on, None without one; its
    clicks and what they weigh; and the label by which it trains, None where it does not."""

    query: str
    document_id: str
    grade: int | None
    clicks: int
    weight: float
    label: float | None


def overview(feedback: Feedback, settings: FeedbackSettings) -> list[Said]:
    """The feedback by query and document, of all documents, also those that are gone. Raises WorkspaceError
    for a damaged file."""
    graded = _by_words(settled(feedback.judgements()))
    words = {_same(query) for query in graded}
    found = {}
    for one in clicked(feedback.clicks(), settings):
        label = 1.0 if one.counts and _same(one.query) not in words else None
        said = Said(one.query, one.document_id, None, one.clicks, one.weight, label)
        found[_same(one.query), one.document_id] = said
    for query, own in graded.items():
        for document, grade in own.items():
            before = found.get((_same(query), document))
            clicks, weight = (before.clicks, before.weight) if before else (0, 0.0)
            found[_same(query), document] = Said(query, document, grade, clicks, weight, float(grade))
    return [found[key] for key in sorted(found)]


def _is_rank(rank: Any) -> bool:
    return isinstance(rank, int) and not isinstance(rank, bool) and 1 <= rank <= MAX_RANK


def _checked(said: Judgement | Click) -> Judgement | Click:
    """The same with the white space of its query made plain."""
    query = plain(said.query)
    for what, text, most in (
        ("query", query, MAX_QUERY_CHARS),
        ("document id", said.document_id, MAX_ID_CHARS),
    ):
        if not text or len(text) > most:
            raise SettingsError(
                f"a {what} of {len(text)} characters was given.", f"Expected 1 to {most} characters."
            )
    if isinstance(said, Click):
        if not _is_rank(said.rank):
            raise SettingsError(f"a rank of {said.rank!r} was given.", f"Expected 1 to {MAX_RANK}.")
        return Click(query, said.document_id, said.rank, said.day)
    if not said.judge.strip() or len(said.judge) > MAX_ID_CHARS:
        raise SettingsError("the judge has no name, or a very long one.", "Name who judges.")
    return Judgement(said.query_id, query, said.document_id, said.grade, said.judge, said.at)


@dataclass(frozen=True, slots=True)
class Clicked:
    """The clicks on a document for a query: how many, what they weigh, and whether that makes it an answer
    to train on."""

    query: str
    document_id: str
    clicks: int
    weight: float
    counts: bool


def clicked(clicks: list[Click], settings: FeedbackSettings) -> list[Clicked]:
    """What the clicks say of each query and document, by query, the heaviest first.

    The first results are clicked because they are looked at. A click at rank r weighs r to the power of
    `click_bias`, the inverse of how likely a reader looks so far down, so that the clicks of all ranks count
    as if all had been looked at alike (Joachims, Swaminathan and Schnabel 2017, "Unbiased Learning-to-Rank
    with Biased Feedback", who set and vary this power), at most MOST_OF_A_CLICK so that no single click
    decides. An answer has a weight of `click_weight` and SHARE_OF_BEST of that of the query's best.
    """
    counts: Counter[tuple[str, str]] = Counter()
    weights: dict[tuple[str, str], float] = defaultdict(float)
    best: dict[str, float] = {}
    for click in clicks:
        key = (_same(click.query), click.document_id)
        counts[key] += 1
        weights[key] += min(click.rank**settings.click_bias, MOST_OF_A_CLICK)
        best[key[0]] = max(best.get(key[0], 0.0), weights[key])
    words = {_same(click.query): click.query for click in clicks}
    found = [
        Clicked(
            words[query],
            document,
            counts[query, document],
            round(weight, 3),
            weight >= max(settings.click_weight, SHARE_OF_BEST * best[query]),
        )
        for (query, document), weight in weights.items()
    ]
    return sorted(found, key=lambda each: (_same(each.query), -each.weight, each.document_id))


@dataclass(frozen=True, slots=True)
class Lessons:
    """What a fit takes from feedback. `questions` (id, text) with their `qrels` evaluate, if `enough`; the
    pairs of other questions train, `clicked` ones those that were not judged."""

    questions: tuple[tuple[str, str], ...] = ()
    qrels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    enough: bool = False
    judged: tuple[LabelledPair, ...] = ()
    clicked: tuple[LabelledPair, ...] = ()
    notes: tuple[str, ...] = ()


def lessons(settings: FeedbackSettings, known: Container[str]) -> Lessons:
    """What `settings.workspace` teaches of the documents whose ids are `known`; nothing where none is named.

    Evaluation comes first: up to `max_questions` judged questions with an answer evaluate, drawn by their
    words; the judgements of all others train, and then clicks. Raises WorkspaceError for a damaged file.
    """
    if not settings.workspace:
        return Lessons()
    if not fingerprint(settings):  # a first fit into a new folder, say
        return Lessons(notes=("feedback: there is none yet",))
    said = [one for one in Record(Path(settings.workspace)).judgements() if one.document_id in known]
    grades = _by_words(settled(said))
    clicks = [click for click in _ClickLog(Path(settings.workspace)).read() if click.document_id in known]
    answered = [query for query, own in grades.items() if any(own.values())]
    tests = sorted(answered, key=_hashed)[: settings.max_questions]
    enough = len(answered) >= settings.min_questions
    kept_out = set(tests)
    taught = [
        LabelledPair(query, "", float(grade), (), query_id(query), document)
        for query in grades
        if query not in kept_out
        for document, grade in grades[query].items()
    ]
    judged_words = {_same(query) for query in grades}
    each = [one for one in clicked(clicks, settings) if one.counts and _same(one.query) not in judged_words]
    pairs = [LabelledPair(one.query, "", 1.0, (), query_id(one.query), one.document_id) for one in each]
    return Lessons(
        tuple((query_id(query), query) for query in tests),
        {query_id(query): grades[query] for query in tests},
        enough,
        tuple(taught),
        tuple(pairs),
        _notes(settings, len(tests), enough, len(clicks), len(pairs)),
    )


def fingerprint(settings: FeedbackSettings) -> dict[str, Any] | None:
    """JSON-able values that change when the feedback does; None where none is named."""
    if not settings.workspace:
        return None
    files = [Path(settings.workspace) / name for name in (JUDGEMENTS, CLICKS)]
    return {file.name: digest(file) for file in files if file.is_file()}


def _notes(settings: FeedbackSettings, tests: int, enough: bool, clicks: int, pairs: int) -> tuple[str, ...]:
    told = []
    if tests and enough:
        told.append(
            f"feedback: {tests} questions that readers judged evaluate. They judged what search showed them,"
            " so what it never shows counts as no answer."
        )
    elif tests:
        told.append(
            f"feedback: {tests} judged questions are too few to evaluate by (feedback.min_questions"
            f" {settings.min_questions}); they are kept out of training until there are more."
        )
    if clicks:
        told.append(
            f"feedback: {clicks} clicks make {pairs} pairs to train on, and judge nothing: what stands first"
            f" is clicked more, so a click at rank r weighs r^{settings.click_bias:g} (feedback.click_bias)."
        )
    return tuple(told) or ("feedback: there is none yet",)


def _by_words(grades: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Questions that differ in case and white space as one; of two grades the lower holds."""
    spelt: dict[str, str] = {}
    merged: dict[str, dict[str, int]] = {}
    for query, own in grades.items():
        mine = merged.setdefault(spelt.setdefault(_same(query), plain(query)), {})
        for document, grade in own.items():
            mine[document] = min(grade, mine.get(document, grade))
    return merged


def _same(query: str) -> str:
    return plain(query.casefold())


def _hashed(query: str) -> str:
    return hashlib.blake2b(_same(query).encode("utf-8", "replace"), digest_size=16).hexdigest()
