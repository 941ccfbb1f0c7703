"""Export: the kept queries of a workspace with their passages, in the formats that other tools read.

All are written in passage order, a thousand passages in memory, into a folder beside the one asked for, which
then takes its place.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchfit.errors import SearchfitError, SettingsError
from searchfit.records import encoded_text
from searchfit.saving import asleep, open_new, write_line
from searchfit.screened import artefact
from searchfit.writing import sync_file

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("query", "passage", "query_id", "document_id")
SPLITS = ("train", "dev", "test")
SHARD_PAIRS = 1024
_MARK = ".searchfit-export.json"
"""Names the files of an export, so that the next one knows what it may replace."""

_CONTROL = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")


@dataclass(frozen=True, slots=True)
class Pair:
    """A kept query with its own passage; `text` is what was encoded, the title included."""

    query_id: str
    query: str
    passage_id: str
    text: str
    document_id: str
    split: str

    def row(self) -> tuple[str, ...]:
        """The cells of COLUMNS."""
        return self.query, self.text, self.query_id, self.document_id


@dataclass(frozen=True, slots=True)
class Exported:
    """How many pairs were written, into which files of the folder."""

    pairs: int
    files: tuple[str, ...]


def export_pairs(workspace: Path, folder: Path, format_: str, split: str = "all") -> Exported:
    """Write the kept queries of a split ("all": of every one) with their passages.

    tsv: query TAB passage without a header, white space and control characters made single spaces, in shards
    of 1,024 pairs. csv: with a header; a cell that a spreadsheet could take for a formula gets an
    apostrophe before it, which `sources.pairs` takes away again. jsonl, parquet: the same columns.
    passages: such a CSV with a row a passage, its queries in columns query_1, query_2 and so on.
    sentence-transformers: anchor and positive, a Parquet file a split. beir: every passage as the corpus,
    with qrels by split. Raises SettingsError for an unknown format or split and for a folder that holds
    anything but an earlier export, WorkspaceError for a workspace that has not come that far.
    """
    if format_ not in _WRITERS:
        raise SettingsError(f"there is no format {format_!r}.", f"The formats are: {', '.join(_WRITERS)}.")
    if split not in (*SPLITS, "all"):
        raise SettingsError(f"there is no split {split!r}.", "The splits are: train, dev, test, all.")
    check_place(folder)
    chosen = _Chosen(workspace, split, format_ in _BY_SPLIT)
    with made_folder(folder, {"format": format_, "split": split}) as beside:
        _WRITERS[format_](chosen, beside)
    return Exported(chosen.count, files_of(folder))


@contextlib.contextmanager
def made_folder(folder: Path, about: dict[str, Any]) -> Iterator[Path]:
    """A folder to write into, which takes the place of the one asked for once all is written and synced, with
    a mark that says what it holds. Raises SettingsError like `check_place`, SearchfitError where it cannot be
    written."""
    check_place(folder)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        yield beside
        files = files_of(beside)
        (beside / _MARK).write_text(json.dumps({**about, "files": files}), encoding="utf-8")
        for file in files:
            sync_file(beside / file)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(beside, folder)
    except OSError as error:
        raise SearchfitError(f"{folder} cannot be written: {error}.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def files_of(folder: Path) -> tuple[str, ...]:
    """The files of an export, without its mark."""
    found = (str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    return tuple(sorted(name for name in found if name != _MARK))


def check_place(folder: Path) -> None:
    """Raise SettingsError unless the folder is new, empty or an earlier export."""
    if not folder.exists():
        return
    ours: set[str] = set()
    if folder.is_dir():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            ours = {_MARK, *json.loads((folder / _MARK).read_text(encoding="utf-8"))["files"]}
        if {str(f.relative_to(folder)) for f in folder.rglob("*") if not f.is_dir()} <= ours:
            return
    raise SettingsError(
        f"{folder} is {'not empty' if folder.is_dir() else 'a file'}, and no earlier export.",
        "Name a new or empty folder.",
    )


class _Chosen:
    """The pairs of a workspace, read as they are asked for; `count` counts those that were."""

    def __init__(self, workspace: Path, split: str, by_split: bool) -> None:
        self.split = split
        self.count = 0
        self.passages = artefact(workspace, "passages.parquet", "split")
        self._pairs = artefact(workspace, "pairs.parquet", "screen")
        divided = by_split or split != "all"
        self._holdout = artefact(workspace, "holdout.parquet", "holdout") if divided else None

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that are asked for."""
        return SPLITS if self.split == "all" else (self.split,)

    def by_passage(self) -> Iterator[list[Pair]]:
        """The pairs of each passage that has some."""
        for _, group in groupby(self, key=lambda pair: pair.passage_id):
            yield list(group)

    @property
    def most(self) -> int:
        """The most pairs that a passage has, in whatever split."""
        import numpy as np
        import pyarrow.parquet as pq

        counts = np.bincount(pq.read_table(self._pairs, columns=["passage"])["passage"].to_numpy())
        return int(counts.max(initial=0))

    def __iter__(self) -> Iterator[Pair]:
        import pyarrow.parquet as pq

        from searchfit.screening import by_passage

        pairs = pq.read_table(self._pairs, columns=["id", "text", "passage", "document"])
        splits = pq.read_table(self._holdout, columns=["split"])["split"] if self._holdout else None
        own = pairs["passage"].to_numpy().astype("int64")
        for places, passage in by_passage(self.passages, own, ["id", "document_id", "title", "text"]):
            text = encoded_text(passage["title"], passage["text"])
            for query in pairs.take(places).to_pylist():
                split = splits[query["document"]].as_py() if splits else ""
                if self.split in ("all", split):
                    self.count += 1
                    ids = passage["id"], text, passage["document_id"], split
                    yield Pair(query["id"], query["text"], *ids)


