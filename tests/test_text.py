from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from searchfit.text import cut, sentences, title_part, units, word_count, words


def parts(text: str) -> list[str]:
    return [text[start:end] for start, end in sentences(text)]


@pytest.mark.parametrize(
    "expected",
    [
        ["It rained.", "We stayed in!", "Why?", "Nobody knows…"],
        ["Dr. Smith met J. R. Tolkien at 3.5 km, e.g. near St. Ives.", "They talked."],
        ["See Fig. 3 and No. 5 of the list.", "The answer is no.", "We left."],
        ["Fruit, nuts etc. are sold.", "Bread, milk etc.", "They also sell wine."],
        ['"Really?" he asked.', "(It was late.)", "She left."],
        ["i tried it.", "it did not work!!!", "what now?"],
        ["Well... maybe not.", "Version 2.0.1 of example.com works."],
        ["¿Dónde está la Sra. García?", "En la C. Mayor, pág. 7."],
        ["यह एक वाक्य है।", "यह दूसरा है।"],
        ["هل هذا سؤال؟", "نعم هذا جواب."],
        ["The year was 1999.", "Nothing happened."],
    ],
)
def test_sentences_of_spaced_text(expected: list[str]) -> None:
    assert parts(" ".join(expected)) == expected


def test_chinese_needs_no_spaces() -> None:
    assert parts("今天天气很好。我们去公园吧！你来吗？好；走。他说:“不行。”然后走了") == [
        "今天天气很好。",
        "我们去公园吧！",
        "你来吗？",
        "好；",
        "走。",
        "他说:“不行。”",
        "然后走了",
    ]


def test_lines_that_were_wrapped_stay_whole_and_items_part() -> None:
    wrapped = (
        "This sentence was wrapped by an editor at some column near\nseventy and Mr.\nSmith goes on here."
    )
    assert parts(wrapped) == [wrapped]
    listed = "Things to buy\n- milk\n- bread and\n  butter\n1. Go home\n2. Sleep\n\nthe end"
    assert parts(listed) == [
        "Things to buy",
        "- milk",
        "- bread and\n  butter",
        "1. Go home",
        "2. Sleep",
        "the end",
    ]
    assert parts("Introduction\r\nThis is it\r\n\r\nmore") == ["Introduction", "This is it", "more"]


def test_blank_text_has_nothing() -> None:
    assert sentences("") == sentences(" \n\t\u3000") == units(" \n", 8) == []
    assert word_count("") == 0


@pytest.mark.parametrize(
    "body", ["a", ".", "。", " ", "\n", "\"'", ".x", "? a", "一", "\u0301", "a\n", "1. "]
)
def test_time_is_linear_without_or_with_only_borders(body: str) -> None:
    began = time.process_time()
    text = body * (400_000 // len(body)) + "x"
    assert sentences(text)
    assert word_count(text) >= 1
    assert time.process_time() - began < 3


def test_word_count_over_scripts() -> None:
    assert word_count("a well-known fact, isn't it? -- _ 3.5") == 6
    assert word_count("今天天气") == 2
    assert word_count("今天天") == 2
    assert word_count("用Python写代码 now") == 4
    assert word_count("हिन्दी में") == 2
    assert word_count("한국어 문장") == 2
    assert word_count("สวัสดีครับ") == 2


def test_words_have_no_punctuation_around_them() -> None:
    text = '"Well-known (e.g. C++), isn\'t it?" -- हिन्दी, 用Python写代码'
    found = [text[start:end] for start, end in words(text)]
    assert found == ["Well-known", "e.g", "C", "isn't", "it", "हिन्दी", "用", "Python", "写代", "码"]


def test_units_join_short_sentences() -> None:
    text = "Yes. No. This one has enough words. Short again."
    assert [text[a:b] for a, b in units(text, 4)] == ["Yes. No. This one has enough words. Short again."]
    text = "Yes. This one has enough words. And so does this one. Bye."
    assert [text[a:b] for a, b in units(text, 4)] == [
        "Yes. This one has enough words.",
        "And so does this one. Bye.",
    ]
    assert units("Hm.", 8) == [(0, 3)]


@example("1。1\r1中", 2)
@given(st.text(st.sampled_from("ab .!?…。！\n\r\t-1E\u0301\u200d👍中ก\x00\"'")), st.integers(1, 9))
def test_spans_are_ordered_bare_and_cover_everything(text: str, min_words: int) -> None:
    assert all(text[a:b] and text[a].isalnum() for a, b in words(text) if text[a] not in "\u0301")
    for spans in (sentences(text), units(text, min_words)):
        flat = [edge for span in spans for edge in span]
        assert flat == sorted(flat)
        assert all(text[a:b] == text[a:b].strip() != "" for a, b in spans)
        covered = "".join("".join(text[a:b].split()) for a, b in spans)
        assert covered == "".join(text.split())
    if len(units(text, min_words)) > 1:
        assert all(word_count(text[a:b]) >= min_words for a, b in units(text, min_words))


@given(st.text(), st.text(), st.integers(1, 70))
def test_cut_goes_forward_and_keeps_to_the_limit(before: str, text: str, most: int) -> None:
    start = len(before)
    end = cut(before + text, start, most)
    assert start + (len(text) > 0) <= end <= start + most
    assert end <= len(before + text)


def test_cut_keeps_what_is_seen_as_one_character() -> None:
    family = "👨‍👩‍👧‍👦"
    assert cut("ab" + family * 2, 0, 5) == 2
    assert cut("e\u0301" * 4, 0, 3) == 2
    assert cut("e" + "\u0301" * 100, 0, 50) == 50
    assert cut("one two three", 0, 9) == 7


def test_title_part() -> None:
    assert title_part("  A\n title ", 200) == "A title"
    assert title_part("A rather long title", 12) == "A rather"
    assert title_part("长标题没有空格", 3) == "长标题"
