"""Opening a store outside of the workspace, pushing the index there, and which store a workspace reads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from searchfit.errors import SearchfitError, SettingsError, StoreError, WorkspaceError
from searchfit.filters import TYPES
from searchfit.filters.tree import plain
from searchfit.records import PASSAGES
from searchfit.stores import Rows, Store
from searchfit.stores.address import Address
from searchfit.stores.remote import FORMAT, IDENTITY, ROWS_OF, RemoteStore, again, records
from searchfit.stores.segment import OWN
from searchfit.stores.versions import open_index
from searchfit.workspace import Workspace, mirrored
from searchfit.writing import write_json

ENVIRONMENT = "SEARCHFIT_STORE_URL"
"""The variable whose address, password and all, is taken in place of the one that the workspace keeps."""

BATCH = 500
"""Passages that are sent together."""


class Progress(Protocol):
    """Told how far a push is."""

    def __call__(self, label: str, done: int, total: int) -> None:
        """`done` of `total` passages are through."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did: passages sent, deleted, and found there already."""

    store: str
    sent: int
    deleted: int
    kept: int


def connect(url: str, local: Store | None = None) -> RemoteStore:
    """The store at an address, whatever it holds.

    Raises SettingsError for an address that is none, MissingExtraError without the store's client,
    StoreError when the store cannot be reached.
    """
    address = Address(url)
    if address.scheme.startswith("postgres"):
        from searchfit.stores.pgvector import PgVectorStore

        return PgVectorStore(address, local)
    if address.scheme.startswith("qdrant"):
        from searchfit.stores.qdrant import QdrantStore

        return QdrantStore(address, local)
    from searchfit.stores.pinecone import PineconeStore

    return PineconeStore(address, local)


def open_remote(url: str, local: Store) -> RemoteStore:
    """The index at an address, for reading.

    Raises StoreError unless it is the finished push of the local index, and what `connect` raises.
    """
    store = connect(url, local)
    try:
        _check(store, local.info)
    except StoreError:
        store.close()
        raise
    return store


def _check(store: RemoteStore, info: Mapping[str, Any]) -> None:
    held, record = store.info, store.record or {}
    hint = again(store.address)
    if record.get("format") != FORMAT:
        raise StoreError(f"{store.address} has another format.", again(store.address, " --replace"))
    if held.get("lineage") != info.get("lineage"):
        raise StoreError(
            f"{store.address} holds the index of another fit.", again(store.address, " --replace")
        )
    if not record["finished"]:
        raise StoreError(f"the push to {store.address} was not finished.", hint)
    differing = [name for name in IDENTITY if held.get(name) != info.get(name)]
    if differing == ["generation"]:
        there, here = held.get("generation"), info.get("generation")
        raise StoreError(
            f"{store.address} is not up to date: its generation is {there}, here it is {here}.",
            again(store.address) + "\nOnly what changed is sent.",
        )
    if differing:
        name = differing[0]
        there, here = (json.dumps(each.get(name), ensure_ascii=False)[:200] for each in (held, info))
        raise StoreError(
            f"{store.address} does not hold this index: its {name} is {there}, here it is {here}"
            + (f" ({', '.join(differing[1:])} differ too)." if differing[1:] else "."),
            hint,
        )


def push(
    url: str,
    local: Store,
    replace: bool = False,
    progress: Progress | None = None,
    batch: int = BATCH,
) -> Pushed:
    """Bring the index at an address to the state of the local one: passages that are new are sent, those
    that are gone are deleted, `batch` at a time. An interrupted push is carried on by the same call.

    Raises StoreError when the place holds the index of another fit, unless `replace`, and what `connect`
    raises.
    """
    store = connect(url, local)
    try:
        return _push(store, local, replace, progress, batch)
    finally:
        store.close()


def _push(store: RemoteStore, local: Store, replace: bool, progress: Progress | None, batch: int) -> Pushed:
    info = dict(local.info)
    record = {"format": FORMAT, "finished": False, "unheld": _unheld(store, local), "info": info}
    if store.record is not None and not _fits(store.record, info):
        if not replace:
            raise StoreError(
                f"{store.address} holds another index: the one of an earlier or another fit.",
                again(store.address, " --replace"),
            )
        store.drop()
    if store.record is None:
        store.create(record)
    else:
        store.write_record(record)
    there = store.rows()
    live = np.concatenate([np.empty(0, np.int64), *(b["row"].to_numpy() for b in local.scan(["row"]))])
    gone, new = np.setdiff1d(there, live), np.setdiff1d(live, there)
    for start in range(0, len(gone), batch):
        store.delete(gone[start : start + batch])
    sent = 0
    for rows in _batches(local, new, batch):
        store.upsert(records(rows, info["metadata"]))
        sent += rows.num_rows
        if progress is not None:
            progress("push", sent, len(new))
    store.ready()
    store.write_record({**record, "finished": True})
    return Pushed(str(store.address), len(new), len(gone), len(there) - len(gone))


