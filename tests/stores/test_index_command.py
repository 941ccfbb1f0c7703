from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from stores.postgres import Postgres

from searchfit.cli import main
from searchfit.errors import StoreError
from searchfit.growth import remove
from searchfit.search import open_searcher
from searchfit.stores.lancedb import LanceStore

SEARCHES = [("sourdough oven pastry", None), ("glacier rope", "price < 50 and place is not null")]


@pytest.fixture
def workspace(bench: Any, tmp_path: Path) -> Path:
    """The shared fit's search engine in a workspace of its own."""
    bench.path("engine.json")
    shutil.copytree(bench.folder / "index", tmp_path / "ws" / "index")
    shutil.copy(bench.folder / "engine.json", tmp_path / "ws")
    (tmp_path / "ws" / "manifest.json").write_text('{"format": 1, "stages": {}}')
    return tmp_path / "ws"


def run(monkeypatch: pytest.MonkeyPatch, *words: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["searchfit", *map(str, words)])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workspace: Path) -> str:
    capsys.readouterr()
    assert run(monkeypatch, "status", workspace, "--json") == 0
    return capsys.readouterr().out


def told(workspace: Path) -> list[list[tuple[str, float]]]:
    searcher = open_searcher(workspace)
    found = [searcher.search(query, 10, where) for query, where in SEARCHES]
    return [[(hit.passage_id, round(hit.score, 4)) for hit in hits] for hits in found]


@pytest.mark.parametrize("kind", ["pgvector", "qdrant", "pinecone"])
def test_search_reads_from_the_store_and_finds_the_same(
    kind: str,
    workspace: Path,
    memory_folder: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = told(workspace)
    if kind == "pgvector":
        postgres: Postgres = request.getfixturevalue("postgres")
        url = f"{postgres.url}?table=served"
    elif kind == "qdrant":
        url = f"qdrant://{memory_folder}/served"
    else:
        request.getfixturevalue("pinecone")
        url = "pinecone://docs"
    assert run(monkeypatch, "index", workspace, "--store", url, "--json") == 0
    pushed = json.loads(capsys.readouterr().out)
    assert (pushed["store"], pushed["kept"], pushed["sent"] > 50) == (url, 0, True)
    with monkeypatch.context() as patch:
        patch.delattr(LanceStore, "nearest")
        assert told(workspace) == expected
    removed = expected[0][0][0].partition("#")[0]
    assert json.loads(status(monkeypatch, capsys, workspace))["store_error"] == ""
    grown = remove(workspace, [removed], "")
    assert grown.notes == (
        f"search reads from {url}; what changed gets there with: searchfit index {workspace}",
    )
    behind = json.loads(status(monkeypatch, capsys, workspace))
    assert behind["store"] == url
    assert "not up to date: its generation is 0, here it is 1" in behind["store_error"]
    with pytest.raises(StoreError, match="its generation is 0, here it is 1"):
        told(workspace)
    assert run(monkeypatch, "search", workspace, "oven") == 1
    assert "searchfit index WORKSPACE --store" in capsys.readouterr().err
    assert run(monkeypatch, "index", workspace, "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["sent"], again["deleted"] >= 1) == (0, True)
    assert expected[0][0] not in told(workspace)[0]
    assert run(monkeypatch, "index", workspace, "--store", "local") == 0
    assert not (workspace / "store.json").exists()
    assert "store" not in json.loads(status(monkeypatch, capsys, workspace))
    assert run(monkeypatch, "index", workspace) == 2
    assert "Name one with --store" in capsys.readouterr().err
    assert run(monkeypatch, "index", workspace, "--store", url, "--drop") == 0
    assert run(monkeypatch, "index", workspace, "--store", url, "--drop") == 1
    assert run(monkeypatch, "index", workspace, "--store", "mysql://host/db") == 2
