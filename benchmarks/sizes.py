"""How large a fit and its index get, from a finished workspace:

    python benchmarks/scale.py --sizes WORKSPACE [--passages 1000000 100000000 1000000000]

First what is measured in it, by passage: bytes of each artefact, seconds of a core to encode one and to rank
one for a question, and the seconds that its stages took. Then what follows for other numbers of passages.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from searchfit import fusion
from searchfit.config import IndexSettings, load_settings
from searchfit.encoders import corpus, load_encoder
from searchfit.preflight.cluster import Handling, measure_handling
from searchfit.preflight.forecast import BATCH
from searchfit.preflight.sizing import Sizes, sizes
from searchfit.records import Engine
from searchfit.search import ArrayCorpus
from searchfit.workspace import Workspace

_SOME = 128  # passages and questions that are timed
_KEYWORD = 230  # bytes a passage that the keyword stage held at most, see docs/scale.md
_STAGES = ("split", "keyword", "index")


@dataclass(frozen=True, slots=True)
class Rates:
    """What a workspace tells. Seconds: of a core to encode a passage; of a core for a question and a passage,
    to rank; of the stages, by passage. How many questions a fit ranks, and how a batch is handled."""

    encode: float
    rank: float
    stages: Mapping[str, float]
    questions: int
    handling: Handling


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=Path, required=True, metavar="WORKSPACE")
    parser.add_argument("--passages", type=int, nargs="+", default=[10**6, 10**8, 10**9])
    options = parser.parse_args()
    space = Workspace(options.sizes)
    held, measured = sizes(space), rates(space)
    show(held, measured)
    grown = [held.at(passages, IndexSettings()) for passages in options.passages]
    for name, row in foretold(grown, measured).items():
        print(f"{name:44}" + "".join(f"{cell:>16}" for cell in row))


def show(held: Sizes, measured: Rates) -> None:
    """The first table."""
    each = held.postings / held.passages
    print(f"{held.passages:,} passages, {held.dimension} dimensions, {each:.0f} postings each")
    print(f"{held.fixed / 1e6:,.0f} MB do not grow; questions that are ranked: {measured.questions:,}")
    for name, bytes_ in held.fit.items():
        fit, index = bytes_ / held.passages, held.index[name] / held.passages
        print(f"{name:20}{fit:9,.0f} B in the fit, {index:9,.0f} B in the index")
    print(f"{'encode':20}{1e3 * measured.encode:9.1f} ms of a core")
    print(f"{'rank':20}{1e9 * measured.rank:9.0f} ns of a core, a question")
    for stage, seconds in measured.stages.items():
        print(f"{stage:20}{1e3 * seconds:9.2f} ms")
    batch, size = measured.handling.batch, measured.handling.batch_bytes
    print(f"{'a batch':20}{1e3 * batch:9.0f} ms to read, hand over, take back and write; {size / 1e6:.1f} MB")


def rates(space: Workspace) -> Rates:
    """Measure a workspace with the model that its settings name."""
    stages = space.manifest()["stages"]
    counts = {name: stages[name]["counts"] for name in ("split", "screen", "mine", "evaluate")}
    asked = counts["evaluate"]["dev"] + counts["evaluate"]["test"]
    return Rates(
        _encode(space),
        _rank(space),
        {name: stages[name]["seconds"] / counts["split"]["passages"] for name in _STAGES},
        counts["screen"]["queries"] + counts["mine"]["training queries"] + asked,
        measure_handling(space, load_settings(space.path / "searchfit.toml"), 0.0),
    )


def _encode(space: Workspace) -> float:
    encoder = load_encoder(load_settings(space.path / "searchfit.toml").model)
    read = corpus._read_all(space.artefact("passages.parquet"), None, 0)
    texts, spans, _ = next(iter(read))
    words = corpus.load_words(space.artefact("encoded"))
    centre = words.centre if words else None
    encoder.encode_passages(texts[:8], spans[:8], centre)
    begun = time.process_time()
    encoder.encode_passages(texts[:_SOME], spans[:_SOME], centre)
    return (time.process_time() - begun) / min(_SOME, len(texts))


def _rank(space: Workspace) -> float:
    held = ArrayCorpus.load(space.artefact("encoded"), space.artefact("keyword"))
    engine = Engine(**json.loads(space.artefact("engine.json").read_text(encoding="utf-8"))["engine"])
    texts = pq.read_table(space.artefact("pairs.parquet"), columns=["text"])["text"].to_pylist()[:_SOME]
    vectors = np.load(space.artefact("pair_vectors.npy"))[:_SOME]
    fusion.rank([engine], held, vectors[:8], texts[:8], 100)
    begun = time.process_time()
    fusion.rank([engine], held, vectors, texts, 100)
    return (time.process_time() - begun) / len(texts) / held.count


def foretold(grown: list[Sizes], measured: Rates) -> dict[str, list[str]]:
    """The second table: a row by name, with a cell for each size."""
    table = {"passages": [f"{one.passages:,}" for one in grown]}
    table["fit, GB"] = [f"{(one.total - sum(one.index.values())) / 1e9:,.1f}" for one in grown]
    table["index, GB"] = [f"{sum(one.index.values()) / 1e9:,.1f}" for one in grown]
    for name in grown[0].index:
        table[f"  {name}"] = [f"{one.index[name] / 1e9:,.1f}" for one in grown]
    hot = [
        one.postings * 8 + one.index["approximate index"] - 4 * one.dimension * one.passages for one in grown
    ]
    table["read by every search, GB"] = [f"{max(0, bytes_) / 1e9:,.1f}" for bytes_ in hot]
    table["memory of the keyword stage, GB"] = [f"{one.passages * _KEYWORD / 1e9:,.1f}" for one in grown]
    table["encode, core hours"] = [f"{one.passages * measured.encode / 3600:,.0f}" for one in grown]
    table["  of it read and written by one, hours"] = [
        f"{one.passages / BATCH['encode'] * measured.handling.batch / 3600:,.1f}" for one in grown
    ]
    for stage, seconds in measured.stages.items():
        table[f"{stage}, hours"] = [f"{one.passages * seconds / 3600:,.1f}" for one in grown]
    ranked = [one.passages * measured.questions for one in grown]
    table["rank the questions, core hours"] = [f"{pairs * measured.rank / 3600:,.1f}" for pairs in ranked]
    table["  vectors read for that, TB"] = [
        f"{_passes(one, measured.questions) * _vectors(one) / 1e12:,.1f}" for one in grown
    ]
    return table


def _passes(one: Sizes, questions: int) -> int:
    """How often `fusion.rank` goes through the corpus: fewer questions at once, the larger it is."""
    at_once = max(8, min(fusion._CHUNK_QUERIES, fusion._CHUNK_SCORES // (one.passages + 1)))
    return -(-questions // at_once)


def _vectors(one: Sizes) -> int:
    return one.fit["passage vectors"] + one.fit["sentence vectors"]


if __name__ == "__main__":
    main()
