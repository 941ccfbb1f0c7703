"""One leaderboard over several workspaces: runs of one corpus with other settings, generators or base models.

Figures of different questions are no comparison: the test questions have to be the same, or those that all
workspaces have are taken, or judged questions from outside are put to all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from searchfit.config import Settings, load_settings
from searchfit.errors import SettingsError, WorkspaceError
from searchfit.judged import document_ids, judged_queries, missing, steady_rankings
from searchfit.metrics import score_ranking
from searchfit.records import Engine
from searchfit.search import open_searcher
from searchfit.significance import compare_by, holm
from searchfit.sources.queries import UserQueries
from searchfit.workspace import Workspace

METRIC = "ndcg@10"

Scores = npt.NDArray[np.float64]
Question = tuple[str, str, tuple[str, ...]]
"""Split, text and relevant documents."""


@dataclass(frozen=True, slots=True)
class Run:
    """What the questions of a finished workspace scored (nDCG@10) under its untuned and its chosen engine, or
    the vectors of both alone: see `load`."""

    model: str
    name: str
    chosen: str
    questions: list[Question]
    before: Scores
    after: Scores
    judged: bool
    tuned: bool = True
    corpus: str = ""

    @classmethod
    def load(cls, workspace: Workspace, model: str, name: str) -> Run:
        """Read the evaluation. On generated questions the dense legs are read: keyword search answers nearly
        all of them. Raises WorkspaceError where there is none."""
        folder = workspace.artefact("evaluation")
        if not (folder / "choice.json").exists():
            raise WorkspaceError(
                f"{workspace.path} has not been evaluated.", "Run its fit to the end: it carries on."
            )
        evidence = json.loads((folder / "systems.json").read_text(encoding="utf-8"))
        chosen = json.loads((folder / "choice.json").read_text(encoding="utf-8"))["chosen"]
        prior = next(
            system["engine"]
            for system in evidence["systems"]
            if system["kind"] == "candidate" and not system["engine"]["query_tower"]
        )
        judged = evidence["questions"] == "judged"
        table = pq.read_table(folder / "queries.parquet")
        before, after = (
            table[_system(evidence["systems"], engine, dense=not judged)].to_numpy()
            for engine in (prior, chosen)
        )
        names = ("split", "text", "relevant")
        questions = [
            (split, text, tuple(sorted(relevant)))
            for split, text, relevant in zip(*(table[column].to_pylist() for column in names), strict=True)
        ]
        made = workspace.manifest()["stages"].get("ingest", {}).get("artefacts", {})
        corpus = made.get("documents.parquet", {}).get("digest", "")
        tuned = bool(chosen["query_tower"])
        return cls(model, name, chosen["name"], questions, before, after, judged, tuned, corpus)

    def scores(self, questions: Sequence[Question], tuned: bool) -> Scores:
        """nDCG@10 of each question under the chosen engine, or the untuned one."""
        by_question = dict(zip(self.questions, self.after if tuned else self.before, strict=True))
        return np.array([by_question[question] for question in questions], np.float64)


def _system(systems: Sequence[dict[str, Any]], engine: dict[str, Any], dense: bool) -> str:
    """The name of the system that is this engine, or its dense leg."""
    known = Engine(**{**engine, "name": ""})
    wanted = (known.vectors_alone() if dense else known).to_dict()
    return next(str(s["name"]) for s in systems if {**s["engine"], "name": ""} == wanted)


@dataclass(frozen=True, slots=True)
class Row:
    """A place on the board: mean nDCG@10, and what sets it apart from the first workspace's chosen engine:
    the gain with its 95% interval, and p after Holm's correction for all rows (None: it is that one)."""

    workspace: str
    model: str
    engine: str
    tuned: bool
    score: float
    gain: float = 0.0
    low: float | None = None
    high: float | None = None
    p: float | None = None


