"""Label: find the user's labelled pairs and what readers judged and clicked in the corpus, and keep the test
questions out of training."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.config import Settings
from searchfit.feedback import Lessons, lessons
from searchfit.records import LABELLED, Drop, LabelledPair, StageResult, encoded_text
from searchfit.sources.pairs import LabelledPairs, read_pairs
from searchfit.sources.queries import read_queries
from searchfit.splits import asked_split, divide, document_splits
from searchfit.stages import Tools
from searchfit.training.lessons import ANSWERS
from searchfit.writing import write_json, write_table

VERSION = 4

_WORD = re.compile(r"\w+")
_LONGER = 1.3
"""Times the length of a document's longest passage from which a text is several passages."""

_NEAR = 0.8
"""Jaccard similarity of the words of two questions from which they are near-duplicates."""

_SPARE = 200
"""As many questions that train can spare some. Of fewer, too few would judge even beside those that held-out
documents answer, and each is worth more as a lesson."""

_LOOKED = 32
"""Of the questions with a word, in alphabetical order, as many neighbours are compared."""


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Write labelled.parquet (records.LABELLED), an empty one where no pairs are named, and asked.json: the
    questions that readers judged and that evaluate, see `feedback.lessons`.

    Where there are judged questions, they decide and measure, so all other labelled queries train, and pairs
    of the questions of dev are kept as dev, for training is measured by them; else a labelled query that a
    held-out document answers judges, and of enough others a share does (see `_spared`): most of what
    people will ask is of documents that were asked about before. Held-out documents are no wrong answers in
    training either. Clicks only train: those on held-out documents are left out then. Raises SourceError for
    pairs that cannot be read, WorkspaceError for damaged feedback.
    """
    known = frozenset(_ids(inputs)) if settings.feedback.workspace else frozenset()
    told = lessons(settings.feedback, known)
    write_json(tools.output / "asked.json", _evaluating(told))
    if not settings.pairs.file and not told.judged and not told.clicked:
        write_table(tools.output / "labelled.parquet", LABELLED.empty_table())
        return StageResult(counts={"labelled pairs": 0, **_heard(told)}, notes=told.notes)
    asked = read_queries(settings.queries)
    judged = bool(asked.qrels) or told.enough
    measured = {*asked.qrels, *(told.qrels if told.enough else ())}
    test = _Questions((*asked.queries, *told.questions), measured)
    found = read_pairs(settings.pairs) if settings.pairs.file else LabelledPairs("", (), (), ())
    named = found if settings.pairs.file else ()
    work = _Work(_Corpus.load(inputs, chain(named, told.judged, told.clicked)), test)
    splits = document_splits(inputs["holdout.parquet"])
    if settings.pairs.file:
        work.add(found)
    work.add(told.judged)
    work.add(told.clicked, lambda document: judged or splits[document] == "train")
    own = _splits(work.rows, splits, judged) | dict.fromkeys(work.dev, "dev")
    spared = {} if judged else _spared(work.rows, own, {_same(pair.query) for pair in told.clicked}, settings)
    own |= spared
    if not judged:
        work.keep(lambda pair, document: own[_same(pair.query)] != "train" or splits[document] == "train")
    rows = work.rows
    table = [
        {
            "query_id": pair.query_id,
            "query": pair.query,
            "text": pair.text,
            "label": pair.label,
            "negatives": list(pair.negatives),
            "passage": passage,
            "document": document,
            "split": own[_same(pair.query)],
        }
        for pair, passage, document in rows
    ]
    write_table(tools.output / "labelled.parquet", pa.Table.from_pylist(table, schema=LABELLED))
    counts = {
        "labelled pairs": len(rows),
        "in the corpus": sum(passage >= 0 for _, passage, _ in rows),
        **{f"{name} queries": n for name, n in sorted(Counter(own.values()).items())},
        "held out of documents that train": len(spared),
        "test questions excluded": work.excluded(),
        **_heard(told),
    }
    return StageResult(counts, (*found.drops, *work.drops()), (*found.notes, *told.notes))


_HELD_OUT = "clicked documents that are held out"
_NO_ANSWER = "no answers to questions that train, in documents that are held out"


class _Work:
    """Pairs with their (passage, document) rows, and what was left out of them."""

    def __init__(self, corpus: _Corpus, test: _Questions) -> None:
        self._corpus, self._test = corpus, test
        self._left_out: dict[str, list[str]] = defaultdict(list)
        self.rows: list[tuple[LabelledPair, int, int]] = []
        self.dev: set[str] = set()

    def add(self, pairs: Iterable[LabelledPair], may: Callable[[int], bool] = lambda _: True) -> None:
        """Take the pairs that are no test questions and whose document `may` be learnt from, and those of the
        dev questions, which are not learnt from."""
        for pair in pairs:
            if why := self._test.holds(pair):
                self._left_out[why].append(pair.query)
                if not self._test.is_dev(pair):
                    continue
                self.dev.add(_same(pair.query))
            passage, document = self._corpus.find(pair)
            if not pair.text:
                pair = replace(pair, text=self._corpus.text(passage, document))  # noqa: PLW2901
            if why or may(document):
                self.rows.append((pair, passage, document))
            else:
                self._left_out[_HELD_OUT].append(pair.query)

    def keep(self, may: Callable[[LabelledPair, int], bool]) -> None:
        """Leave out the pairs with texts of documents that may not be learnt from, not even as wrong."""
        self._left_out[_NO_ANSWER] += [
            pair.query for pair, _, row in self.rows if row >= 0 and not may(pair, row)
        ]
        self.rows = [entry for entry in self.rows if entry[2] < 0 or may(entry[0], entry[2])]

    def excluded(self) -> int:
        """How many are test questions."""
        others = (_HELD_OUT, _NO_ANSWER)
        return sum(len(queries) for why, queries in self._left_out.items() if why not in others)

    def drops(self) -> tuple[Drop, ...]:
        """What was left out and why."""
        found = ((why, some) for why, some in sorted(self._left_out.items()) if some)
        return tuple(Drop(why, len(some), tuple(some[:5])) for why, some in found)


def _evaluating(told: Lessons) -> list[dict[str, object]]:
    """The questions with their grades by document; without, where they are too few to judge by."""
    return [
        {"id": id_, "text": text, "grades": told.qrels[id_] if told.enough else {}}
        for id_, text in told.questions
    ]


def _heard(told: Lessons) -> dict[str, int]:
    if not told.notes:
        return {}
    return {"judged questions": len(told.questions), "clicked pairs": len(told.clicked)}


def _splits(
    rows: Sequence[tuple[LabelledPair, int, int]], splits: npt.NDArray[np.str_], judged: bool
) -> dict[str, str]:
    """The split of each query: a query that any held-out document answers is held out."""
    own: dict[str, str] = {}
    for pair, _, document in rows:
        answered = document >= 0 and pair.label >= ANSWERS
        mine = str(splits[document]) if answered and not judged else "train"
        before = own.get(_same(pair.query), "train")
        own[_same(pair.query)] = mine if before == "train" else before
    return own


def _spared(
    rows: Sequence[tuple[LabelledPair, int, int]],
    own: Mapping[str, str],
    clicked: Set[str],
    settings: Settings,
) -> dict[str, str]:
    """The split of each query that would train, and is held out too: the shares of `holdout`, of those that
    the corpus answers, in whole groups of near-duplicates without a clicked query, in an order that the seed
    and their words give. None where they are fewer than _SPARE."""
    asked = sorted(query for query, split in own.items() if split == "train")
    answered = {_same(pair.query) for pair, _, row in rows if row >= 0 and pair.label >= ANSWERS} - clicked
    may = np.array([query in answered for query in asked], bool)
    if may.sum() < _SPARE:
        return {}
    groups = _groups(asked, rows)
    barred = {group for query, group in zip(asked, groups, strict=True) if query in clicked}
    sizes = np.bincount(groups[may], minlength=groups.max() + 1)
    first = dict(zip(reversed(groups.tolist()), reversed(asked), strict=True))
    order = sorted(
        (group for group in first if sizes[group] and group not in barred),
        key=lambda group: _digest(f"{settings.seed} {first[group]}"),
    )
    split = divide(sizes, order, settings.holdout)[groups].tolist()
    return {query: name for query, name in zip(asked, split, strict=True) if name != "train"}


def _groups(asked: Sequence[str], rows: Sequence[tuple[LabelledPair, int, int]]) -> npt.NDArray[np.int32]:
    """For each query the number of its group: near-duplicates, and questions that are pairs with one another,
    followed transitively."""
    import scipy.sparse as sp
    from scipy.sparse.csgraph import connected_components

    near, links = _Near(), []
    for place, query in enumerate(asked):
        links += [(place, other) for other in near.of(query, _LOOKED)]
        near.add(query)
    number = {query: place for place, query in enumerate(asked)}
    pairs = ((number.get(_same(pair.query)), number.get(_same(pair.text))) for pair, _, _ in rows)
    links += [(one, other) for one, other in pairs if one is not None and other is not None]
    ends = np.array(links, np.int64).reshape(-1, 2).T
    graph = sp.coo_array((np.ones(len(links), bool), (ends[0], ends[1])), shape=(len(asked), len(asked)))
    found: npt.NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return found


def _same(text: str) -> str:
    """A text without what does not change its meaning."""
    return " ".join(_WORD.findall(text.casefold())) or text


class _Near:
    """Questions, numbered as they are added, to be found by nearly the same words."""

    def __init__(self) -> None:
        self._words: list[frozenset[str]] = []
        self._holders: dict[str, list[int]] = defaultdict(list)

    def add(self, text: str) -> None:
        """Take a question."""
        for word in (words := frozenset(_same(text).split())):
            self._holders[word].append(len(self._words))
        self._words.append(words)

    def of(self, text: str, last: int = 0) -> Iterator[int]:
        """The numbers of those that are nearly a question; `last`: so many of those with a word, 0 all."""
        words = frozenset(_same(text).split())
        # Near-duplicates share at least one of any len - ceil(near * len) + 1 words: take the rarest.
        rare = sorted(words, key=lambda word: (len(self._holders.get(word, ())), word))
        some = rare[: len(rare) - int(np.ceil(_NEAR * len(rare))) + 1]
        for number in {n for word in some for n in self._holders.get(word, ())[-last:]}:
            other = self._words[number]
            if len(words & other) >= _NEAR * len(words | other):
                yield number


class _Questions:
    """The user's own questions: those of the evaluation, which must not be trained on."""

    def __init__(self, questions: Iterable[tuple[str, str]], measured: Set[str]) -> None:
        self._ids: set[str] = set()
        self._near = _Near()
        self._texts: dict[str, str] = {}
        self._measured = measured
        for id_, text in questions:
            self._ids.add(id_)
            self._texts.setdefault(_same(text), id_)
            self._near.add(text)

    def holds(self, pair: LabelledPair) -> str:
        """Why a pair's query is one of them; "" where it is not."""
        if pair.query_id and pair.query_id in self._ids:
            return "a question of the evaluation, by its id"
        if _same(pair.query) in self._texts:
            return "a question of the evaluation, by its text"
        near = next(self._near.of(pair.query), None)
        return "" if near is None else "nearly a question of the evaluation"

    def is_dev(self, pair: LabelledPair) -> bool:
        """Whether a pair's query is a judged one of dev, by its id, else by its text."""
        id_ = pair.query_id if pair.query_id in self._ids else self._texts.get(_same(pair.query), "")
        return id_ in self._measured and asked_split(id_) == "dev"


