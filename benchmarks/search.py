"""Time search over large indexes made of real passages: python benchmarks/search.py make|legs|whole ...

    make FOLDER --from WS --count N   an index of N passages: those of a fitted workspace, repeated
    legs FOLDER                       nearest vectors: ours; LanceDB, faiss, usearch, pgvector called directly
    whole FOLDER                      from the question to the hits, its parts, and with filters

Vectors get Gaussian noise of length 0.5 before they are scaled to unit length again, texts lose a tenth of
their words; above 100,000 passages only the vectors differ. Sentences: `--sentences` a passage at most.
faiss-cpu and usearch are compared where they are installed, pgvector where a server is named: --postgres.
Times are medians and 99th percentiles of one question at a time, in the wall's milliseconds and, for a
machine with other work, the processor's.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.keyword import Analyzer, KeywordIndex
from searchfit.records import encoded_text
from searchfit.search import Searcher, open_searcher
from searchfit.stores.building import build, vector_array
from searchfit.stores.corpus import StoreCorpus
from searchfit.writing import link_tree, size

_BATCH = 4096
_NOISE = 0.5
_DISTINCT = 100_000


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["make", "legs", "whole"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--from", dest="source", type=Path, help="a fitted workspace")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--sentences", type=int, default=5)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--postgres", default="", help="server with pgvector, for legs")
    parser.add_argument("--engine", action="append", help="for legs: only this one; repeatable")
    options = parser.parse_args()
    {"make": make, "legs": legs, "whole": whole}[options.what](options)


def make(options: argparse.Namespace) -> None:
    """Build the index."""
    base = open_searcher(options.source)
    store = base.corpus.store
    table = pa.Table.from_batches(store.scan(["title", "text"]))
    passages, sentences, offsets = store.vectors(store.rows)
    rng = np.random.default_rng(7)
    distinct = min(options.count, _DISTINCT)
    chosen = np.resize(rng.integers(0, len(passages), distinct), options.count)
    keep = rng.random(1 << 20) < 0.9
    analyzer = Analyzer(base.corpus.info["keyword"]["language"])
    titles, texts = table["title"].to_pylist(), table["text"].to_pylist()

    def thinned(number: int) -> str:
        number %= distinct
        words = texts[chosen[number]].split()
        return " ".join(word for place, word in enumerate(words) if keep[(number * 37 + place) % len(keep)])

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, options.count, _BATCH):
            own = chosen[start : start + _BATCH]
            lengths = np.minimum(offsets[own + 1] - offsets[own], options.sentences)
            ends = np.cumsum(lengths)
            inner = sentences[
                np.repeat(offsets[own], lengths) + np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
            ]
            yield _batch(
                start, [titles[i] for i in own], thinned, noisy(passages[own], rng), noisy(inner, rng), ends
            )

    info = {
        **base.corpus.info,
        "metadata": [{"name": "number", "column": "m0", "type": "int"}],
        "documents": options.count,
    }
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    link_tree(base.folder / "model", options.folder / "model")
    whole_texts = (encoded_text(titles[chosen[i]], thinned(i)) for i in range(distinct))
    started = time.perf_counter()
    index = KeywordIndex.build(whole_texts, analyzer)
    print(f"keyword index: {time.perf_counter() - started:.0f} s", flush=True)
    asked = pq.read_table(options.source / "pairs.parquet", columns=["text"])["text"].to_pylist()
    np.save(options.folder / "questions.npy", base.encoder.encode_queries(asked[1::40][:100]))
    build(options.folder, batches(), _postings(index, options.count // distinct), info)
    (options.folder / "questions.json").write_text(json.dumps(asked[::40]), encoding="utf-8")
    told = json.loads((options.folder / "info.json").read_text(encoding="utf-8"))["store"]
    seconds = time.perf_counter() - started
    print(f"{options.count} passages: {seconds:.0f} s, {size(options.folder) >> 20} MiB, {told}")


def noisy(vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors near those given."""
    moved = vectors + rng.normal(0, _NOISE / vectors.shape[1] ** 0.5, vectors.shape).astype(np.float32)
    return np.asarray(moved / np.linalg.norm(moved, axis=1, keepdims=True), np.float32)


def _batch(
    start: int,
    titles: list[str],
    text: Callable[[int], str],
    vectors: np.ndarray,
    inner: np.ndarray,
    ends: np.ndarray,
) -> pa.RecordBatch:
    numbers = np.arange(start, start + len(titles))
    texts = [text(number) for number in numbers.tolist()]
    lists = pa.array(np.concatenate([[0], ends]).astype(np.int32))
    return pa.RecordBatch.from_pydict(
        {
            "row": pa.array(numbers),
            "id": pa.array([f"d{number}#0" for number in numbers.tolist()]),
            "document_id": pa.array([f"d{number}" for number in numbers.tolist()]),
            "document": pa.array(numbers.astype(np.int32)),
            "title": pa.array(titles),
            "text": pa.array(texts, pa.large_string()),
            "start": pa.array(np.zeros(len(titles), np.int64)),
            "end": pa.array([len(text) for text in texts]),
            "sentences": pa.array([[0, len(text)] for text in texts], pa.list_(pa.int32())),
            "vector": vector_array(vectors),
            "sentence_vectors": pa.ListArray.from_arrays(lists, vector_array(inner)),
            "m0": pa.array((numbers * 7919) % 1000),
        }
    )


