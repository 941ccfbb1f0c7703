from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from searchfit.config import ScreenSettings
from searchfit.keyword import Analyzer
from searchfit.screening import (
    COPY,
    FOREIGN,
    NO_OVERLAP,
    Sibling,
    TextScreen,
    by_passage,
    is_copy,
    is_foreign,
    near_duplicates,
)

ENGLISH = (
    "The heat pump in the garden is the part of the system that must not be covered with snow, for it was "
    "not built to work without air from the sides. It is on the plan of the house, and the cables are below."
)
GERMAN = (
    "Die Wärmepumpe im Garten ist der Teil der Anlage, der nicht mit Schnee bedeckt werden darf, denn sie "
    "ist nicht für den Betrieb ohne Luft von allen Seiten gebaut. Sie steht auf dem Plan und Kabel sind da."
)
SPANISH = (
    "La bomba de calor del jardín es la parte del sistema que no se puede cubrir con nieve, porque no es "
    "para el uso sin aire de todos los lados. Está en el plano de la casa y los cables en un tubo."
)
PORTUGUESE = (
    "A bomba de calor do jardim é a parte do sistema que não pode ser coberta com neve, porque não é para o "
    "uso sem ar de todos os lados. Está na planta da casa e os cabos estão em um tubo com água por baixo."
)
RUSSIAN = "Тепловой насос в саду нельзя накрывать снегом, потому что он не может работать без воздуха."
CHINESE = (
    "花园里的热泵不能被雪覆盖，因为没有来自四面八方的空气它就无法工作。它在房子的平面图上，电缆在管道里。"
)
GREEK = "Η αντλία θερμότητας στον κήπο δεν πρέπει να καλύπτεται από χιόνι, γιατί δεν λειτουργεί χωρίς αέρα."
JAPANESE = (
    "庭のヒートポンプは雪で覆わないでください。四方からの空気がないと動作しません。配線は管の中にあります。"
)


def sibling(text: str, language: str = "none") -> Sibling:
    return Sibling(text, Analyzer(language))


@pytest.mark.parametrize(
    ("query", "passage"),
    [
        ("Wie funktioniert die Heizung, wenn der Strom ausfällt und wer hilft?", ENGLISH),
        ("¿Cómo se puede cubrir la bomba del calor para el invierno?", ENGLISH),
        ("How do I cover the machine when there is frost and who helps?", GERMAN),
        ("what should you do with the pump when it freezes", SPANISH),
        ("как укрыть насос от снега зимой", ENGLISH),
        ("热泵能不能被雪覆盖呢", ENGLISH),
        ("花园里的热泵怎么安装", RUSSIAN),
        ("how can you cover what is in the garden", CHINESE),
        ("γιατί δεν πρέπει να καλύπτεται η αντλία", RUSSIAN),
        ("тепловой насос в саду зимой", GREEK),
    ],
)
def test_another_language_is_told(query: str, passage: str) -> None:
    assert is_foreign(query, sibling(passage))


@pytest.mark.parametrize("passage", [ENGLISH, GERMAN, SPANISH, PORTUGUESE, RUSSIAN, CHINESE, GREEK, JAPANESE])
@pytest.mark.parametrize(
    "query",
    [
        "",
        "?!",
        "2024-11-03 14:15",
        "ISO 9001:2015",
        "42.5 kW 230 V",
        "HeatPump.install(frost=True)",
        "for i in range(10): print(i)",
        "pandas.DataFrame.groupby",
        "if __name__ == '__main__'",
        "Viessmann Vitocal 250-A",
        "Johann Wolfgang von Goethe",
        "Leonardo da Vinci",
        "El Paso de la Cruz",
        "Москва",
        "Лев Толстой",
        "北京",
        "heat pump",
        "COVID-19 mRNA",
        "α-tocopherol",
        "https://example.org/a/the/of/and/is",
    ],
)
def test_names_numbers_code_and_short_queries_are_of_no_language(query: str, passage: str) -> None:
    assert not is_foreign(query, sibling(passage))


@pytest.mark.parametrize(
    ("query", "passage"),
    [
        ("What must not be covered with snow and why is it so?", ENGLISH),
        ("Was darf nicht mit Schnee bedeckt werden und warum ist das so?", GERMAN),
        ("¿Qué parte no se puede cubrir con nieve y por qué es así?", SPANISH),
        ("O que não pode ser coberto com neve e por que é assim?", PORTUGUESE),
        # Close relatives cannot be told apart by a dozen words.
        ("¿Qué parte no se puede cubrir con nieve y por qué?", PORTUGUESE),
        ("что нельзя накрывать снегом и почему это так", RUSSIAN),
        ("为什么热泵不能被雪覆盖", CHINESE),
        ("なぜ雪で覆ってはいけないのですか", JAPANESE),
        ("热泵安装在花园里", JAPANESE),  # Han is in both
        ("why is the Wärmepumpe im Garten so loud", GERMAN),  # too mixed to say
        ("what is the price of it and how do I pay", "Vitocal 250-A 42.5 kW"),  # the passage is no prose
    ],
)
def test_the_same_language_is_no_other(query: str, passage: str) -> None:
    assert not is_foreign(query, sibling(passage))


@pytest.mark.parametrize(
    ("query", "copied"),
    [
        ("must not be covered with snow", True),
        ("MUST not -- be   covered, with\nsnow?", True),
        ("not be covered with", False),  # four words
        ("must not be covered with snowflakes", False),
        ("ust not be covered with snow", False),
        ("must not be fully covered with snow", False),
        ("", False),
    ],
)
def test_a_copy_stands_word_for_word_in_its_passage(query: str, copied: bool) -> None:
    assert is_copy(query, sibling(ENGLISH)) == copied


