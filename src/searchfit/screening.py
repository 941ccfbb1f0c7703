"""What a generated query and its passage say of each other, and which queries ask the same. No model."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.config import ScreenSettings
from searchfit.fusion import Rows, Vectors
from searchfit.keyword import Analyzer, function_words
from searchfit.text import word_count

TOO_SHORT = "too short"
DUPLICATE = "duplicate"
NEAR_DUPLICATE = "near-duplicate of another query"
COPY = "copy: it stands word for word in its passage"
FOREIGN = "another language than its passage"
NO_OVERLAP = "too few words in common with its passage"

_COPY_WORDS = 5
_LONG_QUERY = 6
"""Distinct words from which on the language of a query can be told."""

_BATCH = 1024
_WIDE_BATCH = 8192
_CANDIDATES = 16
"""Most queries that one query is compared with word by word."""

# What questions are made of, and further words that say little, beside the function words by which the
# language of a long text is told.
_MORE = {
    "english": "a how what who whom when where why does do did done can could i you my me your should we us "
    "our there has had will would were been being no if then than so such they them he she his her him its "
    "their these those here about into over after before up down out only also just very more most some any "
    "all",
    "french": "comment quoi quand où pourquoi quel quelle quels quelles mon ma mes je vous nous peut",
    "spanish": "cómo qué cuándo dónde quién cuál cuáles mi mis puede hay porque tiene",
    "german": "wie was wann wo warum wer welche welcher welches ich wir kann man wird einen einer eines",
    "italian": "come cosa quando dove perché chi quale quali ho può mi posso",
    "portuguese": "como quando onde quem qual quais eu você posso minha meu pode",
    "dutch": "hoe wat wanneer waar waarom wie welke ik je kan mijn wordt",
    "swedish": "hur vad när vem vilken vilka varför kan man du",
    "norwegian": "hvordan hva når hvor hvem hvilken hvilke hvorfor kan man du",
    "danish": "hvordan hvad hvornår hvor hvem hvilken hvilke hvorfor kan man du",
    "russian": "когда где почему кто какой какая какие можно ли я мне",
}
_LANGUAGES = (*_MORE, "romanian", "finnish", "turkish", "hungarian")

_LETTERS = re.compile(r"[^\W\d_]+")
_WORDS = re.compile(r"\w+")
_CODE = re.compile(r"[(){}\[\]=<>_;\\/]|\w\.\w")
_ONE_SCRIPT = dict.fromkeys(("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"), "CJK")
_UNSPACED = {"CJK", "THAI", "LAO", "MYANMAR", "KHMER"}


def by_passage(path: Path, own: Rows, columns: Sequence[str]) -> Iterator[tuple[Rows, dict[str, Any]]]:
    """For each passage of a passages table that is some query's own: the places in `own` (n, passage rows)
    of its queries, and its columns. In passage order, a thousand passages in memory."""
    order = np.argsort(own, kind="stable")
    ordered = own[order]
    first = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_BATCH, columns=list(columns)):
            start, stop = np.searchsorted(ordered, [first, first + batch.num_rows])
            rows, begins = np.unique(ordered[start:stop], return_index=True)
            records = batch.take(pa.array(rows - first)).to_pylist()
            borders = start + np.append(begins, stop - start)
            for number, record in enumerate(records):
                yield order[borders[number] : borders[number + 1]], record
            first += batch.num_rows


class Sibling:
    """A passage, as its queries are compared with it; what follows from it is made once, when asked for."""

    def __init__(self, text: str, analyzer: Analyzer) -> None:
        self.text = text
        self._analyzer = analyzer

    @cached_property
    def terms(self) -> frozenset[str]:
        """Its index terms."""
        return frozenset(self._analyzer.terms(self.text))

    @cached_property
    def folded(self) -> str:
        """Its words, see `fold`."""
        return fold(self.text)

    @cached_property
    def scripts(self) -> Counter[str]:
        """Its letters by script."""
        return scripts(self.text)

    @cached_property
    def words(self) -> list[str]:
        """The words of its beginning, case-folded."""
        return _words(self.text[:4000])

    @cached_property
    def language(self) -> tuple[str, float]:
        """Its language and the share of its words that are function words of that; ("", 0) where it cannot
        be told for sure."""
        shares = {name: self.share(name) for name in _LANGUAGES}
        best = max(_LANGUAGES, key=lambda name: shares[name])
        return (best, shares[best]) if len(self.words) >= 20 and shares[best] >= 0.12 else ("", 0.0)

    def share(self, language: str) -> float:
        """The share of its words that are function words of a language."""
        known = common_words(language)
        return sum(word in known for word in self.words) / max(1, len(self.words))


class TextScreen:
    """Why a query is dropped by its text, beside its passage or alone."""

    def __init__(self, settings: ScreenSettings, analyzer: Analyzer) -> None:
        self._settings = settings
        self._analyzer = analyzer
        self._seen: set[str] = set()
        # They are found everywhere, so that sharing them says nothing.
        self._common = {term for word in common_words(analyzer.language) for term in analyzer.terms(word)}

    def alone(self, query: str) -> str:
        """Why a query is dropped whatever its passage; "" keeps it. Of equal queries the first stays."""
        plain = " ".join(query.casefold().split())
        if len(plain) < self._settings.min_chars and plain.isascii():
            return TOO_SHORT
        if plain in self._seen:
            return DUPLICATE
        self._seen.add(plain)
        return ""

    def beside(self, query: str, passage: Sibling, written_by_model: bool, copied: bool) -> str:
        """Why a query is dropped for its passage's sake; "" keeps it."""
        settings = self._settings
        if copied and (settings.copies == "drop" or (settings.copies == "auto" and written_by_model)):
            return COPY
        if settings.same_language and is_foreign(query, passage):
            return FOREIGN
        if written_by_model and settings.min_overlap and not self._overlaps(query, passage):
            return NO_OVERLAP
        return ""

    def _overlaps(self, query: str, passage: Sibling) -> bool:
        """Whether enough index terms are shared, or the languages differ or do not part words by spaces, so
        that nothing follows from words."""
        asked = scripts(query)
        if asked.keys() & _UNSPACED or _main(asked) != _main(passage.scripts):
            return True
        terms = set(self._analyzer.terms(query)) - self._common
        shared = len(terms & passage.terms)
        needed = max(1, min(self._settings.min_overlap, len(terms)))
        if shared < needed:  # compounds: a part of a word counts as the word does
            shared += sum(_within(term, passage) for term in terms - passage.terms)
        return shared >= needed or _seems_foreign(query, passage)


