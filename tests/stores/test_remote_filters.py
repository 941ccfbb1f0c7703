from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from stores.pinecone_stand_in import StandIn
from stores.postgres import Postgres
from stores.test_lancedb import FILTERS, SIZE, TYPES, described, passages, unit

from searchfit.filters import Filter, matches
from searchfit.stores.building import build
from searchfit.stores.lancedb import LanceStore
from searchfit.stores.push import open_remote, push
from searchfit.stores.remote import RemoteStore

VALUES: dict[str, list[Any]] = {
    "int": [3, -3, 0, 2, None],
    "float": [0.0, 0.1, -1.5, float("nan"), None],
    "bool": [True, False, None],
    "string": ["", "'", "''", '"', "\\", "\\'", "%", "_", "a%", "' OR 1=1 --", "a", "ab", "\U0010ffff", None],
    "date": [date(2024, 1, 1), date(2024, 1, 3), date(1, 1, 1), date(9999, 12, 31), None],
    "timestamp": [datetime(2024, 1, 1), datetime(2024, 1, 1, 0, 0, 0, 3), datetime(1969, 7, 20), None],
}
# What some stores cannot hold, and resolve otherwise.
EXTREME: dict[str, list[Any]] = {
    "int": [2**63 - 1, -(2**63), 2**53 + 1],
    "float": [float("inf"), 5e-324],
    "string": ["nul \0", "x" * 1500],
    "timestamp": [datetime(9999, 12, 31, 23, 59, 59, 999_999)],
}
ROWS = 40


def rows(extreme: bool) -> list[dict[str, Any]]:
    """Rows in which every value meets many others."""
    pools = {kind: values + (EXTREME.get(kind, []) if extreme else []) for kind, values in VALUES.items()}
    rng = np.random.default_rng(5)
    chosen = {kind: rng.permutation(np.resize(np.arange(len(pool)), ROWS)) for kind, pool in pools.items()}
    return [{kind: pools[kind][chosen[kind][row]] for kind in pools} for row in range(ROWS)]


class Stores:
    """One small index in every store."""

    def __init__(self, folder: Path, urls: dict[str, str], extreme: bool) -> None:
        self.rows = rows(extreme)
        columns = {
            f"m{place}": pa.array([row[kind] for row in self.rows], TYPES[kind])
            for place, kind in enumerate(TYPES)
        }
        vectors = unit(np.random.default_rng(1), ROWS)
        table = passages(vectors, [vectors[row : row + 1] for row in range(ROWS)], columns)
        info = described(list(TYPES), list(TYPES)) | {"lineage": "x", "generation": 1, "dimension": SIZE}
        info |= {"similarity": "cosine", "keyword": {"language": "none", "k1": 1.2, "b": 0.75}}
        build(folder, table.to_batches(), [], info)
        self.local = LanceStore(folder)
        self.remote: dict[str, RemoteStore] = {}
        for name, url in urls.items():
            push(url, self.local)
            self.remote[name] = open_remote(url, self.local)
        self.query = unit(np.random.default_rng(2), 1)[0]


@pytest.fixture(scope="module", params=[False, True], ids=["usual", "extreme"])
def stores(
    request: pytest.FixtureRequest, postgres: Postgres, memory_folder: Path, tmp_path_factory: Any
) -> Iterator[Stores]:
    server = StandIn()
    urls = {
        "pgvector": f"{postgres.url}?table=filters{request.param}",
        "qdrant": f"qdrant://{memory_folder}/filters{request.param}",
        "pinecone": "pinecone://docs",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PINECONE_API_KEY", "secret")
        patch.setenv("PINECONE_CONTROLLER_HOST", server.host)
        made = Stores(tmp_path_factory.mktemp("filters") / "v", urls, request.param)
        yield made
        for store in made.remote.values():
            store.close()
    server.stop()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(where=FILTERS)
def test_a_filter_means_the_same_in_every_store(stores: Stores, where: Filter) -> None:
    expected = [place for place, row in enumerate(stores.rows) if matches(where, row)]
    for name, store in stores.remote.items():
        assert store.matching(where).tolist() == expected, name
        for column in ("vector", "sentence_vectors"):
            found, _ = store.nearest(stores.query, column, ROWS, where)  # type: ignore[arg-type]
            assert sorted(found.tolist()) == expected, (name, column)


def test_the_usual_values_are_compiled_and_not_looked_up(stores: Stores) -> None:
    from searchfit.filters import Compare

    usual = stores.rows == rows(False)
    for name, store in stores.remote.items():
        held = {kind: store.expresses(Compare(kind, "=", VALUES[kind][0])) for kind in VALUES}
        lost = {kind for kind, holds in held.items() if not holds}
        # The years 1 and 9999 are days as well as others.
        unheld = {"pgvector": {"string"}, "qdrant": set(EXTREME) - {"string"}, "pinecone": set(EXTREME)}
        assert lost == (set() if usual else unheld[name])
