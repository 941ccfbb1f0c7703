"""An index in Qdrant: qdrant://host:6333?collection=NAME, qdrants:// with TLS (the key in QDRANT_API_KEY),
or qdrant:///folder for the client's embedded mode, which is for trying out and for one process at a time.

A passage is a point; its sentences are one multivector, which is compared by its best vector. Filters that
Qdrant has no exact means for (parts of text, order of text, numbers beyond 2^53) are resolved to rows first.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from searchfit.errors import MissingExtraError, StoreError
from searchfit.filters import Compare, Filter
from searchfit.stores import Floats, Rows, Store, VectorColumn, checked
from searchfit.stores.address import Address
from searchfit.stores.fields import dump, load
from searchfit.stores.qdrant_filters import condition, key
from searchfit.stores.remote import (
    Atom,
    Record,
    RemoteStore,
    best_first,
    in_order,
    retried,
    stacked,
)
from searchfit.stores.segment import OWN
from searchfit.stores.values import exact, flat

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

_PATIENCE, _READ_PATIENCE = 120.0, 5.0  # seconds to wait for a server that went away, writing and reading
_TIMEOUT = 60
_BATCH = 100
_PAGE = 10_000
_COLUMNS: tuple[VectorColumn, ...] = ("vector", "sentence_vectors")
_INDEXES: dict[str, Any] = {"string": "keyword", "bool": "bool", "float": "float"}
_HINT = "Check the address and that the server runs; its key comes from QDRANT_API_KEY."
Result = TypeVar("Result")


class QdrantStore(RemoteStore):
    """See RemoteStore. Safe to share between threads.

    Raises StoreError when the server cannot be reached or the folder is in use, MissingExtraError without
    qdrant-client.
    """

    def __init__(self, address: Address, local: Store | None = None) -> None:
        try:
            import qdrant_client
        except ImportError as error:
            raise MissingExtraError("the Qdrant store", "qdrant") from error
        from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

        self._errors = (ResponseHandlingException, UnexpectedResponse)
        address.options(("collection", "index"))
        self._name = address.name("collection")
        self._exact = address.choice("index", ("auto", "exact")) == "exact"
        self._embedded = not address.host
        # The embedded mode is not made for threads.
        self._lock = threading.RLock() if self._embedded else None
        self.address = address
        self._client = self._opened(qdrant_client.QdrantClient)
        super().__init__(address, local)

    def create(self, record: Mapping[str, Any]) -> None:
        """See RemoteStore."""
        from qdrant_client import models

        metric = models.Distance.DOT if record["info"]["similarity"] == "dot" else models.Distance.COSINE
        size = record["info"]["dimension"]
        best = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
        vectors = {
            "vector": models.VectorParams(size=size, distance=metric),
            "sentence_vectors": models.VectorParams(size=size, distance=metric, multivector_config=best),
        }
        one = models.VectorParams(size=1, distance=models.Distance.DOT)
        if self._run(lambda: self._client.collection_exists(self._name)):
            raise StoreError(
                f"{self.address} has a collection {self._name!r} that is not an index of searchfit.",
                "Name another one: ?collection=NAME.",
            )
        # The record first: a collection with a record is ours, also when the next step is interrupted.
        if not self._run(lambda: self._client.collection_exists(self._record_name)):
            self._run(lambda: self._client.create_collection(self._record_name, one), _PATIENCE)
        self.write_record(record)
        self._run(lambda: self._client.create_collection(self._name, vectors), _PATIENCE)

    def write_record(self, record: Mapping[str, Any]) -> None:
        """See RemoteStore."""
        from qdrant_client import models

        point = models.PointStruct(id=0, vector=[1.0], payload={"record": dump(record)})
        self._run(lambda: self._client.upsert(self._record_name, [point]), _PATIENCE)
        self.record = dict(record)

    def upsert(self, records: Sequence[Record]) -> None:
        """See RemoteStore."""
        from qdrant_client import models

        points = [
            models.PointStruct(id=record.row, vector=self._vectors_of(record), payload=_payload(record))
            for record in records
        ]
        for start in range(0, len(points), _BATCH):
            some = points[start : start + _BATCH]
            self._run(partial(self._client.upsert, self._name, some), _PATIENCE)

    def delete(self, rows: Rows) -> None:
        """See RemoteStore."""
        from qdrant_client import models

        chosen = models.PointIdsList(points=rows.tolist())
        self._run(lambda: self._client.delete(self._name, chosen), _PATIENCE)

    def drop(self) -> None:
        """See RemoteStore."""
        if self.record is not None:
            for name in (self._name, self._record_name):
                if self._run(partial(self._client.collection_exists, name)):
                    self._run(partial(self._client.delete_collection, name), _PATIENCE)
        self.record = None

    def ready(self) -> None:
        """See RemoteStore: a server gets indexes of the columns to filter on."""
        if not self._embedded:
            for name, kind in self.columns.items():
                field, schema = key(self.names[name]), _INDEXES.get(kind, "integer")
                self._run(
                    partial(self._client.create_payload_index, self._name, field, schema),
                    _PATIENCE,
                )

    def close(self) -> None:
        """See RemoteStore."""
        self._client.close()

    def rows(self) -> Rows:
        """See RemoteStore."""
        return np.sort(np.array(list(self._found(None)), np.int64))

    def count(self) -> int:
        """See Store."""
        return self._run(lambda: self._client.count(self._name)).count

    def nearest(
        self, vector: Floats, column: VectorColumn, k: int, where: Filter | None = None
    ) -> tuple[Rows, Floats]:
        """See Store. Exact in the embedded mode and with `index=exact`."""
        from qdrant_client import models

        query = checked(vector, self.info["dimension"]).tolist()
        if k < 1:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        asked: Any = query if column == "vector" else [query]
        passing = self._filter(where)
        how = None if self._embedded else models.SearchParams(exact=self._exact, hnsw_ef=max(128, 2 * k))
        found = self._run(
            lambda: self._client.query_points(
                self._name,
                query=asked,
                using=column,
                query_filter=passing,
                search_params=how,
                limit=k,
                with_payload=False,
            )
        )
        return best_first((int(p.id) for p in found.points), (p.score for p in found.points), k)

    def matching(self, where: Filter) -> Rows:
        """See Store."""
        if not self.expresses(where):
            return self.resolved(where)
        return np.sort(np.array(list(self._found(self._filter(where))), np.int64))

    def vectors(self, rows: Rows | Sequence[int]) -> tuple[Floats, Floats, Rows]:
        """See Store. Where cosines are compared, Qdrant keeps vectors of unit length."""
        size = self.info["dimension"]
        found = {}
        for point in self._retrieved(rows, list(_COLUMNS)):
            held = point.vector or {}
            sentences = np.array(held.get("sentence_vectors", ()), np.float32).reshape(-1, size)
            found[int(point.id)] = np.array(held.get("vector", [0.0] * size), np.float32), sentences
        return stacked(in_order(rows, found), size)

    def fetch(self, rows: Rows | Sequence[int]) -> list[dict[str, Any]]:
        """See Store."""
        found = {}
        for point in self._retrieved(rows, False):
            own = {name: point.payload["values"].get(name) for name in OWN.values()}
            found[int(point.id)] = {"row": int(point.id), **own, **load(point.payload["fields"])}
        return in_order(rows, found)

    def holds(self, column: str, value: Any) -> bool:  # noqa: ARG002
        """See RemoteStore."""
        return exact(value)

    def compiles(self, atom: Atom, kind: str) -> bool:
        """See RemoteStore: text is compared as a whole only."""
        return kind != "string" or not isinstance(atom, Compare) or atom.operator in {"=", "!="}

    @property
    def _record_name(self) -> str:
        return f"{self._name}-info"

    def _filter(self, where: Filter | None) -> Any:
        from qdrant_client import models

        if where is None:
            return None
        if self.expresses(where):
            return models.Filter(must=[condition(where, self.names)])
        return models.Filter(must=[models.HasIdCondition(has_id=self.resolved(where).tolist())])

    def _found(self, passing: Any) -> Iterator[int]:
        """The ids of all points that pass."""
        offset: Any = None
        while True:
            page = partial(self._client.scroll, self._name, passing, _PAGE, offset=offset, with_payload=False)
            points, offset = self._run(page)
            yield from (int(point.id) for point in points)
            if offset is None:
                return

    def _retrieved(self, rows: Rows | Sequence[int], vectors: Any) -> Iterator[Any]:
        wanted = np.unique(np.asarray(rows, np.int64)).tolist()
        wanted = [row for row in wanted if row >= 0]
        for start in range(0, len(wanted), 1000):
            some = wanted[start : start + 1000]
            ask = partial(self._client.retrieve, self._name, some)
            yield from self._run(partial(ask, with_payload=not vectors, with_vectors=vectors))

    def _vectors_of(self, record: Record) -> dict[str, Any]:
        """What is compared; a vector of zeros has no cosine."""
        held: dict[str, Any] = {}
        if self.info["similarity"] == "dot" or record.vector.any():
            held["vector"] = record.vector.tolist()
        if len(record.sentences):
            held["sentence_vectors"] = record.sentences.tolist()
        return held

    def _read_record(self) -> dict[str, Any] | None:
        # A record without its collection is left of a creation or a removal that was interrupted.
        for name in (self._record_name, self._name):
            if not self._run(partial(self._client.collection_exists, name)):
                return None
        found = self._run(lambda: self._client.retrieve(self._record_name, [0]))
        return load(found[0].payload["record"]) if found and found[0].payload else None

    def _opened(self, client: type[QdrantClient]) -> QdrantClient:
        if not self._embedded:
            secure = self.address.scheme == "qdrants"
            return client(
                url=f"{'https' if secure else 'http'}://{self.address.host}",
                api_key=os.environ.get("QDRANT_API_KEY"),
                timeout=_TIMEOUT,
                check_compatibility=False,
            )
        if not self.address.path.startswith("/") or not self.address.path.strip("/"):
            raise StoreError(f"{self.address} names no folder.", "Write its whole path: qdrant:///folder.")
        try:
            folder = Path(self.address.path)
            return client(path=str(folder), force_disable_check_same_thread=True)
        except (RuntimeError, OSError) as error:
            raise StoreError(
                f"{self.address} cannot be opened: {error}", "An embedded store serves one process at a time."
            ) from error

    def _run(self, action: Callable[[], Result], patience: float = _READ_PATIENCE) -> Result:
        def once() -> Result:
            if self._lock is None:
                return action()
            with self._lock:
                return action()

        try:
            return retried(once, _transient, self._errors, patience)
        except self._errors as error:
            said = " ".join(str(error).split())
            raise StoreError(f"Qdrant at {self.address} says: {said}", _HINT) from error


def _transient(error: Exception) -> bool:
    return getattr(error, "status_code", None) in {None, 429, 502, 503, 504}


def _payload(record: Record) -> dict[str, Any]:
    values = {column: flat(value) for column, value in record.values.items() if exact(value)}
    rest = {name: value for name, value in record.fields.items() if values.get(name) is None}
    return {"fields": dump(rest), "values": values}
