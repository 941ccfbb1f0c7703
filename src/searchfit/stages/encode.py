"""Encode: the vector of every passage and sentence, and the keyword index over the same rows.

Writes encoded/{passages,sentences,offsets,documents}.npy and keyword/. Vectors are written into
their places as they come; a killed run goes on after the last chunk that reached the disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.config import KeywordSettings, Settings
from searchfit.encoders import load_encoder
from searchfit.encoders.sentence import SentenceEncoder
from searchfit.fusion import Vectors
from searchfit.keyword import Analyzer, KeywordIndex, detect_language
from searchfit.records import StageResult, encoded_text
from searchfit.stages import Progress, Tools
from searchfit.workspace import write_json

VERSION = 1

_CHUNK = 512  # passages between two marks of progress


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Encode passages.parquet. Raises ModelError when the model cannot be loaded."""
    file = inputs["passages.parquet"]
    folder = tools.output / "encoded"
    folder.mkdir(parents=True, exist_ok=True)
    offsets, documents = _layout(file)
    keyword = _keyword_index(file, tools.output / "keyword", settings.keyword)
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "documents.npy", documents)
    encoder = load_encoder(settings.model)
    encoded = _encode(encoder, file, folder, offsets, tools.progress)
    return StageResult(
        counts={
            "passages": len(documents),
            "sentences": int(offsets[-1]),
            "dimension": encoder.dimension,
            "keyword terms": len(keyword.vocabulary),
            "keyword language": keyword.analyzer.language,
            "vectors computed in this run": encoded,
            "arithmetic": f"{'bf16' if encoder.bf16 else 'fp32'} on {encoder.model.device.type}",
        }
    )


def _layout(file: Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Where the sentences of each passage lie, and the document of each passage."""
    table = pq.read_table(file, columns=["document", "sentences"])
    lengths = np.diff(table["sentences"].combine_chunks().offsets.to_numpy()) // 2
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return offsets, table["document"].to_numpy().astype(np.int32)


def _keyword_index(file: Path, folder: Path, settings: KeywordSettings) -> KeywordIndex:
    if (folder / "keyword.json").exists():  # written last: the index is whole
        return KeywordIndex.load(folder)
    language = settings.language
    if language == "auto":
        step = max(1, pq.ParquetFile(file).metadata.num_rows // 2000)
        language = detect_language(text for i, text in enumerate(_texts(file)) if i % step == 0)
    index = KeywordIndex.build(_texts(file), Analyzer(language), settings.k1, settings.b)
    index.save(folder)
    return index


def _texts(file: Path) -> Iterator[str]:
    for batch in pq.ParquetFile(file).iter_batches(4096, columns=["title", "text"]):
        yield from map(encoded_text, batch["title"].to_pylist(), batch["text"].to_pylist())


def _encode(
    encoder: SentenceEncoder, file: Path, folder: Path, offsets: npt.NDArray[np.int64], progress: Progress
) -> int:
    count = len(offsets) - 1
    passages = _open(folder / "passages.npy", (count, encoder.dimension))
    sentences = _open(folder / "sentences.npy", (int(offsets[-1]), encoder.dimension))
    mark = folder / "progress.json"
    done = begin = json.loads(mark.read_text())["passages"] if mark.exists() else 0
    for start, batch in _batches(file):
        if start < done:
            continue
        texts = list(map(encoded_text, batch["title"].to_pylist(), batch["text"].to_pylist()))
        end = start + len(texts)
        passages[start:end] = encoder.encode_documents(texts)
        sentences[offsets[start] : offsets[end]] = _encode_sentences(encoder, batch, passages[start:end])
        passages.flush()
        sentences.flush()
        write_json(mark, {"passages": end})
        done = end
        progress("encode", end, count)
    mark.unlink(missing_ok=True)
    return int(done - begin + offsets[done] - offsets[begin])


def _batches(file: Path) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches of exactly _CHUNK rows (the last may be shorter), whatever the row groups."""
    start = 0
    for batch in pq.ParquetFile(file).iter_batches(_CHUNK, columns=["title", "text", "sentences"]):
        yield start, batch
        start += batch.num_rows


def _encode_sentences(encoder: SentenceEncoder, batch: pa.RecordBatch, passages: Vectors) -> Vectors:
    """Vectors of a batch's sentences, in order. The only sentence of a passage is the passage."""
    texts: list[str] = []
    places: list[int] = []
    vectors: list[npt.NDArray[np.float32]] = []
    for row, (text, spans) in enumerate(
        zip(batch["text"].to_pylist(), batch["sentences"].to_pylist(), strict=True)
    ):
        alone = len(spans) == 2
        for a, b in zip(spans[::2], spans[1::2], strict=True):
            if not alone:
                places.append(len(vectors))
                texts.append(text[a:b])
            vectors.append(passages[row])
    result = np.array(vectors, np.float32).reshape(-1, passages.shape[1])
    result[places] = encoder.encode_documents(texts)
    return result


def _open(path: Path, shape: tuple[int, int]) -> np.memmap[tuple[int, int], np.dtype[np.float32]]:
    if not path.exists():
        beside = path.with_name(f"{path.name}.tmp")
        np.lib.format.open_memmap(beside, mode="w+", dtype=np.float32, shape=shape).flush()
        beside.replace(path)
    return np.lib.format.open_memmap(path, mode="r+")
