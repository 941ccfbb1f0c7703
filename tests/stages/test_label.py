from __future__ import annotations

import csv
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from searchfit.config import load_settings
from searchfit.feedback import Click, Feedback
from searchfit.recipe import STAGES
from searchfit.records import LABELLED
from searchfit.stages import Tools, label

SECTIONS = next(stage.sections for stage in STAGES if stage.name == "label")


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
    settings = load_settings(base=bench.settings, values=values).only(*SECTIONS)
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


def many(passages: list[dict[str, Any]], split: list[str], count: int = 200) -> list[dict[str, Any]]:
    """So many questions of documents that train, each of words of its own."""
    train = [p["text"] for p in passages if split[p["document"]] == "train"]
    return [{"query": f"a{n} b{n} c{n}?", "passage": train[n % len(train)]} for n in range(count)]


def by_query(rows: list[dict[str, Any]]) -> dict[str, str]:
    """The split of each query, which is one."""
    found = {(row["query"], row["split"]) for row in rows}
    assert len(dict(found)) == len(found)
    return dict(found)


def test_of_many_questions_that_train_a_share_is_held_out(
    bench: Any, tmp_path: Path, passages: list[dict[str, Any]]
) -> None:
    """Those of held-out documents are held out beside them; one that no document answers trains."""
    split = splits(bench)
    lines = many(passages, split)
    held = {p["text"]: split[p["document"]] for p in passages if split[p["document"]] != "train"}
    lines += [{"query": f"held{n} out{n}", "passage": text} for n, text in enumerate(held)]
    lines += [{"query": f"away{n} off{n}", "passage": f"unheard of {n}"} for n in range(60)]
    lines += [{"query": lines[n]["query"].upper(), "passage": lines[n + 1]["passage"]} for n in range(40)]
    change = {"holdout.dev": 0.2, "holdout.test": 0.1}
    result, rows = run(bench, tmp_path, lines, **change)
    found = by_query(rows)
    assert Counter(found[line["query"]] for line in lines[:200]) == {"train": 140, "dev": 40, "test": 20}
    assert {found[f"held{n} out{n}"] == name for n, name in enumerate(held.values())} == {True}
    assert {found[f"away{n} off{n}"] for n in range(60)} == {"train"}
    assert all(found[line["query"]] == found[line["query"].upper()] for line in lines[:40])
    assert result.counts["held out of documents that train"] == 60
    assert result.counts["labelled pairs"] == len(lines)


def test_which_are_held_out_follows_from_the_seed_and_the_words(
    bench: Any, tmp_path: Path, passages: list[dict[str, Any]]
) -> None:
    lines = many(passages, splits(bench))
    same = [{"query": f"z{n}", "passage": lines[n]["query"]} for n in range(50)]
    lines += [*same, *({**line, "passage": lines[0]["passage"]} for line in same)]
    _, rows = run(bench, tmp_path, lines)
    found = by_query(rows)
    _, again = run(bench, tmp_path, lines[::-1])
    assert by_query(again) == found
    _, others = run(bench, tmp_path, lines, seed=5)
    assert by_query(others) != found
    assert Counter(by_query(others).values()) == Counter(found.values())
    # A tenth more questions leave most as they were.
    _, more = run(bench, tmp_path, lines + many(passages, splits(bench), 225)[200:])
    grown = by_query(more)
    assert sum(grown[query] == name for query, name in found.items()) > 225


def test_few_questions_all_train(bench: Any, tmp_path: Path, passages: list[dict[str, Any]]) -> None:
    for count, held in ((199, 0), (200, 40)):
        result, _ = run(bench, tmp_path, many(passages, splits(bench), count))
        assert result.counts["held out of documents that train"] == held
    lines = [{**line, "label": n % 2} for n, line in enumerate(many(passages, splits(bench), 398))]
    result, _ = run(bench, tmp_path, lines)  # of half of them no answer is known
    assert result.counts["held out of documents that train"] == 0


def test_questions_that_ask_nearly_the_same_are_held_out_together(
    bench: Any, tmp_path: Path, passages: list[dict[str, Any]]
) -> None:
    """By their words, or where one is the other's answer; of many in a row none is, for there is no room."""
    base = [line["passage"] for line in many(passages, splits(bench))]
    lines = []
    for n in range(80):
        words = [f"{letter}{n}" for letter in "abcdefghi"]
        lines.append({"query": " ".join(words), "passage": base[n]})
        lines.append({"query": " ".join([*words[:-1], f"other{n}"]), "passage": base[n + 1]})
        lines += [{"query": f"m{n}", "passage": f"n{n}"}, {"query": f"n{n}", "passage": base[n]}]
        lines.append({"query": f"m{n}", "passage": base[n + 2]})
    lines += [
        {"query": f"what does the part number {n} of this machine cost", "passage": base[n]}
        for n in range(99)
    ]
    _, rows = run(bench, tmp_path, lines)
    found = by_query(rows)
    for one, other in zip(lines[:400:5], lines[1:400:5], strict=True):
        assert found[one["query"]] == found[other["query"]]
    assert all(found[f"m{n}"] == found[f"n{n}"] for n in range(80))
    assert {found[line["query"]] for line in lines[400:]} == {"train"}
    assert Counter(found.values())["dev"] == Counter(found.values())["test"] == 40


def test_what_was_clicked_never_judges(bench: Any, tmp_path: Path, passages: list[dict[str, Any]]) -> None:
    lines = many(passages, splits(bench))
    ids = pq.read_table(bench.path("documents.parquet"))["id"].to_pylist()
    document = next(p["document"] for p in passages if p["text"] == lines[0]["passage"])
    (tmp_path / "asked").mkdir()
    (tmp_path / "asked" / "manifest.json").write_text("{}\n", encoding="utf-8")
    feedback = Feedback(tmp_path / "asked", clicks=True)
    for line in lines[:100]:
        for _ in range(2):
            feedback.add(Click(line["query"], ids[document], 3))
    result, rows = run(bench, tmp_path, lines, **{"feedback.workspace": str(tmp_path / "asked")})
    assert result.counts["clicked pairs"] == 100
    assert set(by_query(rows).values()) == {"train"}  # too few others
    # Nor does what is answered by a clicked question, and so asks the same.
    lines = many(passages, splits(bench), 300)
    alike = [{"query": f"like{n}", "passage": lines[n]["query"]} for n in range(100)]
    alike += [{"query": f"like{n}", "passage": lines[n]["passage"]} for n in range(100)]
    _, rows = run(bench, tmp_path, [*lines, *alike], **{"feedback.workspace": str(tmp_path / "asked")})
    found = by_query(rows)
    assert {found[line["query"]] for line in (*lines[:100], *alike)} == {"train"}
    assert Counter(found.values()) == {"train": 340, "dev": 30, "test": 30}


def test_where_judged_questions_decide_none_is_held_out(
    bench: Any, tmp_path: Path, passages: list[dict[str, Any]]
) -> None:
    asked = tmp_path / "asked.jsonl"
    asked.write_text(
        '{"query_id": "u", "query": "zzz", "document_id": "garden-0", "score": 1}\n', encoding="utf-8"
    )
    _, rows = run(bench, tmp_path, many(passages, splits(bench)), **{"queries.file": str(asked)})
    assert set(by_query(rows).values()) == {"train"}
