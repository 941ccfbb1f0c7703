"""The blinded pool on a page: one document after another, marked and kept at once."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from weakref import WeakKeyDictionary

from searchfit.config import load_settings
from searchfit.judgements import Judgement, Record, agreements
from searchfit.judging import Entry, Page, Pool, Session, questions
from searchfit.markup import Markup, tag, text
from searchfit.search import Searcher
from searchfit.server.page.address import Asked
from searchfit.server.page.html import hidden, marked, select
from searchfit.workspace import Workspace

QUESTIONS = (10, 20, 50, 100)
DEPTH = 10  # as the command's default
SHOWN_CHARS = 20_000
NAME_CHARS = 60
_GRADES = ((0, "Not relevant", "n"), (1, "Relevant", "y"), (2, "Highly", "2"), (3, "Perfect", "3"))
_MOST_POOLS, _MOST_SESSIONS = 4, 64


@dataclass(frozen=True, slots=True)
class Judging:
    """Who judges, and how many questions; a page's address has both."""

    judge: str = ""
    questions: int = QUESTIONS[1]

    @classmethod
    def read(cls, judge: str, count: str) -> Judging:
        """From the values of an address."""
        wanted = (number for number in QUESTIONS if str(number) == count)
        return cls(judge.strip()[:NAME_CHARS], next(wanted, QUESTIONS[1]))

    def pairs(self) -> list[tuple[str, str]]:
        """For an address."""
        return [("judge", self.judge), ("questions", str(self.questions))]


@dataclass(frozen=True, slots=True)
class Shown:
    """What the judge sees now: judged and all; nothing to show where all is judged."""

    done: int
    total: int
    entry: Entry | None = None
    page: Page | None = None


