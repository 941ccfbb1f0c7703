"""Writing a segment, see stores.segment: streamed, checked, synced, with what vouches for it written last."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from searchfit.errors import SearchfitError, WorkspaceError
from searchfit.stores import Floats, Rows
from searchfit.stores.ann import Ann
from searchfit.stores.files import ArrayFile, open_array
from searchfit.stores.postings import write_postings
from searchfit.writing import sync_file, write_json

FORMAT = 2
"""Version of the folder's layout."""

VECTORS = ("vector", "sentence_vectors")
ARRAYS = (*VECTORS, "words")
"""The columns that are kept as flat arrays."""

_TYPES = {
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "date": pa.date32(),
}


def build(
    folder: Path,
    passages: Iterable[pa.RecordBatch],
    postings: Iterable[pa.RecordBatch],
    info: Mapping[str, Any],
) -> None:
    """Write a segment; what an earlier, unfinished build left in the folder is replaced.

    `passages` holds row (ascending), the fields of records.PASSAGES, vector (d,), sentence_vectors (any
    number, d), the metadata columns and, where info["centre"] tells the centre of the words (see
    interaction.py), words (any number, a byte for eight dimensions); `postings` is as postings.TERMS.
    `info` is JSON; info["metadata"] lists {"name": the user's column, "column": as stored, "type": as in
    filters.TYPES or another, which is kept but not filtered on}; info["similarity"] says how vectors are
    compared, "cosine" (the default; they have unit length) or "dot"; info["index"] has the settings of the
    section `index`. NaN in metadata becomes null, timestamps keep microseconds.

    Raises SearchfitError for vectors that are not finite or of several lengths, for rows that do not
    ascend, and for values that do not fit their column's type; WorkspaceError when writing fails.
    """
    import lancedb

    shutil.rmtree(folder / "passages.lance", ignore_errors=True)
    (folder / "info.json").unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    batches = iter(passages)
    first = next(batches, None)
    if first is None:
        raise SearchfitError("there are no passages to index.", "Check that the source has documents.")
    schema = _stored_schema(first.schema, info)
    try:
        database = lancedb.connect(str(folder))
        with _Arrays(folder) as arrays:
            texts = pa.schema([field for field in schema if field.name not in ARRAYS])
            checked = _checked(chain([first], batches), schema)
            create_table(database, "passages", texts, (arrays.split(batch, texts) for batch in checked))
        rows = open_array(folder / "rows.bin", np.int64, (arrays.passages,))
        counts: dict[str, Any] = {"format": FORMAT, "passages": arrays.passages}
        counts |= {"sentences": arrays.sentences, "dimension": schema.field("vector").type.list_size}
        if "centre" in info:
            counts["words"] = arrays.words
        counts["terms"] = write_postings(folder, postings, rows)
        vectors = open_array(folder / "vectors.bin", np.float32, (arrays.passages, counts["dimension"]))
        sentences = open_array(folder / "sentences.bin", np.float32, (arrays.sentences, vectors.shape[1]))
        counts["ann"] = Ann.build(folder, vectors, sentences, info)
    except (OSError, RuntimeError) as error:
        raise WorkspaceError(
            f"the index could not be written to {folder}: {error}", "Is the disk full or read only?"
        ) from error
    for file in folder.glob("*.lance/**/*"):
        if file.is_file():
            sync_file(file)
    write_json(folder / "info.json", {**info, "store": counts})


class _Arrays:
    """Takes the vectors out of the batches on their way into the table, and writes them into files."""

    def __init__(self, folder: Path) -> None:
        self.passages = self.sentences = self.words = 0
        kinds = {"rows": "i8", "documents": "i4", "vectors": "f4", "sentences": "f4", "offsets": "i8"}
        kinds |= {"words": "u1", "word_offsets": "i8"}
        self._files = {name: ArrayFile(folder / f"{name}.bin", kind) for name, kind in kinds.items()}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Arrays:
        for file in self._files.values():
            self._stack.enter_context(file)
        self._files["offsets"].append([0])
        self._files["word_offsets"].append([0])
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def split(self, batch: pa.RecordBatch, texts: pa.Schema) -> pa.RecordBatch:
        """The rest of a batch."""
        rows = batch["row"].to_numpy()
        documents = batch["document"].to_numpy() if "document" in batch.schema.names else rows
        offsets = list_offsets(batch["sentence_vectors"])
        self._files["rows"].append(rows)
        self._files["documents"].append(documents)
        self._files["vectors"].append(batch["vector"].flatten().to_numpy())
        self._files["sentences"].append(batch["sentence_vectors"].flatten().flatten().to_numpy())
        self._files["offsets"].append(offsets[1:] + self.sentences)
        self.passages += len(rows)
        self.sentences += int(offsets[-1])
        if "words" in batch.schema.names:
            offsets = list_offsets(batch["words"])
            self._files["words"].append(bits_of(batch["words"]))
            self._files["word_offsets"].append(offsets[1:] + self.words)
            self.words += int(offsets[-1])
        return batch.select(texts.names)


