from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchfit.config import ModelSettings, Settings, SplitSettings
from searchfit.encoders import load_tokenizer
from searchfit.errors import SettingsError
from searchfit.records import DOCUMENTS, PASSAGES, Document, Passage
from searchfit.stages import Tools
from searchfit.stages.split import Window, run, split_documents


class Bytes:
    """A tokenizer that is not additive: three bytes a token, and one for every white space in a run."""

    def __init__(self, max_tokens: int = 60) -> None:
        self.max_tokens = max_tokens
        self.calls = 0

    def count(self, texts: Sequence[str]) -> np.ndarray:
        self.calls += 1
        runs = [sum(a.isspace() and b.isspace() for a, b in pairwise(text)) for text in texts]
        return np.array(
            [2 + -(-len(text.encode()) // 3) + more for text, more in zip(texts, runs, strict=True)]
        )


def split(text: str, title: str = "", tokens: int = 60, **options: int) -> list[Passage]:
    document = Document("d", text, title)
    settings = SplitSettings(**{"overlap_chars": 0, **options})
    return split_documents([(7, document)], Window(Bytes(tokens)), settings)[0]


def test_passages_know_the_page_and_heading_that_they_begin_under() -> None:
    text = "Before all. " + "Gears turn here. " * 12 + "Brakes stop it. " * 12
    marks = ((12, 1, "Gears"), (text.index("Brakes"), 2, "Brakes"))
    document = Document("d", text, marks=marks)
    (passages,) = split_documents([(0, document)], Window(Bytes(30)), SplitSettings(overlap_chars=0))
    known = {(passage.page, passage.heading): passage.start for passage in reversed(passages)}
    assert known[0, ""] == 0
    assert 12 <= known[1, "Gears"] < marks[1][0] <= known[2, "Brakes"]
    assert [passage.page for passage in passages] == sorted(passage.page for passage in passages)


def texts(passages: Sequence[Passage]) -> list[str]:
    return [passage.text for passage in passages]


def check(
    document: Document, passages: Sequence[Passage], tokenizer: Bytes, prompt: str = "", **limits: int
) -> None:
    seen = set()
    for n, passage in enumerate(passages):
        assert passage.id == f"{document.id}#{n}"
        assert passage.text == document.text[passage.start : passage.end] == passage.text.strip() != ""
        assert len(passage.text) <= limits["max_chars"]
        assert tokenizer.count([prompt + passage.encoded_text])[0] <= tokenizer.max_tokens
        assert passage.sentences
        assert passage.sentences[0][0] == 0
        assert passage.sentences[-1][1] == len(passage.text)
        seen.update(range(passage.start, passage.end))
    assert {i for i, char in enumerate(document.text) if not char.isspace()} <= seen
    starts = [passage.start for passage in passages]
    assert starts == sorted(set(starts))


def test_short_documents_pass_whole_without_the_space_around_them() -> None:
    (passage,) = split(" \n One sentence. Another one.\t", title="A  title", min_sentence_words=2)
    assert passage == Passage(
        "d#0", "d", 7, "A title", "One sentence. Another one.", 3, 29, ((0, 13), (14, 26))
    )
    assert split(" \n\u3000") == []


def test_long_documents_are_cut_at_sentences_into_even_pieces() -> None:
    text = " ".join(f"Sentence {n:02d} here." for n in range(9))
    pieces = texts(split(text, max_chars=140, tokens=1000))
    assert [piece.count(".") for piece in pieces] == [5, 4]
    assert " ".join(pieces) == text


def test_no_stub_is_left_beside_a_large_sentence() -> None:
    text = "x" * 99 + ". " + "Some words in here. " * 4 + "End."
    assert texts(split(text, max_chars=100, tokens=1000))[-1].count(".") > 1


def test_overlap_repeats_whole_sentences() -> None:
    text = " ".join(f"Sentence {n:02d} here." for n in range(20))
    passages = split(text, max_chars=100, overlap_chars=25, tokens=1000)
    assert len(passages) > 3
    for one, two in pairwise(passages):
        shared = text[two.start : one.end]
        assert shared.count(".") == 1
        assert shared.startswith("Sentence")


def test_a_sentence_beyond_the_limits_is_cut_at_words() -> None:
    words = [f"word{n}" for n in range(200)]
    passages = split(" ".join(words))
    assert " ".join(texts(passages)).split() == words
    assert np.mean([len(piece.encode()) for piece in texts(passages)]) > 120


def test_text_without_spaces_is_cut_between_characters() -> None:
    passages = split("中文没有空格" * 100)
    assert "".join(texts(passages)) == "中文没有空格" * 100
    assert len(passages) <= 13
    family = "👨‍👩‍👧‍👦"
    assert all(len(piece) % len(family) == 0 for piece in texts(split(family * 60, tokens=80)))


def test_white_space_that_costs_tokens_does_not_break_the_window() -> None:
    document = Document("d", ("word" + " " * 30) * 40 + "end")
    passages = split(document.text, max_chars=1000)
    check(document, passages, Bytes(), max_chars=1000)


def test_titles_take_a_quarter_at_most() -> None:
    (passage,) = split("The text.", title="many words of a long title " * 30)
    assert passage.title == "many words of a long title many words of a"
    (passage,) = split("The text.", title="word " * 100, tokens=10_000)
    assert len(passage.title) == 199


def test_prompts_and_windows_that_leave_no_room_are_refused() -> None:
    with pytest.raises(SettingsError, match="document_prompt takes 52"):
        Window(Bytes(), "p" * 150)
    with pytest.raises(SettingsError, match="sees 10 tokens"):
        Window(Bytes(10))
    with pytest.raises(SettingsError, match="overlap_chars is 64; less than"):
        split("a", overlap_chars=64, max_chars=64)


TEXT = st.lists(
    st.one_of(
        st.text(max_size=40),
        st.sampled_from(
            [
                "A sentence of words. ",
                "中文句子。",
                "没有标点",
                "👨‍👩‍👧‍👦",
                "x" * 90,
                "\n\n",
                " " * 70,
                "\x00\x07",
                "ﷺ",
            ]
        ),
    ),
    max_size=40,
).map("".join)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(TEXT, st.text(max_size=80)), min_size=1, max_size=3),
    st.integers(64, 200),
    st.integers(0, 63),
    st.integers(24, 90),
)
def test_nothing_is_lost_and_everything_fits(
    contents: list[tuple[str, str]], max_chars: int, overlap: int, tokens: int
) -> None:
    documents = [Document(f"d{n}", text, title) for n, (text, title) in enumerate(contents)]
    options = SplitSettings(max_chars=max_chars, overlap_chars=overlap)
    window = Window(Bytes(tokens), "p: ")
    result = split_documents(list(enumerate(documents)), window, options)
    for document, passages in zip(documents, result, strict=True):
        check(document, passages, Bytes(tokens), "p: ", max_chars=max_chars)
        alone = split_documents([(0, document)], window, options)[0]
        assert texts(alone) == texts(passages)


