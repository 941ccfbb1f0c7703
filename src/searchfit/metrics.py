"""Retrieval metrics, equal to trec_eval's to 1e-9, and its run and qrels files.

A grade above zero is relevant and is the gain (linear, as in trec_eval); zero and below is not relevant.
A query without any relevant document cannot be scored: `score_run` leaves it out, so it never enters a mean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from searchfit.errors import SourceError
from searchfit.workspace import write_bytes

NAMES = ("ndcg@10", "mrr@10", "map", "recall@10", "recall@100")
"""The metrics, in the order in which they are shown. `map` is over the full depth of the ranking."""

Qrels = Mapping[str, Mapping[str, int]]
"""Grades by query and document."""

# What splits or ends a field where trec_eval reads it; other white space is part of an id.
_UNWRITABLE = re.compile(r"[\x00\s]", re.ASCII)


def score_ranking(ranking: Sequence[str], relevant: Mapping[str, int]) -> dict[str, float]:
    """The metrics of one ranking of document ids, best first, against the grades of its query.

    An id that comes again counts at its first place only. Without a relevant document all are 0.0, as in
    trec_eval; leave such a query out of a mean, as `score_run` does.
    """
    gains = {document: grade for document, grade in relevant.items() if grade > 0}
    if not gains:
        return dict.fromkeys(NAMES, 0.0)
    places = {doc: place for place, doc in enumerate(dict.fromkeys(ranking), 1) if doc in gains}
    found = list(places.values())
    ideal = _discounted(dict(enumerate(sorted(gains.values(), reverse=True), 1)))
    return {
        "ndcg@10": _discounted({place: gains[doc] for doc, place in places.items()}) / ideal,
        "mrr@10": 1 / found[0] if found and found[0] <= 10 else 0.0,
        "map": sum(count / place for count, place in enumerate(found, 1)) / len(gains),
        "recall@10": sum(place <= 10 for place in found) / len(gains),
        "recall@100": sum(place <= 100 for place in found) / len(gains),
    }


def score_run(run: Mapping[str, Mapping[str, float]], qrels: Qrels) -> dict[str, dict[str, float]]:
    """The metrics of each judged query of a run of scores by query and document.

    Ranked as trec_eval does: scores in single precision, falling, then document id falling. A judged query
    that the run lacks scores 0 (trec_eval -c), one without a relevant document is left out, and so is an
    unjudged one. Raises SourceError for a score that is not a number.
    """
    return {
        query: score_ranking(_trec_order(query, run.get(query, {})), grades)
        for query, grades in qrels.items()
        if any(grade > 0 for grade in grades.values())
    }


def means(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over the queries; empty when there are none."""
    if not scores:
        return {}
    return {name: math.fsum(row[name] for row in scores.values()) / len(scores) for name in NAMES}


def _discounted(gains: Mapping[int, int]) -> float:
    return math.fsum(gain / math.log2(place + 1) for place, gain in gains.items() if place <= 10)


def _trec_order(query: str, scores: Mapping[str, float]) -> list[str]:
    for document, score in scores.items():
        if math.isnan(score):
            raise SourceError(f"query {query!r}, document {document!r}: the score is not a number.")
    with np.errstate(over="ignore"):
        single = np.fromiter(scores.values(), dtype=np.float32, count=len(scores)).tolist()
    # Code points of str order as the bytes of UTF-8 do, which is what trec_eval compares.
    return [document for _, document in sorted(zip(single, scores, strict=True), reverse=True)]


def write_run(path: Path, run_name: str, rankings: Mapping[str, Sequence[tuple[str, float]]]) -> None:
    """Write rankings of (document id, score), best first, as a TREC run: `query Q0 document rank score tag`.

    The order given is what is kept: a score that does not fall strictly in single precision is lowered until
    it does, since trec_eval ignores the rank column and breaks ties by id. The file appears whole or not at
    all. Raises SourceError for an id, or name, that is empty or holds white space or NUL, which the format
    cannot carry, a document ranked twice, or a score that is not finite.
    """
    _check_field(run_name, "run name")
    lines = (line for query, ranking in rankings.items() for line in _run_lines(query, ranking, run_name))
    write_bytes(path, "".join(lines).encode())


