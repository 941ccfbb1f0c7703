"""An index that grows: add, change and remove documents of a fitted workspace, and merge what that leaves.

Only what changed is encoded, told by a hash of its content. Each change becomes a new version of the index
(see stores.versions), which is safe once it is acknowledged, and which readers see whole or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from searchfit.additions import Encoded, read_documents
from searchfit.catalog import Catalog
from searchfit.config import Settings, load_settings
from searchfit.errors import SettingsError, WorkspaceError
from searchfit.filters import parse
from searchfit.indexing import Material, hashed, write_segment
from searchfit.merging import added_documents, merge, small_tail, worth_merging
from searchfit.records import METADATA_PREFIX
from searchfit.search import Searcher
from searchfit.sources import open_source
from searchfit.stages import Progress, silent
from searchfit.stores import Rows
from searchfit.stores.versions import (
    Opened,
    Version,
    grown_folder,
    open_index,
    tidy,
    write_deleted,
    write_version,
)
from searchfit.workspace import Workspace, write_table


@dataclass(frozen=True, slots=True)
class Growth:
    """What a change did: documents added, changed, removed and unchanged, passages that were encoded and that
    kept their vectors, ids that were to be removed and are not there, the passages and the generation of the
    version that counts now, and notes for people."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    encoded: int = 0
    reused: int = 0
    missing: tuple[str, ...] = ()
    passages: int = 0
    generation: int = 0
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def add(workspace: Path, source: Settings, progress: Progress = silent) -> Growth:
    """Add the documents of a source (`source.source` and its columns): new ids are added, those of another
    content replaced, equal ones left.

    Raises SourceError and WorkspaceError, and SettingsError for a source without ids, whose row numbers would
    replace documents of the same numbers.
    """
    if not open_source(source.source, source.pairs).columns.id:
        raise SettingsError(
            f"the documents of {source.source.source} have no ids, and the numbers of their rows would "
            "replace documents that have the same numbers.",
            "Name the column of the ids with --id, or make the index equal to a source: searchfit update",
        )
    with _change(workspace, progress) as change:
        return change.take_in(source, keep_others=True)


def update(workspace: Path, source: Settings, progress: Progress = silent) -> Growth:
    """Make the index equal to a source: what is new is added, what changed replaced, what is gone removed.
    Raises SourceError and WorkspaceError."""
    with _change(workspace, progress) as change:
        return change.take_in(source, keep_others=False)


def remove(workspace: Path, ids: Sequence[str] = (), where: str = "", progress: Progress = silent) -> Growth:
    """Remove documents by id, and those with a passage that a filter lets through; ids that are not there are
    told. Raises FilterError for a filter that does not fit, SettingsError when neither is given."""
    if not ids and not where:
        raise SettingsError("nothing is named to be removed.", "Give --id ID or --where FILTER.")
    with _change(workspace, progress) as change:
        return change.take_out(ids, where)


def optimize(workspace: Path, progress: Progress = silent) -> Growth:
    """Merge the segments that additions left and drop what was deleted; what is served stays the same."""
    with _change(workspace, progress) as change:
        store = change.opened.store
        version, deleted = change.merged(change.opened.version, worth_merging(store))
        return change.commit(version, deleted, Growth())


def source_settings(workspace: Path, values: Mapping[str, Any], overrides: Sequence[str] = ()) -> Settings:
    """The settings that a workspace was fitted with, and other values: how an addition is read."""
    place = Workspace(workspace)
    place.require()
    return load_settings(place.settings_file, overrides, values)


def left_behind(workspace: Workspace, index: str) -> list[str]:
    """What a new fit has undone of the changes to the index before it, for people: a fit reads its source
    alone. Added documents that the source has not are kept in added/."""
    try:
        opened = open_index(workspace.artefact(index))
    except WorkspaceError:
        return []  # it is damaged, which may be why there is a new one
    source = pq.read_table(workspace.artefact("documents.parquet"), columns=["id"])["id"].combine_chunks()
    notes: list[str] = []
    tables = [
        table for segment in opened.store.segments if (table := added_documents(segment, opened.deleted))
    ]
    lost = pa.concat_tables(tables) if tables else pa.table({"id": pa.array([], pa.string())})
    lost = lost.filter(pc.invert(pc.is_in(lost["id"], source)))
    if len(lost):
        file = workspace.artefact(f"added/{Path(index).name}.parquet")
        plain = [name.removeprefix(METADATA_PREFIX) for name in lost.schema.names]
        # A column of the user's that has the name of one of ours keeps its long name.
        names = [
            long if plain.count(name) > 1 else name
            for long, name in zip(lost.schema.names, plain, strict=True)
        ]
        write_table(file, lost.rename_columns(names))
        notes.append(
            f"{len(lost)} documents that were added since the last fit are not in the source; to have them "
            f"back: searchfit add {workspace.path} {file} --text text --id id --title title"
        )
    whole = pq.read_table(opened.base.folder / "catalog.parquet", columns=["id"])["id"]
    there = pa.array(list(Catalog.of(opened).places), pa.string())
    back = pc.and_(pc.invert(pc.is_in(whole, there)), pc.is_in(whole, source))
    if count := pc.sum(back).as_py():
        notes.append(
            f"{count} documents that were removed since the last fit are in the source, and are back"
        )
    return notes


@contextmanager
def _change(path: Path, progress: Progress) -> Iterator[_Change]:
    """The right to change the index of a workspace. What a killed change left is removed first."""
    workspace = Workspace(path)
    workspace.require()
    with workspace.lock():
        served = workspace.served()
        if served is None:
            raise WorkspaceError(f"{path} has no finished search engine.", "Run searchfit fit to its end.")
        scratch = workspace.partial("grow")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            change = _Change(Searcher(path / served["index"]), scratch, progress)
            opened = change.opened
            grown_folder(opened.index).mkdir(exist_ok=True)
            tidy(opened.index, opened.version, opened.before)
            yield change
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


