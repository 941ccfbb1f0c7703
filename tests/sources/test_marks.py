"""Pages and headings of files in a finished index: shown, filtered on, and kept while it grows."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from made_files import pdf
from typer.testing import CliRunner

pytest.importorskip("pypdf")

PAGES = (
    "The zebra quagga has stripes on its head and neck.",
    "Leaves and grass are what the okapi eats all day.",
    "The tapir swims at night and sleeps in the morning.",
)


def settings_of(small_settings: Any, source: Path) -> Any:
    named = {"source": str(source), "text": (), "id": "", "title": ""}
    # A model of random weights would drown the keywords that are asked for here.
    engine = small_settings.engine.model_copy(update={"token_weight": 0.0})
    source_settings = small_settings.source.model_copy(update=named)
    return small_settings.model_copy(update={"source": source_settings, "engine": engine})


def test_pages_and_headings_are_shown_filtered_on_and_kept_up_to_date(
    tmp_path: Path, small_settings: Any, corpus: list[Any]
) -> None:
    from searchfit.cli import app
    from searchfit.growth import add, left_behind, optimize, remove, update
    from searchfit.pipeline import Fit
    from searchfit.search import open_searcher
    from searchfit.workspace import Workspace

    files, place = tmp_path / "files", tmp_path / "ws"
    files.mkdir()
    for doc in corpus:
        (files / f"{doc.id}.md").write_text(f"# {doc.title}\n\n{doc.text}", "utf-8")
    (files / "animals.pdf").write_bytes(pdf(*PAGES))
    note = files / "okapi.md"
    note.write_text(
        "# Okapi\n\nThe okapi is shy and lives in the rain forest.\n\n# Habits\n\nIt licks its ears clean.",
        "utf-8",
    )
    settings = settings_of(small_settings, files)
    settings = settings.model_copy(
        update={"split": settings.split.model_copy(update={"max_chars": 64, "overlap_chars": 0})}
    )
    assert list(Fit(Workspace(place), settings).run())

    def found(query: str, where: str | None = None) -> list[tuple[str, Any, Any]]:
        hits = open_searcher(place).search(query, 20, where, passages=True)
        return [(hit.document_id, hit.metadata["page"], hit.metadata["heading"]) for hit in hits]

    def said(query: str) -> str:
        done = CliRunner().invoke(app, ["search", str(place), query, "-k", "1"], catch_exceptions=False)
        return " ".join(done.output.split())

    assert ("animals.pdf", 2, None) in found("grass of the okapi")
    assert found("okapi", "page = 2") == [("animals.pdf", 2, None)]
    assert {page for _, page, _ in found("okapi tapir", "page > 1")} == {2, 3}
    assert set(found("ears", 'heading contains "Habit"')) == {("okapi.md", None, "Habits")}
    assert "animals" in said("zebra quagga stripes")
    assert ", page 1" in said("zebra quagga stripes")
    assert ", Habits" in said("licks its ears")

    # The same text on other pages is a change, whose vectors are there already.
    assert update(place, settings).unchanged == len(corpus) + 2
    (files / "animals.pdf").write_bytes(pdf("", *PAGES))
    done = update(place, settings)
    assert (done.changed, done.encoded, done.unchanged) == (1, 0, len(corpus) + 1)
    assert ("animals.pdf", 3, None) in found("grass of the okapi")
    assert found("grass of the okapi", "page = 2")[0][0] == "animals.pdf"
    assert update(place, settings).changed == 0

    # Additions with and without pages are merged.
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"id": "gnu", "title": "Gnu", "text": "The gnu grunts."}) + "\n", "utf-8")
    named = small_settings.source.model_copy(update={"source": str(more)})
    assert add(place, settings.model_copy(update={"source": named})).added == 1
    optimize(place)
    assert found("gnu grunts")[0] == ("gnu", None, None)
    assert ("animals.pdf", 4, None) in found("tapir", "page = 4")

    # What a new fit would undo is kept with its pages, and comes back with them.
    index = Workspace(place).served()["index"]  # type: ignore[index]
    (note_,) = (line for line in left_behind(Workspace(place), index) if "to have them back: " in line)
    remove(place, ["animals.pdf", "gnu"])
    assert not found("tapir", "page = 4")
    back = shlex.split(note_.rpartition("to have them back: ")[2])
    done_ = CliRunner().invoke(app, [*back[1:], "--json"], catch_exceptions=False)
    told = json.loads(done_.stdout)
    assert (told["added"], told["notes"]) == (2, [])
    assert ("animals.pdf", 4, None) in found("tapir", "page = 4")
    assert found("gnu grunts")[0] == ("gnu", None, None)


def test_marks_are_those_of_the_text_alone(tmp_path: Path) -> None:
    from searchfit.config import Settings, SourceSettings
    from searchfit.stages import Tools, ingest

    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.md").write_text("# One\n\nfirst\n\n# Two\n\nsecond", "utf-8")
    for columns, names in (((), True), (("title", "text"), False)):
        settings = Settings(source=SourceSettings(source=str(tmp_path / "files"), text=columns))
        ingest.run(settings, {}, Tools(tmp_path))
        assert ("marks" in pq.read_schema(tmp_path / "documents.parquet").names) is names
