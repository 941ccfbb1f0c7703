from __future__ import annotations

import json
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from searchfit import indexing
from searchfit.config import Settings
from searchfit.search import ArrayCorpus
from searchfit.stages import Tools, index
from searchfit.stores.corpus import StoreCorpus


def run(bench: Any, out: Path, inputs: dict[str, Path] | None = None, key: str = "v1") -> Any:
    settings: Settings = bench.settings.only("model", "index", "split")
    return index.run(settings, inputs or bench.inputs("index"), Tools(out, key))


def test_the_store_holds_what_the_arrays_hold(bench: Any) -> None:
    folder = bench.path("index/v1")
    corpus = ArrayCorpus.load(bench.path("encoded"), bench.path("keyword"))
    stored = StoreCorpus(folder)
    assert stored.count == corpus.count == bench.run("index").counts["passages"]
    rows = np.arange(corpus.count)
    passages, sentences, offsets = stored.store.vectors(rows)
    np.testing.assert_array_equal(passages, corpus.passages)
    np.testing.assert_array_equal(sentences, corpus.sentences)
    np.testing.assert_array_equal(offsets, corpus.offsets)
    np.testing.assert_array_equal(stored.documents, corpus.documents)
    queries = ["rose and soil", "the old locomotive", "unheard", ""]
    expected, found = corpus.keyword_scores(queries), stored.keyword_scores(queries)
    np.testing.assert_allclose(found.toarray(), expected.toarray(), atol=1e-7)
    given = pq.read_table(bench.path("passages.parquet")).to_pylist()
    fetched = stored.store.fetch(rows)
    for row, fields in zip(given, fetched, strict=True):
        assert {name: fields[name] for name in row} == row


@pytest.mark.parametrize(("terms", "postings"), [(50, 1 << 20), (1000, 40)])
def test_every_term_has_its_postings(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, terms: int, postings: int
) -> None:
    monkeypatch.setattr(indexing, "_TERMS", terms)  # several batches
    monkeypatch.setattr(indexing, "_POSTINGS", postings)
    monkeypatch.setattr(indexing, "_BATCH", 16)
    run(bench, tmp_path)
    corpus = ArrayCorpus.load(bench.path("encoded"), bench.path("keyword"))
    keyword = corpus.keyword
    found = StoreCorpus(tmp_path / "index" / "v1").store.postings(keyword.vocabulary)
    assert list(found) == list(keyword.vocabulary) or set(found) == set(keyword.vocabulary)
    for number, term in enumerate(keyword.vocabulary):
        part = slice(keyword.starts[number], keyword.starts[number + 1])
        np.testing.assert_array_equal(found[term][0], keyword.rows[part])
        np.testing.assert_array_equal(found[term][1], keyword.frequencies[part])


def test_the_pointer_names_engine_and_version(bench: Any, tmp_path: Path) -> None:
    result = run(bench, tmp_path, key="abc")
    pointer = json.loads((tmp_path / "engine.json").read_text())
    chosen = json.loads(bench.path("evaluation/choice.json").read_text())["chosen"]
    assert pointer == {"engine": chosen, "index": "index/abc"}
    assert result.counts["version"] == "abc"
    info = StoreCorpus(tmp_path / "index" / "abc").info
    assert info["engine"] == chosen
    assert info["dimension"] == 32
    assert "name" not in info["model"]  # the model lies beside the index, wherever the workspace is moved


def test_the_version_keeps_its_model_when_the_workspace_gets_another(bench: Any, tmp_path: Path) -> None:
    inputs = dict(bench.inputs("index"))
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    (tuned / "weights").write_bytes(b"old")
    inputs["models/tuned"] = tuned
    run(bench, tmp_path / "out", inputs)
    (tuned / "new").write_bytes(b"new")
    (tuned / "new").replace(tuned / "weights")
    assert (tmp_path / "out" / "index" / "v1" / "model" / "weights").read_bytes() == b"old"


def test_what_an_interrupted_build_left_is_replaced(bench: Any, tmp_path: Path) -> None:
    class Killed(Exception):
        """Stands for a kill."""

    def kill(*_: object) -> None:
        raise Killed

    settings = bench.settings.only("model", "index", "split")
    with pytest.raises(Killed):
        index.run(settings, bench.inputs("index"), Tools(tmp_path, "v1", kill))
    assert not (tmp_path / "engine.json").exists()
    run(bench, tmp_path)
    assert StoreCorpus(tmp_path / "index" / "v1").count == bench.run("index").counts["passages"]


def test_the_catalogue_is_the_same_in_parts(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = pq.read_table(bench.path("index/v1") / "catalog.parquet")
    monkeypatch.setattr(indexing, "_ENTRIES", 10)
    run(bench, tmp_path)
    assert pq.read_table(tmp_path / "index" / "v1" / "catalog.parquet").equals(whole)
    assert whole.num_rows == 72
    assert whole["rows"].to_numpy().sum() == bench.run("index").counts["passages"]


def test_rows_of_a_file_are_taken_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever is left out between them, and however the file's row groups lie."""
    monkeypatch.setattr(indexing, "_BATCH", 7)
    pq.write_table(
        pa.table({"a": list(range(100)), "b": ["x"] * 100}), tmp_path / "table.parquet", row_group_size=13
    )
    rows = indexing._InOrder(tmp_path / "table.parquet", ["a"])
    for asked in ([0, 0, 1], [1, 2], [2, 30], [61], [61, 61, 99], [99]):
        assert rows.take(np.array(asked, np.int32)).to_pydict() == {"a": asked}
        assert sum(batch.num_rows for batch in rows._held) <= asked[-1] - asked[0] + 2 * 7
    assert indexing._InOrder(tmp_path / "table.parquet", []).take(np.array([3], np.int32)).num_columns == 0


def test_metadata_of_every_type_is_kept(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "_BATCH", 7)
    inputs = dict(bench.inputs("index"))
    own = ["metadata.price", "metadata.place", "metadata.language"]
    table = pq.read_table(inputs["documents.parquet"]).drop_columns(own)
    count = table.num_rows
    columns: dict[str, tuple[pa.Array, str]] = {
        "a b": (pa.array([n % 5 or None for n in range(count)], pa.int64()), "int"),
        "x'; --": (pa.array([n / 4 for n in range(count)]), "float"),
        "名前": (pa.array([f"n{n}" for n in range(count)]), "string"),
        "vector": (pa.array([n % 2 == 0 for n in range(count)]), "bool"),
        "text": (pa.array([date(2024, 1, 1 + n % 28) for n in range(count)]), "date"),
        "when": (
            pa.array([datetime(2024, 1, 1, n % 24) for n in range(count)], pa.timestamp("us")),
            "timestamp",
        ),
        "list": (pa.array([[n, n] for n in range(count)], pa.list_(pa.int64())), "list<item: int64>"),
    }
    for name, (array, _) in columns.items():
        table = table.append_column(f"metadata.{name}", array)
    inputs["documents.parquet"] = tmp_path / "documents.parquet"
    pq.write_table(table, inputs["documents.parquet"])
    run(bench, tmp_path, inputs)
    store = StoreCorpus(tmp_path / "index" / "v1").store
    for row, fields in enumerate(store.fetch(np.arange(store.count()))):
        document = fields["document"]
        assert fields["metadata"] == {
            name: array[document].as_py() for name, (array, _) in columns.items()
        }, row
    kinds = {name: kind for name, (_, kind) in columns.items() if name != "list"}
    assert {name: store.columns[name] for name in kinds} == kinds
    assert "list" not in store.columns
