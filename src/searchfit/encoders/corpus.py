"""Encode a whole corpus into arrays on disk.

Writes {passages,sentences,offsets,documents}.npy, where the model has words (see interaction.py) words.bin,
word_offsets.npy and centre.npy besides, and info.json, last. Vectors are written into their places
as they come; a killed run goes on after the last chunk that reached the disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from searchfit.executors import Portable
from searchfit.fusion import Floats, Vectors
from searchfit.interaction import Bits, HeldWords, PassageWords
from searchfit.mapped import let_go
from searchfit.records import encoded_text
from searchfit.writing import write_json

if TYPE_CHECKING:
    from searchfit.encoders.sentence import SentenceEncoder

_CHUNK = 512  # passages between two marks of progress
_SAMPLE = 128  # passages whose tokens tell the centre

Read = tuple[list[str], list[list[tuple[int, int]]], Floats | None]
"""Texts of passages, where the sentences stand in each, and the centre of the corpus's words."""
Vectored = tuple[Vectors, Vectors, PassageWords | None]
"""The vectors of passages and of their sentences, and the words, see `SentenceEncoder.encode_passages`."""
Encode = Callable[[Iterable[Read]], Iterator[Vectored]]
"""What there is of passages, batch by batch."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the vectors of a folder are compared, "cosine" or "dot", and the weight that brings a dense score
    to the order of 1, as keyword scores are: 1.0 for cosine, for dot one over the passages' mean squared
    length; and whether passages have words (see interaction.py)."""

    similarity: str
    dense_weight: float
    words: bool = False

    @classmethod
    def load(cls, folder: Path) -> Encoding:
        """Read info.json of a folder that `encode_corpus` wrote."""
        return cls(**json.loads((folder / "info.json").read_text(encoding="utf-8")))

    @classmethod
    def of(cls, similarity: str, passages: Floats, words: bool = False) -> Encoding:
        """What holds for passage vectors (n, d)."""
        if similarity == "cosine":
            return cls(similarity, 1.0, words)
        parts = (passages[start : start + _CHUNK] for start in range(0, len(passages), _CHUNK))
        squares = sum(float(np.square(part, dtype=np.float64).sum()) for part in parts)
        return cls(similarity, len(passages) / squares if squares else 1.0, words)


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
    centre: Floats | None = None,
) -> tuple[int, int]:
    """Encode the passages of a Parquet file (records.PASSAGES) into a folder; how many passages and
    sentences there are. `progress` is told (done, all) passages. `encode` does it somewhere else, with an
    equal encoder. The centre of the words is that of a sample, unless it is given, as for additions to an
    index that has one."""
    folder.mkdir(parents=True, exist_ok=True)
    offsets, documents = _layout(file)
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "documents.npy", documents)
    if centre is None:
        centre = _centre(encoder, file, folder / "centre.npy")
    else:
        np.save(folder / "centre.npy", centre)
    encode = encode or partial(encode_passages, Portable(lambda: encoder))
    batches = partial(_read_all, file, centre)
    _encode(encode, encoder.dimension, batches, folder, offsets, progress)
    passages = np.load(folder / "passages.npy", mmap_mode="r")
    encoding = Encoding.of(encoder.similarity, passages, centre is not None)
    write_json(folder / "info.json", asdict(encoding))
    return len(documents), int(offsets[-1])


