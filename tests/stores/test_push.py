from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores.pinecone_stand_in import StandIn
from stores.postgres import Postgres
from stores.worlds import World

from searchfit.errors import SettingsError, StoreError, WorkspaceError
from searchfit.filters import parse
from searchfit.stores.address import Address
from searchfit.stores.fields import dump, load
from searchfit.stores.lancedb import LanceStore
from searchfit.stores.push import attached, connect, kept, open_remote, push, remember, withdraw

KINDS = ["pgvector", "qdrant", "pinecone"]
Url = Callable[[], str]


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, memory_folder: Path) -> str:
    """An empty place in each store."""
    name = f"t{abs(hash(request.node.name)) % 10**9}"
    if request.param == "pgvector":
        return f"{request.getfixturevalue('postgres').url}?table={name}"
    if request.param == "qdrant":
        return f"qdrant://{memory_folder / name}"
    request.getfixturevalue("pinecone")
    return f"pinecone://docs?namespace={name}"


@pytest.fixture(scope="module")
def world() -> World:
    return World(24, size=8)


@pytest.fixture(scope="module")
def local(world: World, tmp_path_factory: pytest.TempPathFactory) -> LanceStore:
    return world.local(tmp_path_factory.mktemp("local") / "v1")


def test_a_newer_generation_sends_what_changed(url: str, world: World, tmp_path: Path) -> None:
    first = world.local(tmp_path / "first", np.arange(0, 20))
    newer = world.local(tmp_path / "newer", np.arange(5, 24), generation=2)
    done = push(url, first)
    assert (done.sent, done.deleted, done.kept) == (20, 0, 0)
    with pytest.raises(StoreError, match=r"its generation is 1, here it is 2") as caught:
        open_remote(url, newer)
    assert "searchfit index WORKSPACE --store" in caught.value.hint
    done = push(url, newer)
    assert (done.sent, done.deleted, done.kept) == (4, 5, 15)
    done = push(url, newer)
    assert (done.sent, done.deleted, done.kept) == (0, 0, 19)
    store = open_remote(url, newer)
    assert store.rows().tolist() == newer.rows.tolist()
    assert store.count() == 19
    for column in ("vector", "sentence_vectors"):
        found = store.nearest(world.query, column, 30)  # type: ignore[arg-type]
        expected = newer.nearest(world.query, column, 30)  # type: ignore[arg-type]
        assert found[0].tolist() == expected[0].tolist()
    store.close()


def test_an_interrupted_push_is_not_served_and_carries_on(url: str, local: LanceStore) -> None:
    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    store = connect(url, local)
    store.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(store), "ready", broken)
        with pytest.raises(KeyboardInterrupt):
            push(url, local)
    with pytest.raises(StoreError, match="not finished"):
        open_remote(url, local)
    assert push(url, local).sent == 0
    open_remote(url, local).close()


def test_another_fit_is_refused_and_replaced_when_asked(url: str, world: World, tmp_path: Path) -> None:
    one, other = world.local(tmp_path / "1"), world.local(tmp_path / "2", np.arange(3), lineage="other")
    push(url, one)
    with pytest.raises(StoreError, match="another fit") as caught:
        open_remote(url, other)
    assert caught.value.hint.endswith("--replace")
    with pytest.raises(StoreError, match="another index"):
        push(url, other)
    assert push(url, other, replace=True).sent == 3
    store = open_remote(url, other)
    assert store.rows().tolist() == [0, 2, 4]
    store.close()
    remember(tmp_path, url)
    withdraw(tmp_path, url)
    assert kept(tmp_path) is None
    with pytest.raises(StoreError, match="no index"):
        open_remote(url, other)
    with pytest.raises(StoreError, match="no index"):
        withdraw(tmp_path, url)
    assert push(url, other).sent == 3


def test_an_upsert_may_be_repeated_and_a_deletion_too(url: str, world: World, local: LanceStore) -> None:
    from searchfit.stores.remote import records

    push(url, local)
    store = connect(url, local)
    batch = world.table(np.arange(5)).combine_chunks().to_batches()[0]
    for _ in range(2):
        store.upsert(records(batch, world.info["metadata"]))
        store.delete(np.array([2, 4, 999], np.int64))
    assert store.rows().tolist() == [row for row in world.rows.tolist() if row not in {2, 4}]
    assert not set(store.nearest(world.query, "sentence_vectors", 50)[0].tolist()) & {2, 4}
    store.close()


