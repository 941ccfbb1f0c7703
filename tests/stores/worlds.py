"""A made-up index of 5,000 passages, and what its searches have to give by brute force."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from searchfit.filters import matches, parse
from searchfit.keyword import Analyzer, KeywordIndex
from searchfit.records import encoded_text
from searchfit.stores.building import build
from searchfit.stores.lancedb import LanceStore

KINDS = {
    "price": "float",
    "rooms": "int",
    "sold": "bool",
    "city": "string",
    "built": "date",
    "seen": "timestamp",
    "tags": "list<item: string>",
    "a b": "string",
}
ARROW = {
    "float": pa.float64(),
    "int": pa.int64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", "UTC"),
    "list<item: string>": pa.list_(pa.string()),
}
CITIES = ["Zaragoza", "Huesca", 'it\'s \\ "odd" %_', "名前", "", None]
FILTERS = [
    "price < 20 and rooms >= 3",
    "not sold and city in ('Zaragoza', '名前')",
    'city != "Huesca" or price is null',
    "not (price < 50 or rooms = 2)",
    'built >= "2020-06-01" and seen < "2021-01-01T12:00:00.5"',
    'city contains "\\"odd\\" %" or city starts with "Zar"',
    'city < "Zaragoza" and `a b` is not null',
    'text contains "anchor anchor"',
    "rooms > 9007199254740993",
    "price > 1000",
]
WORDS = ["anchor", "harbour", "mast", "keel", "tide", "rudder", "regatta", "compass", "buoy", "hull"]
WORDS += ["running", "runner's", "Größe", "海辺"]


def fixed(vectors: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).ravel()), vectors.shape[1])


def unit(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    vectors = rng.standard_normal((count, size), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def record(chance: random.Random) -> dict[str, Any]:
    """The metadata of a passage; each value may be null."""
    values: dict[str, Any] = {
        "price": chance.choice([round(chance.uniform(0, 100), 2), float("nan"), float("inf")]),
        "rooms": chance.choice([1, 2, 3, 4, 2**53 + 1, 2**53 + 2]),
        "sold": chance.random() < 0.5,
        "city": chance.choice(CITIES),
        "built": date(2020, 1, 1) + timedelta(days=chance.randrange(400)),
        "seen": datetime(2020, 1, 1, tzinfo=timezone.utc)
        + timedelta(seconds=chance.randrange(40_000_000) / 3),
        "tags": chance.choice([["x", "y"], []]),
        "a b": chance.choice(["one", "two"]),
    }
    return {name: None if chance.random() < 0.1 else value for name, value in values.items()}


class World:
    """`count` passages of which the rows are even numbers, as deletions leave them."""

    def __init__(self, count: int, size: int = 32, seed: int = 3) -> None:
        rng, chance = np.random.default_rng(seed), random.Random(seed)
        self.size = size
        self.rows = np.arange(count) * 2
        self.vectors = unit(rng, count, size)
        self.sentences = [unit(rng, place % 4 or 1, size) for place in range(count)]
        self.metadata = [record(chance) for _ in range(count)]
        self.texts = [" ".join(chance.choices(WORDS, k=chance.randrange(1, 30))) for _ in range(count)]
        self.query = unit(rng, 1, size)[0]
        self.info: dict[str, Any] = {
            "lineage": f"line {seed}",
            "generation": 1,
            "dimension": size,
            "similarity": "cosine",
            "model": {"query_prompt": "query: ", "pooling": "mean"},
            "keyword": {"language": "english", "k1": 1.2, "b": 0.75},
            "metadata": [
                {"name": name, "column": f"m{place}", "type": kind}
                for place, (name, kind) in enumerate(KINDS.items())
            ],
        }

    def table(self, chosen: np.ndarray | None = None) -> pa.Table:
        """The passages at some places, all by default, as `build` takes them."""
        places = list(range(len(self.rows)) if chosen is None else chosen)
        own = [self.sentences[place] for place in places]
        metadata = {
            f"m{number}": pa.array([self.metadata[place][name] for place in places], ARROW[kind])
            for number, (name, kind) in enumerate(KINDS.items())
        }
        return pa.table(
            {
                "row": pa.array(self.rows[places], pa.int64()),
                "id": [f"d{place // 2}#{place % 2}" for place in places],
                "document_id": [f"d{place // 2}" for place in places],
                "document": pa.array([place // 2 for place in places], pa.int32()),
                "title": [f"title {place}" for place in places],
                "text": pa.array([self.texts[place] for place in places], pa.large_string()),
                "start": pa.array([0] * len(places), pa.int64()),
                "end": pa.array([len(self.texts[place]) for place in places], pa.int64()),
                "sentences": pa.array([[0, 4]] * len(places), pa.list_(pa.int32())),
                "vector": fixed(self.vectors[places]),
                "sentence_vectors": pa.ListArray.from_arrays(
                    pa.array(np.cumsum([0, *map(len, own)]), pa.int32()),
                    fixed(np.concatenate([*own, np.empty((0, self.size))])),
                ),
                **metadata,
            }
        )

    def postings(self, places: list[int]) -> Iterator[pa.RecordBatch]:
        """The postings of some passages."""
        texts = [encoded_text(f"title {place}", self.texts[place]) for place in places]
        index = KeywordIndex.build(texts, Analyzer("english"))
        spans = list(zip(index.starts[:-1], index.starts[1:], strict=True))
        rows = [self.rows[places][index.rows[a:b]].tolist() for a, b in spans]
        counts = [index.frequencies[a:b].tolist() for a, b in spans]
        yield pa.record_batch(
            [
                pa.array(index.vocabulary),
                pa.array(rows, pa.list_(pa.int64())),
                pa.array(counts, pa.list_(pa.float32())),
            ],
            names=["term", "rows", "frequencies"],
        )

    def local(self, folder: Path, chosen: np.ndarray | None = None, **info: Any) -> LanceStore:
        """The index of some passages in a folder."""
        places = list(range(len(self.rows)) if chosen is None else chosen)
        table = self.table(np.array(places))
        build(folder, table.to_batches(max_chunksize=999), self.postings(places), self.info | info)
        return LanceStore(folder)

    def passing(self, text: str | None) -> np.ndarray:
        """The places that a filter lets through."""
        if text is None:
            return np.arange(len(self.rows))
        columns = {name: kind for name, kind in KINDS.items() if "<" not in kind} | {"text": "string"}
        where = parse(text, columns)
        fields = [{**held, "text": text} for held, text in zip(self.metadata, self.texts, strict=True)]
        return np.array([place for place, row in enumerate(fields) if matches(where, row)], np.int64)

    def best(self, query: np.ndarray, column: str, k: int, text: str | None) -> tuple[list[int], list[float]]:
        """Rows and scores of the nearest passages by brute force."""
        places = self.passing(text)
        if column == "vector":
            scores = self.vectors[places] @ query
        else:
            places = np.array([place for place in places if len(self.sentences[place])], np.int64)
            scores = np.array([(self.sentences[place] @ query).max() for place in places])
        order = np.argsort(-scores, kind="stable")[:k]
        return self.rows[places[order]].tolist(), scores[order].tolist()
