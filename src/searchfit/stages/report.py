"""The report: one HTML file that says what was made, whether it is better, and how that is known; the same
figures as JSON, and a Markdown file in the style of a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from searchfit.config import Settings
from searchfit.encoders import load_encoder, load_tokenizer
from searchfit.records import StageResult
from searchfit.reporting.asked import asked
from searchfit.reporting.card import markdown
from searchfit.reporting.evidence import Evidence
from searchfit.reporting.examples import examples, traits
from searchfit.reporting.library import Library
from searchfit.reporting.page import page
from searchfit.reporting.portrait import draw
from searchfit.reporting.tell import tell
from searchfit.stages import Tools
from searchfit.writing import write_bytes, write_json

VERSION = 3


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Write report.html, report.json and report.md from the evaluation, the vectors and the manifest.

    Reads the settings `model`, `seed` and `choose.bootstrap`. Raises WorkspaceError for an input that is
    absent or damaged.
    """
    evidence = Evidence.read(inputs)
    library = Library(inputs)
    encoder = load_encoder(settings.model)
    parts = {
        "examples": examples(evidence, library, load_tokenizer(settings.model)),
        "portrait": draw(evidence, library, encoder, inputs, settings.seed),
        "queries": asked(inputs["screened.parquet"], settings.seed),
    }
    told = tell(evidence, traits(evidence, library), parts, settings.choose.bootstrap, settings.seed)
    shown = page(told).encode()
    write_bytes(tools.output / "report.html", shown)
    write_json(tools.output / "report.json", told)
    card = markdown(evidence, told, settings.model, library.corpus.keyword.analyzer.language)
    write_bytes(tools.output / "report.md", card.encode())
    return StageResult(counts={"bytes": len(shown)})