def fold(text: str) -> str:
    """The words of a text, case-folded, without punctuation: one space around each; none at all in a text
    that holds a script without spaces."""
    found = _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())
    return "".join(found) if scripts(text).keys() & _UNSPACED else f" {' '.join(found)} "


def is_copy(query: str, passage: Sibling) -> bool:
    """Whether a query of five words or more stands in its passage; case, white space and punctuation do not
    matter."""
    if word_count(query) < _COPY_WORDS:
        return False
    folded = fold(query)
    text = passage.folded
    if folded[:1] != " " and text[:1] == " ":
        return False  # one has a script without spaces, the other has none
    return (folded if text[:1] == " " else folded.replace(" ", "")) in text


def is_foreign(query: str, passage: Sibling) -> bool:
    """Whether query and passage are for sure of different scripts or languages. Names, numbers, code and
    short queries never are."""
    asked, told = scripts(query), passage.scripts
    script, letters = _main(asked), asked.total()
    plain = letters >= (4 if script in _UNSPACED else 8) and asked[script] >= 0.9 * letters
    if plain and told.total() >= 40 and told[script] < 0.02 * told.total():
        # Latin letters in another script's text are most often a name, a term or code.
        return word_count(query) >= 3 and (script != "LATIN" or bool(_told_language(query, passage)))
    words = set(_words(query))
    language = _told_language(query, passage) if passage.language[0] else ""
    return (
        language not in ("", passage.language[0])
        and 4 * len(words & set(passage.words)) < len(words)
        and 3 * len(words & common_words(passage.language[0])) <= len(words & common_words(language))
        and 2 * passage.share(language) <= passage.language[1]
    )


def _told_language(query: str, passage: Sibling) -> str:
    """The language of a query in Latin letters that is long enough to tell, else ""."""
    words = set(_words(query))
    if len(words) < _LONG_QUERY or _CODE.search(query):
        return ""
    language, hits = _language(query, passage)
    return language if hits >= 3 and hits >= 0.3 * len(words) else ""


