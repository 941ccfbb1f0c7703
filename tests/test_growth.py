from __future__ import annotations

import gc
import json
import random
import shutil
import subprocess
import sys
import threading
import weakref
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_tools import Killed, killed_at_a_rename

from searchfit import growth
from searchfit.config import Settings, to_toml
from searchfit.encoders.corpus import encode_corpus
from searchfit.errors import SettingsError, SourceError, WorkspaceError
from searchfit.fusion import rank
from searchfit.growth import Growth
from searchfit.keyword import KeywordIndex
from searchfit.records import Engine, encoded_text
from searchfit.search import ArrayCorpus, Searcher, open_searcher
from searchfit.stages import Tools, ingest, split
from searchfit.stores.versions import grown_folder, open_index
from searchfit.workspace import Workspace

QUESTIONS = ["pruning the old rose hedge", "glacier", "who repaired the locomotive signal", "zebra ???"]


@dataclass
class Place:
    """A workspace of the shared fit that may be changed, and the documents that it should hold."""

    folder: Path
    settings: Settings
    held: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def searcher(self) -> Searcher:
        return open_searcher(self.folder)

    def source(self, documents: list[dict[str, Any]]) -> Settings:
        file = self.folder.parent / "more.jsonl"
        file.write_text("".join(json.dumps(doc) + "\n" for doc in documents), encoding="utf-8")
        return growth.source_settings(self.folder, {"source.source": str(file)})

    def add(self, documents: list[dict[str, Any]]) -> Growth:
        done = growth.add(self.folder, self.source(documents))
        for doc in documents:
            if self.held.get(doc["id"]) != doc:
                self.held.pop(doc["id"], None)
                self.held[doc["id"]] = doc
        return done

    def update(self, documents: list[dict[str, Any]]) -> Growth:
        done = growth.update(self.folder, self.source(documents))
        wanted = {doc["id"]: doc for doc in documents}
        kept = {id_: doc for id_, doc in self.held.items() if wanted.get(id_) == doc}
        self.held = kept | {id_: doc for id_, doc in wanted.items() if id_ not in kept}
        return done

    def remove(self, *ids: str) -> Growth:
        for id_ in ids:
            self.held.pop(id_, None)
        return growth.remove(self.folder, ids)


@pytest.fixture
def place(bench: Any, tmp_path: Path) -> Place:
    bench.path("engine.json")
    folder = tmp_path / "ws"
    folder.mkdir()
    for name in ("index", "engine.json", "documents.parquet"):
        source = bench.folder / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)
    (folder / "manifest.json").write_text('{"format": 1, "stages": {}}')
    (folder / "searchfit.toml").write_text(to_toml(bench.settings), encoding="utf-8")
    source = Path(bench.settings.source.source)
    docs = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    return Place(folder, bench.settings, {doc["id"]: doc for doc in docs})


def fresh(place: Place, folder: Path) -> tuple[ArrayCorpus, list[str]]:
    """The documents that should be held, through the stages of a fit into arrays; the id of each passage."""
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    tools = Tools(folder)
    searcher = place.searcher
    ingest.run(place.source(list(place.held.values())), {}, tools)
    split.run(place.settings, {"documents.parquet": folder / "documents.parquet"}, tools)
    encode_corpus(searcher.encoder, folder / "passages.parquet", folder / "encoded", lambda *_: None)
    table = pq.read_table(folder / "passages.parquet")
    texts = map(encoded_text, table["title"].to_pylist(), table["text"].to_pylist())
    KeywordIndex.build(texts, searcher.corpus.analyzer).save(folder / "keyword")
    return ArrayCorpus.load(folder / "encoded", folder / "keyword"), table["document_id"].to_pylist()


def assert_as_fresh(place: Place, folder: Path) -> None:
    """Search and batches give what a new index of the same documents gives."""
    arrays, ids = fresh(place, folder)
    searcher = place.searcher
    assert searcher.corpus.count == arrays.count
    for engine in (Engine("both"), Engine("keyword", dense_weight=0.0), Engine("rrf", fusion="rrf")):
        searcher.engine = engine
        vectors = searcher.encoder.encode_queries(QUESTIONS)
        expected = rank([engine], arrays, vectors, QUESTIONS, 10)[0]
        many = searcher.search_many(QUESTIONS, 10)
        np.testing.assert_allclose(many.scores, expected.scores, atol=1e-5)
        for number, question in enumerate(QUESTIONS):
            hits = searcher.search(question, 10)
            wanted = [
                (ids[row], score)
                for row, score in zip(expected.rows[number], expected.scores[number], strict=True)
            ]
            np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in wanted], atol=1e-5)
            lowest = wanted[-1][1]  # what is as good as the last may have been left out
            clear = {id_ for id_, score in wanted if score > lowest + 2e-5}
            assert clear <= {hit.document_id for hit in hits}
            assert [hit.document_id for hit in hits] == searcher.document_ids(many.rows[number])


