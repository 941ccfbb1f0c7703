"""Nearest vectors by ours and by others called directly, side by side; `benchmarks/search.py legs` runs it.

Each engine has a process of its own, in which the exact recall of its first ten is raised until it reaches
0.98, by the setting that it has for that: `effort`. `own MiB` is the memory that building and searching left
the process with, `mapped MiB` what of files it holds besides, which the system may take back; the disk is
that of the vectors and their index. What is not installed, or has no server, is said to be so.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from searchfit.stores.ann import Ann, Tuned
from searchfit.stores.segment import Segment
from searchfit.writing import size

K = 10
RECALL = 0.98
_GIVEN_UP = 2  # no such row: the reason was printed
_HEAD = (
    f"{'engine':18} {'effort':>6} recall@10  p50 ms  p99 ms  queries/s at 2  build s"
    "  own MiB  mapped MiB  disk MiB"
)

Nearest = Callable[[np.ndarray, int], np.ndarray]
"""(vector (d,), effort) -> the ten nearest places."""


@dataclass(frozen=True)
class Built:
    """An engine that is ready: how it is asked, what it can be told to try, and what it holds on disk."""

    nearest: Nearest
    efforts: Sequence[int]
    disk: int


@dataclass(frozen=True)
class Place:
    """Where the index lies, where an engine may write, and the address of a PostgreSQL with pgvector."""

    index: Path
    scratch: Path
    postgres: str


def compare(index: Path, queries: np.ndarray, postgres: str = "", engines: Sequence[str] = ()) -> None:
    """Print a row for each engine: of ENGINES those that are named, or all. `queries` is (n, d)."""
    vectors = Segment(index).vectors
    best = [
        np.argsort(-(part @ vectors.T), axis=1)[:, :K] for part in np.array_split(queries, 20) if len(part)
    ]
    print(_HEAD, flush=True)
    spawn = multiprocessing.get_context("spawn")
    for name in engines or ENGINES:
        with tempfile.TemporaryDirectory(dir=index.parent) as folder:
            np.savez(Path(folder) / "asked.npz", queries=queries, truth=np.concatenate(best))
            process = spawn.Process(target=_measure, args=(name, Place(index, Path(folder), postgres)))
            process.start()
            process.join()
        if process.exitcode not in (0, _GIVEN_UP):
            print(f"{name:18} failed with status {process.exitcode}")


def _measure(name: str, place: Place) -> None:
    with np.load(place.scratch / "asked.npz") as asked:
        queries, truth = asked["queries"], asked["truth"]
    segment = Segment(place.index)
    before, started = _memory(), time.perf_counter()
    try:
        built = ENGINES[name](segment, place)
    except (ImportError, LookupError) as error:
        print(f"{name:18} left out: {error}", flush=True)
        raise SystemExit(_GIVEN_UP) from None
    seconds = time.perf_counter() - started
    effort = next(
        (each for each in built.efforts if _recall(built, each, queries, truth) >= RECALL),
        built.efforts[-1],
    )
    recall = _recall(built, effort, queries, truth)
    times = []
    for vector in queries:
        begun = time.perf_counter()
        built.nearest(vector, effort)
        times.append(1e3 * (time.perf_counter() - begun))
    with ThreadPoolExecutor(2) as pool:
        begun = time.perf_counter()
        list(pool.map(lambda vector: built.nearest(vector, effort), queries))
        rate = len(queries) / (time.perf_counter() - begun)
    own, mapped = (now - then for now, then in zip(_memory(), before, strict=True))
    print(
        f"{name:18} {effort:6} {recall:9.4f} {np.median(times):7.2f} {np.percentile(times, 99):7.2f}"
        f" {rate:15.0f} {seconds:8.0f} {own:8} {mapped:11} {built.disk >> 20:9}",
        flush=True,
    )


def _recall(built: Built, effort: int, queries: np.ndarray, truth: np.ndarray) -> float:
    found = [built.nearest(vector, effort) for vector in queries]
    return float(np.mean([len(np.intersect1d(*pair)) / K for pair in zip(found, truth, strict=True)]))


def _memory() -> tuple[int, int]:
    """MiB of memory of this process: its own, and that of files."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    held = dict(line.split(":", 1) for line in lines)
    own, mapped = (int(held[name].split()[0]) >> 10 for name in ("RssAnon", "RssFile"))
    return own, mapped


def _ours(segment: Segment, place: Place) -> Built:
    """Ours; its effort was chosen when it was built, and 0 means that all vectors are compared."""
    folder = place.scratch / "ours"
    folder.mkdir()
    if (place.index / "questions.npy").exists():
        shutil.copyfile(place.index / "questions.npy", folder / "questions.npy")
    # As a fit builds it, and tunes it.
    kept = Ann.build(folder, segment.vectors, segment.sentences, segment.info)
    segment.ann = Ann.open(folder, kept)

    def nearest(vector: np.ndarray, _: int) -> np.ndarray:
        places, scores = segment.nearest(vector, "vector", K, None, 0)
        return places[np.argsort(-scores)[:K]]

    return Built(nearest, (Tuned(**kept).probes if kept else 0,), segment.vectors.nbytes + size(folder))


