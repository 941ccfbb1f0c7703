from __future__ import annotations

import json
import time
import unicodedata
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchfit.cleaning import Cleaner, Frequent, cut
from searchfit.config import CleanSettings, Settings, SourceSettings
from searchfit.errors import SettingsError
from searchfit.records import CLEANED
from searchfit.stages import Tools, ingest

EVERY = ("entities", "unicode", "control", "spaces")


def cleaned(text: str, *steps: str, form: str = "NFC") -> str:
    settings = CleanSettings(steps=steps, form=form)  # type: ignore[arg-type]
    return Cleaner(settings).clean("", [text])[1]


@pytest.mark.parametrize(
    ("step", "text", "expected"),
    [
        ("entities", "R&amp;D &lt;b&gt; &#39;x&#39; &eacute; &#8364;", "R&D <b> 'x' é €"),
        ("entities", "AT&T &copy=1 &nonsense; &#xD800; &#0;", "AT&T &copy=1 &nonsense; \ufffd \ufffd"),
        ("unicode", "e\u0301", "é"),
        ("control", "a\u200bb\ufeffc\xadd\x07e\x0cf\x85g\u2028h\ti\r\nj", "abcde\nf\ng\nh\ti\r\nj"),
        ("control", "می\u200cخواهم 👨\u200d👩", "می\u200cخواهم 👨\u200d👩"),
        ("spaces", "a  b\xa0c \t\r\n    d   e\n\n\n\n\n\nf", "a b c\n    d e\n\n\nf"),
    ],
)
def test_each_step(step: str, text: str, expected: str) -> None:
    assert cleaned(text, step) == expected


def test_compatible_forms_are_folded_where_asked() -> None:
    assert cleaned("ﬁn ①", "unicode", form="NFKC") == "fin 1"


@pytest.mark.parametrize(
    "text", ["Plain text, as usual.\n\n  code()\n", "Ñandú, 東京, здравствуйте — “quoted” …"]
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    cleaner = Cleaner(CleanSettings())
    assert cleaner.clean("Title", [text])[1] is text
    assert cleaner.counts() == {}


PIECES = st.sampled_from(
    [
        "&amp;",
        "&lt;",
        "lt;",
        "#65;",
        "&#38;",
        "\u200b",
        "\u0301",
        "e",
        " ",
        "\xa0",
        "\n",
        "\r",
        "\t",
        "\f",
        "ﬁ",
        "＆",
    ]
)


@given(
    st.lists(PIECES, max_size=7).map("".join) | st.text(),
    st.permutations(EVERY),
    st.sampled_from(["NFC", "NFKC"]),
)
def test_cleaning_twice_changes_nothing(text: str, steps: list[str], form: str) -> None:
    once = cleaned(text, *steps, form=form)
    assert cleaned(once, *steps, form=form) == once
    assert unicodedata.is_normalized(form, once)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["&amp;" + "amp;" * 200_000, "a" + "\u0301\u0316" * 200_000, " \t" * 400_000 + "x", "\r" * 400_000],
)
def test_hostile_text_takes_no_age(text: str) -> None:
    start = time.process_time()
    cleaned(text, *EVERY)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("steps", "said"), [(("spelling",), "'spelling' and is not known"), (("control",) * 2, "twice")]
)
def test_unknown_steps_are_refused_with_those_there_are(steps: tuple[str, ...], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        Cleaner(CleanSettings(steps=steps))
    assert "entities, unicode, control, spaces, boilerplate" in caught.value.hint


def test_parts_of_a_text() -> None:
    assert cut("abcdef", [0, 2, 6]) == ["", "ab", "cdef", ""]


def test_frequent_keys_survive_a_small_memory() -> None:
    found = Frequent(10)
    for row in range(2000):
        found.add({row, row + 10_000, 7_777_777} | ({5_555_555} if row % 2 else set()))
    assert found.above(400) == {7_777_777, 5_555_555}


def read(tmp_path: Path, texts: list[str], record: dict[str, Path] | None = None, **clean: object) -> object:
    file, output = tmp_path / "a.jsonl", tmp_path / "out"
    output.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps({"id": str(n), "text": t}) + "\n" for n, t in enumerate(texts)))
    settings = Settings(source=SourceSettings(source=str(file)), clean=CleanSettings(**clean))  # type: ignore[arg-type]
    return ingest.run(settings, record or {}, Tools(output))


def texts_of(tmp_path: Path) -> list[str]:
    found: list[str] = pq.read_table(tmp_path / "out" / "documents.parquet")["text"].to_pylist()
    return found


def test_boilerplate_is_found_dropped_told_and_kept_for_additions(tmp_path: Path) -> None:
    own = [f"All rights reserved.\nAbout number {n} alone.\n---\nHome | Contact" for n in range(20)]
    steps = ("unicode", "control", "boilerplate", "spaces")
    result = read(tmp_path, [*own, "All rights reserved."], steps=steps)
    assert texts_of(tmp_path)[:20] == [f"About number {n} alone.\n---" for n in range(20)]
    assert texts_of(tmp_path)[20] == "All rights reserved."  # a document is never emptied
    assert result.counts["boilerplate lines"] == 2  # type: ignore[attr-defined]
    assert result.counts["changed by boilerplate"] == 20  # type: ignore[attr-defined]
    assert any("'All rights reserved.' (20 documents)" in note for note in result.notes)  # type: ignore[attr-defined]
    kept = json.loads(pq.read_metadata(tmp_path / "out" / "documents.parquet").metadata[CLEANED])
    assert kept["lines"] == ["All rights reserved.", "Home | Contact"]
    record = tmp_path / "clean.json"
    record.write_text(json.dumps(kept))
    read(tmp_path, ["Home | Contact\nSomething new\u200b."], {"clean.json": record}, steps=())
    assert texts_of(tmp_path) == ["Something new."]


def test_lines_of_few_documents_are_no_boilerplate(tmp_path: Path) -> None:
    read(tmp_path, [f"Same line.\n{n}" for n in range(4)], steps=("boilerplate",))
    assert texts_of(tmp_path)[0] == "Same line.\n0"


def test_what_only_holds_invisible_characters_is_empty_and_a_nul_stays_a_fault(tmp_path: Path) -> None:
    result = read(tmp_path, [*"abcdefghijklmnopqrstuvwxyzabcdefghijklmn", "\u200b \ufeff", "x\0y"])
    assert {drop.reason: drop.count for drop in result.drops} == {"NUL byte": 1, "empty text": 1}  # type: ignore[attr-defined]


def test_the_language_is_metadata_unless_the_user_has_such_a_column(tmp_path: Path) -> None:
    english = "This is the text of a document that is in English, and it has the words of it."
    spanish = "Este es el texto de un documento que está en español, con las palabras de la lengua."
    result = read(tmp_path, [english, english, english, spanish, "12345"])
    table = pq.read_table(tmp_path / "out" / "documents.parquet")
    assert table["metadata.language"].to_pylist() == ["english"] * 3 + ["spanish", None]
    assert "languages: english 60%, spanish 20%, not told 20%" in result.notes  # type: ignore[attr-defined]
    file = tmp_path / "b.csv"
    file.write_text(f"id,text,language\n1,{english!r},klingon\n".replace("'", '"'))
    settings = Settings(source=SourceSettings(source=str(file)))
    ingest.run(settings, {}, Tools(tmp_path / "out"))
    table = pq.read_table(tmp_path / "out" / "documents.parquet")
    assert table["metadata.language"].to_pylist() == ["klingon"]
