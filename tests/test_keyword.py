from __future__ import annotations

import math
import sys
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchfit.errors import SettingsError, WorkspaceError
from searchfit.keyword import Analyzer, KeywordIndex, detect_language

ENGLISH = Analyzer("english")
PLAIN = Analyzer("none")


def surfaces(analyzer: Analyzer, text: str) -> list[str]:
    return [text[start:end] for _, start, end in analyzer.spans(text)]


def bm25_share(query: list[str], texts: list[list[str]], row: int, k1: float, b: float) -> float:
    """From the formula, in plain Python: the score over the limit that repetition approaches."""
    mean = sum(map(len, texts)) / len(texts)
    counts = Counter(texts[row])
    score = limit = 0.0
    for term in set(query):
        df = sum(term in text for text in texts)
        rarity = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
        limit += rarity * (k1 + 1)
        frequency = counts[term]
        score += rarity * frequency * (k1 + 1) / (frequency + k1 * (1 - b + b * len(texts[row]) / mean))
    return score / limit


WORDS = st.sampled_from(["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta"])
TEXTS = st.lists(st.lists(WORDS, min_size=1, max_size=12), min_size=1, max_size=12)
QUERY = st.lists(WORDS | st.sampled_from(["unknown", "absent"]), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(TEXTS, QUERY, st.floats(0.1, 3), st.floats(0, 1))
def test_scores_are_those_of_the_formula(
    texts: list[list[str]], query: list[str], k1: float, b: float
) -> None:
    index = KeywordIndex.build([" ".join(text) for text in texts], PLAIN, k1, b)
    found = index.scores([" ".join(query)]).toarray()[0]
    expected = [bm25_share(query, texts, row, k1, b) for row in range(len(texts))]
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-7)
    assert found.min() >= 0
    assert found.max() <= 1


def test_unknown_words_lower_the_score_and_repetition_approaches_the_attainable() -> None:
    index = KeywordIndex.build(["pool garden", "house " * 5, "beach"], PLAIN, b=0)
    known, mixed = index.scores(["pool", "pool helipad"]).toarray()[:, 0]
    assert 0 < mixed < known / 2  # an unknown word is rarer than any known one
    often = KeywordIndex.build(["pool " * 100_000, "house", "beach"], PLAIN, b=0)
    assert often.scores(["pool"]).toarray()[0, 0] == pytest.approx(1, abs=1e-4)
    assert index.attainable(["pool", "pool", "helipad"]) == pytest.approx(
        (index.idf("pool") + index.idf("helipad")) * 2.2
    )
    assert index.idf("helipad") > index.idf("pool") > 0


def test_queries_without_terms_score_nothing() -> None:
    index = KeywordIndex.build(["pool", "house"], ENGLISH)
    scores = index.scores(["", "?!", "unheard", "pool"])
    assert scores.shape == (4, 2)
    assert scores.toarray()[:3].sum() == 0
    assert scores.toarray()[3, 0] > 0
    assert index.scores([]).shape == (0, 2)


def test_scores_of_some_rows_are_those_of_all() -> None:
    index = KeywordIndex.build(["pool garden", "house " * 5, "beach", "", "garden house pool pool"], PLAIN)
    queries = ["garden", "unknown", "", "pool house pool", "beach garden"]
    every = index.scores(queries).toarray()
    for rows in ([3, 0, 4], [1], [], [0, 1, 2, 3, 4]):
        some = index.scores(queries, np.array(rows, np.int64)).toarray()
        assert some.shape == (5, len(rows))
        assert (some == every[:, rows]).all()


@pytest.mark.parametrize("texts", [[], ["", " ... "]])
def test_a_corpus_without_words(texts: list[str]) -> None:
    index = KeywordIndex.build(texts, ENGLISH)
    assert index.count == len(texts)
    assert index.scores(["pool", ""]).toarray().tolist() == [[0.0] * len(texts)] * 2


def test_saved_and_loaded_it_scores_the_same(tmp_path: Path) -> None:
    texts = ["Rooms with views", "viewing a room", "l'été à Nîmes", "东京都 hotel", ""]
    index = KeywordIndex.build(texts, Analyzer("french"), 0.9, 0.4)
    index.save(tmp_path / "keyword")
    again = KeywordIndex.load(tmp_path / "keyword")
    queries = ["room view", "été nimes", "东京", "nothing"]
    assert (again.scores(queries) != index.scores(queries)).nnz == 0
    assert again.analyzer.language == "french"
    assert (again.k1, again.b, list(again.vocabulary)) == (0.9, 0.4, list(index.vocabulary))


@pytest.mark.parametrize("name", ["rows.npy", "keyword.json", "vocabulary.txt"])
def test_a_damaged_index_is_an_error_for_people(tmp_path: Path, name: str) -> None:
    KeywordIndex.build(["pool house"], ENGLISH).save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(WorkspaceError, match="damaged"):
        KeywordIndex.load(tmp_path)
    KeywordIndex.build(["pool house"], ENGLISH).save(tmp_path)
    (tmp_path / "keyword.json").write_text("{")
    with pytest.raises(WorkspaceError, match="damaged"):
        KeywordIndex.load(tmp_path)


def test_english_words_meet_by_their_stems() -> None:
    assert ENGLISH.terms("Running runs, RUN!") == ["run", "run", "run"]
    assert ENGLISH.terms("houses") == ENGLISH.terms("house")
    assert PLAIN.terms("Houses") == ["houses"]
    assert ENGLISH.terms("don't _ -- 3.14") == ["don", "t", "3", "14"]