@dataclass(frozen=True, slots=True)
class Board:
    """A leaderboard, best first. `compared` says what the figures are of, `reference` names the row that all
    others are tested against."""

    questions: int
    kind: str
    compared: str
    reference: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"metric": METRIC, **asdict(self)}

    def to_markdown(self) -> str:
        """A table with what it says in words below."""
        lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|---|---:|---:|---|---:|"]
        lines += [
            "| " + " | ".join(cell.replace("|", "\\|") for cell in cells(row)) + " |" for row in self.rows
        ]
        return "\n".join([*lines, "", self.legend, *(f"\n{note}" for note in self.notes)]) + "\n"

    @property
    def legend(self) -> str:
        """What the columns mean."""
        return (
            f"nDCG@10 of {self.compared} on {self.questions} {self.kind} questions. Gain: over "
            f"{self.reference}, with the 95% interval; p: paired randomization test, Holm's correction for "
            "all rows."
        )


COLUMNS = ("workspace", "model", "engine", "nDCG@10", "gain", "95% interval", "p")


def cells(row: Row) -> tuple[str, ...]:
    """A row as it is shown, in the order of COLUMNS."""
    named = (row.workspace, row.model, row.engine, f"{row.score:.4f}")
    if row.p is None:
        return (*named, "", "", "")
    span = "" if row.low is None or row.high is None else f"{row.low:+.4f} to {row.high:+.4f}"
    return (*named, f"{row.gain:+.4f}", span, f"{row.p:.4f}")


def compare_workspaces(paths: Sequence[Path], common: bool = False) -> Board:
    """Compare finished workspaces on their test questions, with those of `common` on the ones that all have.

    A workspace of several base models counts as its runs. Raises SettingsError for fewer than two,
    WorkspaceError for one that is not finished, and where the questions differ.
    """
    places = _places(paths)
    runs = [Run.load(*place) for place in places]
    if len({run.judged for run in runs}) > 1:
        odd = next(run for run in runs if run.judged != runs[0].judged)
        kinds = ["judged" if run.judged else "generated" for run in (runs[0], odd)]
        raise WorkspaceError(
            f"{runs[0].name} was tested on {kinds[0]} questions, {odd.name} on {kinds[1]} ones.",
            _ASK_THE_SAME,
        )
    questions, notes = _common(runs, common)
    entries = [
        _Entry(run.name, run.model, run.chosen if tuned else "untuned engine", tuned, scores)
        for run in runs
        for tuned, scores in (
            (run.tuned, run.scores(questions, True)),
            *(((False, run.scores(questions, False)),) if run.tuned else ()),
        )
    ]
    if len({run.corpus for run in runs}) > 1:
        notes += ("The workspaces do not hold the same documents: a larger corpus is harder to search.",)
    kind = "judged" if runs[0].judged else "generated"
    compared = "whole engines" if runs[0].judged else "vectors alone (without keywords)"
    return _board(entries, _settings(places[0][0].path), (kind, compared), notes)


def compare_on(paths: Sequence[Path], folder: Path, split: str = "test") -> Board:
    """Compare the engines that finished workspaces serve on the judged questions of a folder, all put anew.

    Raises SettingsError for fewer than two workspaces, SourceError for questions without judgements or judged
    documents of which a workspace has none, WorkspaceError for a workspace that is not finished.
    """
    asked, queries = judged_queries(folder, split)
    entries: list[_Entry] = []
    notes: list[str] = []
    places = _places(paths)
    for place, model, name in places:
        found, said = _put(place, asked, queries)
        entries += [_Entry(name, model, engine, tuned, scores) for engine, tuned, scores in found]
        notes += [f"{name}: {note}" for note in said]
    return _board(entries, _settings(places[0][0].path), ("judged", "whole engines"), tuple(notes))


def _put(
    place: Workspace, asked: UserQueries, queries: Mapping[str, str]
) -> tuple[list[tuple[str, bool, Scores]], tuple[str, ...]]:
    """(engine, whether tuned, nDCG@10 by question) of the chosen engine, and of the untuned if another."""
    searcher = open_searcher(place.path)
    notes = missing(set(document_ids(searcher.corpus)), asked.qrels, list(queries))
    corpus, rankings = steady_rankings(searcher, place, list(queries.values()), whiten=False)
    ids, ranked = document_ids(corpus), dict(rankings)
    chosen = searcher.engine
    tuned = bool(chosen.query_tower)
    names = {chosen.name: next(name for name in ranked if name.startswith("chosen engine"))}
    if tuned:
        names["untuned engine"] = "untuned engine"
    found = [
        (engine, tuned and engine == chosen.name, _ndcg(ranked[system].rows.tolist(), ids, asked, queries))
        for engine, system in names.items()
    ]
    return found, notes