def _write_tsv(pairs: Iterable[Pair], folder: Path) -> None:
    rest = iter(pairs)
    number = 0
    while (shard := list(islice(rest, SHARD_PAIRS))) or not number:
        with open_new(folder / f"pairs-{number:05d}.tsv") as file:
            file.writelines(f"{_clean(pair.query)}\t{_clean(pair.text)}\n" for pair in shard)
        number += 1


def _clean(text: str) -> str:
    return _CONTROL.sub(" ", text).strip()


def _write_csv(pairs: Iterable[Pair], folder: Path) -> None:
    with open_new(folder / "pairs.csv") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([asleep(cell) for cell in pair.row()] for pair in pairs)


def _write_passages(pairs: _Chosen, folder: Path) -> None:
    most = pairs.most
    with open_new(folder / "passages.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["document_id", "passage_id", "passage", *(f"query_{n + 1}" for n in range(most))])
        for own in pairs.by_passage():
            cells = [own[0].document_id, own[0].passage_id, own[0].text, *(pair.query for pair in own)]
            writer.writerow([asleep(cell) for cell in cells] + [""] * (most - len(own)))


def _write_jsonl(pairs: Iterable[Pair], folder: Path) -> None:
    with open_new(folder / "pairs.jsonl") as file:
        for pair in pairs:
            write_line(file, dict(zip(COLUMNS, pair.row(), strict=True)))


def _write_parquet(pairs: Iterable[Pair], folder: Path) -> None:
    with _Tables(COLUMNS) as tables:
        tables.open(folder / "pairs.parquet")
        for pair in pairs:
            tables.add("pairs", pair.row())


def _write_sentence_transformers(pairs: _Chosen, folder: Path) -> None:
    with _Tables(("anchor", "positive")) as tables:
        for split in pairs.splits:
            tables.open(folder / f"{split}.parquet")
        for pair in pairs:
            tables.add(pair.split, (pair.query, pair.text))


def _write_beir(pairs: _Chosen, folder: Path) -> None:
    import pyarrow.parquet as pq

    (folder / "qrels").mkdir()
    with contextlib.ExitStack() as stack:
        corpus = stack.enter_context(open_new(folder / "corpus.jsonl"))
        with pq.ParquetFile(pairs.passages) as file:
            for batch in file.iter_batches(1024, columns=["id", "document_id", "title", "text"]):
                for row in batch.to_pylist():
                    inner = {"document_id": row["document_id"]}
                    write_line(
                        corpus,
                        {"_id": row["id"], "title": row["title"], "text": row["text"], "metadata": inner},
                    )
        queries = stack.enter_context(open_new(folder / "queries.jsonl"))
        qrels = {
            split: stack.enter_context(open_new(folder / "qrels" / f"{split}.tsv")) for split in pairs.splits
        }
        for judged in qrels.values():
            judged.write("query-id\tcorpus-id\tscore\n")
        for pair in pairs:
            write_line(queries, {"_id": pair.query_id, "text": pair.query})
            qrels[pair.split].write(f"{pair.query_id}\t{pair.passage_id}\t1\n")


class _Tables:
    """Parquet files of string columns, by name, written a shard at a time."""

    def __init__(self, columns: Iterable[str]) -> None:
        import pyarrow as pa

        self._schema = pa.schema([(name, pa.string()) for name in columns])
        self._files: dict[str, Any] = {}
        self._rows: dict[str, list[tuple[str, ...]]] = {}

    def open(self, path: Path) -> None:
        """Begin a file; its name without the extension is the table's."""
        import pyarrow.parquet as pq

        self._files[path.stem] = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._rows[path.stem] = []

    def add(self, name: str, row: tuple[str, ...]) -> None:
        """Add a row to a table."""
        self._rows[name].append(row)
        if len(self._rows[name]) == SHARD_PAIRS:
            self._flush(name)

    def _flush(self, name: str) -> None:
        self._files[name].write_table(self._table(self._rows[name]))
        self._rows[name].clear()

    def _table(self, rows: list[tuple[str, ...]]) -> pa.Table:
        import pyarrow as pa

        columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in self._schema]
        return pa.table(columns, schema=self._schema)

    def __enter__(self) -> _Tables:
        return self

    def __exit__(self, *_: object) -> None:
        for name, file in self._files.items():
            self._flush(name)
            file.close()


_WRITERS: dict[str, Callable[[_Chosen, Path], None]] = {
    "tsv": _write_tsv,
    "csv": _write_csv,
    "passages": _write_passages,
    "jsonl": _write_jsonl,
    "parquet": _write_parquet,
    "sentence-transformers": _write_sentence_transformers,
    "beir": _write_beir,
}
_BY_SPLIT = ("sentence-transformers", "beir")
