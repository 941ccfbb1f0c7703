"""Queries without a model: keyphrases, crops of sentences, titles and, in English, questions.

They only have to look like what people type; which passages answer them is for the teacher to say.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from random import Random

from searchfit.executors import LOCAL, Executor
from searchfit.generators import Statistics, Task, Written
from searchfit.records import Passage
from searchfit.text import CJK, sentences, word_count, words

_VERSION = 1
_DECK = ("keyphrases",) * 4 + ("crop",) * 4 + ("title", "question")
_SPARE = ("keyphrases", "crop", "title")
_TRIES = 3
_GROUP = 200
"""Passages that are answered, and noted in the ledger, together."""

_LEAST_CROP = 5
_MAX_WORDS, _MAX_CHARS, _MAX_WORD_CHARS = 16, 200, 40

# Characters that seldom belong to a name or a term: they part compounds where no space does.
_PARTICLES = "的了是在和与與及对對为為有不这這那也就都而以于於之被把从從到或等个個们們はがをにでともへのやか"
_COMPOUND = re.compile(f"(?:(?![{_PARTICLES}])[{CJK}]){{2,4}}")
_UNSPACED = re.compile(f"[{CJK}]")
_BLANK = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")

_COMMON_ENGLISH = """the of and to in is that for it with as are by this be or was from an which not at on
have has if can a but were into over about between through under than his her their its our your my you so"""
_ENGLISH = frozenset(_COMMON_ENGLISH.split())
_INVERTIBLE = re.compile(
    r"(?P<subject>(?:[\w'’-]+ ){1,6}?)"
    r"(?P<verb>is|are|was|were|can|could|will|would|should|must|may|might) (?P<rest>\w.*)",
    re.DOTALL,
)
_DEFINES = re.compile(r"(?:an?|one of|the) \w", re.IGNORECASE)
_NO_SUBJECT = re.compile(
    r"(?:^|\s)(?:it|this|that|these|those|they|there|he|she|we|i|you|which|who|what|when|where|how|why|if|because"
    r"|while|although|and|but|or|here|such|so|both|each|some|most|many|all|one|only|other|another|following|same|thus|his|her|its|their|our|my|your|as|in|on|at|by|for|with)\s",
    re.IGNORECASE,
)
_INSTRUCTION = re.compile(
    r"(?:add|allow|append|apply|build|calculate|call|change|check|choose|clean|close|compare|compute|convert|copy"
    r"|count|create|decode|define|delete|determine|display|download|encode|execute|extract|fetch|filter|find|format"
    r"|generate|get|handle|install|iterate|join|list|load|make|merge|move|open|parse|perform|print|process|raise"
    r"|read|register|remove|rename|replace|reset|retrieve|return|run|save|search|select|send|serialize|set|show"
    r"|sort|split|start|stop|store|test|transform|update|use|validate|wait|write) (?:\w)",
    re.IGNORECASE,
)
_PURPOSE = re.compile(r"\b(?:used|able|ways?|possible|easy|best|helps?|need|want) to (?=[a-z]+ \w)")
_CLAUSE = re.compile(r"[,;:()\[\]\"“”–—]| (?:which|that|because|while|although|where|when|but|so|and) ")
_POINTS_BACK = re.compile(r"\b(?:it|its|them|their|this|that|these|those|him|her|his)\b", re.IGNORECASE)
_REASON = re.compile(r"\b(?:because|due to|caused? by|as a result|in order to|since)\b", re.IGNORECASE)


def _groups(tasks: Iterable[Task]) -> Iterator[list[Passage]]:
    waiting = (task.passage for task in tasks if not task.known)
    while group := list(islice(waiting, _GROUP)):
        yield group


class PhraseGenerator:
    """Writes up to `per_passage` queries a passage. What it writes follows from the seed, the passage and the
    corpus statistics alone, so neither order nor batches matter.
    """

    name = "phrases"
    details: Mapping[str, str] = {}

    def __init__(
        self, per_passage: int, seed: int, statistics: Statistics, executor: Executor = LOCAL
    ) -> None:
        self.per_passage, self._seed, self._statistics = per_passage, seed, statistics
        self._executor = executor
        self._rarest = float(statistics.idf("\x00"))
        self.fingerprint = f"phrases-{_VERSION} {per_passage} {statistics.fingerprint}"

    def content(self, passage: Passage) -> tuple[str, ...]:
        """See `Generator.content`. Whether a passage is the first of its document shows in its id."""
        return passage.id, passage.title, passage.text

    def most_cost(self, passage: Passage) -> float:  # noqa: ARG002 - nothing is paid, whatever the passage
        """See `Generator.most_cost`."""
        return 0.0

    def write(self, tasks: Iterable[Task]) -> Iterator[Sequence[Written]]:
        """See `Generator.write`."""
        return self._executor.map_batches(self._written, _groups(tasks))

    def __reduce__(self) -> tuple[type[PhraseGenerator], tuple[int, int, Statistics]]:
        return PhraseGenerator, (self.per_passage, self._seed, self._statistics)

    def _written(self, groups: Iterable[Sequence[Passage]]) -> Iterator[Sequence[Written]]:
        for group in groups:
            yield [Written(passage, tuple(self._queries(passage).items())) for passage in group]

    def _queries(self, passage: Passage) -> dict[str, str]:
        """Query to style."""
        found: dict[str, str] = {}
        for least in (2, 1):
            # One-word queries only for a passage that allows no other.
            if not found:
                found = self._write(passage, least)
        return found

    def _write(self, passage: Passage, least: int) -> dict[str, str]:
        """Query to style. Each slot tries its own style first, then the others."""
        random = self._random(passage)
        deck = [
            style
            for _ in range(0, self.per_passage, len(_DECK))
            for style in random.sample(_DECK, len(_DECK))
        ]
        writer = _Writer(passage, self._statistics, self._rarest, random)
        found: dict[str, str] = {}
        seen = {self._key(passage.text), frozenset()}
        for style in deck[: self.per_passage]:
            spare = random.sample(_SPARE[:2], 2)
            for choice in (style,) * _TRIES + (spare[0],) * _TRIES + (spare[1],) * _TRIES + ("title",):
                text = _tidy(writer.write(choice))
                if least <= word_count(text) <= _MAX_WORDS and len(text) <= _MAX_CHARS:
                    key = self._key(text)
                    if key not in seen:
                        seen.add(key)
                        found[text] = choice
                        break
        return found

    def _key(self, text: str) -> frozenset[str]:
        return frozenset(self._statistics.terms(text))

    def _random(self, passage: Passage) -> Random:
        parts = (
            f"phrases-{_VERSION}",
            str(self._seed),
            str(self.per_passage),
            passage.id,
            passage.title,
            passage.text,
        )
        total = hashlib.blake2b(digest_size=16)
        for part in parts:
            total.update(hashlib.blake2b(part.encode("utf-8", "surrogatepass")).digest())
        return Random(total.digest())


def _tidy(text: str) -> str:
    return _BLANK.sub(" ", text).strip()


@dataclass(frozen=True, slots=True)
class _Word:
    start: int
    end: int
    form: str
    weight: float
    """How much it says of the passage (tf-idf); 0 for a word that is common in the corpus."""


class _Writer:
    """The material of one passage, prepared once for all its queries."""

    def __init__(self, passage: Passage, statistics: Statistics, rarest: float, random: Random) -> None:
        self.passage, self.random = passage, random
        self.text = passage.text
        self.words = self._weigh(statistics, rarest)
        self.runs = [(run, _value(run)) for run in self._find_runs()]
        self.sentences = sentences(self.text)
        self.styles: dict[str, Callable[[], str]] = {
            "keyphrases": self.keyphrases,
            "crop": self.crop,
            "title": self.title,
            "question": self.question,
        }

    def write(self, style: str) -> str:
        """A query, or "" where the passage allows none in this style."""
        return self.styles[style]()

    def keyphrases(self, most: int = 0) -> str:
        """Some telling words, neighbours kept together, in the order and the spelling of the text."""
        most = most or self.random.choice((2, 3, 3, 4, 4, 5))
        chosen: list[Sequence[_Word]] = []
        options = self.runs
        while options and (room := most - sum(map(len, chosen))) > 0:
            options = [
                (run, value)
                for run, value in options
                if len(run) <= room and not any(_share(run, other) for other in chosen)
            ]
            if options:
                chosen.append(self.random.choices(*zip(*options, strict=True))[0])
        chosen.sort(key=lambda run: run[0].start)
        phrase = " ".join(self.text[run[0].start : run[-1].end] for run in chosen)
        return phrase.lower() if self.random.random() < 0.85 else phrase

    def crop(self) -> str:
        """A sentence of 5 to 16 words, or a part of one: the most telling of a few tries."""
        length = self.random.choice((5, 6, 7, 7, 8, 8, 9, 9, 10, 11, 12, 14, 16))
        tries = [window for _ in range(3) if (window := self._window(length))]
        if not tries:
            return ""
        weights = {window: self._density(*window) for window in tries}
        start, end = max(tries, key=lambda window: weights[window])
        text = self.text[start:end]
        return text.lower() if self.random.random() < 0.5 else text

    def title(self) -> str:
        """The title; with a keyphrase where it is a single word or other passages carry it too."""
        title = self.passage.title
        spans = words(title)
        if not spans:
            return ""
        short = title[spans[0][0] : spans[min(len(spans), 12) - 1][1]]
        first = self.passage.id == f"{self.passage.document_id}#0"
        if first and len(spans) > 1 and self.random.random() < 0.6:
            return short.lower() if self.random.random() < 0.5 else short
        known = {word.lower() for word in title.split()}
        added = " ".join(word for word in self.keyphrases(2).split() if word.lower() not in known)
        return f"{short} {added}" if added else ""

    def question(self) -> str:
        """A question that a sentence answers; only for English, where the patterns hold."""
        if not self._is_english():
            return ""
        order = self.random.sample(self.sentences, len(self.sentences))
        for start, end in order:
            question = self._ask(_tidy(self.text[start:end]).rstrip(" .!?…"))
            if 3 <= word_count(question) <= _MAX_WORDS:
                return self._typed(question)
        return ""

    def _ask(self, sentence: str) -> str:
        purpose = _PURPOSE.search(sentence)
        if purpose or _INSTRUCTION.match(sentence):
            task = _clause(sentence[purpose.end() if purpose else 0 :])
            sound = task.split(" ")[0] not in _ENGLISH and not _POINTS_BACK.search(task)
            return f"how to {task}" if sound else ""
        match = _INVERTIBLE.match(sentence)
        if not match or _NO_SUBJECT.search(f" {match['subject']}"):
            return ""
        subject, verb, rest = _decapitalised(match["subject"].strip()), match["verb"], match["rest"]
        if verb in ("is", "are") and _DEFINES.match(rest):
            return f"what {verb} {subject}"
        if _REASON.search(rest) and verb not in ("may", "might"):
            return f"why {verb} {subject} {_clause(_REASON.split(rest)[0])}"
        if verb in ("was", "were") and (dated := re.match(r"(\w+ed)\b.*\b(?:in|on|since) (?:\w+ )?\d", rest)):
            return f"when {verb} {subject} {dated[1]}"
        return f"{verb} {subject} {_clause(rest)}"

    def _typed(self, question: str) -> str:
        if self.random.random() < 0.5:
            return question.lower()
        return f"{question[0].upper()}{question[1:]}?" if self.random.random() < 0.5 else question

    def _is_english(self) -> bool:
        spoken = [self.text[word.start : word.end].lower() for word in self.words]
        return sum(word in _ENGLISH for word in spoken) >= max(1, 0.12 * len(spoken))

    def _weigh(self, statistics: Statistics, rarest: float) -> list[_Word]:
        spans = [span for span in words(self.text) if not _UNSPACED.match(self.text, span[0])]
        spans += [match.span() for match in _COMPOUND.finditer(self.text)]
        spans.sort()
        forms = [self.text[start:end] for start, end in spans]
        terms = {form: statistics.terms(form) for form in dict.fromkeys(forms)}
        rarity = {
            form: _rarity(form, [float(statistics.idf(term)) for term in terms[form]]) for form in terms
        }
        times = Counter(form.lower() for form in forms)
        ranked = sorted(rarity.values())
        # In a corpus too small to tell common words from rare ones, half of the passage's words have to do.
        common = min(0.4 * rarest, ranked[len(ranked) // 2]) if ranked else 0.0
        weights = {
            form: rare * (1 + math.log(times[form.lower()]))
            if rare >= common and len(form) <= _MAX_WORD_CHARS
            else 0.0
            for form, rare in rarity.items()
        }
        return [
            _Word(start, end, form.lower(), weights[form])
            for (start, end), form in zip(spans, forms, strict=True)
        ]

    def _find_runs(self) -> Iterator[Sequence[_Word]]:
        """Up to three telling words that stand side by side."""
        for first in range(len(self.words)):
            for last in range(first, min(first + 3, len(self.words))):
                word = self.words[last]
                gap = self.text[self.words[last - 1].end : word.start] if last > first else ""
                if not word.weight or (gap and gap != "-" and not gap.isspace()):
                    break
                yield self.words[first : last + 1]

    def _window(self, length: int) -> tuple[int, int] | None:
        """(start, end) of about `length` words of a sentence, without common words at its ends."""
        sentence = self._pick_sentence()
        if sentence is None:
            return None
        base = sentence[0]
        spans = [(base + start, base + end) for start, end in words(self.text[slice(*sentence)])]
        first = self.random.randint(0, max(0, len(spans) - length))
        part = self._within_clause(spans[first : first + length])
        dull = {word.start for word in self.words if not word.weight}
        least = max(_LEAST_CROP, len(part) - 3)
        while len(part) > least and part[-1][0] in dull:
            part.pop()
        while len(part) > least and part[0][0] in dull and part[0][0] != base:
            part.pop(0)
        return self._closed(part[0][0], part[-1][1]) if part else None

    def _closed(self, start: int, end: int) -> tuple[int, int]:
        """With the bracket that closes one inside."""
        return start, end + (self.text[end : end + 1] == ")" and "(" in self.text[start:end])

    def _within_clause(self, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Without the one to three words at either end that belong to another clause."""
        gaps = [self.text[a:b] for (_, a), (b, _) in pairwise(spans)]
        borders = [index + 1 for index, gap in enumerate(gaps) if gap.strip(" -'’/\n")]
        first = max((border for border in borders if border <= 3), default=0)
        last = min((border for border in borders if border >= len(spans) - 3), default=len(spans))
        return spans[first:last] if last - first >= _LEAST_CROP else spans

    def _pick_sentence(self) -> tuple[int, int] | None:
        """A sentence by chance, longer ones more often."""
        if not self.sentences:
            return None
        sizes = [min(end - start, 200) for start, end in self.sentences]
        return self.random.choices(self.sentences, sizes)[0]

    def _density(self, start: int, end: int) -> float:
        inside = [word.weight for word in self.words if start <= word.start < end]
        return sum(inside) / (1 + len(inside))