def _run_lines(query: str, ranking: Sequence[tuple[str, float]], run_name: str) -> Iterator[str]:
    _check_field(query, "query id")
    last = np.float32(np.inf)
    seen = set()
    for rank, (document, score) in enumerate(ranking, 1):
        _check_field(document, "document id")
        if document in seen:
            raise SourceError(f"query {query!r} ranks document {document!r} twice.")
        seen.add(document)
        with np.errstate(over="ignore"):
            last = min(np.float32(score), np.nextafter(last, np.float32(-np.inf)))
        if not (np.isfinite(last) and math.isfinite(score)):
            raise SourceError(f"query {query!r}, document {document!r}: score {score} cannot be written.")
        yield f"{query} Q0 {document} {rank} {last:.9g} {run_name}\n"


def _check_field(value: str, what: str) -> None:
    if not value or _UNWRITABLE.search(value):
        raise SourceError(
            f"{what} {value[:200]!r} is empty or holds white space, which a TREC run file cannot carry.",
            "Give it an id without white space, or do without the run file.",
        )


def read_run(path: Path) -> dict[str, dict[str, float]]:
    """The scores by query and document of a TREC run file.

    Raises SourceError, with the row, for a line that has not six fields, a score that is not a number, and a
    document that comes twice for one query.
    """
    run: dict[str, dict[str, float]] = {}
    for row, line in _lines(path):
        fields = _ascii_fields(line)
        if len(fields) != 6:
            raise _bad(path, row, line, "six fields: query Q0 document rank score tag")
        query, document, score = fields[0], fields[2], _number(fields[4])
        if math.isnan(score):
            raise _bad(path, row, line, "a number as its fifth field, the score")
        if document in run.setdefault(query, {}):
            raise _bad(path, row, line, f"document {document!r} once for query {query!r}")
        run[query][document] = score
    return run


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """The grades by query and document of a qrels file.

    Reads both forms in use: TREC's four fields divided by white space, `query 0 document grade`, and BEIR's
    three divided by tabs, `query document grade`, below a header. Raises SourceError, with the row, for
    another number of fields, a grade that is not whole, and a document graded twice and differently.
    """
    qrels: dict[str, dict[str, int]] = {}
    for count, (row, line) in enumerate(_lines(path)):
        beir = line.split("\t")
        fields = beir if len(beir) == 3 else _ascii_fields(line)
        grade = _number(fields[-1]) if len(fields) == (3 if fields is beir else 4) else math.nan
        if count == 0 and fields is beir and math.isnan(grade):
            continue  # the header
        if not grade.is_integer():
            raise _bad(path, row, line, "query 0 document grade, or query<tab>document<tab>grade")
        query, document = fields[0], fields[-2]
        if qrels.setdefault(query, {}).setdefault(document, int(grade)) != grade:
            raise _bad(path, row, line, f"one grade of document {document!r} for query {query!r}")
    return qrels


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, with their 1-based row."""
    try:
        with path.open("rb") as file:
            for row, raw in enumerate(file, 1):
                line = raw.decode("utf-8-sig" if row == 1 else "utf-8").rstrip("\r\n")
                if line.strip():
                    yield row, line
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}, row {row}: not UTF-8: {error.reason}.", "Save it as UTF-8.") from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from error


def _ascii_fields(line: str) -> list[str]:
    return [field for field in re.split(r"\s+", line, flags=re.ASCII) if field]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _bad(path: Path, row: int, line: str, expected: str) -> SourceError:
    return SourceError(f"{path}, row {row}: got {line[:200]!r}, expected {expected}.")
