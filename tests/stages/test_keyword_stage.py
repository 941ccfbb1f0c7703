from __future__ import annotations

from pathlib import Path
from typing import Any

from searchfit.config import load_settings
from searchfit.keyword import KeywordIndex
from searchfit.stages import Tools, keyword


def test_the_passages_are_indexed_in_their_language(bench: Any) -> None:
    index = KeywordIndex.load(bench.path("keyword"))
    assert index.count == bench.run("split").counts["passages"]
    assert index.analyzer.language == bench.run("keyword").counts["language"] == "english"


def test_the_keyword_settings_are_used(bench: Any, tmp_path: Path) -> None:
    values = {"keyword.language": "none", "keyword.k1": 0.7, "keyword.b": 0.2}
    settings = load_settings(base=bench.settings, values=values).only("keyword")
    result = keyword.run(settings, bench.inputs("keyword"), Tools(tmp_path))
    index = KeywordIndex.load(tmp_path / "keyword")
    assert (index.k1, index.b, index.analyzer.language) == (0.7, 0.2, "none")
    assert "repaired" in index.vocabulary
    assert result.counts["language"] == "none"
