from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchfit.generators import Task
from searchfit.generators.phrases import PhraseGenerator
from searchfit.keyword import Analyzer, KeywordIndex
from searchfit.records import Passage
from searchfit.text import units, word_count

ENGLISH = [
    "Citra is a variety of hops that was released in 2007. It has a high content of alpha acids and oils, "
    "with a low share of cohumulone. Brewers can add the cones late in the boil to keep the citrus aroma.",
    "The oil crisis began in October 1973 when the members of the cartel proclaimed an embargo. Prices were "
    "high because of the shortage. The train was used to reach the office in the city.",
    "Serialize an object to a formatted stream. The encoder can skip keys that are not of a basic type, and "
    "the output is written in chunks to the file that you name.",
    "A lager is fermented at low temperatures for many weeks. The yeast settles at the bottom of the tank, "
    "and the beer is stored in a cold cellar before it is sold in bottles or cans.",
]
CHINESE = [
    "深度学习是机器学习的一个分支。它使用多层神经网络从大量数据中学习特征表示。图像识别和语音识别都取得了显著进步。",
    "马德里是西班牙的首都。普拉多博物馆收藏了许多著名画家的作品，每年吸引大量游客前来参观。",
]


class Corpus:
    def __init__(self, texts: list[str], language: str = "english") -> None:
        index = KeywordIndex.build(texts, Analyzer(language))
        self.idf, self.terms = index.idf, index.analyzer.terms
        self.fingerprint = language


class Asked(NamedTuple):
    text: str
    style: str


def ask(generator: PhraseGenerator, passages: list[Passage]) -> list[list[Asked]]:
    """The queries of each passage, in order."""
    groups = list(generator.write(Task(one) for one in passages))
    written = {id(one.passage): one for group in groups for one in group}
    return [[Asked(*query) for query in written[id(one)].queries] for one in passages]


def passage(text: str, number: int = 0, title: str = "", document: str = "d") -> Passage:
    return Passage(f"{document}#{number}", document, 0, title, text, 0, len(text), tuple(units(text, 8)))


def write(texts: list[str], per_passage: int = 3, seed: int = 13, title: str = "") -> list[list[Asked]]:
    passages = [passage(text, title=title, document=f"d{n}") for n, text in enumerate(texts)]
    return ask(PhraseGenerator(per_passage, seed, Corpus(texts * 5)), passages)


def test_passages_that_are_known_are_passed_over() -> None:
    generator = PhraseGenerator(3, 1, Corpus(ENGLISH))
    tasks = [Task(passage(text, n), known=n % 2 == 0) for n, text in enumerate(ENGLISH)]
    (group,) = generator.write(iter(tasks))
    assert [written.passage.id for written in group] == ["d#1", "d#3"]


def test_the_fingerprint_follows_the_number_and_the_corpus() -> None:
    corpora = Corpus(ENGLISH), Corpus(ENGLISH, "none")
    seen = {PhraseGenerator(number, 1, corpus).fingerprint for number in (3, 4) for corpus in corpora}
    assert len(seen) == 4


def test_queries_come_from_the_passage_and_say_what_they_are() -> None:
    groups = write(ENGLISH)
    assert [len(group) for group in groups] == [3] * 4
    for n, group in enumerate(groups):
        for query in group:
            assert 2 <= word_count(query.text) <= 16
            if query.style in ("crop", "keyphrases"):
                assert set(query.text.lower().split()) <= {
                    word.strip(".,") for word in ENGLISH[n].lower().replace("-", " - ").split()
                } | set(ENGLISH[n].lower().split())


def test_styles_are_mixed_four_to_four_to_one_to_one() -> None:
    texts = [f"{text} Number {n}." for n in range(60) for text in ENGLISH]
    styles = Counter(query.style for group in write(texts, title="A long title") for query in group)
    share = {style: count / styles.total() for style, count in styles.items()}
    assert share["keyphrases"] == pytest.approx(0.4, abs=0.05)
    assert share["crop"] == pytest.approx(0.4, abs=0.05)
    assert share["title"] == pytest.approx(0.1, abs=0.04)
    assert share["question"] == pytest.approx(0.1, abs=0.04)


def test_questions_are_questions() -> None:
    queries = [query for seed in range(40) for group in write(ENGLISH, 6, seed) for query in group]
    asked = {query.text.lower().rstrip("?") for query in queries if query.style == "question"}
    assert {"what is citra", "how to serialize an object to a formatted stream"} <= asked
    assert "can the encoder skip keys" in asked
    assert "why were prices high" in asked
    assert "how to reach the office in the city" in asked


def test_chinese_gives_compounds_and_crops_without_questions() -> None:
    groups = write(CHINESE, per_passage=6)
    for text, group in zip(CHINESE, groups, strict=True):
        assert len(group) == 6
        for query in group:
            assert query.style in ("keyphrases", "crop")
            assert all(part in text for part in query.text.split())
            assert 2 <= word_count(query.text) <= 16


def test_titles_stand_alone_only_for_the_first_passage() -> None:
    generator = PhraseGenerator(10, 1, Corpus(ENGLISH))
    for number in (0, 1):
        groups = [
            ask(generator, [passage(text, number, "Beer and trade", f"d{n}")])[0]
            for n, text in enumerate(ENGLISH * 8)
        ]
        titles = [query.text.lower() for group in groups for query in group if query.style == "title"]
        assert all(title.startswith("beer and trade") for title in titles)
        assert ("beer and trade" in titles) == (number == 0)
        assert any(title != "beer and trade" for title in titles)


def test_neither_order_nor_batches_nor_hash_seeds_matter() -> None:
    generator = PhraseGenerator(4, 7, Corpus(ENGLISH))
    passages = [passage(text, document=f"d{n}") for n, text in enumerate(ENGLISH)]
    together = ask(generator, passages)
    assert [ask(generator, [one])[0] for one in reversed(passages)] == together[::-1]
    assert ask(PhraseGenerator(4, 8, Corpus(ENGLISH)), passages) != together
    code = "import test_phrases as t; print([q.text for g in t.write(t.ENGLISH) for q in g])"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parent)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize(
    "text", ["", "wine", "Red wine.", "!!!", "👍👍", "\x00\x07", "x" * 5000, "a b " * 300, "中"]
)
def test_odd_passages_never_fail_and_are_never_returned_whole(text: str) -> None:
    for title in ("", "json.dumps", "Some title here"):
        for query in write([text], 5, title=title)[0]:
            assert query.text.strip()
            assert query.text.casefold() != text.casefold().strip(" .")
            assert len(query.text) <= 200


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(st.text(max_size=30), st.sampled_from([*ENGLISH, *CHINESE, "ไทย" * 9, "हिन्दी भाषा "])),
        max_size=4,
    ),
    st.integers(1, 12),
)
def test_any_text_gives_distinct_clean_queries(parts: list[str], per_passage: int) -> None:
    corpus = Corpus(parts)
    (queries,) = ask(PhraseGenerator(per_passage, 3, corpus), [passage(" ".join(parts), title="T")])
    assert len(queries) <= per_passage
    assert len({frozenset(corpus.terms(query.text)) for query in queries}) == len(queries)
    assert all(query.text == " ".join(query.text.split()) for query in queries)
    assert not any(char < " " or char == "\x7f" for query in queries for char in query.text)
