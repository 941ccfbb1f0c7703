"""The user's own questions, with judgements where there are any."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from searchfit.config import QueriesSettings
from searchfit.errors import SourceError
from searchfit.places import Place, find_places, local
from searchfit.records import Drop
from searchfit.sources.columns import listed
from searchfit.sources.files import Line, check_file, fingerprint_files, read_lines, record_limit
from searchfit.sources.jsonl import JsonlReader
from searchfit.sources.rows import BadRow, Row, Tally
from searchfit.sources.tables import open_table
from searchfit.sources.values import to_text

MAX_QUERY_CHARS = 100_000
MAX_BAD_SHARE = 0.05
HINT = "Mend them: figures of an evaluation are only as good as its questions."
KNOWN = ".txt (one a line), .csv, .tsv, .jsonl or .parquet, or a BEIR folder (queries.jsonl, qrels/*.tsv)"

# In order of preference: `text` may be the passage beside a `question`.
TEXT_NAMES = ("query", "question", "text")
ID_NAMES = ("query_id", "query-id", "_id", "id", "qid")
DOCUMENT_NAMES = ("document_id", "doc_id", "passage_id", "answer_id", "corpus-id", "corpus_id")
SCORE_NAMES = ("score", "relevance", "label")


@dataclass(frozen=True, slots=True)
class UserQueries:
    """Questions as (id, text), and how relevant which documents are: 0 is judged not relevant.

    `qrels` is empty where there are no judgements. `drops` and `notes` say what was left out and guessed.
    """

    queries: tuple[tuple[str, str], ...]
    qrels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    drops: tuple[Drop, ...] = ()
    notes: tuple[str, ...] = ()


def read_queries(settings: QueriesSettings) -> UserQueries:
    """Read the questions that `settings.file` names; none where it is empty.

    Several rows may share a question, one judgement each. Of a BEIR folder, the questions judged in the
    split are kept, or all of them where the folder has no qrels. Raises SourceError for a file that cannot
    be read, lacks a column, holds no question, or has more than 5% bad rows.
    """
    if not settings.file.strip():
        return UserQueries(())
    name = local(settings.file)
    found = _Questions(name)
    if Path(name).is_dir():
        _read_beir(Path(name), settings.split, found)
        return found.result()
    places = find_places(name)
    if len(places) > 1:
        raise SourceError(f"{name} names {len(places)} files.", "Expected one: ids count within a file.")
    if places[0].suffix == ".txt":
        _read_lines(places[0], found)
    else:
        _read_table(places[0], found)
    return found.result()


def fingerprint(settings: QueriesSettings) -> dict[str, Any]:
    """JSON-able values that change when the questions do; empty where there are none."""
    if not settings.file.strip():
        return {}
    path = Path(local(settings.file))
    if not path.is_dir():
        return fingerprint_files(find_places(settings.file))
    return fingerprint_files([_beir_queries(path), *filter(None, [_qrels(path, settings.split)])])


class _Questions:
    """Gathers questions and judgements, and counts what is wrong."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tally = Tally()
        self.notes: list[str] = []
        self.texts: dict[str, str] = {}
        self.qrels: dict[str, dict[str, int]] = {}

    def add(self, where: str, ident: str, text: str) -> bool:
        """Add a question, or meet it again; whether it may be used."""
        known = self.texts.get(ident)
        fault = ""
        if not text and known is None:
            fault = "no question"
        elif len(text) > MAX_QUERY_CHARS:
            fault = f"a question longer than {MAX_QUERY_CHARS} characters"
        elif text and known not in (None, text):
            fault = "an id that an earlier, different question has"
        if fault:
            self.tally.add(BadRow(where, fault))
            return False
        self.texts.setdefault(ident, text)
        self.tally.good += 1
        return True

    def judge(self, ident: str, document: str, score: int) -> None:
        """Add a judgement; of several for one document, the best counts."""
        judged = self.qrels.setdefault(ident, {})
        judged[document] = max(score, 0, judged.get(document, 0))

    def result(self) -> UserQueries:
        """All that was gathered. Raises SourceError when that is nothing, or too much was bad."""
        self.tally.check(self.name, MAX_BAD_SHARE, HINT)
        if not self.texts:
            raise SourceError(f"{self.name} holds no questions.", "Expected at least one.")
        return UserQueries(tuple(self.texts.items()), self.qrels, self.tally.drops(), tuple(self.notes))


def _read_lines(path: Place, found: _Questions) -> None:
    check_file(path)
    ids: dict[str, str] = {}
    for line in read_lines(path, record_limit(MAX_QUERY_CHARS), newline=""):
        where = _where(path, line)
        text = " ".join(line.text.split())
        if fault := line.fault():
            found.tally.add(BadRow(where, fault))
        elif text in ids:
            found.tally.add(BadRow(where, "a question that an earlier line has", fault=False))
        elif text:
            ids[text] = str(line.number)
            found.add(where, ids[text], text)


