"""An index that grows: add, change and remove documents of a fitted workspace, and merge what that leaves.

Only what changed is encoded, told by a hash of its content. Each change becomes a new version of the index
(see stores.versions), which is safe once it is acknowledged, and which readers see whole or not at all.
"""

from __future__ import annotations

import shlex
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
from searchfit.config import Settings, SqlSettings, load_settings
from searchfit.errors import SettingsError, WorkspaceError
from searchfit.filters import parse
from searchfit.indexing import Material, document_columns, hashed, seen, write_segment
from searchfit.merging import added_documents, merge, small_tail, worth_merging
from searchfit.records import METADATA_PREFIX, plain_names
from searchfit.search import Searcher
from searchfit.sources import open_source
from searchfit.stages import Progress, silent
from searchfit.stores import Rows
from searchfit.stores.address import Address
from searchfit.stores.push import kept
from searchfit.stores.versions import (
    Opened,
    Version,
    grown_folder,
    open_index,
    tidy,
    write_deleted,
    write_version,
)
from searchfit.workspace import Workspace
from searchfit.writing import write_table


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
    content replaced, equal ones left. Of a database with sql.updated_column only what changed since the last
    fit, addition or update from it is read.

    Raises SourceError and WorkspaceError, and SettingsError for a source without ids, whose row numbers would
    replace documents of the same numbers.
    """
    opened = open_source(source)
    if not opened.columns.id:
        raise SettingsError(
            f"the documents of {source.source.source} have no ids, and the numbers of their rows would "
            "replace documents that have the same numbers.",
            "Name the column of the ids with --id, or make the index equal to a source: searchfit update",
        )
    with _change(workspace, progress) as change:
        return change.take_in(change.since(opened.key, source), keep_others=True)


def update(workspace: Path, source: Settings, progress: Progress = silent) -> Growth:
    """Make the index equal to a source: what is new is added, what changed replaced, what is gone removed.
    Raises SourceError and WorkspaceError, and SettingsError where only a part of the source is to be read."""
    if source.sql.since:
        raise SettingsError(
            "update removes what a source does not have, and sql.since leaves most of it out.",
            "Leave out sql.since, or use searchfit add.",
        )
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
    """The settings that a workspace was fitted with, and other values: how an addition is read. How the fit
    read its database holds for that alone."""
    place = Workspace(workspace)
    place.require()
    base = load_settings(place.settings_file)
    read = base.model_copy(update={"sql": SqlSettings()})
    wanted = load_settings(values=values, base=read)
    if wanted.source.source == base.source.source:
        kept = {"password_file", "batch_rows"} if wanted.sql.query or wanted.sql.table else None
        read = read.model_copy(update={"sql": SqlSettings(**base.sql.model_dump(include=kept))})
    return load_settings(None, overrides, values, read)


def left_behind(workspace: Workspace, index: str) -> list[str]:
    """What a new fit undoes of the changes to the index before it, for people: a fit reads its source alone.
    Documents that were added or changed, and are not so in the source, are kept in added/."""
    try:
        opened = open_index(workspace.artefact(index))
    except WorkspaceError:
        return []  # it is damaged, which may be why there is a new one
    documents = workspace.artefact("documents.parquet")
    source = pq.read_table(documents, columns=["id"])["id"].combine_chunks()
    notes: list[str] = []
    lost = _lost(opened, documents)
    if lost is not None and len(lost):
        file = workspace.artefact(f"added/{Path(index).name}.parquet")
        write_table(file, lost.rename_columns(plain_names(lost.schema.names)))
        command = shlex.join(["searchfit", "add", str(workspace.path), str(file)])
        notes.append(
            f"{len(lost)} documents that were added or changed since the last fit are not so in the source; "
            f"to have them back: {command} --text text --id id --title title"
        )
    whole = pq.read_table(opened.base.folder / "catalog.parquet", columns=["id"])["id"]
    there = pa.array(list(Catalog.of(opened).places), pa.string())
    back = pc.and_(pc.invert(pc.is_in(whole, there)), pc.is_in(whole, source))
    if count := pc.sum(back).as_py():
        notes.append(
            f"{count} documents that were removed since the last fit are in the source, and are back"
        )
    return notes


def _lost(opened: Opened, documents: Path) -> pa.Table | None:
    """The living documents that came after the fit and are not, or are others, among those of a source."""
    parts = [table for one in opened.store.segments if (table := added_documents(one, opened.deleted))]
    if not parts:
        return None
    added = pa.concat_tables(parts, promote_options="default")
    there = pq.read_schema(documents).names
    names = [name for name in added.schema.names if name.startswith(METADATA_PREFIX) and name in there]
    ids = set(added["id"].to_pylist())
    same = {(id_, whole) for id_, _, whole in hashed(documents, names) if id_ in ids}
    return added.filter(pa.array([(id_, whole) not in same for id_, _, whole in hashed(added, names)]))


@contextmanager
def _change(path: Path, progress: Progress) -> Iterator[_Change]:
    """The right to change the index of a workspace. What a killed change left is removed first."""
    workspace = Workspace(path)
    workspace.require()
    with workspace.lock():
        index = workspace.served_index()
        scratch = workspace.partial("grow")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            change = _Change(Searcher(index), scratch, progress)
            if url := kept(path):
                command = shlex.join(["searchfit", "index", str(path)])
                change.behind = f"search reads from {Address(url)}; what changed gets there with: {command}"
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
        self.behind = ""
        """What to tell people once the index has another version than the store that they search."""
        self.names = document_columns(self.opened.store.info)

    def since(self, key: str, source: Settings) -> Settings:
        """The settings to read only what has changed since the index last read this source."""
        held = self.opened.version.seen.get(key, "")
        if source.sql.since or not held:
            return source
        return source.model_copy(update={"sql": source.sql.model_copy(update={"since": held})})

    def take_in(self, source: Settings, keep_others: bool) -> Growth:
        """Add and replace; without `keep_others` also remove what the source has not."""
        notes = read_documents(self.scratch, self.opened, source, self.progress)
        known = Catalog.of(self.opened)
        file = self.scratch / "documents.parquet"
        far = seen(pq.read_schema(file))
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
        version = replace(self.opened.version, seen={**self.opened.version.seen, **far})
        if fresh:
            pq.write_table(pq.read_table(file).take(fresh), file)
            version, growth = self._added(version, known, growth)
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

    def _added(self, version: Version, known: Catalog, growth: Growth) -> tuple[Version, Growth]:
        """The version with a segment of the documents in the scratch folder besides."""
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
        if self.behind and self.behind not in growth.notes:
            growth = replace(growth, notes=(*growth.notes, self.behind))
        return self._told(growth, generation)

    def _told(self, growth: Growth, generation: int) -> Growth:
        return replace(growth, passages=self.opened.store.count(), generation=generation)