@pytest.mark.parametrize(
    ("language", "one", "other"),
    [
        ("french", "l'été à Nîmes", "L'ETE A NIMES"),
        ("spanish", "corazón ÑANDÚ", "corazon nandu"),
        ("none", "Straße", "STRASSE"),
        ("none", "ＡＢＣ１２", "abc12"),
        ("none", "café naïve", unicodedata.normalize("NFD", "Café Naïve")),
        ("french", "étés préférés", unicodedata.normalize("NFD", "étés préférés")),
        ("none", "한국어", unicodedata.normalize("NFD", "한국어")),
    ],
)
def test_accents_case_and_composition_do_not_part_words(language: str, one: str, other: str) -> None:
    analyzer = Analyzer(language)
    assert analyzer.terms(one) == analyzer.terms(other)
    assert len(analyzer.terms(one)) == len(one.replace("'", " ").split())


@pytest.mark.parametrize(
    "text",
    [
        "हिन्दी में किताबें पढ़ना अच्छा है",
        "தமிழ் மொழி இனிமையானது",
        "বাংলা ভাষা সুন্দর",
        "తెలుగు భాష",
        "മലയാളം ഭാഷ",
        "كِتَابٌ جَمِيلٌ",
        "שָׁלוֹם עוֹלָם",
    ],
)
def test_vowel_marks_do_not_break_words(text: str) -> None:
    assert surfaces(PLAIN, text) == text.split()


def test_marks_that_carry_meaning_stay() -> None:
    assert PLAIN.terms("कल") != PLAIN.terms("काल")  # "yesterday" and "time"
    assert PLAIN.terms("क्या") != PLAIN.terms("कया")  # a virama joins consonants
    assert PLAIN.terms("كِتَاب") == PLAIN.terms("كتاب")  # short vowels are optional in Arabic


def test_scripts_without_spaces_become_pairs() -> None:
    assert PLAIN.terms("东京都") == ["东京", "京都"]
    assert PLAIN.terms("水") == ["水"]
    assert PLAIN.terms("iPhone用ケース2個") == ["iphone", "用ケ", "ケー", "ース", "2", "個"]
    assert surfaces(PLAIN, "我爱 Python编程") == ["我爱", "Python", "编程"]


def test_identifiers_are_found_by_their_parts() -> None:
    assert PLAIN.terms("max_row_count") == ["max", "row", "count"]
    assert PLAIN.terms("HTTPServer") == ["httpserver", "http", "server"]
    assert PLAIN.terms("parseJsonV2") == ["parsejsonv2", "parse", "json", "v", "2"]
    assert surfaces(PLAIN, "see HTTPServer.") == ["see", "HTTPServer", "HTTP", "Server"]
    assert PLAIN.terms("NASA Paris 1999 abc123") == ["nasa", "paris", "1999", "abc123"]


def test_capitalised_words_with_accents_are_not_identifiers() -> None:
    assert PLAIN.terms("Größe Übermäßig Número") == ["grosse", "ubermassig", "numero"]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_spans_lie_in_any_text_in_order(text: str) -> None:
    for analyzer in (ENGLISH, PLAIN):
        spans = list(analyzer.spans(text))
        assert analyzer.terms(text) == [term for term, _, _ in spans]
        for term, start, end in spans:
            assert term
            assert 0 <= start < end <= len(text)
            assert any(char.isalnum() for char in text[start:end]) or any(
                unicodedata.category(char)[0] in "ML" for char in text[start:end]
            )


TALES = {
    "english": "The ship was late and the crew had to wait for it in the harbour with all of the cargo.",
    "french": "Le navire était en retard et les marins ont attendu dans le port pour une nuit.",
    "spanish": "El barco llegó tarde y los marineros esperaban en el puerto con la carga que no se vendía.",
    "german": "Das Schiff war spät und die Mannschaft wartete mit der Ladung im Hafen auf den Kapitän.",
    "italian": "La nave era in ritardo e i marinai aspettavano nel porto con il carico della città.",
    "portuguese": "O navio não chegou e os marinheiros esperavam no porto com uma carga que não é do dono.",
    "dutch": "Het schip was te laat en de bemanning wachtte in de haven met de lading van een ander.",
    "russian": "Корабль опоздал, и команда ждала его в порту с грузом, но не на берегу, а у причала.",
    "swedish": "Skeppet var sent och besättningen fick vänta i hamnen med lasten som inte är till salu.",
    "turkish": "Gemi çok geç kaldı ve mürettebat bir gün için limanda bekledi ama bu yük daha sonra geldi.",
}


@pytest.mark.parametrize(("language", "text"), TALES.items())
def test_languages_are_told_by_their_function_words(language: str, text: str) -> None:
    assert detect_language([text] * 3) == language


@pytest.mark.parametrize("text", ["", "x1 y2 z3 = foo(bar)", "船は港に遅れて着いた。", "कल हम पढ़ेंगे"])
def test_no_language_is_claimed_where_none_is_known(text: str) -> None:
    assert detect_language([text]) == "none"
    assert detect_language([]) == "none"


def test_every_language_that_can_be_detected_has_a_stemmer() -> None:
    for language in TALES:
        assert Analyzer(language).terms("x")
    with pytest.raises(SettingsError, match="klingon") as caught:
        Analyzer("klingon")
    assert "english" in caught.value.hint


def test_threads_share_an_analyzer() -> None:
    roots = ("nation", "operat", "relat", "condition", "radic", "electr", "form", "adopt")
    ends = ("ational", "ization", "iveness", "fulness", "ously", "ement", "ability", "ically", "ingly")
    words = [root + end for root in roots for end in ends]
    expected = {word: ENGLISH.terms(word) for word in words}
    before = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-6)
        with ThreadPoolExecutor(8) as pool:
            for _ in range(20):
                shared = Analyzer("english")
                found = list(pool.map(shared.terms, words * 2))
                assert found == [expected[word] for word in words * 2]
    finally:
        sys.setswitchinterval(before)
