"""Whether anything that is tested on was trained on: looked for in what training read, not in how the split
was meant to be made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.shingles import contained
from searchfit.training.data import normalised
from searchfit.training.lessons import ANSWERS

NAMED = 50
"""Leaks told one by one."""

_READ = 4096
"""Passages read at a time."""


@dataclass(frozen=True, slots=True)
class Leak:
    """A held-out passage of a document row, the training text most like it (a document's id, or a labelled
    query) and the share of the passage's word shingles that stand there too."""

    document: int
    passage: str
    training: str
    share: float


def leaked_questions(inputs: Mapping[str, Path], questions: Sequence[str]) -> list[int]:
    """Places of questions that are training queries too, but for case and spaces."""
    mined = pq.read_table(inputs["mined"] / "queries.parquet", columns=["text"])["text"].to_pylist()
    labelled = pq.read_table(inputs["labelled.parquet"], columns=["query", "split"])
    theirs = labelled.filter(pa.array(labelled["split"].to_numpy() == "train"))["query"].to_pylist()
    learnt = {normalised(text) for text in (*mined, *theirs)}
    return [place for place, text in enumerate(questions) if normalised(text) in learnt]


def leaked_documents(
    inputs: Mapping[str, Path], held_out: npt.NDArray[np.int64], share: float
) -> tuple[list[Leak], int]:
    """Passages of held-out documents (rows) of whose shingles at least `share` stand in one training text,
    and how many training texts there are: of each document the passages that training queries ask about, and
    the user's labelled answers."""
    mined = pq.read_table(inputs["mined"] / "queries.parquet", columns=["passage"])["passage"].to_numpy()
    tested, taught = _passages(inputs["passages.parquet"], held_out, mined)
    learnt = _training_texts(inputs, taught)
    rows, shares = contained(tested["text"].to_pylist(), list(learnt.values()))
    names = list(learnt)
    found = [
        Leak(tested["document"][place].as_py(), tested["id"][place].as_py(), names[row], round(part, 4))
        for place, (row, part) in enumerate(zip(rows.tolist(), shares.tolist(), strict=True))
        if row >= 0 and part >= share
    ]
    return found, len(learnt)


def _passages(
    file: Path, documents: npt.NDArray[np.int64], rows: npt.NDArray[np.int32]
) -> tuple[pa.Table, pa.Table]:
    """The passages of some documents, and those in some rows, in order; no others are held."""
    columns = ["id", "document_id", "document", "text"]
    of_documents, of_rows = [], []
    start = 0
    with pq.ParquetFile(file) as passages:
        for batch in passages.iter_batches(_READ, columns=columns):
            here = np.arange(start, start + batch.num_rows)
            of_documents.append(batch.filter(pa.array(np.isin(batch["document"].to_numpy(), documents))))
            of_rows.append(batch.filter(pa.array(np.isin(here, rows))))
            start += batch.num_rows
        schema = pa.schema([passages.schema_arrow.field(name) for name in columns])
    return pa.Table.from_batches(of_documents, schema), pa.Table.from_batches(of_rows, schema)


def _training_texts(inputs: Mapping[str, Path], passages: pa.Table) -> dict[str, str]:
    """What was learnt as an answer, by where it is from: passages that queries ask about, and the user's.
    Passages of one document are joined, so that a copy that lies across two of them is seen."""
    texts: dict[str, list[str]] = {}
    for row in passages.to_pylist():
        texts.setdefault(f"document {row['document_id']}", []).append(row["text"])
    labelled = pq.read_table(inputs["labelled.parquet"], columns=["query", "text", "label", "split"])
    for row in labelled.to_pylist():
        if row["split"] == "train" and row["label"] >= ANSWERS:
            texts.setdefault(f"labelled query {row['query']!r}", []).append(row["text"])
    return {name: "\n".join(parts) for name, parts in texts.items()}


def to_dict(
    leaks: Sequence[Leak], questions: Sequence[str], ids: Sequence[str], learnt: int
) -> dict[str, Any]:
    """What systems.json tells: how many training texts were compared, how many held-out documents and
    questions were left out, and which."""
    named = [
        {
            "document": ids[leak.document],
            "passage": leak.passage,
            "training": leak.training,
            "share": leak.share,
        }
        for leak in leaks[:NAMED]
    ]
    return {
        "training_texts": learnt,
        "documents": len({leak.document for leak in leaks}),
        "questions": len(questions),
        "named": named,
        "named_questions": list(questions[:NAMED]),
    }
