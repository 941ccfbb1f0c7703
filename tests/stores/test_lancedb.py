from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from searchfit.errors import SearchfitError, WorkspaceError
from searchfit.filters import Compare, Either, Every, Filter, Member, Missing, Not, matches, parse
from searchfit.stores.building import build
from searchfit.stores.lancedb import LanceStore

SIZE = 8
ROWS = 60
TYPES: dict[str, pa.DataType] = {
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
}
ODD = ["a b", "sélect", "x'y", 'drop table "passages"; --', "名前", "text"]


def unit(rng: np.random.Generator, count: int) -> np.ndarray:
    vectors = rng.standard_normal((count, SIZE), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def fixed(vectors: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).ravel()), vectors.shape[1])


def passages(
    vectors: np.ndarray,
    sentences: list[np.ndarray],
    metadata: dict[str, pa.Array] | None = None,
) -> pa.Table:
    count = len(vectors)
    offsets = np.cumsum([0, *map(len, sentences)])
    return pa.table(
        {
            "row": pa.array(range(count), pa.int32()),
            "id": [f"d{row // 2}#{row % 2}" for row in range(count)],
            "document_id": [f"d{row // 2}" for row in range(count)],
            "document": pa.array([row // 2 for row in range(count)], pa.int32()),
            "title": [f"title {row}" for row in range(count)],
            "text": pa.array([f"text of {row} «é» 名前" for row in range(count)], pa.large_string()),
            "start": pa.array([0] * count, pa.int64()),
            "end": pa.array([10] * count, pa.int64()),
            "sentences": pa.array([[0, 4, 4, 10]] * count, pa.list_(pa.int32())),
            "vector": fixed(vectors),
            "sentence_vectors": pa.ListArray.from_arrays(
                pa.array(offsets, pa.int32()), fixed(np.concatenate([*sentences, np.empty((0, SIZE))]))
            ),
            **(metadata or {}),
        }
    )


TERMS = {"casa": [(0, 1.0), (5, 2.5)], "it's; drop": [(3, 1.0)], "名前": [(row, 0.5) for row in range(ROWS)]}


def postings(count: int = ROWS) -> Iterator[pa.RecordBatch]:
    """The postings of the first passages."""
    for term, every in TERMS.items():
        pairs = [pair for pair in every if pair[0] < count]
        rows, frequencies = zip(*pairs, strict=True) if pairs else ((), ())
        yield pa.record_batch(
            [
                pa.array([term]),
                pa.array([list(rows)], pa.list_(pa.int32())),
                pa.array([list(frequencies)], pa.list_(pa.float32())),
            ],
            names=["term", "rows", "frequencies"],
        )


def described(names: list[str], kinds: list[str]) -> dict[str, Any]:
    columns = [
        {"name": name, "column": f"m{place}", "type": kind}
        for place, (name, kind) in enumerate(zip(names, kinds, strict=True))
    ]
    return {"model": "minilm", "metadata": columns}


def small(folder: Path, metadata: dict[str, pa.Array], kinds: list[str], names: list[str]) -> LanceStore:
    """An index of as many passages as the metadata has values."""
    count = len(next(iter(metadata.values())))
    table = passages(np.ones((count, SIZE)), [np.ones((1, SIZE))] * count, metadata)
    build(folder, table.to_batches(max_chunksize=7), postings(count), described(names, kinds))
    return LanceStore(folder)


class World:
    """An index and, beside it, the arrays that it was built from."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(7)
        self.vectors = unit(rng, ROWS)
        self.sentences = [unit(rng, 1 + row % 4) for row in range(ROWS)]
        self.price = [None if row % 9 == 0 else float(rng.integers(100)) for row in range(ROWS)]
        table = passages(self.vectors, self.sentences, {"m0": pa.array(self.price)})
        self.query = unit(rng, 1)[0]
        build(folder, table.to_batches(max_chunksize=13), postings(), described(["price"], ["float"]))
        self.folder = folder
        self.store = LanceStore(folder)

    def scores(self, column: str) -> np.ndarray:
        if column == "vector":
            return self.vectors @ self.query
        return np.array([(vectors @ self.query).max() for vectors in self.sentences])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("index") / "v-1")


@pytest.mark.parametrize("column", ["vector", "sentence_vectors"])
@pytest.mark.parametrize("k", [1, 7, ROWS, 10 * ROWS])
@pytest.mark.parametrize("filtered", [False, True])
def test_nearest_is_brute_force(world: World, column: Any, k: int, filtered: bool) -> None:
    where = parse("price < 50", world.store.columns) if filtered else None
    allowed = [row for row in range(ROWS) if where is None or matches(where, {"price": world.price[row]})]
    scores = world.scores(column)
    expected = sorted(allowed, key=lambda row: -scores[row])[:k]
    rows, similarities = world.store.nearest(world.query, column, k, where)
    assert rows.tolist() == expected
    np.testing.assert_allclose(similarities, scores[expected], atol=1e-6)
    assert (rows.dtype, similarities.dtype) == (np.int64, np.float32)


def test_nearest_refuses_a_bad_query(world: World) -> None:
    for bad in (np.full(SIZE, np.nan, np.float32), np.ones(SIZE + 1, np.float32), np.ones((1, SIZE))):
        with pytest.raises(SearchfitError, match="query vector of 8"):
            world.store.nearest(bad, "vector", 3)
    assert world.store.nearest(world.query, "vector", 0)[0].size == 0


def test_nearest_finds_nothing_where_the_filter_lets_nothing_through(world: World) -> None:
    rows, similarities = world.store.nearest(world.query, "vector", 5, Compare("price", "<", -1.0))
    assert rows.size == similarities.size == 0
    assert world.store.matching(Compare("price", "<", -1.0)).size == 0


def test_passages_without_a_sentence_are_not_found_by_sentences(tmp_path: Path) -> None:
    basis = np.eye(SIZE, dtype=np.float32)
    vectors = np.stack([basis[0], np.zeros(SIZE, np.float32), -basis[0]])
    table = passages(vectors, [basis[:2], basis[:0], -basis[:1]])
    build(tmp_path, table.to_batches(), [], {})
    store = LanceStore(tmp_path)
    assert store.nearest(basis[0], "vector", 9)[0].tolist() == [0, 1, 2]
    assert store.nearest(basis[0], "sentence_vectors", 9)[0].tolist() == [0, 2]
    _, sentences, offsets = store.vectors([2, 1, 0])
    assert offsets.tolist() == [0, 1, 1, 3]
    assert sentences.tolist() == [*(-basis[:1]).tolist(), *basis[:2].tolist()]
    assert store.postings(["casa"]) == {}


@pytest.mark.parametrize("rows", [[5, 0, 59, 5, 31], [], list(range(ROWS)), [59]])
def test_vectors_come_in_the_order_asked(world: World, rows: list[int]) -> None:
    vectors, sentences, offsets = world.store.vectors(rows)
    np.testing.assert_array_equal(vectors, world.vectors[rows].reshape(-1, SIZE))
    assert len(offsets) == len(rows) + 1
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(sentences[offsets[place] : offsets[place + 1]], world.sentences[row])


def test_fetch_comes_in_the_order_asked(world: World) -> None:
    rows = [31, 2, 31, 0]
    found = world.store.fetch(np.array(rows))
    assert [record["row"] for record in found] == rows
    assert found[0] == {
        "row": 31,
        "id": "d15#1",
        "document_id": "d15",
        "document": 15,
        "title": "title 31",
        "text": "text of 31 «é» 名前",
        "start": 0,
        "end": 10,
        "sentences": [0, 4, 4, 10],
        "metadata": {"price": world.price[31]},
    }
    assert world.store.fetch([]) == []
    for wrong in ([ROWS], [-1]):
        with pytest.raises(IndexError):
            world.store.fetch(wrong)


def test_scan_walks_in_row_order(world: World) -> None:
    batches = list(world.store.scan(["vector", "id"], batch=16))
    assert all(batch.num_rows <= 16 and batch.schema.names == ["vector", "id"] for batch in batches)
    stored = np.concatenate([batch["vector"].flatten().to_numpy() for batch in batches]).reshape(-1, SIZE)
    np.testing.assert_array_equal(stored, world.vectors)


def test_postings(world: World) -> None:
    found = world.store.postings([*TERMS, "casa", "absent", "' or '1'='1", *map(str, range(1200))])
    assert {term: list(zip(*map(list, lists), strict=True)) for term, lists in found.items()} == TERMS
    assert world.store.postings([]) == {}


def test_own_fields_can_be_filtered_on(world: World) -> None:
    where = parse('id = "d3" and title contains "7" and text contains "«"', world.store.columns)
    assert world.store.matching(where).tolist() == [7]


METADATA: dict[str, list[Any]] = {
    "int": [3, None, -(2**63), 2**63 - 1],
    "float": [0.1, None, 5e-324, float("inf")],
    "bool": [True, None, False, True],
    "string": ["", None, "it's\n\\ %_", "名前😀"],
    "date": [date(2024, 12, 31), None, date(1, 1, 1), date(9999, 12, 31)],
    "timestamp": [datetime(2024, 12, 31, 23, 59, 59, 1), None, datetime(1, 1, 1), datetime(1969, 7, 20)],
}


def test_metadata_keeps_its_types_under_odd_names(tmp_path: Path) -> None:
    columns = {f"m{place}": pa.array(METADATA[kind], TYPES[kind]) for place, kind in enumerate(TYPES)}
    store = small(tmp_path, columns, list(TYPES), ODD)
    by_name = dict(zip(ODD, METADATA.values(), strict=True))
    assert [record["metadata"] for record in store.fetch(range(4))] == [
        {name: values[row] for name, values in by_name.items()} for row in range(4)
    ]
    assert store.columns == {"id": "string", "title": "string", **dict(zip(ODD, TYPES, strict=True))}
    for name in ODD:
        where = parse(f"`{name}` is null", store.columns)
        assert store.matching(where).tolist() == [1]


def test_metadata_is_brought_to_one_type(tmp_path: Path) -> None:
    zoned = datetime(2024, 5, 1, 12, tzinfo=timezone.utc)
    columns = {
        "m0": pa.array([1, 2], pa.int16()),
        "m1": pa.array([1.5, float("nan")], pa.float32()),
        "m2": pa.array(["x", None]).dictionary_encode(),
        "m3": pa.array([zoned, None], pa.timestamp("ns", "Europe/Madrid")),
        "m4": pa.array([[1], None], pa.list_(pa.int64())),
        "m5": pa.array([None, None]),
    }
    store = small(tmp_path, columns, ["int", "float", "string", "timestamp", "list", "int"], [*"abcdef"])
    assert store.fetch([0, 1])[1]["metadata"] == {"a": 2, **dict.fromkeys("bcdef")}
    assert store.fetch([0])[0]["metadata"]["d"] == zoned
    assert "e" not in store.columns
    for text in ('d = "2024-05-01T14:00+02:00"', "b is not null", 'c starts with "x"', "f is null"):
        expected = [0, 1] if text.startswith("f") else [0]
        assert store.matching(parse(text, store.columns)).tolist() == expected


TEXTS = st.one_of(
    st.sampled_from(
        ["", "'", "''", '"', "\\", "\\'", "%", "_", "a%", "' OR 1=1 --", "a", "ab", "\U0010ffff"]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4),
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int": st.one_of(st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1)),
    "float": st.one_of(st.sampled_from([0.0, 0.1, -1.5]), st.floats(allow_nan=False, allow_infinity=False)),
    "bool": st.booleans(),
    "string": TEXTS,
    "date": st.one_of(st.dates(date(2024, 1, 1), date(2024, 1, 5)), st.dates()),
    "timestamp": st.one_of(
        st.datetimes(datetime(2024, 1, 1), datetime(2024, 1, 1, 0, 0, 0, 5)), st.datetimes()
    ),
}
ROW = st.fixed_dictionaries(
    {kind: st.none() | values for kind, values in VALUES.items()}
    | {"float": st.none() | VALUES["float"] | st.sampled_from([float("nan"), float("inf")])}
)


@st.composite
def atoms(draw: st.DrawFn) -> Filter:
    kind = draw(st.sampled_from(list(VALUES)))
    form = draw(st.sampled_from(["compare", "compare", "member", "missing"]))
    if form == "missing":
        return Missing(kind)
    if form == "member":
        return Member(kind, tuple(draw(st.lists(VALUES[kind], min_size=1, max_size=5))))
    signs = ["=", "!="] + ["<", "<=", ">", ">="] * (kind != "bool")
    signs += ["contains", "starts with"] * (kind == "string")
    return Compare(kind, draw(st.sampled_from(signs)), draw(VALUES[kind]))  # type: ignore[arg-type]


def joined(parts: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
    several: st.SearchStrategy[tuple[Filter, ...]] = st.lists(parts, min_size=2, max_size=4).map(tuple)
    return st.one_of(parts.map(Not), several.map(Every), several.map(Either))


FILTERS = st.recursive(atoms(), joined, max_leaves=8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    return lambda: tmp_path_factory.mktemp("filtered")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(ROW, min_size=1, max_size=12), filters=st.lists(FILTERS, min_size=12, max_size=12))
def test_a_filter_means_the_same_everywhere(
    folders: Callable[[], Path], rows: list[dict[str, Any]], filters: list[Filter]
) -> None:
    columns = {
        f"m{place}": pa.array([row[kind] for row in rows], TYPES[kind]) for place, kind in enumerate(TYPES)
    }
    store = small(folders(), columns, list(TYPES), list(TYPES))
    for where in filters:
        expected = [place for place, row in enumerate(rows) if matches(where, row)]
        assert store.matching(where).tolist() == expected, where


def test_the_optimiser_keeps_nulls_unknown(tmp_path: Path) -> None:
    store = small(tmp_path, {"m0": pa.array([None, 1, 2])}, ["int"], ["x"])
    for text in ("not (x in (1) and x in (2))", "x not in (1) or x not in (2)", "not x in (3, 4)"):
        assert store.matching(parse(text, store.columns)).tolist() == [1, 2]
    assert store.matching(parse("not (x in (1) or x is null)", store.columns)).tolist() == [2]


def test_long_and_deep_filters(world: World) -> None:
    texts = [
        f"price in ({', '.join(map(str, range(5000)))})",
        " or ".join(f"price = {price}" for price in range(4000)),
        "not (" * 50 + "price >= 0" + ")" * 50,
        "".join(f"(price > {price - 50} and " for price in range(50)) + "price >= 0" + ")" * 50,
    ]
    for text in texts:
        where = parse(text, world.store.columns)
        expected = [row for row in range(ROWS) if matches(where, {"price": world.price[row]})]
        assert expected
        assert world.store.matching(where).tolist() == expected


def test_nothing_is_stored_of_bad_vectors(tmp_path: Path) -> None:
    good, nan = np.ones((3, SIZE)), np.ones((3, SIZE))
    nan[1, 2] = np.nan
    for table in (passages(nan, [good] * 3), passages(good, [good, nan, good])):
        with pytest.raises(SearchfitError, match=r"d0#1.*not finite"):
            build(tmp_path, table.to_batches(), [], {})
        with pytest.raises(WorkspaceError, match="no finished index"):
            LanceStore(tmp_path)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    table = passages(np.ones((2, SIZE)), [np.ones((1, SIZE))] * 2, {"m0": pa.array(["1", "x"])})
    with pytest.raises(SearchfitError, match="'m0' is not int64"):
        build(tmp_path, table.to_batches(), [], described(["a"], ["int"]))
    with pytest.raises(SearchfitError, match=r"rows must ascend.* after 1"):
        build(tmp_path, table.to_batches() * 2, [], {})
    wide = np.ones((2, SIZE + 1))
    with pytest.raises(SearchfitError, match="'vector'"):
        build(
            tmp_path, [*table.to_batches(), *table.set_column(9, "vector", fixed(wide)).to_batches()], [], {}
        )
    with pytest.raises(SearchfitError, match="no passages"):
        build(tmp_path, [], [], {})

    def broken() -> Iterator[pa.RecordBatch]:
        yield from table.to_batches()
        raise KeyError("the caller's own error")

    with pytest.raises(KeyError, match="own error"):
        build(tmp_path, broken(), [], {})


def test_a_build_replaces_an_unfinished_one(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "v é"
    for count in (3, 2):
        table = passages(np.ones((count, SIZE)), [np.ones((1, SIZE))] * count)
        build(folder, table.to_batches(), postings(count), {"model": "m", "metadata": []})
    store = LanceStore(folder)
    assert (store.count(), store.info) == (2, {"model": "m", "metadata": []})


def test_an_index_of_no_rows_answers(tmp_path: Path) -> None:
    table = passages(np.ones((1, SIZE)), [np.ones((1, SIZE))])
    build(tmp_path, [table.to_batches()[0].slice(0, 0)], [], {})
    store = LanceStore(tmp_path)
    assert store.count() == 0
    assert store.nearest(np.ones(SIZE, np.float32), "vector", 3)[0].size == 0
    assert store.vectors([])[0].shape == (0, SIZE)
    assert list(store.scan(["id"])) == []


def damage_info(folder: Path) -> None:
    (folder / "info.json").write_text("{")


def damage_format(folder: Path) -> None:
    info = json.loads((folder / "info.json").read_text())
    (folder / "info.json").write_text(json.dumps({**info, "store": {"format": 99}}))


def damage_table(folder: Path) -> None:
    (folder / "places.bin").unlink()


def damage_data(folder: Path) -> None:
    for file in (folder / "passages.lance" / "data").iterdir():
        file.write_bytes(b"x" * 100)


@pytest.mark.parametrize("damage", [damage_info, damage_format, damage_table, damage_data])
def test_damage_is_said(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    table = passages(np.ones((2, SIZE)), [np.ones((1, SIZE))] * 2)
    build(tmp_path, table.to_batches(), postings(2), {"metadata": []})
    damage(tmp_path)
    with pytest.raises(WorkspaceError, match="--force index"):
        LanceStore(tmp_path).fetch([0])


def test_an_absent_folder_is_said_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="no finished index"):
        LanceStore(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
