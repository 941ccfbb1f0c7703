"""The records that walk through the pipeline, and their Arrow schemas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import pyarrow as pa

SEEN = b"searchfit.seen"
"""Key in the schema of a documents table: how far a source that tells what changed has been read, as JSON."""

CLEANED = b"searchfit.cleaned"
"""Key in the metadata of documents.parquet: how it was cleaned, see `Cleaner.record`, as JSON."""

METADATA_PREFIX = "metadata."
"""Columns of a documents table whose names begin so are the user's own columns, with their types."""


def plain_names(names: Sequence[str]) -> list[str]:
    """The names of a table's columns as the user knows them, without the prefix; a column of the user's that
    has the name of one of ours keeps it."""
    plain = [name.removeprefix(METADATA_PREFIX) for name in names]
    return [long if plain.count(short) > 1 else short for long, short in zip(names, plain, strict=True)]


DOCUMENTS = pa.schema([("id", pa.string()), ("title", pa.string()), ("text", pa.large_string())])
"""documents.parquet: one row a document, followed by the `metadata.*` columns."""

MARKS = pa.list_(pa.struct([("start", pa.int64()), ("page", pa.int64()), ("heading", pa.string())]))
"""The column `marks` of documents.parquet, which is there where a source tells pages or headings: what holds
from character `start` of the text on, in order; page 0 and heading "" are none."""

PASSAGES = pa.schema(
    [
        ("id", pa.string()),
        ("document_id", pa.string()),
        ("document", pa.int32()),
        ("title", pa.string()),
        ("text", pa.large_string()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("sentences", pa.list_(pa.int32())),
    ]
)
"""passages.parquet: `document` is the row of the document in documents.parquet; rows of one document are
adjacent and in order. `text == document.text[start:end]`. `sentences` holds start, end, start, end ...
of the sentence units within `text` (never empty). Where documents have marks, `metadata.page` (int64) and
`metadata.heading` (string) follow: where the passage begins."""

PLACE = pa.schema([(f"{METADATA_PREFIX}page", pa.int64()), (f"{METADATA_PREFIX}heading", pa.string())])
"""The columns of passages.parquet that say where in its document a passage stands."""

QUERIES = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("passage_id", pa.string()),
        ("style", pa.string()),
        ("generator", pa.string()),
        ("seed", pa.int64()),
    ]
)
"""queries/part-*.parquet: generated queries, in passage order."""

PAIRS = pa.schema([*QUERIES, ("passage", pa.int32()), ("document", pa.int32()), ("rank", pa.int32())])
"""pairs.parquet: the queries that passed the screen; `passage` and `document` are rows of the passages and
documents tables; `rank` is the 1-based place of the own document in the teacher's ranking."""

SCREENED = pa.schema([*QUERIES, ("document", pa.int32()), ("rank", pa.int32()), ("reason", pa.string())])
"""screened.parquet: every generated query; `reason` says why it was dropped and is empty for a kept one."""

HOLDOUT = pa.schema(
    [("document", pa.int32()), ("document_id", pa.string()), ("cluster", pa.int32()), ("split", pa.string())]
)
"""holdout.parquet: one row a document; documents of one near-duplicate cluster share their split."""

LABELLED = pa.schema(
    [
        ("query_id", pa.string()),
        ("query", pa.string()),
        ("text", pa.large_string()),
        ("label", pa.float32()),
        ("negatives", pa.list_(pa.large_string())),
        ("passage", pa.int32()),
        ("document", pa.int32()),
        ("split", pa.string()),
    ]
)
"""labelled.parquet: the user's pairs of a query and a text, of label 1 (answers) to 0 (does not). `passage`
and `document` are rows of the tables where the text is in the corpus, else -1. Pairs of one query share
their split: that of a held-out document that answers it, else "train" or, for a share of them, "dev" or
"test"; pairs of judged dev questions are "dev"."""

Units = Literal["passage", "sentence", "both"]