class _Change:
    """A change on its way from one version to the next."""

    def __init__(self, searcher: Searcher, scratch: Path, progress: Progress) -> None:
        self.searcher, self.scratch, self.progress = searcher, scratch, progress
        self.opened: Opened = searcher.corpus.opened
        self.names = [METADATA_PREFIX + column["name"] for column in self.opened.store.info["metadata"]]

    def take_in(self, source: Settings, keep_others: bool) -> Growth:
        """Add and replace; without `keep_others` also remove what the source has not."""
        notes = read_documents(self.scratch, self.opened.store, source, self.progress)
        known = Catalog.of(self.opened)
        file = self.scratch / "documents.parquet"
        fresh: list[int] = []
        replaced: list[str] = []
        ids: set[str] = set()
        for place, (id_, _, whole) in enumerate(hashed(file, self.names)):
            ids.add(id_)
            at = known.places.get(id_)
            if at is None or known.wholes[at] != whole:
                fresh.append(place)
                replaced += [] if at is None else [id_]
        gone = [] if keep_others else [id_ for id_ in known.places if id_ not in ids]
        growth = Growth(len(fresh) - len(replaced), len(replaced), len(gone), len(ids) - len(fresh))
        version = self.opened.version
        if fresh:
            pq.write_table(pq.read_table(file).take(fresh), file)
            version, growth = self._added(known, growth)
        rows = known.rows_of([*replaced, *gone])
        return self._finished(version, rows, replace(growth, notes=tuple(notes)))

    def take_out(self, ids: Sequence[str], where: str) -> Growth:
        """Remove."""
        known = Catalog.of(self.opened)
        wanted = dict.fromkeys(ids)
        missing = tuple(id_ for id_ in wanted if id_ not in known.places)
        if where:
            store = self.opened.store
            wanted |= dict.fromkeys(known.owners(store.matching(parse(where, store.columns))))
        there = [id_ for id_ in wanted if id_ in known.places]
        growth = Growth(removed=len(there), missing=missing)
        return self._finished(self.opened.version, known.rows_of(there), growth)

    def _added(self, known: Catalog, growth: Growth) -> tuple[Version, Growth]:
        """A version with a segment of the documents in the scratch folder."""
        version = self.opened.version
        made = Encoded(self.scratch, self.searcher, known, self.progress)
        count, documents = made.corpus.count, pq.read_metadata(made.documents).num_rows
        growth = replace(growth, encoded=len(made.fresh), reused=count - len(made.fresh))
        if not count:
            return version, growth
        name = f"segment-{version.generation + 1}"
        material = Material(
            made.documents, made.passages, made.corpus, version.next_row, version.next_document
        )
        folder = grown_folder(self.opened.index) / name
        write_segment(folder, material, self.opened.base.info, self.progress)
        # The texts stay with the index: a later fit reads the source alone, see `left_behind`.
        write_table(folder / "documents.parquet", pq.read_table(made.documents))
        return (
            replace(
                version,
                segments=(*version.segments, name),
                next_row=version.next_row + count,
                next_document=version.next_document + documents,
            ),
            growth,
        )

    def _finished(self, version: Version, gone: Rows, growth: Growth) -> Growth:
        """Commit a change, and merge small segments when there are many."""
        if version == self.opened.version and not len(gone):
            return self._told(growth, version.generation)
        growth = self.commit(version, np.union1d(self.opened.deleted, gone), growth)
        sizes = [segment.count for segment in self.opened.store.segments]
        tail = min(small_tail(sizes), len(sizes) - 1)
        if tail < self.searcher.settings.merge:
            return growth
        merged, deleted = self.merged(self.opened.version, tail)
        return self.commit(merged, deleted, growth)

    def merged(self, version: Version, tail: int) -> tuple[Version, Rows]:
        """A version whose last `tail` segments are one, and the rows that are deleted in it."""
        store = self.opened.store
        if not tail:
            return version, self.opened.deleted
        parts = store.segments[-tail:]
        rows = np.concatenate([segment.rows for segment in parts])
        names = list(version.segments[:-tail])
        living = np.setdiff1d(rows, self.opened.deleted)
        if len(living):
            names.append(f"segment-{version.generation + 1}-merged")
            folder = grown_folder(self.opened.index) / names[-1]
            questions = self.opened.base.folder / "questions.npy"
            if questions.exists():
                folder.mkdir(exist_ok=True)
                shutil.copyfile(questions, folder / questions.name)
            merge(folder, parts, store, self.progress)
        elif not names:
            return version, self.opened.deleted  # an index needs a segment, be it an empty one
        return replace(version, segments=tuple(names)), np.setdiff1d(self.opened.deleted, rows)

    def commit(self, version: Version, deleted: Rows, growth: Growth) -> Growth:
        """Make a version the one that counts, if it is another one."""
        before = self.opened.version
        if version == before and np.array_equal(deleted, self.opened.deleted):
            return self._told(growth, before.generation)
        generation = before.generation + 1
        name = write_deleted(self.opened.index, generation, deleted)
        write_version(self.opened.index, replace(version, generation=generation, deleted=name), before)
        self.opened = self.searcher.corpus.opened
        return self._told(growth, generation)

    def _told(self, growth: Growth, generation: int) -> Growth:
        return replace(growth, passages=self.opened.store.count(), generation=generation)