def test_dot_products_keep_their_size(url: str, tmp_path: Path) -> None:
    world = World(24, size=8)
    world.vectors *= np.linspace(0.1, 9, 24, dtype=np.float32)[:, None]
    local = world.local(tmp_path / "v", similarity="dot")
    push(url, local)
    store = open_remote(url, local)
    rows, scores = store.nearest(world.query, "vector", 5)
    expected, expected_scores = world.best(world.query, "vector", 5, None)
    assert rows.tolist() == expected
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
    store.close()


def test_filters_without_the_local_index(world: World, local: LanceStore, postgres: Postgres) -> None:
    url = f"{postgres.url}?table=alone"
    push(url, local)
    store = connect(url)
    where = parse('city contains "odd" and not text contains "\\\\"', store.columns)
    assert store.matching(where).tolist() == local.matching(where).tolist()
    nul = parse('text != "\0"', store.columns)
    assert store.matching(nul).tolist() == world.rows.tolist()
    store.close()


def test_the_postmaster_is_killed_during_a_push(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from searchfit.stores.pgvector import PgVectorStore

    world = World(60, size=8, seed=9)
    local = world.local(tmp_path / "v")
    url = f"{postgres.url}?table=killed"
    acknowledged: list[int] = []
    starter = threading.Thread(target=postgres.start)
    upsert = PgVectorStore.upsert

    def noted(self: PgVectorStore, records: Any) -> None:
        if len(acknowledged) == 20:
            postgres.kill()
            starter.start()
        upsert(self, records)
        acknowledged.extend(record.row for record in records)

    monkeypatch.setattr(PgVectorStore, "upsert", noted)
    assert push(url, local, batch=10).sent == 60
    starter.join()
    store = open_remote(url, local)
    assert store.rows().tolist() == acknowledged == world.rows.tolist()
    rows, _ = store.nearest(world.query, "vector", 10)
    assert rows.tolist() == world.best(world.query, "vector", 10, None)[0]
    # A reader finds its way back too.
    postgres.kill()
    postgres.start()
    assert store.count() == 60
    store.close()


def test_postgres_hnsw_and_half_precision(postgres: Postgres, tmp_path: Path) -> None:
    for size in (16, 2100):
        world = World(200, size=size)
        local = world.local(tmp_path / str(size))
        url = f"{postgres.url}?table=hnsw{size}"
        push(f"{url}&index=hnsw", local)
        for how in ("hnsw", "exact"):
            store = open_remote(f"{url}&index={how}", local)
            for column in ("vector", "sentence_vectors"):
                for text in (None, "rooms = 2"):
                    where = parse(text, store.columns) if text else None
                    rows, scores = store.nearest(world.query, column, 10, where)  # type: ignore[arg-type]
                    expected, expected_scores = world.best(world.query, column, 10, text)
                    np.testing.assert_allclose(scores, expected_scores, atol=1e-4)
                    assert rows.tolist() == expected
            store.close()


def test_long_and_frequent_terms_keep_their_frequencies(postgres: Postgres, tmp_path: Path) -> None:
    world = World(3, size=8)
    world.texts = ["anchor " * 700, "mast " * 17_000 + "keel keel", "x" * 5000 + " anchor"]
    local = world.local(tmp_path / "v")
    push(f"{postgres.url}?table=terms", local)
    store = open_remote(f"{postgres.url}?table=terms", local)
    terms = ["anchor", "mast", "keel", "x" * 5000]
    found, expected = store.postings(terms), local.postings(terms)
    assert {term: (rows.tolist(), counts.tolist()) for term, (rows, counts) in found.items()} == {
        term: (rows.tolist(), counts.tolist()) for term, (rows, counts) in expected.items()
    }
    assert len(found) == 4
    store.close()


def test_a_foreign_table_is_left_alone(postgres: Postgres, local: LanceStore) -> None:
    import psycopg

    with psycopg.connect(postgres.url) as connection:
        connection.execute("create table precious (x int)")
    with pytest.raises(StoreError, match="precious"):
        push(f"{postgres.url}?table=precious", local)
    odd = 'odd"; drop table precious; --'
    assert push(f"{postgres.url}?table={odd}", local).sent == 24
    with psycopg.connect(postgres.url) as connection:
        assert connection.execute("select count(*) from precious").fetchone() == (0,)


def test_pinecone_faults_are_ridden_out(pinecone: StandIn, local: LanceStore) -> None:
    push("pinecone://docs", local)
    store = open_remote("pinecone://docs", local)
    pinecone.faults += [503, 429, 0]
    assert store.fetch([0]) == local.fetch([0])
    pinecone.faults += [400]
    with pytest.raises(StoreError, match="Pinecone at pinecone://docs says"):
        store.count()
    before = pinecone.asked["/vectors/fetch"]
    rows, _ = store.nearest(np.ones(8, np.float32), "vector", 3)
    assert store.fetch(rows) == local.fetch(rows)
    assert pinecone.asked["/vectors/fetch"] == before
    store.close()


@pytest.mark.usefixtures("pinecone")
def test_pinecone_shows_what_another_search_replaces_meanwhile(local: LanceStore) -> None:
    push("pinecone://docs", local)
    store: Any = open_remote("pinecone://docs", local)
    rows, _ = store.nearest(np.ones(8, np.float32), "vector", 3)

    class Replaced(dict[int, Any]):
        def __contains__(self, row: object) -> bool:
            store._seen = {}
            return super().__contains__(row)

    store._seen = Replaced(store._seen)
    assert store.fetch(rows) == local.fetch(rows)
    store.close()


def test_pinecone_leaves_long_texts_here(pinecone: StandIn, tmp_path: Path) -> None:
    world = World(4, size=8)
    world.texts[1] = "long " * 9000
    local = world.local(tmp_path / "v")
    push("pinecone://docs", local)
    held = pinecone.spaces["searchfit"]
    assert ("fields" in held["0"]["metadata"], "fields" in held["2"]["metadata"]) == (True, False)
    store = open_remote("pinecone://docs", local)
    assert store.fetch(local.rows) == local.fetch(local.rows)
    where = parse('text contains "long long"', store.columns)
    assert store.nearest(world.query, "vector", 9, where)[0].tolist() == [2]
    store.close()


def test_pinecone_refusals(
    pinecone: StandIn, local: LanceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push("pinecone://docs", local)
    with pytest.raises(StoreError, match="8 dimensions compared by cosine"):
        push("pinecone://docs?namespace=other", World(2, size=9).local(tmp_path / "9"))
    pinecone.spaces["mine"] = {}
    with pytest.raises(StoreError, match="not an index of searchfit"):
        push("pinecone://docs?namespace=mine", local)
    monkeypatch.setenv("PINECONE_API_KEY", "")
    with pytest.raises(StoreError, match="PINECONE_API_KEY"):
        push("pinecone://docs", local)


def test_an_embedded_store_serves_one_process(memory_folder: Path, local: LanceStore) -> None:
    url = f"qdrant://{memory_folder / 'one'}"
    push(url, local)
    held = open_remote(url, local)
    with pytest.raises(StoreError, match="cannot be opened"):
        open_remote(url, local)
    held.close()
    open_remote(url, local).close()


def test_moments_of_another_class_come_back_as_moments() -> None:
    class Moment(datetime):
        pass

    fields = {"seen": [Moment(2024, 12, 31, 23, 59)]}
    assert load(dump(fields)) == fields


def test_a_server_that_is_not_there(local: LanceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pgvector", "qdrant"):
        monkeypatch.setattr(f"searchfit.stores.{name}._READ_PATIENCE", 0.2)
    for url in ("postgresql://me:hush@127.0.0.1:1/db", "qdrant://127.0.0.1:1"):
        with pytest.raises(StoreError) as caught:
            connect(url, local)
        assert "127.0.0.1:1" in str(caught.value)
        assert "hush" not in str(caught.value)


def test_passwords_are_never_kept(tmp_path: Path, local: LanceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "postgresql://me:hush%40@host:5/db?table=a%20b&password=hush&sslmode=require"
    shown = "postgresql://me@host:5/db?table=a+b&sslmode=require"
    assert str(Address(secret)) == shown
    assert "hush" not in repr(Address(secret))
    remember(tmp_path, secret)
    assert "hush" not in (tmp_path / "store.json").read_text()
    assert kept(tmp_path) == shown
    monkeypatch.setenv("SEARCHFIT_STORE_URL", secret)
    assert kept(tmp_path) == secret
    remember(tmp_path, None)
    assert kept(tmp_path) is None
    assert attached(tmp_path, local) is local
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(WorkspaceError, match="damaged"):
        kept(tmp_path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "not the address"),
        ("mysql://host/db", "not the address"),
        ("pinecone://docs?name=x", "unknown option 'name'"),
        ("qdrant:///x?collection=", "1 to 40 bytes"),
        ("postgresql://host/db?index=ivf", "auto, hnsw, exact"),
        ("qdrant://[::1", "cannot be read"),
    ],
)
def test_addresses_that_are_none(url: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        connect(url)