def changed(rng: random.Random, place: Place, count: int) -> list[dict[str, Any]]:
    """Some documents that are new, some that are there with another text, price or nothing changed."""
    made = []
    for number in range(count):
        doc = dict(rng.choice(list(place.held.values()))) if place.held else {"title": "t", "place": None}
        kind = rng.choice(["new", "text", "price", "same", "twin"])
        if kind in {"new", "twin"}:
            doc["id"] = f"new-{rng.randrange(40)}-{number}"
        if kind in {"new", "text"}:
            doc["text"] = " ".join(
                rng.sample(["anchor", "glacier", "rose", "violin", "oven", "signal", "ridge"], 5)
            ) * rng.choice([1, 9])
        if kind == "price" or "price" not in doc:
            doc["price"] = rng.randrange(100)
        made.append(doc)
    return list({doc["id"]: doc for doc in made}.values())


@pytest.mark.parametrize("seed", [0, 1])
def test_any_growth_answers_as_a_fresh_index(place: Place, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    rows: dict[int, str] = {}
    for step in range(9):
        kind = rng.choice(["add", "add", "remove", "remove", "update", "optimize"])
        if kind == "add":
            place.add(changed(rng, place, rng.randrange(1, 6)))
        elif kind == "update":
            kept = rng.sample(list(place.held.values()), len(place.held) * 3 // 4)
            place.update(list({doc["id"]: doc for doc in [*kept, *changed(rng, place, 3)]}.values()))
        elif kind == "remove":
            place.remove(*rng.sample(list(place.held), rng.randrange(1, 12)), "never there")
        else:
            before = place.searcher.search(QUESTIONS[0], 50)
            growth.optimize(place.folder)
            assert place.searcher.search(QUESTIONS[0], 50) == before
        store = place.searcher.corpus.store
        now = dict(zip(store.rows.tolist(), (f["text"] for f in store.fetch(store.rows)), strict=True))
        assert all(rows.get(row, text) == text for row, text in now.items())  # rows are for life
        assert {f["document_id"] for f in store.fetch(store.rows)} == set(place.held)
        rows |= now
        if step in {4, 8}:
            assert_as_fresh(place, tmp_path / f"fresh-{step}")


def test_what_has_not_changed_is_not_encoded(place: Place) -> None:
    docs = list(place.held.values())
    first = docs[0]
    assert place.add(docs) == Growth(unchanged=72, passages=place.searcher.corpus.count)
    done = place.add([{**first, "price": 1000}, {**first, "id": "twin"}])
    assert (done.added, done.changed, done.encoded) == (1, 1, 0)
    assert done.reused == 2 * len(place.searcher.corpus.store.rows_of("twin"))
    hits = place.searcher.search(first["text"], 3, 'price = 1000 or title = "none"')
    assert [hit.document_id for hit in hits] == [first["id"]]
    done = place.add([{**docs[1], "text": "A new text about a periscope."}])
    assert (done.changed, done.encoded, done.reused) == (1, 1, 0)
    assert place.searcher.search("periscope", 1)[0].document_id == docs[1]["id"]


def test_what_cannot_be_added_is_said(place: Place, tmp_path: Path) -> None:
    bare = tmp_path / "bare.csv"
    bare.write_text("text,price\nSomething,3\n")
    settings = growth.source_settings(
        place.folder, {"source.source": str(bare), "source.id": "", "source.title": ""}
    )
    with pytest.raises(SettingsError, match="no ids"):
        growth.add(place.folder, settings)
    with pytest.raises(SourceError, match="'price' holds int64"):
        place.add([{"id": "x", "title": "", "text": "Some text.", "price": "dear", "place": None}])
    with pytest.raises(SettingsError, match="nothing is named"):
        growth.remove(place.folder)
    with pytest.raises(WorkspaceError, match="not a searchfit workspace"):
        growth.optimize(tmp_path)
    with Workspace(place.folder).lock(), pytest.raises(WorkspaceError, match="another process"):
        growth.remove(place.folder, ["garden-0"])
    held = set(place.held)
    done = place.add(
        [{"id": "y", "title": "", "text": "Some text.", "price": 3, "place": None, "colour": "red"}]
    )
    assert "colour" in done.notes[0]
    assert {hit.document_id for hit in place.searcher.search("text", 100)} == held | {"y"}


def test_everything_may_be_removed_and_come_back(place: Place, tmp_path: Path) -> None:
    docs = list(place.held.values())
    done = growth.remove(place.folder, where="price >= 0", ids=["nobody"])
    assert (done.removed, done.passages, done.missing) == (72, 0, ("nobody",))
    assert place.searcher.search("glacier") == []
    assert (place.searcher.search_many(["glacier"]).rows == -1).all()
    assert growth.optimize(place.folder).passages == 0
    place.held = {}
    place.add(docs)
    assert_as_fresh(place, tmp_path / "fresh")


def test_many_small_additions_are_merged(place: Place) -> None:
    texts = ["locomotive", "signal", "platform", "carriage", "timetable"]
    for number in range(10):
        place.add(
            [
                {
                    "id": f"n{number}",
                    "title": "",
                    "text": f"{texts[number % 5]} {number}",
                    "price": 1,
                    "place": None,
                }
            ]
        )
    opened = open_index(place.searcher.folder)
    assert len(opened.version.segments) < 9
    assert {hit.document_id for hit in place.searcher.search("signal", 100)} == set(place.held)
    # Only what the version and the one before it need is kept.
    place.remove("n3")
    now = open_index(place.searcher.folder)
    assert now.before is not None
    kept = {path.name for path in grown_folder(now.index).iterdir()} - {"version.json"}
    assert kept == now.version.names() | now.before.names()


def test_stopped_before_every_file_that_gets_its_name(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that is stopped anywhere is not there or is there whole; the same again completes it, and a
    reader that was open all the time sees one of the two."""
    reader = place.searcher
    new = [
        {"id": f"s{n}", "title": "", "text": f"spinnaker {n}", "price": 5, "place": None} for n in range(3)
    ]
    changes = (
        lambda: place.add(new),
        lambda: place.remove("s0", "garden-0"),
        lambda: growth.optimize(place.folder),
    )

    def seen() -> set[str]:
        hits = reader.search("spinnaker regatta", 200)
        ids = {hit.document_id for hit in hits}
        assert len(hits) == len(ids)
        return ids

    strike = killed_at_a_rename(monkeypatch)
    for change in changes:
        before, attempt = seen(), 0
        while True:
            attempt += 1
            strike(attempt)
            try:
                change()
                break
            except Killed:
                assert seen() == before or seen() == set(place.held)
        assert attempt > 1
        assert seen() == set(place.held)


def test_a_version_that_nobody_reads_is_let_go_of_at_once(place: Place) -> None:
    searcher = place.searcher
    searcher.search("glacier", where="price < 50")
    store = weakref.ref(searcher.corpus.store)
    gc.disable()  # what waits for it keeps files open for as long as it likes
    try:
        place.remove(next(iter(place.held)))
        searcher.search("glacier", where="price < 50")
        assert store() is None
    finally:
        gc.enable()


@pytest.mark.slow
def test_kill_9_at_twenty_moments(place: Place) -> None:
    """Nothing acknowledged is lost or doubled; a reader running all along sees whole batches and no error."""
    reader, done, wrong = place.searcher, threading.Event(), []

    def read() -> None:
        while not done.is_set():
            ids = [hit.document_id for hit in reader.search("periscope", 1000)]
            batches = Counter(id_.partition(":")[0] for id_ in ids if ":" in id_)
            if len(ids) != len(set(ids)) or set(batches.values()) - {4}:
                wrong.append(batches)

    thread = threading.Thread(target=read)
    thread.start()
    rng, there, unsure = random.Random(3), set(), set()
    try:
        for run in range(20):
            process = subprocess.Popen(
                [
                    sys.executable,
                    str(Path(__file__).parent / "growth_worker.py"),
                    str(place.folder),
                    str(run),
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            timer = threading.Timer(rng.uniform(0.0, 3.0), process.kill)
            timer.start()
            for line in process.stdout:
                what, word, batch = line.split()
                if what == "begin":
                    unsure = {batch}
                    continue
                unsure = set()
                there = there | {batch} if word == "add" else there - {batch}
            process.wait()
            timer.join()
            ids = [hit.document_id for hit in reader.search("periscope", 1000)]
            found = {id_.partition(":")[0] for id_ in ids if ":" in id_}
            assert found - unsure == there - unsure, run
            assert len(ids) == 72 + 4 * len(found)
            there = found
    finally:
        done.set()
        thread.join()
    assert not wrong
