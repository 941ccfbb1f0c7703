from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from server.server_tools import Make, alter

from searchfit.config import to_toml


@pytest.fixture(scope="session")
def make_workspace(bench: Any, tiny_reranker: Path) -> Make:
    """Makes a finished workspace of the made-up corpus in a folder, with a re-ranker where asked."""
    bench.path("engine.json")

    def make(folder: Path, reranked: bool = False) -> Path:
        folder.mkdir(parents=True)
        for name in ("index", "engine.json", "documents.parquet"):
            source = bench.folder / name
            shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)
        (folder / "manifest.json").write_text('{"format": 1, "stages": {}}', encoding="utf-8")
        (folder / "searchfit.toml").write_text(to_toml(bench.settings), encoding="utf-8")
        if reranked:
            pointer = json.loads((folder / "engine.json").read_text(encoding="utf-8"))
            index = folder / pointer["index"]
            shutil.copytree(tiny_reranker, index / "reranker")
            alter(index, reranker="reranker", rerank_depth=5, rerank_weight=1.0)
        return folder

    return make