@dataclass(frozen=True, slots=True)
class Document:
    """One document as its source gave it. `metadata` holds every other column, `marks` the (start, page,
    heading) of its parts."""

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    marks: tuple[tuple[int, int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document: `text == document.text[start:end]`, `sentences` are (start, end) in `text`. It
    begins on `page` (0: not known) below `heading`."""

    id: str
    document_id: str
    document: int
    title: str
    text: str
    start: int
    end: int
    sentences: tuple[tuple[int, int], ...]
    page: int = 0
    heading: str = ""

    @property
    def encoded_text(self) -> str:
        """What the encoder and the keyword index see: the title goes with every passage."""
        return encoded_text(self.title, self.text)


def encoded_text(title: str, text: str) -> str:
    """Join a title and a text into what is encoded and indexed."""
    if not title:
        return text
    return f"{title} {text}" if title[-1] in ".!?:;。！？" else f"{title}. {text}"


@dataclass(frozen=True, slots=True)
class Query:
    """A generated query and the passage it was written for."""

    id: str
    text: str
    passage_id: str
    style: str
    generator: str
    seed: int


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """A query and a text with a label: 1 answers it, 0 does not; graded judgements keep their grade.
    `negatives` are texts that do not answer. Ids are empty where the source has none; `metadata` is what the
    source was asked to tell of the text."""

    query: str
    text: str
    label: float = 1.0
    negatives: tuple[str, ...] = ()
    query_id: str = ""
    document_id: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Drop:
    """What a stage left out: the reason, how many, and up to five samples."""

    reason: str
    count: int
    samples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage says of its work: figures, what was left out and why, notes for people, and details that
    only the manifest holds."""

    counts: Mapping[str, int | float | str] = field(default_factory=dict)
    drops: tuple[Drop, ...] = ()
    notes: tuple[str, ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Engine:
    """How to search, as a value.

    score(query, passage) = dense_weight * dense + keyword_weight * keyword, where `dense` is the similarity
    of the query to the passage vector (`units="passage"`), to the best of the sentence vectors ("sentence"),
    or the mean of both ("both"), and `keyword` is the BM25 score over the most that the query could attain.
    With `fusion="rrf"` it is the sum over both legs of weight * 61 / (60 + rank), the dense weight being 1.
    A document scores as its best passage. `query_tower` and `document_tower` are the shares of the tuned
    weights in the two encoders: 0 is the untuned model, 1 the tuned one, between them their interpolation.
    `token_weight` is that of late interaction (see interaction.py) beside these, over the words of the first
    `token_depth` results; the words of a question are read by the document tower, in whose space those of
    passages are.
    `reranker` ("" for none) is the folder, beside the index, of a cross-encoder that reads the first
    `rerank_depth` results again; `rerank_weight` is that of its scores beside the first ones (see rerank.py).
    """

    name: str
    query_tower: float = 0.0
    document_tower: float = 0.0
    units: Units = "both"
    dense_weight: float = 1.0
    keyword_weight: float = 1.0
    fusion: Literal["scores", "rrf"] = "scores"
    token_weight: float = 0.0
    token_depth: int = 0
    reranker: str = ""
    rerank_depth: int = 0
    rerank_weight: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def vectors_alone(self, name: str = "") -> Engine:
        """Its dense leg: the same without keywords and late interaction."""
        return replace(self, name=name, keyword_weight=0.0, token_weight=0.0, token_depth=0)


@dataclass(frozen=True, slots=True)
class Hit:
    """One search result. `score` falls with `rank` (1-based); `scores` holds the legs that led to it.
    `text` is the passage, `document.text[start:end]`; `highlights` are (start, end) of query words in
    `snippet`."""

    rank: int
    score: float
    document_id: str
    passage_id: str
    title: str
    text: str
    snippet: str
    highlights: tuple[tuple[int, int], ...]
    start: int
    end: int
    metadata: Mapping[str, Any]
    scores: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
