"""Judging search results by hand: the questions, the pool of what is to be judged, and the way through it.

Nothing here knows a terminal or a page: whoever shows the entries of a `Session` and passes on the grades is
a way to judge.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from searchfit.config import load_settings
from searchfit.errors import SourceError, WorkspaceError
from searchfit.judged import steady_rankings
from searchfit.judgements import Judgement, Record, settled
from searchfit.screened import artefact
from searchfit.search import Searcher, open_searcher
from searchfit.snippets import merged_spans, stitched
from searchfit.sources.queries import read_queries
from searchfit.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Questions:
    """Questions as (id, text), and the judgements that came with them, grades by question and document. Of
    generated ones that is the document that each was written for, which nobody has judged."""

    queries: tuple[tuple[str, str], ...]
    qrels: Mapping[str, Mapping[str, int]]
    generated: bool = False

    def distinct(self) -> Questions:
        """Questions of the same words as one, by the first id, with the judgements of all."""
        ids: dict[str, str] = {}
        qrels: dict[str, dict[str, int]] = {}
        for id_, text in self.queries:
            own = qrels.setdefault(ids.setdefault(text, id_), {})
            own.update(self.qrels.get(id_, {}))
        return Questions(tuple((id_, text) for text, id_ in ids.items()), qrels, self.generated)


def questions(workspace: Path, file: str = "", split: str = "") -> Questions:
    """The questions of a file (all that `sources.queries` reads); without one those of the fit, and where it
    had none the test questions that it evaluated, in an order of chance that its seed decides.

    Raises SourceError for a file that cannot be read and where there are no questions, WorkspaceError for an
    unfinished workspace.
    """
    place = Workspace(workspace)
    place.require()
    settings = load_settings(place.settings_file)
    if file or settings.queries.file:
        given = {name: value for name, value in (("file", file), ("split", split)) if value}
        own = read_queries(settings.queries.model_copy(update=given))
        return Questions(own.queries, own.qrels)
    import pyarrow.parquet as pq

    evaluated = artefact(workspace, "evaluation/queries.parquet", "evaluate")
    table = pq.read_table(evaluated, columns=["query_id", "split", "text", "relevant"])
    test = [row for row in table.to_pylist() if row["split"] == "test"]
    if not test:
        raise SourceError(
            f"{workspace} has neither questions of yours nor test questions.",
            "Name a file of questions: --queries FILE",
        )
    random.Random(settings.seed).shuffle(test)
    qrels = {row["query_id"]: dict.fromkeys(row["relevant"], 1) for row in test}
    # Of the user's labelled pairs these are judgements.
    kind = json.loads(evaluated.with_name("systems.json").read_text(encoding="utf-8"))["questions"]
    ids = tuple((row["query_id"], row["text"]) for row in test)
    return Questions(ids, qrels, generated=kind == "generated")


@dataclass(frozen=True, slots=True)
class Entry:
    """A document to be judged for a query; `row` is the index's row of the passage that it was ranked by."""

    query_id: str
    query: str
    document_id: str
    row: int


@dataclass(frozen=True, slots=True)
class Page:
    """What a judge sees of an entry. `highlights` are the (start, end) of query words in `text`."""

    title: str
    text: str
    highlights: tuple[tuple[int, int], ...]


class Pool:
    """The best `depth` documents of every system for every question, each once and without a word of who
    found it (Sparck Jones and van Rijsbergen 1975, "Report on the need for and provision of an 'ideal'
    information retrieval test collection")."""

    def __init__(self, searcher: Searcher, entries: Sequence[Entry], systems: Sequence[str]) -> None:
        self._searcher = searcher
        self.entries = tuple(entries)
        self.systems = tuple(systems)

    @classmethod
    def of(cls, workspace: Path, asked: Questions, depth: int, searcher: Searcher | None = None) -> Pool:
        """The pool of a workspace's systems; `searcher` is its own, where it is open already. Documents that
        come judged with the questions are left out; questions of the same words are one. Raises
        WorkspaceError for an unfinished workspace."""
        searcher = searcher or open_searcher(workspace)
        asked = asked.distinct()
        texts = [text for _, text in asked.queries]
        found: list[dict[int, int]] = [{} for _ in texts]
        systems = []
        corpus, rankings = steady_rankings(searcher, Workspace(workspace), texts)
        # The chosen engine is last; the passage that it ranks a document by is the one to show.
        for name, ranking in reversed(rankings):
            systems.append(name)
            for own, places in zip(found, ranking.rows[:, :depth].tolist(), strict=True):
                for place in places:
                    if place >= 0:
                        own.setdefault(int(corpus.documents[place]), place)
        places = sorted({place for own in found for place in own.values()})
        rows = corpus.store.rows[np.array(places, np.int64)]
        passages = {
            place: (str(fields["document_id"]), int(row))
            for place, row, fields in zip(places, rows, corpus.store.fetch(rows), strict=True)
        }
        entries = [
            Entry(id_, text, *passages[place])
            for (id_, text), own in zip(asked.queries, found, strict=True)
            for _, place in sorted(own.items())
            if asked.generated or passages[place][0] not in asked.qrels[id_]
        ]
        return cls(searcher, entries, systems)

    def page(self, entry: Entry, whole: bool = False) -> Page:
        """The passage of an entry, or the whole document, with the query's words marked.

        Raises WorkspaceError for a document that was removed from the index meanwhile.
        """
        corpus = self._searcher.corpus
        rows = corpus.store.rows_of(entry.document_id)
        if not len(rows):
            raise WorkspaceError(
                f"document {entry.document_id!r} is no longer in the index.", "Run the same command again."
            )
        if not whole:
            rows = rows[rows == entry.row] if entry.row in rows else rows[:1]
        passages = sorted(corpus.store.fetch(rows), key=lambda passage: int(passage["start"]))
        text, _ = stitched(passages)
        terms = set(corpus.analyzer.terms(entry.query))
        marks = [(a, b) for term, a, b in corpus.analyzer.spans(text) if term in terms]
        return Page(passages[0]["title"], text, merged_spans(marks))