def test_the_tokenizer_is_called_a_few_times_for_many_documents() -> None:
    tokenizer = Bytes()
    window = Window(tokenizer)
    documents = [(n, Document(str(n), f"Sentence number {n}. " * (n % 40))) for n in range(300)]
    split_documents(documents, window, SplitSettings())
    assert tokenizer.calls < 15


def write(folder: Path, documents: Sequence[tuple[str, str, str]]) -> Path:
    names, titles, bodies = zip(*documents, strict=True) if documents else ((), (), ())
    path = folder / "documents.parquet"
    pq.write_table(pa.table([names, titles, bodies], schema=DOCUMENTS), path, row_group_size=3)
    return path


def test_run_writes_the_table_the_same_every_time_and_says_what_it_did(tmp_path: Path) -> None:
    chinese = "深度学习是机器学习的一个分支。" * 90
    english = "The encoder sees only a window of tokens, and what lies beyond it is lost. " * 60
    rows = [("a", "Short", "One text."), ("b", "", chinese), ("c", "", " \n"), ("d", "Long " * 90, english)]
    path = write(tmp_path, rows)
    seen: list[int] = []
    results = [
        run(
            Settings(),
            {"documents.parquet": path},
            Tools(tmp_path / name, progress=lambda _, done, __: seen.append(done)),
        )
        for name in "xy"
    ]
    table = pq.read_table(tmp_path / "x" / "passages.parquet")
    assert (tmp_path / "x" / "passages.parquet").read_bytes() == (
        tmp_path / "y" / "passages.parquet"
    ).read_bytes()
    assert table.schema.equals(PASSAGES)
    assert sorted(set(table["document"].to_pylist())) == [0, 1, 3]
    assert table["sentences"].to_pylist()[0] == [0, 9]
    counts = results[0].counts
    assert counts["passages"] == table.num_rows > 10
    assert (counts["documents"], counts["split_documents"]) == (4, 2)
    assert counts["max_tokens"] <= counts["window"] == 256
    assert results[0].drops[0].samples == ("c",)
    assert seen[-1] == 4


def test_no_passage_is_longer_than_the_real_window() -> None:
    tokenizer = load_tokenizer(ModelSettings())
    window = Window(tokenizer)
    texts = [
        "深度学习是机器学习的一个分支，" * 200,
        "Ünïcödé strange wörds " * 200,
        "http://a.b/" + "c/d?e=f&" * 400,
        "1,2;" * 900,
    ]
    documents = [(n, Document(str(n), text, "标题" * 150)) for n, text in enumerate(texts)]
    passages = [passage for parts in split_documents(documents, window, SplitSettings()) for passage in parts]
    counts = tokenizer.count([passage.encoded_text for passage in passages])
    assert counts.max() == window.largest <= tokenizer.max_tokens
    assert np.median(counts) > 0.8 * tokenizer.max_tokens


def test_an_empty_table_gives_an_empty_table(tmp_path: Path) -> None:
    result = run(Settings(), {"documents.parquet": write(tmp_path, [])}, Tools(tmp_path))
    assert pq.read_table(tmp_path / "passages.parquet").num_rows == result.counts["passages"] == 0