def test_copies_in_scripts_without_spaces() -> None:
    assert is_copy("热泵不能被雪覆盖 因为没有", sibling(CHINESE))
    assert not is_copy("热泵不能被水覆盖因为没有", sibling(CHINESE))
    assert not is_copy("热泵不能被雪覆盖因为没有", sibling(ENGLISH))
    assert is_copy("use the new API with care", sibling("请 use the new API, with care 谢谢"))


@pytest.mark.parametrize(
    ("query", "passage", "language", "shares"),
    [
        ("covers for heat pumps", ENGLISH, "english", True),
        ("what is it and how is it made", ENGLISH, "english", False),  # only words that are everywhere
        ("tell me a joke about the weather", ENGLISH, "english", False),
        ("frostschutz pumpe", GERMAN, "german", True),  # part of a compound
        ("Kuchen backen mit Mehl und Zucker", GERMAN, "german", False),
        ("下雪怎么办", CHINESE, "none", True),  # pairs of characters say little: nothing follows
        (
            "what to do in winter with the machine",
            GERMAN,
            "german",
            True,
        ),  # another language: not for words to say
        ("зима", ENGLISH, "english", True),
    ],
)
def test_the_overlap_of_a_model_s_query(query: str, passage: str, language: str, shares: bool) -> None:
    screen = TextScreen(ScreenSettings(same_language=False), Analyzer(language))
    told = sibling(passage, language)
    assert screen.beside(query, told, True, False) == ("" if shares else NO_OVERLAP)
    assert screen.beside(query, told, False, False) == ""


def test_more_overlap_can_be_asked_for() -> None:
    told = sibling(ENGLISH, "english")
    for least, query, reason in [
        (1, "snow on mountains", ""),
        (2, "snow on mountains", NO_OVERLAP),
        (2, "snow on pumps", ""),
        (2, "snow", ""),  # it has no more
        (0, "mountains", ""),
    ]:
        screen = TextScreen(ScreenSettings(min_overlap=least), Analyzer("english"))
        assert screen.beside(query, told, True, False) == reason


def test_settings_of_the_texts() -> None:
    told = sibling(ENGLISH, "english")
    question = "Wie funktioniert die Heizung, wenn der Strom ausfällt und wer hilft?"

    def reason(copied: bool, model: bool = True, **values: object) -> str:
        settings = ScreenSettings.model_validate(values)
        return TextScreen(settings, Analyzer("english")).beside(question, told, model, copied)

    assert reason(True) == COPY
    assert reason(True, copies="keep") == FOREIGN
    assert reason(True, model=False) == FOREIGN
    assert reason(False, model=False, same_language=False) == ""


def reference(texts: list[str], vectors: np.ndarray, threshold: float) -> list[bool]:
    """One query after another, each with all that stayed."""
    analyzer = Analyzer("english")
    terms = [set(analyzer.terms(text)) for text in texts]
    gone: list[bool] = []
    same = [terms.index(own) < row for row, own in enumerate(terms)]
    for row, own in enumerate(terms):
        close = False
        for other in range(row):
            if not gone[other] and float(vectors[row] @ vectors[other]) >= threshold:
                shared = len(own & terms[other]) / len(own | terms[other])
                digits = {term for term in own ^ terms[other] if any(map(str.isdigit, term))}
                close = close or (shared >= 0.5 and not digits)
        gone.append(same[row] or close)
    return gone


def test_near_duplicates_are_those_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    import searchfit.screening as module

    monkeypatch.setattr(module, "_BATCH", 7)
    monkeypatch.setattr(module, "_WIDE_BATCH", 16)
    rng = np.random.default_rng(0)
    words = ["rose", "roses", "soil", "of", "the", "42", "43", "hedge", "tulips"]
    texts = [" ".join(rng.choice(words, 4)) for _ in range(120)]
    vectors = rng.normal(size=(120, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = near_duplicates(texts, vectors, Analyzer("english"), 0.9)
    assert found.tolist() == reference(texts, vectors, 0.9)
    by_words = near_duplicates(texts, vectors, Analyzer("english"), 1.0)
    assert 0 < by_words.sum() < found.sum() < 120


def test_what_is_no_near_duplicate() -> None:
    texts = ["iPhone 12 price", "iPhone 13 price", "??", "!!", "apples", "pears"]
    vectors = np.tile(np.float32([1, 0]), (6, 1))  # a model to which all is one
    assert not near_duplicates(texts, vectors, Analyzer("english"), 0.97).any()
    assert near_duplicates([], np.empty((0, 2), np.float32), Analyzer("english"), 0.97).shape == (0,)


def test_queries_meet_their_passages_in_order(tmp_path: Path) -> None:
    rows = [{"id": f"p{n}", "text": f"text {n}", "more": n} for n in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    own = np.array([2999, 5, 1024, 5, 0], np.int64)
    found = [
        (places.tolist(), row) for places, row in by_passage(tmp_path / "p.parquet", own, ["id", "text"])
    ]
    assert found == [
        ([4], {"id": "p0", "text": "text 0"}),
        ([1, 3], {"id": "p5", "text": "text 5"}),
        ([2], {"id": "p1024", "text": "text 1024"}),
        ([0], {"id": "p2999", "text": "text 2999"}),
    ]
    assert list(by_passage(tmp_path / "p.parquet", np.empty(0, np.int64), ["id"])) == []
