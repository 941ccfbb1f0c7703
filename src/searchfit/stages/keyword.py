"""Keyword: the BM25 index over the passages, in the language that they are written in. Writes keyword/."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq

from searchfit.config import Settings
from searchfit.keyword import Analyzer, KeywordIndex, detect_language
from searchfit.records import StageResult, encoded_text
from searchfit.stages import Tools

VERSION = 1

_SAMPLE = 2000  # passages that the language is told from
_READ = 1024  # passages read at a time


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Index passages.parquet. Raises SettingsError for a language that has no stemmer."""
    file = inputs["passages.parquet"]
    language = settings.keyword.language
    if language == "auto":
        step = max(1, pq.ParquetFile(file).metadata.num_rows // _SAMPLE)
        language = detect_language(text for i, text in enumerate(_texts(file)) if i % step == 0)
    options = settings.keyword
    terms = KeywordIndex.write(
        tools.output / "keyword", _texts(file), Analyzer(language), options.k1, options.b
    )
    return StageResult(counts={"terms": terms, "language": language})


def _texts(file: Path) -> Iterator[str]:
    for batch in pq.ParquetFile(file).iter_batches(_READ, columns=["title", "text"]):
        yield from map(encoded_text, batch["title"].to_pylist(), batch["text"].to_pylist())
