"""What the documents are like: how many, how long, in which languages, and how many nearly the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from searchfit.config import Settings
from searchfit.encoders import Tokenizer
from searchfit.languages import Languages
from searchfit.records import DOCUMENTS, encoded_text
from searchfit.shingles import alike, signatures
from searchfit.stages import Progress
from searchfit.workspace import Workspace

_LOOKED_AT = 2_000
"""Documents whose language and tokens are looked at."""

_WIDE_TOKEN = 12
"""Characters a token: of a text that is so much longer than the window, the rest is not counted."""

Chars = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Corpus:
    """The documents, read whole: counts, what was left out by reason, characters a document (quantiles),
    languages by share and the share beyond the model's window, the last two of `looked_at` documents."""

    documents: int
    characters: int
    left_out: dict[str, int]
    same_text: int
    without_title: int
    chars: dict[str, int]
    looked_at: int
    languages: dict[str, float]
    window: int
    beyond_window: float
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Near:
    """Passages of `documents` documents, the share of them beyond the model's window, and how many documents
    share a nearly equal passage with an earlier one."""

    documents: int
    passages: int
    beyond_window: float
    near_duplicates: int


def survey(workspace: Workspace, tokenizer: Tokenizer, progress: Progress) -> Corpus:
    """Stream the documents once."""
    entry = workspace.manifest()["stages"]["ingest"]
    file = workspace.artefact("documents.parquet")
    total = int(entry["counts"]["documents"])
    step = max(1, -(-total // _LOOKED_AT))
    lengths, titles = np.empty(total, np.int64), 0
    texts: set[int] = set()
    some: list[str] = []
    languages = Languages()
    for row, (title, text) in enumerate(_documents(file)):
        lengths[row] = len(text)
        titles += bool(title)
        texts.add(hash(text))
        if row % step == 0:
            some.append(encoded_text(title, text[: _WIDE_TOKEN * tokenizer.max_tokens]))
            languages.add(text)
        if row % 1000 == 0:
            progress("survey", row, total)
    quantiles = np.quantile(lengths, [0, 0.5, 0.9, 1], method="nearest").astype(int).tolist()
    return Corpus(
        documents=total,
        characters=int(lengths.sum()),
        left_out={drop["reason"]: drop["count"] for drop in entry["drops"]},
        same_text=total - len(texts),
        without_title=total - titles,
        chars=dict(zip(("least", "median", "90%", "most"), quantiles, strict=True)),
        looked_at=len(some),
        languages=languages.shares(),
        window=tokenizer.max_tokens,
        beyond_window=_beyond(some, tokenizer),
        notes=tuple(entry["notes"]),
    )


def near_duplicates(workspace: Workspace, settings: Settings, tokenizer: Tokenizer) -> Near:
    """Of a workspace with passages, by the holdout's own rule."""
    with pq.ParquetFile(workspace.artefact("passages.parquet")) as file:
        count = file.metadata.num_rows
        owners = file.read(columns=["document"])["document"].to_numpy()
        signed = signatures(_texts(file), count, settings.seed)
        step = max(1, -(-count // _LOOKED_AT))
        some = [encoded_text(*pair) for row, pair in enumerate(_pairs(file)) if row % step == 0]
    later = {
        int(max(owners[a], owners[b]))
        for a, b in alike(signed, settings.holdout.near_duplicate)
        if owners[a] != owners[b]
    }
    return Near(len(np.unique(owners)), count, _beyond(some, tokenizer), len(later))


def draw(documents: Path, target: Path, most: tuple[int, int], seed: int) -> None:
    """Write a sample of the documents: at most so many, of at most so many characters in all; long ones are
    cut to a fifth of that. All where they fit, whole."""
    limit, budget = most
    own = budget // 5
    with pq.ParquetFile(documents) as file:
        total = file.metadata.num_rows
        lengths = np.concatenate(
            [pc.utf8_length(batch["text"]).to_numpy() for batch in file.iter_batches(columns=["text"])]
        )
        order = np.random.default_rng(seed).permutation(total)[:limit]
        fits = np.cumsum(np.minimum(lengths[order], own)) <= budget
        chosen = np.zeros(total, bool)
        chosen[order[fits]] = True
        chosen[order[0]] = True
        row = 0
        with pq.ParquetWriter(target, DOCUMENTS) as writer:
            for batch in file.iter_batches(1024, columns=DOCUMENTS.names):
                kept = pa.table(batch.filter(pa.array(chosen[row : row + batch.num_rows])))
                row += batch.num_rows
                short = pc.utf8_slice_codeunits(kept["text"], 0, own)
                writer.write_table(kept.set_column(2, "text", short))


def _documents(file: Path) -> Iterator[tuple[str, str]]:
    with pq.ParquetFile(file) as documents:
        yield from _pairs(documents)


def _pairs(file: pq.ParquetFile) -> Iterator[tuple[str, str]]:
    for batch in file.iter_batches(512, columns=["title", "text"]):
        yield from zip(batch["title"].to_pylist(), batch["text"].to_pylist(), strict=True)


def _texts(file: pq.ParquetFile) -> Iterator[str]:
    return (text for _, text in _pairs(file))


def _beyond(texts: list[str], tokenizer: Tokenizer) -> float:
    """The share of texts with more tokens than the window."""
    return round(float((tokenizer.count(texts) > tokenizer.max_tokens).mean()), 4) if texts else 0.0
