"""Retrieval metrics by name, equal to trec_eval's to 1e-9, and its run and qrels files.

A grade above zero is relevant and is the gain (linear, as in trec_eval); zero and below is not relevant.
A query without any relevant document cannot be scored: `score_run` leaves it out, so it never enters a mean.

Metrics are named with their depth: ndcg@k, mrr@k, map@k (over the relevant documents, as trec_eval's
map_cut), recall@k, precision@k (over k, however short the ranking), hit@k (1 where a relevant document is
among the first k) and unjudged@k (the share of the first k results that nobody has judged: high where a low
figure may be the judgements' fault). `map` is over the full depth of the ranking.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from searchfit.errors import SettingsError, SourceError
from searchfit.writing import write_bytes

NAMES = ("ndcg@10", "mrr@10", "map", "recall@10", "recall@100")
"""The metrics that are always computed, in the order in which they are shown."""

KINDS = ("ndcg", "mrr", "map", "recall", "precision", "hit", "unjudged")
"""What can stand before @k."""

Qrels = Mapping[str, Mapping[str, int]]
"""Grades by query and document."""

# What splits or ends a field where trec_eval reads it; other white space is part of an id.
_UNWRITABLE = re.compile(r"[\x00\s]", re.ASCII)


@lru_cache(maxsize=256)
def parse_metric(name: str) -> tuple[str, int | None]:
    """The kind and depth of a metric; the depth of `map` is None. Raises SettingsError for an unknown one."""
    kind, _, depth = name.partition("@")
    if name == "map":
        return kind, None
    if kind not in KINDS or not re.fullmatch(r"[1-9][0-9]{0,8}", depth, re.ASCII):
        raise SettingsError(
            f"metric {name!r} is not known.",
            f"Write KIND@k, k from 1, with KIND of {', '.join(KINDS)}; or map.",
        )
    return kind, int(depth)


def check_metrics(names: Sequence[str], most: int) -> None:
    """Raise SettingsError for a metric that is not known, or that looks deeper than the `most` results that
    are ranked."""
    for name in names:
        depth = parse_metric(name)[1]
        if depth and depth > most:
            raise SettingsError(
                f"metric {name!r} looks at {depth} results, but {most} are ranked.",
                f"Ask for a depth of at most {most}.",
            )


def score_ranking(
    ranking: Sequence[str], relevant: Mapping[str, int], names: Sequence[str] = NAMES
) -> dict[str, float]:
    """The metrics of one ranking of document ids, best first, against the grades of its query.

    An id that comes again counts at its first place only. Without a relevant document all but `unjudged` are
    0.0, as in trec_eval; leave such a query out of a mean, as `score_run` does. Raises SettingsError for a
    metric that is not known.
    """
    gains = {document: grade for document, grade in relevant.items() if grade > 0}
    distinct = dict.fromkeys(ranking)
    found = [(place, gains[doc]) for place, doc in enumerate(distinct, 1) if doc in gains]
    ideal = sorted(gains.values(), reverse=True)
    scores = {}
    for name in names:
        kind, depth = parse_metric(name)
        if kind == "unjudged":
            looked = list(distinct)[:depth]
            scores[name] = sum(doc not in relevant for doc in looked) / max(1, len(looked))
        else:
            scores[name] = _score(kind, depth or max(1, len(distinct)), found, ideal) if ideal else 0.0
    return scores


def _score(kind: str, k: int, found: Sequence[tuple[int, int]], ideal: Sequence[int]) -> float:
    """A metric of (place, grade) of the relevant documents found and the grades of all, falling."""
    if kind == "ndcg":
        return _discounted(found, k) / _ideal(tuple(ideal[:k]))
    if kind == "mrr":
        return 1 / found[0][0] if found and found[0][0] <= k else 0.0
    hits = [place for place, _ in found if place <= k]
    if kind == "map":
        return sum(count / place for count, place in enumerate(hits, 1)) / len(ideal)
    if kind == "hit":
        return float(bool(hits))
    return len(hits) / (k if kind == "precision" else len(ideal))


def score_run(
    run: Mapping[str, Mapping[str, float]], qrels: Qrels, names: Sequence[str] = NAMES
) -> dict[str, dict[str, float]]:
    """The metrics of each judged query of a run of scores by query and document.

    Ranked as trec_eval does: scores in single precision, falling, then document id falling. A judged query
    that the run lacks scores 0 (trec_eval -c), one without a relevant document is left out, and so is an
    unjudged one. Raises SourceError for a score that is not a number.
    """
    return {
        query: score_ranking(trec_order(query, run.get(query, {})), grades, names)
        for query, grades in qrels.items()
        if any(grade > 0 for grade in grades.values())
    }


def means(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over the queries; empty when there are none."""
    if not scores:
        return {}
    names = next(iter(scores.values()))
    return {name: math.fsum(row[name] for row in scores.values()) / len(scores) for name in names}


def _discounted(found: Sequence[tuple[int, int]], k: int) -> float:
    return math.fsum(gain / math.log2(place + 1) for place, gain in found if place <= k)


@lru_cache(maxsize=4096)
def _ideal(grades: tuple[int, ...]) -> float:
    return _discounted(list(enumerate(grades, 1)), len(grades))


def trec_order(query: str, scores: Mapping[str, float]) -> list[str]:
    """The documents of a query of a run as trec_eval ranks them: by score in single precision, falling, then
    by id, falling. Raises SourceError for a score that is not a number."""
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
    check_field(run_name, "run name")
    lines = (line for query, ranking in rankings.items() for line in _run_lines(query, ranking, run_name))
    write_bytes(path, "".join(lines).encode())


def _run_lines(query: str, ranking: Sequence[tuple[str, float]], run_name: str) -> Iterator[str]:
    check_field(query, "query id")
    last = np.float32(np.inf)
    seen = set()
    for rank, (document, score) in enumerate(ranking, 1):
        check_field(document, "document id")
        if document in seen:
            raise SourceError(f"query {query!r} ranks document {document!r} twice.")
        seen.add(document)
        with np.errstate(over="ignore"):
            last = min(np.float32(score), np.nextafter(last, np.float32(-np.inf)))
        if not (np.isfinite(last) and math.isfinite(score)):
            raise SourceError(f"query {query!r}, document {document!r}: score {score} cannot be written.")
        yield f"{query} Q0 {document} {rank} {last:.9g} {run_name}\n"


def check_field(value: str, what: str) -> None:
    """Raise SourceError for what no field of a TREC file can hold: nothing, or white space."""
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