@dataclass(frozen=True, slots=True)
class _Corpus:
    """Where the texts and documents of pairs are in the corpus: the (passage, document) rows of each text by
    its digest, the row of each document by its id, and by that row the first of its passages and their
    texts."""

    by_text: dict[bytes, tuple[int, int]]
    by_id: dict[str, int]
    passages: dict[int, tuple[int, list[str]]]

    @classmethod
    def load(cls, inputs: Mapping[str, Path], pairs: Iterable[LabelledPair]) -> _Corpus:
        """Read documents and passages once, keeping what the pairs name."""
        texts, named = set(), set()
        for pair in pairs:
            texts.add(_digest(pair.text))
            named.add(pair.document_id)
        by_id = {id_: row for row, id_ in enumerate(_ids(inputs)) if id_ in named}
        rows = set(by_id.values())
        by_text: dict[bytes, tuple[int, int]] = {}
        held: dict[int, tuple[int, list[str]]] = {}
        for row, (title, text, document) in enumerate(_passages(inputs["passages.parquet"])):
            for form in (text, encoded_text(title, text)):
                if (digest := _digest(form)) in texts:
                    by_text.setdefault(digest, (row, document))
            if document in rows:
                held.setdefault(document, (row, []))[1].append(text)
        return cls(by_text, by_id, held)

    def find(self, pair: LabelledPair) -> tuple[int, int]:
        """(passage, document) rows of a pair's text, -1 where it is not in the corpus."""
        document = self.by_id.get(pair.document_id, -1) if pair.document_id else -1
        if document < 0:
            return self.by_text.get(_digest(pair.text), (-1, -1))
        first, texts = self.passages.get(document, (-1, []))
        if not texts:
            return -1, -1
        return first + (_nearest(pair, texts) if len(texts) > 1 else 0), document

    def text(self, passage: int, document: int) -> str:
        """The text of a passage that was found by its document's id; "" of none."""
        first, texts = self.passages.get(document, (0, []))
        return texts[passage - first] if texts else ""


def _nearest(pair: LabelledPair, texts: Sequence[str]) -> int:
    """Which passage of a document has the words most like those of the pair's text; where there is none, or
    it is several passages long, the one that has most of the query's words."""
    there = [set(_same(own).split()) for own in texts]
    asked, text = set(_same(pair.query).split()), set(_same(pair.text).split())
    if not text or len(pair.text) > _LONGER * max(map(len, texts)):
        return int(np.argmax([len(own & asked) for own in there]))
    return int(np.argmax([len(own & text) / max(1, len(own | text)) for own in there]))


def _ids(inputs: Mapping[str, Path]) -> Iterator[str]:
    """The ids of the documents, in order."""
    with pq.ParquetFile(inputs["documents.parquet"]) as documents:
        for batch in documents.iter_batches(4096, columns=["id"]):
            yield from batch["id"].to_pylist()


def _passages(file: Path) -> Iterator[tuple[str, str, int]]:
    with pq.ParquetFile(file) as passages:
        for batch in passages.iter_batches(1024, columns=["title", "text", "document"]):
            yield from zip(*(batch[name].to_pylist() for name in ("title", "text", "document")), strict=True)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(_same(text).encode("utf-8", "surrogatepass"), digest_size=8).digest()