def _lancedb(segment: Segment, place: Place) -> Built:
    """IVF_RQ with its vectors in the table, re-ranked by LanceDB; the effort is the partitions read."""
    import lancedb
    import pyarrow as pa
    from lancedb.index import IvfRq

    numbers = pa.FixedSizeListArray.from_arrays(pa.array(segment.vectors.ravel()), segment.vectors.shape[1])
    data = pa.table({"place": pa.array(np.arange(segment.count)), "vector": numbers})
    table = lancedb.connect(str(place.scratch / "lance")).create_table("direct", data)
    table.create_index("vector", config=IvfRq(distance_type="dot"))

    def nearest(vector: np.ndarray, probes: int) -> np.ndarray:
        query = table.search(vector, vector_column_name="vector").distance_type("dot").nprobes(probes)
        found = query.refine_factor(20).limit(K).select(["place", "_distance"]).to_arrow()
        return cast("np.ndarray", found["place"].to_numpy())

    return Built(nearest, (8, 16, 32, 64, 128, 256), size(place.scratch / "lance"))


def _faiss_hnsw(segment: Segment, place: Place) -> Built:
    """32 neighbours; the effort is how many nodes it keeps in view."""
    import faiss

    index = faiss.IndexHNSWFlat(segment.vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 128
    index.add(segment.vectors)

    def nearest(vector: np.ndarray, effort: int) -> np.ndarray:
        places = index.search(vector[None], K, params=faiss.SearchParametersHNSW(efSearch=effort))[1][0]
        return cast("np.ndarray", places)

    return Built(nearest, (64, 128, 256, 512, 1024), _written(faiss.write_index, index, place))


def _faiss_ivf_pq(segment: Segment, place: Place) -> Built:
    """96 bytes a vector; 200 candidates are compared by the vectors themselves, from the file. The effort is
    the partitions read."""
    import faiss

    vectors = segment.vectors
    lists = int(len(vectors) ** 0.5)
    index = faiss.index_factory(vectors.shape[1], f"IVF{lists},PQ96", faiss.METRIC_INNER_PRODUCT)
    index.pq.cp.niter = 5  # with the usual 25, and all points, training takes many minutes
    index.pq.cp.max_points_per_centroid = 40
    sample = np.random.default_rng(0).choice(len(vectors), min(len(vectors), 50_000), replace=False)
    index.train(vectors[np.sort(sample)])
    index.add(vectors)

    def nearest(vector: np.ndarray, effort: int) -> np.ndarray:
        places = index.search(vector[None], 20 * K, params=faiss.SearchParametersIVF(nprobe=effort))[1][0]
        places = np.sort(places[places >= 0])
        return cast("np.ndarray", places[np.argsort(-(vectors[places] @ vector))[:K]])

    disk = _written(faiss.write_index, index, place) + vectors.nbytes
    return Built(nearest, (8, 16, 32, 64, 128, 256), disk)


def _usearch(segment: Segment, place: Place) -> Built:
    """HNSW in half precision; the effort is how many nodes it keeps in view."""
    from usearch.index import Index

    index = Index(ndim=segment.vectors.shape[1], metric="ip", dtype="f16")
    index.add(np.arange(segment.count), segment.vectors)

    def nearest(vector: np.ndarray, effort: int) -> np.ndarray:
        if index.expansion_search != effort:
            index.expansion_search = effort
        return np.asarray(index.search(vector, K).keys).astype(np.int64)

    file = place.scratch / "written"
    index.save(str(file))
    return Built(nearest, (64, 128, 256, 512, 1024), file.stat().st_size)


def _pgvector(segment: Segment, place: Place) -> Built:
    """HNSW of 16 neighbours, in a table of its own, which a next run replaces; a connection a thread. The
    effort is how many nodes it keeps in view. Memory is the server's, and is not counted."""
    if not place.postgres:
        raise LookupError("name a server with --postgres postgresql://user@host/database")
    import psycopg

    from searchfit.stores.pgvector_wire import register, sql_of

    held = threading.local()

    def cursor() -> Any:
        if not hasattr(held, "cursor"):
            held.connection = psycopg.connect(place.postgres, autocommit=True)
            held.connection.execute("create extension if not exists vector")
            register(held.connection)
            held.cursor = held.connection.cursor(binary=True)
        return held.cursor

    size_ = segment.vectors.shape[1]
    own = cursor()
    own.execute("drop table if exists searchfit_bench")
    own.execute(sql_of(f"create table searchfit_bench (place bigint, vector vector({size_}))"))
    with own.copy("copy searchfit_bench from stdin (format binary)") as copy:
        copy.set_types(["int8", "vector"])
        for number, vector in enumerate(segment.vectors):
            copy.write_row((number, vector))
    own.execute("set maintenance_work_mem = '2GB'")
    own.execute(
        "create index on searchfit_bench using hnsw (vector vector_ip_ops) with (ef_construction = 128)"
    )
    own.execute("select pg_total_relation_size('searchfit_bench')")
    disk = int(own.fetchone()[0])

    def nearest(vector: np.ndarray, effort: int) -> np.ndarray:
        if getattr(held, "effort", 0) != effort:
            cursor().execute("select set_config('hnsw.ef_search', %s, false)", (str(effort),))
            held.effort = effort
        statement = "select place from searchfit_bench order by vector <#> %s limit 10"
        return np.array([place for (place,) in cursor().execute(statement, (vector,))], np.int64)

    return Built(nearest, (40, 100, 200, 400, 800), disk)


def _written(write: Callable[[Any, str], None], index: Any, place: Place) -> int:
    file = place.scratch / "written"
    write(index, str(file))
    return file.stat().st_size


ENGINES: dict[str, Callable[[Segment, Place], Built]] = {
    "searchfit": _ours,
    "lancedb IVF_RQ": _lancedb,
    "faiss HNSW": _faiss_hnsw,
    "faiss IVF-PQ": _faiss_ivf_pq,
    "usearch HNSW": _usearch,
    "pgvector HNSW": _pgvector,
}
