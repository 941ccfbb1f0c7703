from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pipeline_tools import cli

from searchfit import growth, views
from searchfit.config import to_toml
from searchfit.errors import FilterError, MissingExtraError, SearchfitError, SettingsError, WorkspaceError
from searchfit.saving import Stream, save
from searchfit.search import open_searcher
from searchfit.stores.versions import stamp
from searchfit.views import View


@pytest.fixture(scope="module")
def original(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared fit as a workspace, whose manifest vouches for the tables and for the index made of them."""
    bench.path("engine.json")
    folder = tmp_path_factory.mktemp("views") / "ws"
    folder.mkdir()
    for name in ("index", "engine.json", "documents.parquet", "passages.parquet"):
        source = bench.folder / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)
    tables = {"documents.parquet": "d1", "passages.parquet": "p1"}
    stages = {
        "ingest": {"artefacts": {"documents.parquet": {"digest": "d1"}}},
        "split": {"artefacts": {"passages.parquet": {"digest": "p1"}}},
        "index": {"artefacts": {}, "parts": tables},
    }
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "stages": stages}), encoding="utf-8")
    (folder / "searchfit.toml").write_text(to_toml(bench.settings), encoding="utf-8")
    return folder


@pytest.fixture
def ws(original: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    shutil.copytree(original, tmp_path / "ws")
    return tmp_path / "ws"


@pytest.fixture(scope="module")
def grown(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to which two documents were added, in which one was replaced and two were removed."""
    folder = tmp_path_factory.mktemp("grown")
    shutil.copytree(original, folder / "ws")
    change(folder / "ws")
    return folder / "ws"


NEW = [
    {
        "id": "new-1",
        "title": "bees",
        "text": "The hive stands near the orchard.",
        "price": 7,
        "place": "Jaca",
    },
    {"id": "new-2", "title": "", "text": "A hedge of roses, and no price.", "price": None, "place": None},
    {"id": "kitchen-1", "title": "changed", "text": "Nobody bakes here.", "price": 1000, "place": "Huesca"},
]


def change(folder: Path) -> None:
    file = folder.parent / "more.jsonl"
    file.write_text("".join(json.dumps(doc) + "\n" for doc in NEW), encoding="utf-8")
    growth.add(folder, growth.source_settings(folder, {"source.source": str(file)}))
    growth.remove(folder, ["garden-0", "music-3"])


def held(corpus: list[Any]) -> list[dict[str, Any]]:
    """What a grown workspace holds, in order."""
    gone = {"garden-0", "music-3", *(doc["id"] for doc in NEW)}
    return [*(vars(doc) for doc in corpus if doc.id not in gone), *NEW]


def given(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without the language, which reading adds."""
    return [{name: value for name, value in row.items() if name != "language"} for row in rows]


def test_the_documents_are_those_of_the_source(original: Path, corpus: list[Any]) -> None:
    view = views.documents(original)
    assert view.schema.names[:3] == ["id", "title", "text"]
    assert given(view) == [vars(doc) for doc in corpus]
    assert len(view) == len(corpus)
    assert not view.note


def test_passages_are_pieces_of_their_documents_and_have_their_columns(
    original: Path, corpus: list[Any]
) -> None:
    documents = {doc.id: doc for doc in corpus}
    rows = list(views.passages(original))
    assert (
        len(rows) == len(views.passages(original)) == pq.read_metadata(original / "passages.parquet").num_rows
    )
    assert {row["document_id"] for row in rows} == set(documents)
    for row in rows:
        doc = documents[row["document_id"]]
        assert row["text"] == doc.text[row["start"] : row["end"]]
        assert (row["title"], row["price"], row["place"]) == (doc.title, doc.price, doc.place)


def test_columns_can_be_asked_for_alone_and_in_any_order(original: Path, corpus: list[Any]) -> None:
    batches = list(views.passages(original).batches(["price", "id"]))
    assert {name for batch in batches for name in batch.schema.names} == {"price", "id"}
    first = next(views.documents(original).batches(["place", "title"]))
    assert first.to_pylist()[0] == {"place": corpus[0].place, "title": corpus[0].title}
    with pytest.raises(SettingsError, match="no column 'rooms'"):
        next(views.documents(original).batches(["rooms"]))


def test_rows_are_chosen_by_filter_text_and_id(original: Path, corpus: list[Any]) -> None:
    view = views.documents(original)
    cheap = view.select(where='price < 30 and (place = "Huesca" or place is null)')
    wanted = [doc.id for doc in corpus if doc.price < 30 and doc.place in ("Huesca", None)]
    assert wanted
    assert [row["id"] for row in cheap] == wanted
    assert len(cheap) == len(wanted)
    found = view.select(contains="GLACIER")
    assert [row["id"] for row in found] == [doc.id for doc in corpus if "glacier" in doc.text.lower()]
    both = found.select(where="price > 50", ids=["mountain-4", "mountain-10", "nobody"])
    assert {row["id"] for row in both} <= {"mountain-4", "mountain-10"}
    assert not view.select(ids=["nobody"])
    long = views.passages(original).select(ids=["music-3", "garden-0", "kitchen-7"])
    assert {row["document_id"] for row in long} == {"music-3", "garden-0", "kitchen-7"}
    with pytest.raises(FilterError, match="rooms"):
        view.select(where="rooms > 3")
    assert [row["id"] for row in view.first(3)] == [doc.id for doc in corpus[:3]]
    assert len(view.first(3)) == 3
    assert len(cheap.first(1000)) == len(wanted)


def test_changes_of_the_index_are_followed(grown: Path, corpus: list[Any], tmp_path: Path) -> None:
    wanted = held(corpus)
    view = views.documents(grown)
    assert given(view) == wanted
    assert len(view) == len(wanted)
    texts = {doc["id"]: doc for doc in wanted}
    passages = list(views.passages(grown))
    assert len(passages) == len(views.passages(grown)) == open_searcher(grown).corpus.count
    assert {row["document_id"] for row in passages} == set(texts)
    for row in passages:
        doc = texts[row["document_id"]]
        assert row["text"] == doc["text"][row["start"] : row["end"]]
        assert (row["price"], row["place"]) == (doc["price"], doc["place"])
    assert [row["id"] for row in view.select(where="price >= 1000")] == ["kitchen-1"]
    assert views.documents(grown).schema == views.documents(grown).to_arrow().schema
    assert views.passages(grown).select(ids=["new-1"]).to_arrow().schema == views.passages(grown).schema

    shutil.copytree(grown, tmp_path / "merged")
    growth.optimize(tmp_path / "merged")
    assert given(views.documents(tmp_path / "merged")) == wanted
    assert list(views.passages(tmp_path / "merged")) == passages


def test_an_index_all_of_whose_segments_are_merged_is_followed(ws: Path, corpus: list[Any]) -> None:
    growth.remove(ws, where="price > 20")
    change(ws)
    growth.optimize(ws)
    gone = {"garden-0", "music-3", *(doc["id"] for doc in NEW)}
    wanted = [vars(doc) for doc in corpus if doc.price <= 20 and doc.id not in gone] + NEW
    assert sorted(given(views.documents(ws)), key=lambda row: row["id"]) == sorted(
        wanted, key=lambda row: row["id"]
    )


def test_an_open_engine_shows_what_it_holds_now(ws: Path, corpus: list[Any]) -> None:
    searcher = open_searcher(ws)
    assert len(searcher.documents) == len(corpus)
    before, own = len(searcher.passages), len(searcher.passages.select(ids=["garden-0"]))
    growth.remove(ws, ["garden-0"])
    assert len(searcher.documents) == len(corpus) - 1
    assert len(searcher.passages) == before - own


def test_documents_that_were_read_again_are_shown_as_read(ws: Path, corpus: list[Any]) -> None:
    growth.remove(ws, ["garden-0"])
    assert stamp(ws / json.loads((ws / "engine.json").read_text(encoding="utf-8"))["index"])
    manifest = json.loads((ws / "manifest.json").read_text(encoding="utf-8"))
    manifest["stages"]["ingest"]["artefacts"]["documents.parquet"]["digest"] = "d2"
    (ws / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    view = views.documents(ws)
    assert len(view) == len(corpus)
    assert "after the index" in view.note
    assert "after the index" in cli("documents", ws, "--limit", "1").stderr


def test_where_nothing_was_read_there_is_no_view(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="not a searchfit workspace"):
        views.documents(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 1, "stages": {}}', encoding="utf-8")
    with pytest.raises(WorkspaceError, match=r"documents\.parquet"):
        views.documents(tmp_path)


def written(view: View, file: Path) -> list[dict[str, Any]]:
    assert view.save(file) == len(view)
    if file.suffix == ".parquet":
        return list(pq.read_table(file).to_pylist())
    lines = file.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_files_give_the_rows_back(original: Path, tmp_path: Path, ending: str) -> None:
    for view in (views.documents(original), views.passages(original).select(where="price < 40")):
        assert written(view, tmp_path / f"{len(view)}.{ending}") == list(view)


def test_an_exported_table_can_be_read_as_a_source(original: Path, tmp_path: Path) -> None:
    for ending in ("csv", "jsonl", "parquet"):
        file = tmp_path / f"documents.{ending}"
        views.documents(original).save(file)
        model = open_searcher(original).folder / "model"
        named = ("--text", "text", "--id", "id", "--title", "title", "--set", f"model.name={model}")
        done = cli("ingest", file, *named, "-o", tmp_path / ending)
        assert done.returncode == 0, done.stderr
        assert list(views.documents(tmp_path / ending)) == list(views.documents(original))


NASTY = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "'=1",
    "'plain",
    "-",
    "a=1",
    'said "so", twice\nand on',
    "",
]


def stream(escape: bool = True) -> Stream:
    import pyarrow as pa

    table = pa.table({"=name": NASTY, "number": [-1.5, float("nan"), None, *[2.0] * (len(NASTY) - 3)]})
    return Stream(table.schema, iter(table.to_batches()), escape)


def test_formulas_in_a_spreadsheet_are_put_to_sleep(tmp_path: Path) -> None:
    assert save(stream(), tmp_path / "a.csv") == len(NASTY)
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    cells = [row[0] for row in rows]
    assert head == ["'=name", "number"]
    assert all(cell[:1] not in {"=", "+", "-", "@", "\t", "\r"} for cell in cells)
    assert [cell.removeprefix("'") if cell != "'plain" else cell for cell in cells] == NASTY
    assert [row[1] for row in rows[:3]] == ["-1.5", "nan", ""]
    save(stream(escape=False), tmp_path / "b.csv")
    with (tmp_path / "b.csv").open(encoding="utf-8", newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["=name", *NASTY]


def test_json_has_no_numbers_that_json_has_not(tmp_path: Path) -> None:
    save(stream(), tmp_path / "a.jsonl")
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line, parse_constant=pytest.fail)["number"] for line in lines[:3]] == [
        -1.5,
        None,
        None,
    ]


def test_a_file_is_replaced_only_when_asked_and_only_by_a_whole_one(original: Path, tmp_path: Path) -> None:
    view, file = views.documents(original), tmp_path / "out.csv"
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(SettingsError, match="there already"):
        view.save(file)
    for wrong in (tmp_path / "out.xlsx", tmp_path / "out", tmp_path):
        with pytest.raises(SettingsError):
            view.save(wrong, force=True)

    def broken() -> Any:
        yield from view.first(2).batches()
        raise RuntimeError("cut")

    with pytest.raises(RuntimeError):
        save(Stream(view.schema, broken()), file, force=True)
    assert file.read_text(encoding="utf-8") == "mine"
    assert list(tmp_path.iterdir()) == [file]
    view.save(file, force=True)
    assert len(list(csv.DictReader(file.open(encoding="utf-8", newline="")))) == len(view)
    for place in ("nowhere/out.csv", f"{file.name}/out.csv", f"{'x' * 300}.csv"):
        with pytest.raises(SearchfitError, match="cannot be written"):
            view.save(tmp_path / place)


def test_a_data_frame(original: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="the extra pandas is not installed")
    frame = views.documents(original).to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["id"].tolist() == [row["id"] for row in views.documents(original)]


def test_a_data_frame_needs_pandas(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pandas"):
        views.documents(original).to_pandas()


def test_the_commands_list_and_write(original: Path, corpus: list[Any], tmp_path: Path) -> None:
    done = cli("documents", original, "--limit", "2")
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [doc.id for doc in corpus[:2]]
    assert "the first 2" in done.stderr
    done = cli("documents", original, "--id", "garden-0", "--json")
    assert given([json.loads(done.stdout)]) == [vars(corpus[0])]
    done = cli("passages", original, "--document", "garden-0", "--contains", "the", "--limit", "0", "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows == list(views.passages(original).select(contains="the", ids=["garden-0"]))
    assert rows
    file = tmp_path / "few.csv"
    assert cli("passages", original, "--where", "price < 50", "-o", file).returncode == 0
    with file.open(encoding="utf-8", newline="") as opened:
        assert sum(1 for _ in csv.DictReader(opened)) == len(views.passages(original).select("price < 50"))
    assert cli("passages", original, "-o", file).returncode == 2
    done = cli("passages", original, "-o", file, "--force", "--limit", "3", "--json")
    assert json.loads(done.stdout) == {"rows": 3, "file": str(file)}
    assert "there is none" in cli("documents", original, "--contains", "zebra").stderr
    assert cli("documents", original, "--where", "rooms > 1").returncode == 2


def test_ingest_reads_and_stops(bench: Any, tmp_path: Path) -> None:
    model = bench.settings.model.name
    source = bench.settings.source.source
    options = ("-o", tmp_path / "ws", "--set", f"model.name={model}", "--set", "split.max_chars=300")
    done = cli("ingest", source, "--id", "id", "--title", "title", "--text", "text", *options)
    assert done.returncode == 0, done.stderr
    made = {path.name for path in (tmp_path / "ws").glob("*.parquet")}
    assert made == {"documents.parquet", "passages.parquet"}
    assert len(views.documents(tmp_path / "ws")) == 72
    again = cli("ingest", "-o", tmp_path / "ws", "--json")
    assert [step["why"] for step in json.loads(again.stdout)] == ["", ""]