def _postings(index: KeywordIndex, times: int, step: int = 1000) -> Iterator[pa.RecordBatch]:
    """The postings of the texts, which are repeated so many times."""
    shift = index.count * np.arange(times)[:, None]
    for begin in range(0, len(index.vocabulary), step):
        terms = index.vocabulary[begin : begin + step]
        starts = np.asarray(index.starts[begin : begin + len(terms) + 1])
        offsets = pa.array(((starts - starts[0]) * times).astype(np.int32))
        own = [slice(a, b) for a, b in pairwise(starts)]
        rows = [(index.rows[part].astype(np.int64) + shift).ravel() for part in own]
        frequencies = [np.tile(index.frequencies[part], times) for part in own]
        yield pa.RecordBatch.from_pydict(
            {
                "term": pa.array(terms),
                "rows": pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(rows))),
                "frequencies": pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(frequencies))),
            }
        )


def legs(options: argparse.Namespace) -> None:
    """Nearest passages by each engine: recall@10, times, rate, build time, memory and disk."""
    from nearest import compare

    questions = json.loads((options.folder / "questions.json").read_text(encoding="utf-8"))
    queries = Searcher(options.folder).encoder.encode_queries(questions[: options.queries])
    compare(options.folder, queries, options.postgres, options.engine or ())


def whole(options: argparse.Namespace) -> None:
    """From question to hits, its parts, and with filters."""
    searcher = Searcher(options.folder)
    corpus = searcher.corpus
    questions = json.loads((options.folder / "questions.json").read_text(encoding="utf-8"))
    texts = questions[:: max(1, len(questions) // options.queries)][: options.queries]
    searcher.search(texts[0])
    vectors = searcher.encoder.encode_queries(texts)
    print(f"{corpus.count} passages, {corpus.sentences} sentences, {_disk(options.folder)} MiB on disk")
    print(f"{'part':34} p50 ms  p99 ms  cpu ms")
    numbers = range(len(texts))
    _part("encode the question", lambda text: searcher.encoder.encode_queries([text]), texts)
    _part("keyword leg, 200 deep", lambda text: corpus.bm25.leg(text).top(200), texts)
    _part("vector leg, 200 deep", lambda i: corpus.store.nearest(vectors[i], "vector", 200), numbers)
    _part("fetch ten", lambda i: corpus.store.fetch(np.arange(10) * 997 + i), numbers)
    _part("whole search", searcher.search, texts)
    print(f"memory at most {_memory()} MiB")
    for below in (500, 100, 10, 1):
        recall = _filtered(corpus, vectors, below)
        name = f"whole search, {below / 10:g}% pass, recall {recall:.3f}"
        _part(name, lambda text, below=below: searcher.search(text, where=f"number < {below}"), texts)


def _filtered(corpus: StoreCorpus, vectors: np.ndarray, below: int) -> float:
    from searchfit.filters import parse

    where = parse(f"number < {below}", corpus.store.columns)
    rows = corpus.store.matching(where)
    hits = 0
    for vector in vectors[:50]:
        true = rows[np.argsort(-(corpus.store.segments[0].vectors[rows] @ vector))[:10]]
        hits += len(np.intersect1d(true, corpus.store.nearest(vector, "vector", 10, where)[0]))
    return hits / (10 * len(vectors[:50]))


def _part(name: str, work: Callable[[Any], Any], items: Sequence[Any]) -> None:
    p50, p99, cpu = _times(work, items)
    print(f"{name:34} {p50:6.1f} {p99:7.1f} {cpu:7.1f}", flush=True)


def _times(work: Callable[[Any], Any], items: Sequence[Any]) -> tuple[float, float, float]:
    """Median and 99th percentile of the wall's, median of the processor's milliseconds, all threads."""
    wall, cpu = [], []
    for item in items:
        started, used = time.perf_counter(), time.process_time()
        work(item)
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
    return tuple(float(value) * 1e3 for value in (np.median(wall), np.percentile(wall, 99), np.median(cpu)))  # type: ignore[return-value]


def _memory() -> int:
    """MiB that the process has had at most."""
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)


def _disk(folder: Path) -> int:
    return size(folder) >> 20


if __name__ == "__main__":
    main()
