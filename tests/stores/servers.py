from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from stores.pinecone_stand_in import StandIn
from stores.postgres import Postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL with pgvector; each test uses tables of its own."""
    # Not among pytest's folders, which are closed to the user that PostgreSQL runs as.
    with tempfile.TemporaryDirectory(prefix="searchfit-") as folder:
        server = Postgres(Path(folder))
        yield server
        server.stop()


@pytest.fixture(scope="session")
def memory_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder, in memory where there is one: the embedded Qdrant waits for the disk after every passage."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path_factory.mktemp("memory")
        return
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


@pytest.fixture
def pinecone(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A stand-in for Pinecone, empty."""
    server = StandIn()
    monkeypatch.setenv("PINECONE_API_KEY", "secret")
    monkeypatch.setenv("PINECONE_CONTROLLER_HOST", server.host)
    yield server
    server.stop()