def _ndcg(rows: list[list[int]], ids: list[str], asked: UserQueries, queries: Iterable[str]) -> Scores:
    scores = [
        score_ranking([ids[row] for row in found if row >= 0], asked.qrels[id_])[METRIC]
        for found, id_ in zip(rows, queries, strict=True)
    ]
    return np.array(scores, np.float64)


_ASK_THE_SAME = (
    "Put the same questions to all with --queries, a folder with judgements; or fit them on the same source "
    "and with the same seed, generator and holdout."
)


@dataclass(frozen=True, slots=True)
class _Entry:
    workspace: str
    model: str
    engine: str
    tuned: bool
    scores: Scores


def _places(paths: Sequence[Path]) -> list[tuple[Workspace, str, str]]:
    """(workspace, model, name) of each; a contest of several models is its runs."""
    found: list[tuple[Workspace, str, str]] = []
    for path in paths:
        workspace = Workspace(path)
        workspace.require()
        runs = sorted(p for p in path.glob("runs/*") if (p / "manifest.json").exists())
        for one in runs or [path]:
            found.append((Workspace(one), _settings(one).model.name, str(one)))
    if len({place.path.resolve() for place, _, _ in found}) < len(found):
        raise SettingsError("a workspace is named twice.")
    if len(found) < 2:
        raise SettingsError("one workspace was named.", "Name two or more, or one that holds several models.")
    return found


def _settings(path: Path) -> Settings:
    return load_settings(Workspace(path).settings_file)


def _common(runs: Sequence[Run], allowed: bool) -> tuple[list[Question], tuple[str, ...]]:
    """The test questions of all runs. Raises WorkspaceError where they differ, unless that is allowed."""
    tests = [[question for question in run.questions if question[0] == "test"] for run in runs]
    common = set(tests[0]).intersection(*tests[1:])
    if not common:
        raise WorkspaceError("the workspaces have no test question in common.", _ASK_THE_SAME)
    questions = [question for question in dict.fromkeys(tests[0]) if question in common]
    if all(len(set(test)) == len(common) for test in tests):
        return questions, ()
    counts = ", ".join(f"{run.name} {len(set(test))}" for run, test in zip(runs, tests, strict=True))
    if not allowed:
        odd = next((run, test) for run, test in zip(runs, tests, strict=True) if set(test) != common)
        only = next(text for _, text, _ in odd[1] if (("test", text, _) not in common))
        raise WorkspaceError(
            f"the test questions differ: {counts}; {len(common)} are in all of them, "
            f"{only!r:.80} of {odd[0].name} is not.",
            f"Compare on the {len(common)} with --common. {_ASK_THE_SAME}",
        )
    return questions, (f"Only the {len(common)} test questions that all have are compared ({counts}).",)


def _board(
    entries: Sequence[_Entry], settings: Settings, kind: tuple[str, str], notes: tuple[str, ...]
) -> Board:
    """Test each entry against the first and sort."""
    first, others = entries[0], entries[1:]
    tests = [compare_by(settings, first.scores, other.scores) for other in others]
    rows = [_row(first)]
    for other, test, p in zip(others, tests, holm([test.p for test in tests]), strict=True):
        told = test.to_dict()
        rows.append(_row(other, gain=test.gain, low=told["low"], high=told["high"], p=p))
    rows.sort(key=lambda row: -row.score)
    reference = f"{first.workspace} ({first.engine})"
    return Board(len(first.scores), kind[0], kind[1], reference, tuple(rows), notes)


def _row(entry: _Entry, **tested: Any) -> Row:
    score = float(entry.scores.mean())
    return Row(entry.workspace, entry.model, entry.engine, entry.tuned, score, **tested)