def _stored_schema(schema: pa.Schema, info: Mapping[str, Any]) -> pa.Schema:
    """The schema that is stored: metadata columns of filterable types get one Arrow type each."""
    types = {column["column"]: column["type"] for column in info.get("metadata", ())}

    def stored(field: pa.Field) -> pa.Field:
        kind = types.get(field.name, "")
        if field.name == "row":
            return field.with_type(pa.int64())
        if kind == "timestamp":
            zone = "UTC" if getattr(field.type, "tz", None) else None
            return field.with_type(pa.timestamp("us", zone))
        return field.with_type(_TYPES.get(kind, field.type))

    return pa.schema([stored(field) for field in schema])


def create_table(database: Any, name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Any:
    """A table of streamed batches. An error of the stream, which LanceDB would wrap, is raised as it was."""
    failures: list[Exception] = []

    def stream() -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except Exception as error:
            failures.append(error)
            raise

    try:
        # Without the schema, LanceDB would guess from the names which columns are vectors.
        reader = pa.RecordBatchReader.from_batches(schema, stream())
        return database.create_table(name, reader, schema=schema)
    except (OSError, RuntimeError, ValueError) as error:
        raise failures[0] if failures else error from None


def _checked(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    last = -1
    for batch in batches:
        stored = pa.record_batch([_cast(batch, field) for field in schema], schema=schema)
        rows = stored["row"].to_numpy(zero_copy_only=False)
        if len(rows) and not (rows[0] > last and (np.diff(rows) > 0).all()):
            raise SearchfitError(f"passage rows must ascend, got {rows[:3]} ... after {last}.")
        for name in VECTORS:
            _check_vectors(stored, name)
        last = int(rows[-1]) if len(rows) else last
        yield stored


def _cast(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    try:
        # Finer timestamps lose their nanoseconds; everything else has to fit.
        column = batch[field.name].cast(field.type, safe=not pa.types.is_timestamp(field.type))
    except (KeyError, pa.ArrowException) as error:
        raise SearchfitError(f"column {field.name!r} is not {field.type} in every row: {error}") from error
    if not pa.types.is_floating(field.type):
        return column
    return pc.if_else(pc.is_nan(column), pa.scalar(None, field.type), column)


def _check_vectors(batch: pa.RecordBatch, name: str) -> None:
    column = batch[name]
    numbers = column.flatten() if name == "vector" else column.flatten().flatten()
    if not column.null_count and not numbers.null_count and np.isfinite(numbers.to_numpy()).all():
        return
    bad = next(row for row, vectors in enumerate(column) if not _finite(vectors))
    raise SearchfitError(
        f"the {name} of passage {batch['id'][bad].as_py()!r} holds numbers that are not finite.",
        "The model is damaged or its precision overflows: try --set model.precision=fp32.",
    )


def _finite(vectors: pa.Scalar) -> bool:
    return vectors.is_valid and bool(np.isfinite(np.array(vectors.as_py(), dtype=float)).all())


def vector_array(vectors: Floats) -> pa.FixedSizeListArray:
    """Vectors (n, d) as an Arrow column."""
    numbers = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(numbers, vectors.shape[1])


def bits_array(bits: npt.NDArray[np.uint8], offsets: Rows) -> pa.ListArray:
    """The words of passages, bits (m, size), as an Arrow column; those of passage i are from offsets[i] to
    offsets[i + 1]."""
    buffer = pa.py_buffer(np.ascontiguousarray(bits).tobytes())
    words = pa.FixedSizeBinaryArray.from_buffers(pa.binary(bits.shape[1]), len(bits), [None, buffer])
    return pa.ListArray.from_arrays(pa.array((offsets - offsets[0]).astype(np.int32)), words)


def bits_of(lists: pa.ListArray) -> npt.NDArray[np.uint8]:
    """What `bits_array` took: bits (m, size)."""
    words = lists.flatten()
    size = words.type.byte_width
    found = np.frombuffer(words.buffers()[1], np.uint8, len(words) * size, words.offset * size)
    return found.reshape(-1, size)


def list_offsets(lists: pa.ListArray) -> Rows:
    """Where each list of a column begins, and the end of the last, counted from the column's first."""
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
