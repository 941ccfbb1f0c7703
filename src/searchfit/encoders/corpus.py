"""Encode a whole corpus into arrays on disk.

Writes {passages,sentences,offsets,documents}.npy, and info.json, last. Vectors are written into their places
as they come; a killed run goes on after the last chunk that reached the disk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.executors import Portable
from searchfit.fusion import Floats, Vectors
from searchfit.records import encoded_text
from searchfit.workspace import write_json

if TYPE_CHECKING:
    from searchfit.encoders.sentence import SentenceEncoder

_CHUNK = 512  # passages between two marks of progress

Read = tuple[list[str], list[list[tuple[int, int]]]]
"""Texts of passages, and where the sentences stand in each."""
Encode = Callable[[Iterable[Read]], Iterator[tuple[Vectors, Vectors]]]
"""The vectors of passages and of their sentences, batch by batch."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the vectors of a folder are compared, "cosine" or "dot", and the weight that brings a dense score
    to the order of 1, as keyword scores are: 1.0 for cosine, for dot one over the passages' mean squared
    length."""

    similarity: str
    dense_weight: float

    @classmethod
    def load(cls, folder: Path) -> Encoding:
        """Read info.json of a folder that `encode_corpus` wrote."""
        return cls(**json.loads((folder / "info.json").read_text(encoding="utf-8")))

    @classmethod
    def of(cls, similarity: str, passages: Floats) -> Encoding:
        """What holds for passage vectors (n, d)."""
        if similarity == "cosine":
            return cls(similarity, 1.0)
        parts = (passages[start : start + _CHUNK] for start in range(0, len(passages), _CHUNK))
        squares = sum(float(np.square(part, dtype=np.float64).sum()) for part in parts)
        return cls(similarity, len(passages) / squares if squares else 1.0)


COSINE = Encoding("cosine", 1.0)


def encoded(artefacts: Mapping[str, Path], tower: float) -> Path:
    """Where the stages left the vectors of the corpus under a share of the tuned document tower."""
    return artefacts["encoded_tuned"] / f"{tower:g}" if tower else artefacts["encoded"]


def encode_corpus(
    encoder: SentenceEncoder,
    file: Path,
    folder: Path,
    progress: Callable[[int, int], None],
    encode: Encode | None = None,
) -> tuple[int, int]:
    """Encode the passages of a Parquet file (records.PASSAGES) into a folder; how many passages and
    sentences there are. `progress` is told (done, all) passages. `encode` does it somewhere else, with an
    equal encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    offsets, documents = _layout(file)
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "documents.npy", documents)
    encode = encode or partial(encode_passages, Portable(lambda: encoder))
    _encode(encode, encoder.dimension, file, folder, offsets, progress)
    passages = np.load(folder / "passages.npy", mmap_mode="r")
    write_json(folder / "info.json", asdict(Encoding.of(encoder.similarity, passages)))
    return len(documents), int(offsets[-1])


def _layout(file: Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Where the sentences of each passage lie, and the document of each passage."""
    table = pq.read_table(file, columns=["document", "sentences"])
    lengths = np.diff(table["sentences"].combine_chunks().offsets.to_numpy()) // 2
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return offsets, table["document"].to_numpy().astype(np.int32)


def encode_passages(
    encoder: Portable[SentenceEncoder], batches: Iterable[Read]
) -> Iterator[tuple[Vectors, Vectors]]:
    """Work of an executor: see `Encode`."""
    for texts, spans in batches:
        yield encoder.model.encode_passages(texts, spans)


def _encode(
    encode: Encode,
    dimension: int,
    file: Path,
    folder: Path,
    offsets: npt.NDArray[np.int64],
    progress: Callable[[int, int], None],
) -> None:
    count = len(offsets) - 1
    passages = _open(folder / "passages.npy", (count, dimension))
    sentences = _open(folder / "sentences.npy", (int(offsets[-1]), dimension))
    mark = folder / "progress.json"
    done = json.loads(mark.read_text())["passages"] if mark.exists() else 0
    start = done
    for vectors, units in encode(_read(batch) for first, batch in _batches(file) if first >= done):
        end = start + len(vectors)
        alone = np.flatnonzero(np.diff(offsets[start : end + 1]) == 1)
        units[offsets[start + alone] - offsets[start]] = vectors[alone]  # the only sentence is the passage
        passages[start:end] = vectors
        sentences[offsets[start] : offsets[end]] = units
        passages.flush()
        sentences.flush()
        write_json(mark, {"passages": end})
        progress(end, count)
        start = end
    mark.unlink(missing_ok=True)


def _batches(file: Path) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches of exactly _CHUNK rows (the last may be shorter), whatever the row groups."""
    start = 0
    for batch in pq.ParquetFile(file).iter_batches(_CHUNK, columns=["title", "text", "sentences"]):
        yield start, batch
        start += batch.num_rows


def _read(batch: pa.RecordBatch) -> Read:
    """What is encoded: texts with their titles."""
    texts, spans = [], []
    for title, text, ends in zip(
        *(batch[name].to_pylist() for name in ("title", "text", "sentences")), strict=True
    ):
        whole = encoded_text(title, text)
        shift = len(whole) - len(text)
        texts.append(whole)
        spans.append([(a + shift, b + shift) for a, b in zip(ends[::2], ends[1::2], strict=True)])
    return texts, spans


def _open(path: Path, shape: tuple[int, int]) -> np.memmap[tuple[int, int], np.dtype[np.float32]]:
    if not path.exists():
        beside = path.with_name(f"{path.name}.tmp")
        np.lib.format.open_memmap(beside, mode="w+", dtype=np.float32, shape=shape).flush()
        beside.replace(path)
    return np.lib.format.open_memmap(path, mode="r+")
