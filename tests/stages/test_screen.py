from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from searchfit.config import load_settings
from searchfit.encoders import load_encoder
from searchfit.records import PAIRS, QUERIES, StageResult
from searchfit.stages import Tools, screen


@pytest.fixture
def inputs(bench: Any, tmp_path: Path) -> dict[str, Path]:
    """The artefacts that the screen reads, with queries of our own."""
    return {**bench.inputs("screen"), "queries": tmp_path / "queries"}


def run(
    bench: Any, inputs: dict[str, Path], out: Path, queries: list[tuple[str, str]], **values: Any
) -> StageResult:
    """Screen queries, given as (text, passage id), in two parts."""
    rows = [
        (f"q{n:03d}", text, passage, "keyphrases", "phrases", 1) for n, (text, passage) in enumerate(queries)
    ]
    inputs["queries"].mkdir(exist_ok=True)
    for part in range(2):
        columns = [list(column) for column in zip(*rows[part::2], strict=True)] or [[] for _ in QUERIES]
        pq.write_table(pa.table(columns, schema=QUERIES), inputs["queries"] / f"part-{part}.parquet")
    settings = load_settings(base=bench.settings, values=values).only("screen", "model", "engine")
    return screen.run(settings, inputs, Tools(out))


def dropped(result: StageResult) -> dict[str, tuple[int, tuple[str, ...]]]:
    return {drop.reason: (drop.count, drop.samples) for drop in result.drops}


def passage(bench: Any, document: str) -> tuple[str, str]:
    row = next(
        row
        for row in pq.read_table(bench.path("passages.parquet")).to_pylist()
        if row["document_id"] == document
    )
    return row["id"], row["text"]


def test_every_reason_to_drop_a_query(bench: Any, inputs: dict[str, Path], tmp_path: Path) -> None:
    garden, text = passage(bench, "garden-0")
    railway, _ = passage(bench, "railway-5")
    sentence = text.split(".")[0]
    result = run(
        bench,
        inputs,
        tmp_path,
        [
            (sentence, garden),
            (f"  {sentence.upper()} ", garden),
            ("rose", garden),
            ("船の旅", garden),  # three characters of Han say as much as a longer word
            ("violin sonata cello melody", railway),
            ("garden notes 0", garden),
        ],
        **{"screen.top_k": 5},
    )
    reasons = dropped(result)
    assert reasons["duplicate"] == (1, (f"  {sentence.upper()} ",))
    assert reasons["shorter than 6 characters"] == (1, ("rose",))
    count, samples = reasons["own document not among the first 5"]
    assert "violin sonata cello melody" in samples
    assert "船の旅" not in reasons.get("shorter than 6 characters", (0, ()))[1]
    table = pq.read_table(tmp_path / "pairs.parquet")
    assert table["id"].to_pylist()[0] == "q000"
    assert result.counts == {"queries": 6, "kept": table.num_rows}
    assert table.num_rows + 2 + count == 6


def test_kept_pairs_name_their_rows_and_rank(bench: Any, inputs: dict[str, Path], tmp_path: Path) -> None:
    passages = pq.read_table(bench.path("passages.parquet")).to_pylist()
    queries = [(row["text"].split(".")[0], row["id"]) for row in passages[::9]]
    run(bench, inputs, tmp_path, queries, **{"screen.top_k": 100, "screen.generic_ties": 1000})
    table = pq.read_table(tmp_path / "pairs.parquet")
    assert table.schema.equals(PAIRS)
    assert table["id"].to_pylist() == sorted(table["id"].to_pylist())
    for pair in table.to_pylist():
        own = passages[pair["passage"]]
        assert (own["id"], own["document"]) == (pair["passage_id"], pair["document"])
        assert 1 <= pair["rank"] <= 100
    vectors = np.load(tmp_path / "pair_vectors.npy")
    expected = load_encoder(bench.settings.model).encode_queries(table["text"].to_pylist())
    np.testing.assert_allclose(vectors, expected, atol=2e-6)


def test_queries_that_many_documents_answer_are_generic(
    bench: Any, inputs: dict[str, Path], tmp_path: Path
) -> None:
    garden, text = passage(bench, "garden-0")
    query = text.split(".")[0]
    loose = {"screen.generic_ties": 4, "screen.top_k": 100, "screen.generic_margin": 2.0}
    strict = {**loose, "screen.generic_margin": 0.0}
    assert dropped(run(bench, inputs, tmp_path / "a", [(query, garden)], **loose)) == {
        "generic: many documents answer equally well": (1, (query,))
    }
    assert dropped(run(bench, inputs, tmp_path / "b", [(query, garden)], **strict)) == {}
    all_of_them = {**loose, "screen.generic_ties": 73}  # more than there are: nothing is generic here
    assert dropped(run(bench, inputs, tmp_path / "c", [(query, garden)], **all_of_them)) == {}


@pytest.mark.parametrize("queries", [[], [("a", "garden-0#0"), ("b", "garden-0#0")]])
def test_no_query_left_gives_an_empty_table(
    bench: Any, inputs: dict[str, Path], tmp_path: Path, queries: list[tuple[str, str]]
) -> None:
    result = run(bench, inputs, tmp_path, queries)
    assert result.counts["kept"] == 0
    table = pq.read_table(tmp_path / "pairs.parquet")
    assert table.num_rows == 0
    assert table.schema.equals(PAIRS)
    assert np.load(tmp_path / "pair_vectors.npy").shape == (0, 32)


def test_samples_are_few(bench: Any, inputs: dict[str, Path], tmp_path: Path) -> None:
    result = run(bench, inputs, tmp_path, [(str(n), "garden-0#0") for n in range(9)])
    (drop,) = result.drops
    assert (drop.count, len(drop.samples)) == (9, 5)