class Session:
    """One judge's way through a pool: question by question, the documents of each in an order of chance that
    the seed and the judge's name decide. What was judged before is not shown again."""

    def __init__(self, pool: Pool, record: Record, judge: str, seed: int = 0) -> None:
        self._record = record
        self.judge = judge
        self._entries = sorted(pool.entries, key=_by_chance(pool.entries, f"{seed}/{judge}"))
        places = {(entry.query, entry.document_id): i for i, entry in enumerate(self._entries)}
        said = [j for j in record.judgements() if j.judge == judge]
        self._judged = [places[j.query, j.document_id] for j in said if (j.query, j.document_id) in places]
        self._done = set(self._judged)
        self._place = 0
        self._forward()

    @property
    def current(self) -> Entry | None:
        """What is to be judged now; None when nothing is left."""
        return self._entries[self._place] if self._place < len(self._entries) else None

    @property
    def progress(self) -> tuple[int, int]:
        """Judged by this judge, and all."""
        return len(self._done), len(self._entries)

    def judge_it(self, grade: int) -> None:
        """Record a grade for the current entry, and go on. Raises LookupError when there is none."""
        self._write(self._now(), grade)
        self._judged.append(self._place)
        self._done.add(self._place)
        self._forward()

    def skip(self) -> None:
        """Go on without a judgement; the next session shows the entry again."""
        self._now()
        self._place += 1
        self._forward()

    def undo(self) -> bool:
        """Take back this judge's last judgement and return to it; whether there was one."""
        if not self._judged:
            return False
        self._write(self._entries[self._judged[-1]], None)
        self._place = self._judged.pop()
        self._done.discard(self._place)
        return True

    def _now(self) -> Entry:
        if (entry := self.current) is None:
            raise LookupError("nothing is left to judge")
        return entry

    def _write(self, entry: Entry, grade: int | None) -> None:
        self._record.add(Judgement(entry.query_id, entry.query, entry.document_id, grade, self.judge))

    def _forward(self) -> None:
        while self._place in self._done:
            self._place += 1


def _by_chance(entries: Sequence[Entry], salt: str) -> Any:
    """A sort key: queries stay in order; their documents lie as a hash of the salt throws them, so that one
    more document in the pool moves no other."""
    order = {query: number for number, query in enumerate(dict.fromkeys(entry.query for entry in entries))}

    def key(entry: Entry) -> tuple[int, bytes]:
        thrown = f"{salt}/{entry.query}/{entry.document_id}".encode("utf-8", "replace")
        return order[entry.query], hashlib.blake2b(thrown, digest_size=8).digest()

    return key


def judged_questions(asked: Questions, judgements: Sequence[Judgement]) -> Questions:
    """The questions that have judgements, with them: what came with the questions (not with generated ones),
    and over it what was judged by hand. Where judges differ the median holds, of two the lower.

    Raises SourceError where nothing is judged.
    """
    asked = asked.distinct()
    ids = {text: id_ for id_, text in asked.queries}
    taken = set(ids.values())
    for said in judgements:
        if said.query not in ids:  # of an earlier file of questions
            ids[said.query] = _free(said.query_id, taken)
    grades, qrels = settled(judgements), {}
    for text, id_ in ids.items():
        own = {} if asked.generated else dict(asked.qrels.get(id_, {}))
        own |= grades.get(text, {})
        if own:
            qrels[id_] = own
    if not qrels:
        raise SourceError("nothing is judged yet.", "Judge first: searchfit judge WORKSPACE")
    return Questions(tuple((id_, text) for text, id_ in ids.items() if id_ in qrels), qrels)


def _free(wanted: str, taken: set[str]) -> str:
    """An id that no other question has; it is taken from now on."""
    ident, number = wanted, 1
    while ident in taken:
        number += 1
        ident = f"{wanted}-{number}"
    taken.add(ident)
    return ident
