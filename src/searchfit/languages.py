"""The language of a document, told by its function words, else by the script of its letters."""

from __future__ import annotations

from collections import Counter

from searchfit.keyword import language_hits
from searchfit.screening import scripts

# Scripts that one language alone, or nearly so, is written in; of the others the script is all that is told.
_BY_SCRIPT = {
    "GREEK": "greek",
    "HANGUL": "korean",
    "HEBREW": "hebrew",
    "THAI": "thai",
    "GEORGIAN": "georgian",
    "ARMENIAN": "armenian",
}
_LOOKED_AT = 2000
_FEWEST = 3
"""Function words that tell a language."""


def language_of(text: str) -> str:
    """The language of a text by its first 2,000 characters, in the names of `keyword.language` where there is
    one; "arabic script" and the like where several languages share the script; "" where nothing tells it.

    Japanese is told from Chinese by its kana: a text of Han characters alone is called Chinese.
    """
    head = text[:_LOOKED_AT]
    hits, words = language_hits([head])
    (found, most), (_, second) = (*hits.most_common(2), ("", 0), ("", 0))[:2]
    # A few words of one text may stand in several languages' lists by chance.
    if most >= max(_FEWEST, 0.08 * words, second + 1):
        return found
    letters = scripts(head)
    main = max(letters, key=lambda name: letters[name], default="")
    if main == "CJK":
        kana = sum("\u3040" <= char <= "\u30ff" for char in head)
        return "japanese" if 20 * kana > letters[main] else "chinese"
    return _BY_SCRIPT.get(main) or ("" if main in ("", "LATIN") else f"{main.lower()} script")


class Languages:
    """Counts documents by language."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, text: str) -> str | None:
        """The language of a text, counted; None where it cannot be told."""
        found = language_of(text)
        self.counts[found or "not told"] += 1
        return found or None

    def shares(self) -> dict[str, float]:
        """By language, most first."""
        total = self.counts.total()
        return {name: round(count / total, 4) for name, count in self.counts.most_common()}

    def __str__(self) -> str:
        return ", ".join(f"{name} {share:.0%}" for name, share in self.shares().items())
