from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from searchfit.config import load_settings
from searchfit.records import LABELLED
from searchfit.stages import Tools, label


def run(
    bench: Any, out: Path, lines: list[dict[str, Any]], **values: Any
) -> tuple[Any, list[dict[str, Any]]]:
    """The result, and the rows of labelled.parquet."""
    out.mkdir(exist_ok=True)
    if lines:
        with (out / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
        values["pairs.file"] = str(out / "pairs.csv")
    settings = load_settings(base=bench.settings, values=values).only("pairs", "queries", "feedback")
    result = label.run(settings, bench.inputs("label"), Tools(out))
    table = pq.read_table(out / "labelled.parquet")
    assert table.schema.equals(LABELLED)
    return result, table.to_pylist()


@pytest.fixture
def passages(bench: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(bench.path("passages.parquet")).to_pylist()
    return found


def splits(bench: Any) -> list[str]:
    found: list[str] = pq.read_table(bench.path("holdout.parquet"))["split"].to_pylist()
    return found


def test_without_pairs_there_is_an_empty_table(bench: Any, tmp_path: Path) -> None:
    result, rows = run(bench, tmp_path, [])
    assert rows == []
    assert result.counts == {"labelled pairs": 0}


def test_texts_are_found_in_the_corpus(bench: Any, tmp_path: Path, passages: list[dict[str, Any]]) -> None:
    """By their words, with or without the title; what is not there is kept, as of no passage."""
    one, two = passages[3], passages[20]
    texts = [
        one["text"],
        f"{two['title']}. {two['text']}",
        one["text"].upper().replace(" ", "  "),
        "unheard of",
    ]
    lines = [{"query": f"query {n}", "passage": text} for n, text in enumerate(texts)]
    result, rows = run(bench, tmp_path, lines)
    assert [row["passage"] for row in rows] == [3, 20, 3, -1]
    assert [row["document"] for row in rows] == [one["document"], two["document"], one["document"], -1]
    assert [row["text"] for row in rows] == [line["passage"] for line in lines]
    assert (result.counts["labelled pairs"], result.counts["in the corpus"]) == (4, 3)


def test_an_id_names_the_document_and_the_words_its_passage(
    bench: Any, tmp_path: Path, passages: list[dict[str, Any]]
) -> None:
    ids = pq.read_table(bench.path("documents.parquet"))["id"].to_pylist()
    long = [n for n, row in enumerate(passages) if ids[row["document"]] == "kitchen-7"]
    assert len(long) > 3
    asked = [f"Somebody wrote that {passages[n]['text']}" for n in long]
    lines = [{"query": f"q{n}", "passage": text, "document_id": "kitchen-7"} for n, text in enumerate(asked)]
    _, rows = run(bench, tmp_path, lines)
    words = [{*passages[n]["text"].lower().replace(".", "").replace(",", "").split()} for n in long]
    for row, own in zip(rows, words, strict=True):
        assert own <= words[row["passage"] - long[0]]  # itself, or one with the same words and more
    assert len({row["passage"] for row in rows}) > len(long) // 2


def test_of_a_whole_document_the_passage_with_the_words_of_the_query_answers(
    bench: Any, tmp_path: Path, passages: list[dict[str, Any]]
) -> None:
    ids = pq.read_table(bench.path("documents.parquet"))["id"].to_pylist()
    long = [n for n, row in enumerate(passages) if ids[row["document"]] == "kitchen-7"]
    whole = " ".join(passages[n]["text"] for n in long)
    lines = [{"query": passages[n]["text"], "passage": whole, "document_id": "kitchen-7"} for n in long]
    _, rows = run(bench, tmp_path, lines)
    words = [{*passages[n]["text"].lower().replace(".", "").replace(",", "").split()} for n in long]
    for row, own in zip(rows, words, strict=True):
        assert own <= words[row["passage"] - long[0]]


def test_a_query_that_a_held_out_document_answers_is_held_out(
    bench: Any, tmp_path: Path, passages: list[dict[str, Any]]
) -> None:
    """With all its pairs, however it is written, and in whatever order they come."""
    split = splits(bench)
    place = {
        name: next(p for p in passages if split[p["document"]] == name) for name in ("train", "dev", "test")
    }
    lines = [
        {"query": "only here", "passage": place["train"]["text"]},
        {"query": "both, first train", "passage": place["train"]["text"]},
        {"query": "Both first TRAIN?", "passage": place["dev"]["text"]},
        {"query": "both, then train", "passage": place["test"]["text"]},
        {"query": "both, then train", "passage": place["train"]["text"]},
        {"query": "of no corpus", "passage": "unheard of"},
    ]
    result, rows = run(bench, tmp_path, lines)
    assert [row["split"] for row in rows] == ["train", "dev", "dev", "test", "test", "train"]
    assert {name: n for name, n in result.counts.items() if "queries" in name} == {
        "dev queries": 1,
        "test queries": 1,
        "train queries": 2,
    }


def test_where_judged_questions_decide_all_labelled_queries_train(
    bench: Any, tmp_path: Path, passages: list[dict[str, Any]]
) -> None:
    split = splits(bench)
    dev = next(p for p in passages if split[p["document"]] == "dev")
    asked = tmp_path / "asked.jsonl"
    asked.write_text(
        '{"query_id": "u", "query": "zzz", "document_id": "garden-0", "score": 1}\n', encoding="utf-8"
    )
    lines = [{"query": "held out", "passage": dev["text"]}]
    _, rows = run(bench, tmp_path, lines, **{"queries.file": str(asked)})
    assert [row["split"] for row in rows] == ["train"]


def test_what_does_not_answer_neither_holds_out_nor_is_learnt_where_it_is_held_out(
    bench: Any, tmp_path: Path, passages: list[dict[str, Any]]
) -> None:
    split = splits(bench)
    text = {
        name: next(p for p in passages if split[p["document"]] == name)["text"] for name in ("train", "dev")
    }
    lines = [
        {"query": "trains", "passage": text["train"], "label": 1},
        {"query": "trains", "passage": text["dev"], "label": 0},
        {"query": "judges", "passage": text["dev"], "label": 1},
        {"query": "judges", "passage": text["train"], "label": 0},
    ]
    result, rows = run(bench, tmp_path, lines)
    assert [(row["query"], row["label"], row["split"]) for row in rows] == [
        ("trains", 1, "train"),
        ("judges", 1, "dev"),
        ("judges", 0, "dev"),
    ]
    assert [(drop.count, drop.samples) for drop in result.drops] == [(1, ("trains",))]


def test_pairs_of_judged_dev_questions_are_dev_and_those_of_test_are_gone(
    bench: Any, tmp_path: Path, passages: list[dict[str, Any]]
) -> None:
    """By their id, or by their words; the half is the one that the evaluation takes them for."""
    ids = [f"u{number}" for number in range(12)]
    asked = tmp_path / "asked.jsonl"
    asked.write_text(
        "".join(
            f'{{"query_id": "{id_}", "query": "{id_} zzz", "document_id": "garden-0", "score": 1}}\n'
            for id_ in ids
        ),
        encoding="utf-8",
    )
    lines = [{"query": "learnt", "passage": passages[0]["text"], "query_id": "other", "label": 1}]
    for number, id_ in enumerate(ids):
        key = id_ if number % 2 else ""
        lines.append({"query": f"{id_} zzz", "passage": "of no corpus", "query_id": key, "label": number % 3})
    result, rows = run(bench, tmp_path, lines, **{"queries.file": str(asked)})
    dev = [id_ for id_ in ids if hashlib.blake2b(id_.encode()).digest()[0] % 2]
    assert 0 < len(dev) < len(ids)
    assert [(row["query"], row["split"]) for row in rows] == [
        ("learnt", "train"),
        *((f"{id_} zzz", "dev") for id_ in dev),
    ]
    assert result.counts["test questions excluded"] == len(ids)


def test_near_duplicates_are_those_of_a_plain_comparison(
    bench: Any, tmp_path: Path, passages: list[dict[str, Any]]
) -> None:
    """The prefix filter finds what comparing every pair of word sets finds."""
    words = [
        "rose",
        "soil",
        "mast",
        "keel",
        "cello",
        "choir",
        "hut",
        "rope",
        "oven",
        "dough",
        "depot",
        "signal",
    ]
    asked = [" ".join(words[a : a + n]) for a in range(6) for n in (1, 4, 5, 6)]
    file = tmp_path / "asked.txt"
    file.write_text("\n".join(asked) + "\n", encoding="utf-8")
    queries = [
        " ".join([*words[a : a + n], *extra]) for a in range(8) for n in (1, 3, 5) for extra in ((), ("new",))
    ]
    lines = [{"query": query, "passage": passages[0]["text"]} for query in queries]
    result, rows = run(bench, tmp_path, lines, **{"queries.file": str(file)})

    def near(a: str, b: str) -> bool:
        one, two = set(a.split()), set(b.split())
        return 10 * len(one & two) >= 8 * len(one | two)

    expected = [query for query in queries if not any(near(query, other) for other in asked)]
    assert [row["query"] for row in rows] == expected
    assert 0 < len(expected) < len(queries)
    assert result.counts["test questions excluded"] == len(queries) - len(expected)
    assert sum(drop.count for drop in result.drops) == len(queries) - len(expected)
    assert all(0 < len(drop.samples) <= 5 for drop in result.drops)
