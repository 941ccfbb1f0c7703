from __future__ import annotations

import pytest

from searchfit.languages import Languages, language_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat sat on the mat and it was not at all in the way of the dog.", "english"),
        ("El perro que está en la casa no es de la señora, pero sí del niño.", "spanish"),
        ("東京は日本の首都であり、人口が最も多い都市です。", "japanese"),
        ("北京是中华人民共和国的首都。", "chinese"),
        ("서울은 대한민국의 수도이다.", "korean"),
        ("Η Αθήνα είναι η πρωτεύουσα της Ελλάδας.", "greek"),
        ("ירושלים היא בירת ישראל", "hebrew"),
        ("กรุงเทพมหานครเป็นเมืองหลวง", "thai"),
        ("القاهرة هي عاصمة مصر", "arabic script"),
        ("नई दिल्ली भारत की राजधानी है", "devanagari script"),
        ("Київ є столицею України", "cyrillic script"),
        ("SKU-4711 x 20", ""),
        ("", ""),
    ],
)
def test_languages(text: str, expected: str) -> None:
    assert language_of(text) == expected


def test_shares_are_told_most_first() -> None:
    counted = Languages()
    for text in ("서울은 대한민국의", "서울은", "123", "Η Αθήνα"):
        counted.add(text)
    assert str(counted) == "korean 50%, not told 25%, greek 25%"
