"""Keyword search: the analyser and a BM25 index whose scores are shares of what a query could attain."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from searchfit.errors import SettingsError, WorkspaceError
from searchfit.inversion import invert
from searchfit.writing import write_json

if TYPE_CHECKING:
    import scipy.sparse as sp

# Common function words, only to tell which language's stemmer fits; they are not removed from queries:
# their low idf already keeps them quiet, and removing them cost up to .012 nDCG@10 (docs/lab.md).
_FUNCTION_WORDS = {
    "english": "the of and to in is that it for was on with as are this be by from at have not or an which",
    "french": "le la les des et en un une du est que pour dans qui sur pas au avec ce il par plus sont aux",
    "spanish": "el la los las de que y en un una por con para del se no al es su lo como más pero o",
    "german": "der die das und ist in den von zu mit des im ein eine nicht auf für dem als auch es an sich",
    "italian": "il di che la e un una per in non è del della con sono le gli dei nel alla anche si da",
    "portuguese": "o a os as de que e em um uma do da para com não no na por se dos ao mais foi são",
    "dutch": "de het een en van in is dat op te zijn met voor niet aan er om ook als bij door maar uit",
    "swedish": "och att det i en som är av för på den med till inte ett har om de var jag men ett från",
    "norwegian": "og i det er en på som til for at med av de ikke den har jeg et om fra var men seg",
    "danish": "og i at det er en til af på for med der de ikke som den har et jeg var om fra men sig",
    "russian": "и в не на что с по как это он а к но из у за его от для о так же был все",
    "romanian": "și de la în a cu un o pe nu din care este pentru mai să că ce au fi sau prin",
    "finnish": "ja on ei se että oli hän mutta ovat myös kun tai jos mitä joka niin vain kuin sen ole",
    "turkish": "ve bir bu da de için ile çok olarak daha gibi ama ne kadar en olan var ya sonra değil",
    "hungarian": "a az és hogy nem is egy de meg ez azt van csak még már mint volt ha el vagy",
}

UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+"
)
"""Scripts written without spaces: Han, kana, Thai, Lao, Khmer, Myanmar."""
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

# A Snowball stemmer keeps the word that it is at in itself, and a server searches on several threads.
_STEMMING = Lock()

_ARRAYS = ("starts", "rows", "frequencies", "lengths")

Span = tuple[str, int, int]


def function_words(language: str) -> frozenset[str]:
    """The common function words of a language, case-folded; none of a language that is not known."""
    return frozenset(_FUNCTION_WORDS.get(language, "").split())


def detect_language(texts: Iterable[str]) -> str:
    """The language whose function words cover the texts best, or "none" when none covers 8% of the words."""
    hits, total = language_hits(texts)
    best = max(hits, key=lambda language: hits[language], default="none")
    return best if hits[best] >= 0.08 * max(1, total) else "none"


def language_hits(texts: Iterable[str]) -> tuple[Counter[str], int]:
    """How many words of the texts (the first 2,000 characters of each) are function words of each language,
    and how many words there are."""
    spoken = _spoken()
    hits: Counter[str] = Counter()
    total = 0
    for text in texts:
        words = _word().findall(text[:2000].casefold())
        total += len(words)
        for word, count in Counter(words).items():
            for language in spoken.get(word, ()):
                hits[language] += count
    return hits, total


@lru_cache(maxsize=1)
def _spoken() -> dict[str, list[str]]:
    """By function word, the languages that it belongs to."""
    found: dict[str, list[str]] = {}
    for language, words in _FUNCTION_WORDS.items():
        for word in dict.fromkeys(words.split()):
            found.setdefault(word, []).append(language)
    return found


class Analyzer:
    """Turns a text into index terms: words case-folded, stemmed (Snowball) and without accents; identifiers
    also by their parts; scripts without spaces as character pairs.

    `language` is a Snowball language or "none". Raises SettingsError for an unknown one.
    """

    def __init__(self, language: str) -> None:
        self.language = language
        self._stem = _stemmer(language)
        self._normalised: dict[str, str] = {}

    def terms(self, text: str) -> list[str]:
        """The index terms of a text, in order, repeats included."""
        return [term for term, _, _ in self.spans(text)]

    def spans(self, text: str) -> Iterator[Span]:
        """(term, start, end) for each index term; `text[start:end]` is its surface form."""
        known = self._normalised
        for match in _word().finditer(text):
            word, start = match.group(), match.start()
            if not word.isascii() and UNSPACED.search(word):
                yield from self._mixed(word, start)
            else:
                yield known.get(word) or self._normal(word), start, match.end()
                # Only ASCII: in "Größe" the pattern would take the ö for a border.
                if word.isascii() and not word.islower() and not word.isupper():
                    parts = _CAMEL.findall(word)
                    yield from _parts(parts if len(parts) > 1 else (), word, start, self._normal)

    def _mixed(self, word: str, offset: int) -> Iterator[Span]:
        at = 0
        for run in UNSPACED.finditer(word):
            if run.start() > at:
                yield self._normal(word[at : run.start()]), offset + at, offset + run.start()
            begin, length = offset + run.start(), run.end() - run.start()
            for i in range(max(1, length - 1)):
                yield run.group()[i : i + 2], begin + i, begin + min(i + 2, length)
            at = run.end()
        if at < len(word):
            yield self._normal(word[at:]), offset + at, offset + len(word)

    def _normal(self, word: str) -> str:
        known = self._normalised.get(word)
        if known is None:
            if len(self._normalised) > 500_000:
                self._normalised.clear()  # bounds memory on endless vocabularies; it is only a cache
            composed = unicodedata.normalize("NFKC", word)  # stemmers know composed letters only
            with _STEMMING:
                stem = self._stem(composed.casefold())
            known = self._normalised[word] = _unaccented(stem)
        return known


def _parts(parts: Sequence[str], word: str, start: int, normal: Callable[[str], str]) -> Iterator[Span]:
    at = 0
    for part in parts:
        at = word.index(part, at)
        yield normal(part), start + at, start + at + len(part)
        at += len(part)


def _unaccented(word: str) -> str:
    if word.isascii():
        return word
    plain = "".join(c for c in unicodedata.normalize("NFKD", word) if not _is_accent(c))
    return unicodedata.normalize("NFKC", plain) or word


def _is_accent(char: str) -> bool:
    # Classes 7 to 9 are nukta, kana voicing and virama: with them it is another letter, not the same one.
    kind = unicodedata.combining(char)
    return kind == 1 or kind > 9


@lru_cache(maxsize=1)
def _word() -> re.Pattern[str]:
    """Letters and digits with the marks upon them: in Hindi or Tamil a vowel is a mark."""
    marks = "".join(char for char in map(chr, range(0x300, 0x10000)) if unicodedata.category(char)[0] == "M")
    # The look ahead, and marks of the first plane only, keep this as fast as letters and digits alone.
    return re.compile(rf"[^\W_]+(?:(?=[^\0-\u02ff])[{marks}]+[^\W_]*)*")


@lru_cache(maxsize=32)
def _stemmer(language: str) -> Callable[[str], str]:
    if language == "none":
        return str
    import Stemmer

    if language not in Stemmer.algorithms():
        known = ", ".join(["none", *sorted(Stemmer.algorithms())])
        raise SettingsError(f"keyword.language {language!r} is not known.", f"Use auto or one of: {known}.")
    stem: Callable[[str], str] = Stemmer.Stemmer(language).stemWord
    return stem


class KeywordIndex:
    """BM25 over passages (Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework"), with
    idf = ln(1 + (N - df + 0.5) / (df + 0.5)).

    `attainable(query)` is the limit that the score of a passage approaches as it repeats every word of the
    query, sum of idf * (k1 + 1), words unknown to the corpus included. Scores divided by it lie in 0..1 and
    fall where few of the query's words are found, so keyword search counts for less there.
    """

    def __init__(
        self,
        analyzer: Analyzer,
        arrays: Mapping[str, npt.NDArray[Any]],
        vocabulary: Sequence[str],
        k1: float,
        b: float,
    ) -> None:
        self.analyzer = analyzer
        self.k1, self.b = k1, b
        self.vocabulary = vocabulary
        self._number = {term: i for i, term in enumerate(vocabulary)}
        self.starts = arrays["starts"]
        self.rows = arrays["rows"]
        self.frequencies = arrays["frequencies"]
        self.lengths = arrays["lengths"]
        self.count = len(self.lengths)
        self.mean_length = float(self.lengths.mean()) if self.count else 1.0

    @classmethod
    def build(
        cls, texts: Iterable[str], analyzer: Analyzer, k1: float = 1.2, b: float = 0.75
    ) -> KeywordIndex:
        """An index of texts, in memory; text i becomes row i."""
        with TemporaryDirectory(prefix="searchfit-") as folder:
            cls.write(Path(folder), texts, analyzer, k1, b)
            made = cls.load(Path(folder))
            arrays = {name: np.array(getattr(made, name)) for name in _ARRAYS}
            return cls(analyzer, arrays, made.vocabulary, k1, b)

    @staticmethod
    def write(
        folder: Path, texts: Iterable[str], analyzer: Analyzer, k1: float = 1.2, b: float = 0.75
    ) -> int:
        """Index texts into a folder, reading them once and holding no more than `inversion.invert` does; the
        number of terms."""
        folder.mkdir(parents=True, exist_ok=True)
        vocabulary = invert((Counter(analyzer.terms(text)) for text in texts), folder)
        _describe(folder, vocabulary, analyzer, k1, b)
        return len(vocabulary)

    def save(self, folder: Path) -> None:
        """Write the index to a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))
        _describe(folder, self.vocabulary, self.analyzer, self.k1, self.b)

    @classmethod
    def load(cls, folder: Path) -> KeywordIndex:
        """Open a saved index; arrays are memory-mapped. Raises WorkspaceError when it is damaged."""
        try:
            info = json.loads((folder / "keyword.json").read_text(encoding="utf-8"))
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
            words = (folder / "vocabulary.txt").read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise WorkspaceError(f"the keyword index in {folder} is damaged: {error}.") from error
        vocabulary = words.split("\n") if words else []
        return cls(Analyzer(info["language"]), arrays, vocabulary, info["k1"], info["b"])

    def idf(self, term: str) -> float:
        """Rarity of a term; a term that is not in the corpus is the rarest."""
        number = self._number.get(term)
        df = 0 if number is None else int(self.starts[number + 1] - self.starts[number])
        return float(idf(df, self.count))

    def attainable(self, terms: Iterable[str]) -> float:
        """The limit of the BM25 score over texts for these terms (each counted once)."""
        return sum(self.idf(term) for term in dict.fromkeys(terms)) * (self.k1 + 1)

    def scores(self, queries: Sequence[str], rows: npt.NDArray[np.int64] | None = None) -> sp.csr_array:
        """BM25 scores over the attainable maximum: a sparse (len(queries), count) float32 matrix in 0..1; of
        distinct `rows` alone, (len(queries), len(rows)). Memory: of the queries' words the postings asked
        for."""
        import scipy.sparse as sp

        starts, columns, weights = [0], [], []
        asked: dict[int, int] = {}
        for query in queries if self.count else ():
            distinct = dict.fromkeys(self.analyzer.terms(query))
            attainable = self.attainable(distinct) or 1.0  # a query may hold no word at all
            known = [self._number[term] for term in distinct if term in self._number]
            columns += [asked.setdefault(number, len(asked)) for number in known]
            weights += [1.0 / attainable] * len(known)
            starts.append(len(columns))
        starts += [0] * (len(queries) + 1 - len(starts))
        parts = (np.array(weights, np.float32), np.array(columns, np.int64), starts)
        return sp.csr_array(
            sp.csr_array(parts, shape=(len(queries), len(asked))) @ self._impacts(asked, rows)
        )

    def score(self, query: str, text: str) -> float:
        """The score of a text that need not be in the index, by the corpus's statistics."""
        terms = Counter(self.analyzer.terms(text))
        distinct = dict.fromkeys(self.analyzer.terms(query))
        known = [term for term in distinct if term in terms and term in self._number]
        if not known:
            return 0.0
        frequencies = np.array([terms[term] for term in known], np.float32)
        lengths = np.full(len(known), sum(terms.values()), np.float32)
        weights = impact(frequencies, lengths, self.mean_length, self.k1, self.b)
        return float(weights @ np.array([self.idf(term) for term in known])) / self.attainable(distinct)

    def _impacts(self, terms: Iterable[int], rows: npt.NDArray[np.int64] | None) -> sp.csr_array:
        """What terms add to the scores of passages, or of `rows` alone: a sparse (terms, passages) matrix."""
        import scipy.sparse as sp

        places = None
        if rows is not None:
            places = np.full(self.count, -1, np.int32)
            places[rows] = np.arange(len(rows), dtype=np.int32)
        found, weights, starts = [np.empty(0, np.int32)], [np.empty(0, np.float32)], [0]
        for term in terms:
            own = slice(self.starts[term], self.starts[term + 1])
            holders, frequencies = np.asarray(self.rows[own]), np.asarray(self.frequencies[own])
            rarity = np.float32(idf(len(holders), self.count))
            if places is not None:
                here = places[holders] >= 0
                holders, frequencies = holders[here], frequencies[here]
            held = impact(frequencies, self.lengths[holders], self.mean_length, self.k1, self.b)
            found.append(holders if places is None else places[holders])
            weights.append(held * rarity)
            starts.append(starts[-1] + len(holders))
        shape = (len(starts) - 1, self.count if rows is None else len(rows))
        return sp.csr_array((np.concatenate(weights), np.concatenate(found), starts), shape=shape)


def _describe(folder: Path, vocabulary: Sequence[str], analyzer: Analyzer, k1: float, b: float) -> None:
    (folder / "vocabulary.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    write_json(folder / "keyword.json", {"language": analyzer.language, "k1": k1, "b": b})


def idf(df: Any, count: int) -> Any:
    """ln(1 + (count - df + 0.5) / (df + 0.5)), for a number or an array."""
    return np.log(1 + (count - df + 0.5) / (df + 0.5))


def impact(
    frequencies: npt.NDArray[np.float32],
    lengths: npt.NDArray[np.float32],
    mean_length: float,
    k1: float,
    b: float,
) -> npt.NDArray[np.float32]:
    """BM25's saturated term frequency, 0..k1 + 1."""
    norm = k1 * (1 - b + b * np.asarray(lengths) / max(mean_length, 1e-9))
    weights: npt.NDArray[np.float32] = (np.asarray(frequencies) * (k1 + 1) / (frequencies + norm)).astype(
        np.float32
    )
    return weights
