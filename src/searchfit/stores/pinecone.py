"""An index in Pinecone: pinecone://index-name?namespace=NAME, the key in PINECONE_API_KEY.

Passages lie in the namespace NAME, their sentences in NAME-sentences, the record of the index in NAME-info.
An index that is missing is created (serverless; cloud=aws and region=us-east-1 unless the address says
otherwise). Keyword search, stored vectors, whole scans, and filters that Pinecone has no exact means for are
served by the workspace's own index, and so are texts that do not fit into Pinecone's 40 kB a record.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from searchfit.errors import MissingExtraError, StoreError
from searchfit.filters import Compare, Filter, Member, Missing
from searchfit.stores import Floats, Rows, Store, VectorColumn, checked
from searchfit.stores.address import Address
from searchfit.stores.fields import dump, load
from searchfit.stores.pinecone_filters import condition
from searchfit.stores.remote import Atom, Record, RemoteStore, best_first, in_order, retried
from searchfit.stores.segment import OWN
from searchfit.stores.values import exact, flat

MAX_METADATA = 40_000
"""Bytes of metadata that Pinecone takes with a record."""

_MAX_TEXT = 1_000  # bytes of a value to filter on
_MAX_K = 10_000  # the most that one query gives, and the most values in a filter
_WITH_METADATA = 100  # up to so many results of a query come with their metadata
_UPSERT, _FETCH, _DELETE = 100, 100, 1_000
_PATIENCE, _READ_PATIENCE = 120.0, 10.0  # seconds to wait for a server that went away, writing and reading
_VISIBLE = 60.0  # seconds until what was written has to be seen
_OPTIONS = ("namespace", "host", "cloud", "region")
_HINT = "Check the address, the network and PINECONE_API_KEY."
_TRANSIENT = (408, 429, 500, 502, 503, 504)
Result = TypeVar("Result")


class PineconeStore(RemoteStore):
    """See RemoteStore. Safe to share between threads.

    Raises StoreError when Pinecone cannot be reached or refuses, MissingExtraError without its client.
    """

    def __init__(self, address: Address, local: Store | None = None) -> None:
        try:
            import pinecone
        except ImportError as error:
            raise MissingExtraError("the Pinecone store", "pinecone") from error
        from pinecone.errors import exceptions

        self._library = pinecone
        self._errors = (exceptions.PineconeError,)
        self._lost = (exceptions.PineconeConnectionError, exceptions.PineconeTimeoutError)
        self._absent = exceptions.NotFoundError
        self._options = address.options(_OPTIONS)
        self._space = address.name("namespace")
        self.address = address
        self._client = self._run(lambda: pinecone.Pinecone(retry_config=pinecone.RetryConfig(max_retries=0)))
        self._held_index: Any = None
        self._seen: dict[int, dict[str, Any]] = {}
        super().__init__(address, local)

    def create(self, record: Mapping[str, Any]) -> None:
        """See RemoteStore."""
        info = record["info"]
        metric = "dotproduct" if info["similarity"] == "dot" else "cosine"
        if "host" not in self._options and not self._run(lambda: self._client.has_index(self.address.host)):
            place = {"cloud": "aws", "region": "us-east-1"} | self._options
            spec = self._library.ServerlessSpec(cloud=place["cloud"], region=place["region"])
            self._run(
                lambda: self._client.create_index(
                    self.address.host, spec=spec, dimension=info["dimension"], metric=metric
                )
            )
        stats = self._run(partial(self._index_call, "describe_index_stats"))
        if stats.dimension not in {None, info["dimension"]} or stats.metric not in {None, metric}:
            raise StoreError(
                f"the index {self.address.host!r} has {stats.dimension} dimensions compared by "
                f"{stats.metric}, the model gives {info['dimension']} to be compared by {metric}.",
                "Name another index: pinecone://NAME.",
            )
        if any(space in stats.namespaces for space in (self._space, f"{self._space}-sentences")):
            raise StoreError(
                f"{self.address} has a namespace {self._space!r} that is not an index of searchfit.",
                "Name another one: ?namespace=NAME.",
            )
        self.write_record(record)

    def write_record(self, record: Mapping[str, Any]) -> None:
        """See RemoteStore. Returns when Pinecone shows it, which takes some seconds at times."""
        vector = [1.0, *[0.0] * (record["info"]["dimension"] - 1)]
        metadata = {"record": dump(record)}
        self._fits_in(metadata, "the description of the index")
        item = {"id": "info", "values": vector, "metadata": metadata}
        self._upsert(f"{self._space}-info", [item])
        self.record = dict(record)
        until = time.monotonic() + _VISIBLE
        while self._read_record() != self.record:
            if time.monotonic() > until:
                raise StoreError(f"{self.address} does not show what was written.", "Push once more.")
            time.sleep(0.5)

    def upsert(self, records: Sequence[Record]) -> None:
        """See RemoteStore. Vectors of zeros, which Pinecone refuses, are left out."""
        passages, sentences = [], []
        for record in records:
            values = {name: flat(each) for name, each in record.values.items() if self.holds(name, each)}
            own = values | {"row": record.row}
            sentences += [
                {"id": f"{record.row}-{place}", "values": vector.tolist(), "metadata": own}
                for place, vector in enumerate(record.sentences)
                if vector.any()
            ]
            if record.vector.any():
                metadata = self._metadata(record, values)
                item = {"id": str(record.row), "values": record.vector.tolist(), "metadata": metadata}
                passages.append(item)
        # Sentences first: a passage that is there has all of its own.
        for space, items in ((f"{self._space}-sentences", sentences), (self._space, passages)):
            for start in range(0, len(items), _UPSERT):
                self._upsert(space, items[start : start + _UPSERT])

    def delete(self, rows: Rows) -> None:
        """See RemoteStore."""
        sentences = f"{self._space}-sentences"
        for row in rows.tolist():
            self._delete(sentences, list(self._ids(sentences, f"{row}-")))
        self._delete(self._space, [str(row) for row in rows.tolist()])

    def drop(self) -> None:
        """See RemoteStore. The namespaces go, the index stays."""
        if self.record is not None:
            for space in (self._space, f"{self._space}-sentences", f"{self._space}-info"):
                self._run(partial(self._emptied, space), _PATIENCE)
        self.record = None

    def rows(self) -> Rows:
        """See RemoteStore."""
        return np.sort(np.array([int(each) for each in self._ids(self._space)], np.int64))

    def count(self) -> int:
        """See Store."""
        spaces = self._run(partial(self._index_call, "describe_index_stats")).namespaces
        return int(spaces[self._space].vector_count) if self._space in spaces else 0

    def nearest(
        self, vector: Floats, column: VectorColumn, k: int, where: Filter | None = None
    ) -> tuple[Rows, Floats]:
        """See Store; at most the 10,000 nearest. Raises StoreError for a filter that Pinecone cannot express,
        lets more than 10,000 passages through, and yet not enough of the nearest."""
        query = checked(vector, self.info["dimension"]).tolist()
        if k < 1:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        passing, rows = self._filter(where)
        space = self._space if column == "vector" else f"{self._space}-sentences"
        many = _MAX_K if rows is not None else min(_MAX_K, k if column == "vector" else 4 * k)
        while True:
            found = self._query(space, query, many, passing)
            best: dict[int, float] = {}
            for match in found:
                row = int(match.id.partition("-")[0])
                best[row] = max(match.score, best.get(row, -np.inf))
            if rows is not None:
                best = {row: score for row, score in best.items() if row in rows}
            if len(best) >= k or len(found) < many or many == _MAX_K:
                break
            many = min(_MAX_K, 4 * many)
        if rows is not None and len(best) < k and len(found) == _MAX_K:
            raise StoreError(
                f"Pinecone cannot run this filter by itself, and too few of the {_MAX_K:,} nearest pass it.",
                "Filter by numbers, or by whole texts, or search with: --store local.",
            )
        return best_first(best.keys(), best.values(), k)

    def matching(self, where: Filter) -> Rows:
        """See Store; by the local index."""
        return self.resolved(where)

    def vectors(self, rows: Rows | Sequence[int]) -> tuple[Floats, Floats, Rows]:
        """See Store; by the local index, which needs no request for every hundred vectors."""
        return self.beside.vectors(rows)

    def fetch(self, rows: Rows | Sequence[int]) -> list[dict[str, Any]]:
        """See Store."""
        wanted = np.unique(np.asarray(rows, np.int64)).tolist()
        seen = self._seen  # another thread may put its own in place
        found = {row: seen[row] for row in wanted if row in seen}
        ids = [str(row) for row in wanted if row not in found]
        for start in range(0, len(ids), _FETCH):
            ask = partial(self._index_call, "fetch", ids=ids[start : start + _FETCH], namespace=self._space)
            for each, held in self._run(ask).vectors.items():
                found[int(each)] = held.metadata or {}
        here = [row for row in wanted if "fields" not in found.get(row, {})]
        shown = {row: _fields(row, metadata) for row, metadata in found.items() if "fields" in metadata}
        if here:
            shown |= {fields["row"]: fields for fields in self.beside.fetch(here)}
        return in_order(rows, shown)

    def holds(self, column: str, value: Any) -> bool:
        """See RemoteStore: no long texts."""
        short = not isinstance(value, str) or len(value.encode()) <= _MAX_TEXT
        return short and column != OWN["text"] and exact(value)

    def compiles(self, atom: Atom, kind: str) -> bool:
        """See RemoteStore: text is compared as a whole only."""
        if isinstance(atom, Member):
            return len(atom.values) <= _MAX_K
        if isinstance(atom, Missing) or kind != "string":
            return True
        return isinstance(atom, Compare) and atom.operator in {"=", "!="}

    def close(self) -> None:
        """See RemoteStore."""
        self._client.close()

    def _filter(self, where: Filter | None) -> tuple[dict[str, Any] | None, set[int] | None]:
        """A filter for Pinecone, and rows to choose from where there are too many for one."""
        if where is None:
            return None, None
        if self.expresses(where):
            return condition(where, self.names), None
        rows = self.resolved(where).tolist()
        # No record has the row -1, and an empty list is refused.
        return ({"row": {"$in": rows or [-1]}}, None) if len(rows) <= _MAX_K else (None, set(rows))

    def _query(self, space: str, query: list[float], many: int, passing: dict[str, Any] | None) -> list[Any]:
        with_metadata = many <= _WITH_METADATA and space == self._space
        ask = partial(self._index_call, "query", vector=query, top_k=many, namespace=space)
        found = self._run(partial(ask, filter=passing, include_metadata=with_metadata)).matches
        if with_metadata:
            # Most of what is shown after a search came with it.
            self._seen = {int(match.id): match.metadata or {} for match in found}
        return list(found)

    def _metadata(self, record: Record, values: Mapping[str, Any]) -> dict[str, Any]:
        """What is stored with a passage: all fields, or where they are too long what is filtered on."""
        rest = {name: value for name, value in record.fields.items() if name not in values}
        own = {**values, "row": record.row}
        whole = own | {"fields": dump(rest)}
        if _size(whole) <= MAX_METADATA:
            return whole
        self._fits_in(own, f"passage {record.fields['id']!r}")
        return own

    def _fits_in(self, metadata: Mapping[str, Any], what: str) -> None:
        if _size(metadata) > MAX_METADATA:
            raise StoreError(
                f"{what} has {_size(metadata):,} bytes of metadata, Pinecone takes {MAX_METADATA:,}.",
                "Leave columns out of the source, or use another store.",
            )

    def _upsert(self, space: str, items: list[dict[str, Any]]) -> None:
        ask = partial(self._index_call, "upsert", vectors=items, namespace=space, show_progress=False)
        self._run(ask, _PATIENCE)

    def _delete(self, space: str, ids: list[str]) -> None:
        for start in range(0, len(ids), _DELETE):
            ask = partial(self._index_call, "delete", ids=ids[start : start + _DELETE], namespace=space)
            self._run(ask, _PATIENCE)

    def _emptied(self, space: str) -> None:
        try:
            self._index_call("delete", delete_all=True, namespace=space)
        except self._absent:
            return  # a namespace without records is none

    def _ids(self, space: str, prefix: str | None = None) -> Iterator[str]:
        pages = self._run(lambda: list(self._index.list(namespace=space, prefix=prefix)))
        yield from (item.id for page in pages for item in page.vectors)

    def _read_record(self) -> dict[str, Any] | None:
        if "host" not in self._options and not self._run(lambda: self._client.has_index(self.address.host)):
            return None
        ask = partial(self._index_call, "fetch", ids=["info"], namespace=f"{self._space}-info")
        found = self._run(ask).vectors.get("info")
        return load(found.metadata["record"]) if found is not None else None

    @property
    def _index(self) -> Any:
        if self._held_index is None:
            host = self._options.get("host", "")
            self._held_index = self._client.index("" if host else self.address.host, host=host)
        return self._held_index

    def _index_call(self, name: str, **arguments: Any) -> Any:
        return getattr(self._index, name)(**arguments)

    def _run(self, action: Callable[[], Result], patience: float = _READ_PATIENCE) -> Result:
        try:
            return retried(action, self._transient, self._errors, patience)
        except self._errors as error:
            said = " ".join(str(error).split())
            raise StoreError(f"Pinecone at {self.address} says: {said}", _HINT) from error

    def _transient(self, error: Exception) -> bool:
        return isinstance(error, self._lost) or getattr(error, "status_code", None) in _TRANSIENT


def _size(metadata: Mapping[str, Any]) -> int:
    return len(json.dumps(metadata, ensure_ascii=False).encode())


def _fields(row: int, metadata: Mapping[str, Any]) -> dict[str, Any]:
    own = {name: metadata.get(name) for name in OWN.values()}
    return {"row": row, **own, **load(metadata["fields"])}