def _layout(file: Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Where the sentences of each passage lie, and the document of each passage."""
    with pq.ParquetFile(file) as passages:
        count = passages.metadata.num_rows
        offsets, documents = np.zeros(count + 1, np.int64), np.empty(count, np.int32)
        start = 0
        for batch in passages.iter_batches(columns=["document", "sentences"]):
            end = start + batch.num_rows
            offsets[start + 1 : end + 1] = pc.list_value_length(batch["sentences"]).to_numpy() // 2
            documents[start:end] = batch["document"].to_numpy()
            start = end
    return np.cumsum(offsets, out=offsets), documents


def encode_passages(encoder: Portable[SentenceEncoder], batches: Iterable[Read]) -> Iterator[Vectored]:
    """Work of an executor: see `Encode`."""
    for texts, spans, centre in batches:
        yield encoder.model.encode_passages(texts, spans, centre)


def _centre(encoder: SentenceEncoder, file: Path, kept: Path) -> Floats | None:
    """The centre of the words by a sample of the passages; None for a model without words."""
    if kept.exists():
        return np.asarray(np.load(kept), np.float32)
    count = pq.read_metadata(file).num_rows
    step = max(1, count // _SAMPLE)
    texts = []
    for start, batch in _batches(file):
        texts += _read(batch.take(np.arange(-start % step, batch.num_rows, step)))[0]
    centre = encoder.token_centre(texts[:_SAMPLE])
    if centre is not None:
        beside = kept.with_name("centre.tmp.npy")
        np.save(beside, centre)
        beside.replace(kept)
    return centre


def _encode(
    encode: Encode,
    dimension: int,
    batches: Callable[[int], Iterator[Read]],
    folder: Path,
    offsets: npt.NDArray[np.int64],
    progress: Callable[[int, int], None],
) -> None:
    count = len(offsets) - 1
    passages = _open(folder / "passages.npy", (count, dimension))
    sentences = _open(folder / "sentences.npy", (int(offsets[-1]), dimension))
    borders = _open(folder / "word_offsets.npy", (count + 1,), np.int64)
    mark = folder / "progress.json"
    done = json.loads(mark.read_text()) if mark.exists() else {}
    start, size = done.get("passages", 0), done.get("bytes of words", 0)
    with (folder / "words.bin").open("r+b" if start else "wb") as words:
        words.truncate(size)
        words.seek(0, os.SEEK_END)
        for vectors, units, found in encode(batches(start)):
            end = start + len(vectors)
            alone = np.flatnonzero(np.diff(offsets[start : end + 1]) == 1)
            units[offsets[start + alone] - offsets[start]] = vectors[alone]  # the one sentence is the passage
            passages[start:end] = vectors
            sentences[offsets[start] : offsets[end]] = units
            if found is not None:
                words.write(found.bits.tobytes())
                words.flush()
                os.fsync(words.fileno())
                borders[start + 1 : end + 1] = borders[start] + found.offsets[1:]
            for array in (passages, sentences, borders):
                array.flush()
                let_go(array)
            write_json(mark, {"passages": end, "bytes of words": words.tell()})
            progress(end, count)
            start = end
    if not (folder / "centre.npy").exists():
        for name in ("words.bin", "word_offsets.npy"):
            (folder / name).unlink()
    mark.unlink(missing_ok=True)


def load_words(folder: Path) -> HeldWords | None:
    """The words of a folder that `encode_corpus` wrote, mapped; None where the model has none."""
    if not (folder / "word_offsets.npy").exists():
        return None
    offsets, centre = np.load(folder / "word_offsets.npy", mmap_mode="r"), np.load(folder / "centre.npy")
    shape = (int(offsets[-1]), -(-len(centre) // 8))
    bits: Bits = np.empty(shape, np.uint8)
    if shape[0]:
        bits = np.memmap(folder / "words.bin", np.uint8, "r", shape=shape)
    return HeldWords(PassageWords(bits, offsets), centre)


def _batches(file: Path) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches of exactly _CHUNK rows (the last may be shorter), whatever the row groups."""
    start = 0
    for batch in pq.ParquetFile(file).iter_batches(_CHUNK, columns=["title", "text", "sentences"]):
        yield start, batch
        start += batch.num_rows


def _read_all(file: Path, centre: Floats | None, first: int) -> Iterator[Read]:
    """What is encoded from a row on, which begins a batch."""
    for start, batch in _batches(file):
        if start >= first:
            yield *_read(batch), centre


def _read(batch: pa.RecordBatch) -> tuple[list[str], list[list[tuple[int, int]]]]:
    """Texts with their titles, and where the sentences stand in them."""
    texts, spans = [], []
    for title, text, ends in zip(
        *(batch[name].to_pylist() for name in ("title", "text", "sentences")), strict=True
    ):
        whole = encoded_text(title, text)
        shift = len(whole) - len(text)
        texts.append(whole)
        spans.append([(a + shift, b + shift) for a, b in zip(ends[::2], ends[1::2], strict=True)])
    return texts, spans


def _open(path: Path, shape: tuple[int, ...], kind: npt.DTypeLike = np.float32) -> np.memmap[Any, Any]:
    if not path.exists():
        beside = path.with_name(f"{path.name}.tmp")
        np.lib.format.open_memmap(beside, mode="w+", dtype=kind, shape=shape).flush()
        beside.replace(path)
    return np.lib.format.open_memmap(path, mode="r+")