class Desk:
    """The pools that were made and the sessions of their judges. A pool is made on a thread, once for each
    version of a workspace's index; a session that was let go of, with its pool or alone, carries on from the
    record."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._pools: OrderedDict[tuple[Path, str, int], Future[Pool]] = OrderedDict()
        self._sessions: WeakKeyDictionary[Pool, OrderedDict[str, Session]] = WeakKeyDictionary()
        self._lock = Lock()  # of the sessions; one that writes holds it

    def pool(self, workspace: Path, searcher: Searcher, version: str, count: int) -> Pool | None:
        """The pool; None while it is being made. Raises what making it raised, and then makes it anew the
        next time. To be asked by one thread only."""
        key = workspace, version, count
        found = self._pools.get(key)
        if found is None:
            found = self._pools[key] = self._threads.submit(_pool, workspace, searcher, count)
            while len(self._pools) > _MOST_POOLS:
                self._pools.popitem(last=False)[1].cancel()
        self._pools.move_to_end(key)
        if not found.done():
            return None
        if found.exception() is not None:
            del self._pools[key]
        return found.result()

    def show(self, workspace: Path, pool: Pool, judge: str, whole: bool) -> Shown:
        """What is to be judged now."""
        with self._lock:
            session = self._session(workspace, pool, judge)
            entry, (done, total) = session.current, session.progress
        return Shown(done, total, entry, pool.page(entry, whole) if entry else None)

    def act(self, workspace: Path, pool: Pool, judge: str, said: Said) -> None:
        """Do what a button says. A press on a page that is no longer the current one does nothing."""
        with self._lock:
            session = self._session(workspace, pool, judge)
            if said.action == "undo":
                session.undo()
                return
            entry = session.current
            if entry is None or (entry.query, entry.document_id) != (said.query, said.document):
                return
            if said.action == "skip":
                session.skip()
            elif said.action in {"0", "1", "2", "3"}:
                session.judge_it(int(said.action))

    def _session(self, workspace: Path, pool: Pool, judge: str) -> Session:
        own = self._sessions.setdefault(pool, OrderedDict())
        if judge not in own:
            seed = load_settings(Workspace(workspace).settings_file).seed
            own[judge] = Session(pool, Record(workspace), judge, seed)
            while len(own) > _MOST_SESSIONS:
                own.popitem(last=False)
        own.move_to_end(judge)
        return own[judge]


@dataclass(frozen=True, slots=True)
class Said:
    """A press of a button: a grade, "skip" or "undo", and what it was about."""

    action: str
    query: str = ""
    document: str = ""


def _pool(workspace: Path, searcher: Searcher, count: int) -> Pool:
    asked = questions(workspace)
    return Pool.of(workspace, replace(asked, queries=asked.queries[:count]), DEPTH, searcher)


def welcome(asked: Asked, judging: Judging, said: Sequence[Judgement]) -> list[Markup]:
    """Before judging: whose judgements, over how many questions, and what is judged already."""
    name = tag(
        "input",
        name="judge",
        value=judging.judge or "me",
        required="",
        maxlength=str(NAME_CHARS),
        autocomplete="off",
    )
    counts = [(str(n), f"{n} questions") for n in QUESTIONS]
    begin = tag(
        "form.choice",
        hidden(Asked(workspace=asked.workspace).pairs()),
        tag("label", tag("span", "Your name"), name),
        select("questions", counts, str(judging.questions), "How many"),
        tag("button.main", "Begin"),
        action="/judge",
        method="get",
        id="begin",
    )
    told = (
        "You see a question and, one by one, documents that the systems of this workspace found for it. Which"
        " system found one is not told, and their order is one of chance. Each mark is kept at once; come"
        " back under the same name and you go on where you stopped."
    )
    return [tag("h1", "Judge results"), tag("p.soft", told), begin, *_counts(said)]


def _counts(said: Sequence[Judgement]) -> list[Markup]:
    """What is judged by whom, and how they agree."""
    counts = Counter(each.judge for each in said)
    if not counts:
        return [tag("p.soft", "Nothing is judged yet.")]
    items = [
        tag("li", tag("b", text(judge, NAME_CHARS)), f": {count:,} judged")
        for judge, count in counts.most_common(20)
    ]
    for each in agreements(said)[:20]:
        kappa = "" if each.kappa is None else f", kappa {each.kappa:.2f}"
        names = " and ".join(name[:NAME_CHARS] for name in each.judges)
        items.append(tag("li", f"{names}: {each.both:,} in common, {each.equal:.0%} equal{kappa}"))
    use = "searchfit judge WORKSPACE --export DIR writes them as qrels for evaluate and fit."
    return [tag("h2", f"{len(said):,} judgements"), tag("ul", *items), tag("p.soft", use)]


def waiting() -> list[Markup]:
    """While the pool is made."""
    told = "Every system answers every question; this takes a moment, and the page goes on by itself."
    return [tag("h1", "The pool is being made"), tag("p.soft", told, role="status")]


def view(asked: Asked, judging: Judging, shown: Shown) -> list[Markup]:
    """The page with the document to be judged."""
    bar = tag(
        "progress", value=str(shown.done), max=str(max(shown.total, 1)), **{"aria-label": "Judged"}
    )  # fmt: skip
    said = f"{shown.done:,} of {shown.total:,} judged by {judging.judge}"
    head = tag("p.said", bar, " ", text(said), role="status", id="status")
    form = partial(_form, asked, judging)
    if shown.entry is None or shown.page is None:
        over = asked.link("/judge", ("questions", str(judging.questions)))
        links = tag("p", tag("a", "Counts, another name or more questions", href=over))
        done = tag("p", "Nothing is left to judge here. What you skipped is asked again the next time.")
        return [
            tag("h1", "Done"),
            head,
            done,
            links,
            form(None, tag("button", "Undo", name="action", value="undo")),
        ]
    entry, page = shown.entry, shown.page
    marks = [(a, b) for a, b in page.highlights if b <= SHOWN_CHARS]
    cut = f"… and {len(page.text) - SHOWN_CHARS:,} characters more" if len(page.text) > SHOWN_CHARS else ""
    buttons = [
        tag("button.grade", said, tag("kbd", key), name="action", value=str(grade), id=f"grade-{grade}")
        for grade, said, key in _GRADES
    ]
    buttons += [
        tag(
            "button.quiet",
            said,
            tag("kbd", said[0].lower()),
            name="action",
            value=said.lower(),
            id=said.lower(),
        )
        for said in ("Skip", "Undo")
    ]
    whole = asked.link("/judge", *judging.pairs(), ("whole", "1"))
    return [
        head,
        tag("h1.question", text(entry.query, 2000), dir="auto"),
        tag(
            "article.card",
            tag("h2", text(page.title or "Untitled", 300), dir="auto"),
            tag("div.prose", marked(page.text[:SHOWN_CHARS], marks), dir="auto"),
            tag("p.soft", cut) if cut else Markup(),
            tag("p", tag("a", "Whole document ", tag("kbd", "m"), href=whole, id="whole")),
        ),
        form(entry, *buttons),
    ]


def _form(asked: Asked, judging: Judging, entry: Entry | None, *buttons: Markup) -> Markup:
    pairs = [*Asked(workspace=asked.workspace).pairs(), *judging.pairs()]
    if entry is not None:
        pairs += [("query", entry.query), ("document", entry.document_id)]
    return tag("form.grades", hidden(pairs), *buttons, action="/judge", method="post", id="grades")