def _fits(record: Mapping[str, Any], info: Mapping[str, Any]) -> bool:
    """Whether stored rows may stay where they are."""
    same = all(record["info"].get(name) == info.get(name) for name in ROWS_OF)
    return bool(record.get("format") == FORMAT and same)


def _batches(local: Store, new: Rows, size: int) -> Iterator[pa.RecordBatch]:
    """The new rows of the local index, as records, at most so many at a time."""
    if not len(new):
        return
    metadata = [column["column"] for column in local.info["metadata"]]
    wanted = ["row", *PASSAGES.names, "vector", "sentence_vectors", *metadata]
    for batch in local.scan(wanted, size):
        chosen = np.isin(batch["row"].to_numpy(), new, assume_unique=True)
        if chosen.all():
            yield batch
        elif chosen.any():
            yield batch.filter(pa.array(chosen))


def _unheld(store: RemoteStore, local: Store) -> list[str]:
    """The stored columns with a value that the store cannot hold so that filters mean the same there."""
    kinds = {column["column"]: column["type"] for column in local.info["metadata"]}
    columns = [*OWN.values(), *(column for column, kind in kinds.items() if kind in TYPES)]
    unheld: set[str] = set()
    for batch in local.scan(columns):
        for column in columns:
            if column not in unheld:
                values = (plain(value) for value in batch[column].to_pylist())
                if not all(value is None or store.holds(column, value) for value in values):
                    unheld.add(column)
    return sorted(unheld)


def serve_from(
    path: Path,
    url: str,
    replace: bool = False,
    progress: Progress | None = None,
    batch: int = BATCH,
) -> Pushed:
    """Push the index of a workspace to a store, and search there from now on.

    Raises WorkspaceError when the workspace has no index or another process writes to it, and what `push`
    raises.
    """
    workspace = Workspace(path)
    workspace.require()
    with workspace.lock():
        pushed = push(url, open_index(workspace.served_index()).store, replace, progress, batch)
        remember(path, url)
    return pushed


def withdraw(path: Path, url: str) -> None:
    """Remove an index from a store; a workspace that searched there searches its own index again.

    Raises StoreError where there is no index, and what `connect` raises.
    """
    store = connect(url)
    try:
        if store.record is None:
            raise StoreError(f"there is no index in {store.address}.")
        store.drop()
    finally:
        store.close()
    searched = kept(path)
    if searched is not None and str(Address(searched)) == str(store.address):
        remember(path, None)


def remember(workspace: Path, url: str | None) -> None:
    """Keep the address, without a password, of the store that a workspace searches; None: its own index."""
    if url is not None:
        write_json(_file(workspace), {"store": str(Address(url))})
        return
    place = Workspace(workspace)
    with place.lock() if mirrored(workspace) else nullcontext():
        place.remove(_file(workspace).name)


def kept(workspace: Path) -> str | None:
    """The address that a workspace reads from, or what the environment says in its place; None for its own
    index. Raises WorkspaceError when the note of it is damaged."""
    file = _file(workspace)
    try:
        url: str = json.loads(file.read_text(encoding="utf-8"))["store"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise WorkspaceError(
            f"{file} is damaged.", "Go back to the workspace's index: --store local."
        ) from error
    return os.environ.get(ENVIRONMENT, url)


def target(workspace: Path, url: str | None) -> str:
    """The address that was given, or else the one that a workspace reads from. Raises SettingsError where
    there is neither."""
    found = url or kept(workspace)
    if found is None:
        raise SettingsError(
            f"{workspace} reads from its own index, and no store is named.", "Name one with --store."
        )
    return found


def standing(workspace: Path, local: Store) -> str:
    """Why the store that a workspace reads from cannot be searched, for people: it cannot be reached, or is
    behind the workspace's index; "" where all is well."""
    try:
        store = attached(workspace, local)
    except SearchfitError as error:
        return f"{error.message} {error.hint}".strip()
    if isinstance(store, RemoteStore):
        store.close()
    return ""


def attached(workspace: Path, local: Store) -> Store:
    """The store that a workspace reads: its own index, or the one elsewhere that was pushed from it."""
    url = kept(workspace)
    return local if url is None else open_remote(url, local)


def _file(workspace: Path) -> Path:
    return workspace / "store.json"