def _read_table(path: Place, found: _Questions) -> None:
    reader = open_table(path, MAX_QUERY_CHARS)
    there = reader.columns()
    text, ident, document, score = (
        next((name for wanted in names for name in there if name.lower() == wanted), "")
        for names in (TEXT_NAMES, ID_NAMES, DOCUMENT_NAMES, SCORE_NAMES)
    )
    if not text:
        raise SourceError(
            f"{path} has no column of questions. Its columns: {listed(there)}.",
            "Name it query, question or text; document_id and score beside it hold the judgements.",
        )
    roles = (
        ("the question", text),
        ("its id", ident),
        ("the document that answers it", document),
        ("the score", score),
    )
    found.notes.append(f"{path.name}: " + ", ".join(f"{name!r} is {role}" for role, name in roles if name))
    ids: dict[str, str] = {}
    for row in reader.rows():
        if isinstance(row, BadRow):
            found.tally.add(row)
            continue
        asked = " ".join(cell(row, text).split())
        key = cell(row, ident) if ident else ids.setdefault(asked, str(row.number))
        if not key:
            found.tally.add(BadRow(row.where, "no id"))
        elif (grade := _grade(cell(row, score) if score else "1")) is None:
            found.tally.add(BadRow(row.where, "a score that is no whole number"))
        elif found.add(row.where, key, asked):
            for name in texts_in(row.values.get(document)) if document else ():
                found.judge(key, name, grade)


def cell(row: Row, name: str) -> str:
    """The text in a cell; "" where there is none."""
    return (to_text(row.values.get(name)) or "").strip()


def texts_in(value: Any) -> Iterator[str]:
    """The texts in the value of a cell; JSON and Parquet may list several."""
    for item in value if isinstance(value, list) else [value]:
        if text := (to_text(item) or "").strip():
            yield text


def _grade(text: str) -> int | None:
    """A relevance; no score beside a document means that it answers."""
    lowered = text.lower()
    if lowered in {"", "true", "false"}:
        return int(lowered != "false")
    try:
        number = float(text)
        return int(number) if number.is_integer() else None
    except ValueError:
        return None


def _read_beir(path: Path, split: str, found: _Questions) -> None:
    qrels = _qrels(path, split)
    if qrels is None:
        found.notes.append(f"{path.name}: there are no qrels, so all questions are kept, without judgements")
    else:
        _read_qrels(Place(str(qrels)), found)
    judged = set(found.qrels)
    for row in JsonlReader(Place(str(_beir_queries(path))), MAX_QUERY_CHARS).rows():
        if isinstance(row, BadRow):
            found.tally.add(row)
            continue
        ident = cell(row, "_id")
        if not ident:
            found.tally.add(BadRow(row.where, "no id (_id)"))
        elif qrels is None or ident in judged:
            found.add(row.where, ident, " ".join(cell(row, "text").split()))
    for ident in judged - found.texts.keys():
        del found.qrels[ident]
        found.tally.add(BadRow(f"query {ident}", "judged, but not in queries.jsonl"))


def _read_qrels(path: Place, found: _Questions) -> None:
    """Lines of query, document, score; or of query, iteration, document, score as TREC writes them."""
    check_file(path)
    for line in read_lines(path, record_limit(MAX_QUERY_CHARS), newline=""):
        cells = [cell.strip() for cell in (line.text.split("\t") if "\t" in line.text else line.text.split())]
        if not any(cells) and not line.cut:
            continue
        if len(cells) == 4:
            del cells[1]
        fault = line.fault()
        grade = _grade(cells[2]) if len(cells) == 3 and cells[2] else None
        if not fault and grade is None and line.number == 1 and len(cells) == 3:
            continue  # the header
        if fault or grade is None or not cells[0] or not cells[1]:
            found.tally.add(BadRow(_where(path, line), fault or "expected query, document and a whole score"))
            continue
        found.judge(cells[0], cells[1], grade)


def _where(path: Place, line: Line) -> str:
    return f"{path.name}, row {line.number}"


def _beir_queries(path: Path) -> Path:
    queries = path / "queries.jsonl"
    if not queries.is_file():
        raise SourceError(f"{path} has no queries.jsonl.", f"Expected {KNOWN}.")
    return queries


def _qrels(path: Path, split: str) -> Path | None:
    """The judgements of the split; None where the folder has none of any split."""
    splits = _splits(path / "qrels")
    if not splits:
        return None
    if split not in splits:
        raise SourceError(
            f"{path / 'qrels'} has no split {split!r}.",
            f"Name one that is there: {', '.join(sorted(splits))}.",
        )
    return path / "qrels" / f"{split}.tsv"


def _splits(folder: Path) -> Iterable[str]:
    return {file.stem for file in folder.glob("*.tsv") if file.is_file()}