def _rarity(form: str, idf: Sequence[float]) -> float:
    """The mean idf of a word's terms; less for short lower-case words, which seldom carry meaning."""
    if not idf:
        return 0.0
    short = form.isalpha() and form.islower() and len(form) < 4
    return sum(idf) / len(idf) * (len(form) / 4 if short else 1.0)


def _value(run: Sequence[_Word]) -> float:
    mean = sum(word.weight for word in run) / len(run)
    return mean**3 * (1, 3, 3)[len(run) - 1]


def _share(one: Sequence[_Word], two: Sequence[_Word]) -> bool:
    return not {word.form for word in one}.isdisjoint(word.form for word in two)


def _clause(text: str) -> str:
    """The beginning of a text up to where another clause starts, at most ten words."""
    clause = _CLAUSE.split(text, maxsplit=1)[0].strip()
    spans = words(clause)[:10]
    while spans and clause[slice(*spans[-1])].lower() in _ENGLISH:
        spans.pop()
    return _decapitalised(clause[: spans[-1][1]]) if spans else ""


def _decapitalised(text: str) -> str:
    """Without the capital that only began a sentence; names of several capitals keep it."""
    first, _, rest = text.partition(" ")
    return f"{first.lower()} {rest}" if rest and first.istitle() and not rest[:1].isupper() else text