def _seems_foreign(query: str, passage: Sibling) -> bool:
    """A weaker sign than `is_foreign` asks for."""
    known = passage.language[0]
    language, hits = _language(query, passage)
    return (
        bool(known)
        and language != known
        and hits >= max(2, 3 * len(set(_words(query)) & common_words(known)))
    )


def _language(query: str, passage: Sibling) -> tuple[str, int]:
    """The language with most function words in the query that are not in the passage, and how many."""
    words = set(_words(query)) - set(passage.words)
    hits = {language: len(words & common_words(language)) for language in _LANGUAGES}
    best = max(_LANGUAGES, key=lambda language: hits[language])
    return best, hits[best]


def _within(term: str, passage: Sibling) -> bool:
    long = [word for word in passage.terms if len(word) >= 4]
    return len(term) >= 4 and any(term in word or word in term for word in long)


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _LETTERS.findall(text)]


@lru_cache(maxsize=32)
def common_words(language: str) -> frozenset[str]:
    """Words of a language that say little of what is asked, case-folded; none of an unknown language."""
    return function_words(language) | frozenset(_MORE.get(language, "").split())


def scripts(text: str) -> Counter[str]:
    """Letters by script; Han and kana count as one. Of a long text, its beginning."""
    if text.isascii():
        return Counter({"LATIN": sum(map(str.isalpha, text[:4000]))})
    return +Counter(filter(None, map(_script, unicodedata.normalize("NFKC", text[:4000]))))


@lru_cache(maxsize=65536)
def _script(char: str) -> str:
    if not char.isalpha():
        return ""
    name = unicodedata.name(char, "").partition(" ")[0]
    return _ONE_SCRIPT.get(name, name)


def _main(counts: Counter[str]) -> str:
    return counts.most_common(1)[0][0] if counts.total() else ""


def near_duplicates(
    texts: Sequence[str], vectors: Vectors, analyzer: Analyzer, threshold: float
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which queries (n) ask what an earlier one that stays asks: those with the same index terms in any
    order, and those with a cosine of `vectors` (n, d), of unit length, of at least `threshold` that share
    all numbers and half of their terms. Compares all with all in blocks: memory does not grow with n.
    """
    repeated = _same_terms(texts, analyzer)
    for start in range(0, len(texts), _BATCH):
        stop = min(start + _BATCH, len(texts))
        for row, other in _close(vectors, repeated, start, stop, threshold):
            if not (repeated[row] or repeated[other]) and _alike(texts[row], texts[other], analyzer):
                repeated[row] = True
    return repeated


def _same_terms(texts: Sequence[str], analyzer: Analyzer) -> np.ndarray[Any, np.dtype[np.bool_]]:
    seen: set[int] = set()
    repeated = np.zeros(len(texts), np.bool_)
    for row, text in enumerate(texts):
        if terms := frozenset(analyzer.terms(text)):
            mark = hash(terms)
            repeated[row] = mark in seen
            seen.add(mark)
    return repeated


def _close(
    vectors: Vectors,
    repeated: np.ndarray[Any, np.dtype[np.bool_]],
    start: int,
    stop: int,
    threshold: float,
) -> list[tuple[int, int]]:
    """(row, earlier row) of the queries start..stop and those before them that are close, in order."""
    rows = start + np.flatnonzero(~repeated[start:stop])
    found: list[tuple[int, int]] = []
    room = np.full(len(rows), _CANDIDATES)
    for first in range(0, stop, _WIDE_BATCH):
        others = np.arange(first, min(first + _WIDE_BATCH, stop))
        close = vectors[rows] @ vectors[others[0] : others[-1] + 1].T >= threshold
        if not close.any():
            continue
        close &= ~repeated[others]
        close &= others < rows[:, None]
        # Of too many, the earliest: a model that takes all queries for alike must not cost an age.
        if (close.sum(axis=1) > room).any():
            close &= np.cumsum(close, axis=1, dtype=np.int32) <= room[:, None]
        room -= close.sum(axis=1)
        found += [(int(rows[a]), int(others[b])) for a, b in zip(*np.nonzero(close), strict=True)]
    return sorted(found)


def _alike(one: str, other: str, analyzer: Analyzer) -> bool:
    """Whether two queries share all numbers and at least half of their terms."""
    a, b = set(analyzer.terms(one)), set(analyzer.terms(other))
    numbers = {term for term in a ^ b if any(char.isdigit() for char in term)}
    return not numbers and 2 * len(a & b) >= len(a | b) > 0
