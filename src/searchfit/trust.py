"""How far a model's vectors are to be trusted on a corpus, against keywords, told from the documents alone.

Questions that are cut from passages flatter keyword search: their words stand there. So each is asked of its
passage without the sentences that hold its rarest word, and what is left has to be found by what it is about.
Where the model finds it as well as keywords do, it knows the language and the field, and the prior holds;
where keywords find more, they have to count for more. docs/lab.md has how well this foretells what real
questions want.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from searchfit.fusion import Block, Floats, Rows, dense_scores
from searchfit.generators import Task
from searchfit.generators.phrases import PhraseGenerator
from searchfit.interaction import HeldWords, PassageWords, interaction, read_words
from searchfit.keyword import KeywordIndex
from searchfit.records import Engine, Passage, encoded_text
from searchfit.search import ArrayCorpus
from searchfit.writing import write_json

if TYPE_CHECKING:
    from searchfit.encoders.batched import BatchedEncoder
    from searchfit.encoders.sentence import SentenceEncoder

_QUESTIONS = 128
_POOL = 1000  # passages that compete
_FEWEST = 20  # questions to tell by
_MOST = 10.0
_ENGINE = Engine("gauge", units="both", keyword_weight=0.0)
_WORDS = 2.0  # weight of the words beside the vectors, as in the prior
_POWER = {True: 6, False: 3}  # with words and without
_PIECES = 1.4  # tokens a word, up to which a model knows the language


@dataclass(frozen=True, slots=True)
class Trust:
    """Mean reciprocal ranks of passages without the sentences that were asked for: by keywords, by the model
    and by its vectors alone; `words` says whether the model has words too (see interaction.py), `pieces` how
    many tokens it reads for a word of the corpus (see `SentenceEncoder.pieces`)."""

    questions: int = 0
    keyword: float = 0.0
    model: float = 0.0
    words: bool = False
    pieces: float = 1.0
    vectors: float = 0.0

    @property
    def told(self) -> bool:
        """Whether there were questions enough to tell by."""
        return self.questions >= _FEWEST

    @property
    def factor(self) -> float:
        """By how much keywords have to count for more than in the prior: 1 to 10. Where there are too few
        questions to tell, the pieces do."""
        if not self.told:
            ratio, power = self.pieces / _PIECES, 3
        else:
            ratio, power = self.keyword / max(self.model, 1e-9), _POWER[self.words]
        return float(np.clip(ratio**power, 1.0, _MOST))

    @classmethod
    def load(cls, file: Path) -> Trust:
        """Read what `save` wrote."""
        return cls(**json.loads(file.read_text(encoding="utf-8")))

    def save(self, file: Path) -> None:
        """Write it as JSON."""
        write_json(file, asdict(self))


@dataclass(frozen=True, slots=True)
class _Question:
    """A question of a document, and what is left of the passage that it was cut from, with the places of the
    sentences in it."""

    text: str
    document: int
    left: str
    spans: list[tuple[int, int]]


def gauge(encoder: SentenceEncoder | BatchedEncoder, corpus: ArrayCorpus, passages: Path, seed: int) -> Trust:
    """What a corpus tells of its model; `passages` is its passages.parquet. Of few passages of three
    sentences or more only the pieces tell."""
    asked = list(_questions(corpus, passages, seed))
    pieces = round(encoder.pieces(_texts(passages, corpus.count)), 4)
    if len(asked) < _FEWEST:
        return Trust(len(asked), pieces=pieces)
    pool = np.sort(np.random.default_rng(seed).permutation(corpus.count)[:_POOL])
    texts = [question.text for question in asked]
    vectors, tokens = encoder.encode_questions(texts)
    centre = corpus.words.centre if corpus.words else None
    left = encoder.encode_passages([one.left for one in asked], [one.spans for one in asked], centre)
    others = dense_scores(_ENGINE, vectors, corpus.take(pool))
    own = _own_dense(vectors, left, [len(one.spans) for one in asked])
    documents = np.array([one.document for one in asked])
    rivals = corpus.documents[pool][None, :] != documents[:, None]
    by_vectors = _reciprocal(own, others, rivals)
    if corpus.words is not None and left[2] is not None:
        read = read_words(corpus, corpus.words, texts, tokens)
        query, row = (part.ravel() for part in np.indices(others.shape))
        found = interaction(read, corpus.words, query, pool[row]).reshape(others.shape)
        numbers = np.arange(len(asked))
        own += _WORDS * interaction(read, HeldWords(left[2], corpus.words.centre), numbers, numbers)
        others = others + _WORDS * found
    keyword = corpus.keyword_scores(texts, pool).toarray()
    own_keyword = np.array([corpus.keyword.score(one.text, one.left) for one in asked], np.float32)
    by_keyword, by_model = _reciprocal(own_keyword, keyword, rivals), _reciprocal(own, others, rivals)
    return Trust(
        len(asked),
        round(float(by_keyword.mean()), 6),
        round(float(by_model.mean()), 6),
        corpus.words is not None,
        pieces,
        round(float(by_vectors.mean()), 6),
    )


def _own_dense(
    vectors: Floats, left: tuple[Floats, Floats, PassageWords | None], counts: list[int]
) -> Floats:
    """(q) the dense score of each question with what is left of its passage."""
    borders = np.cumsum([0, *counts])
    own = np.empty(len(vectors), np.float32)
    for place, vector in enumerate(vectors):
        sentences = left[1][borders[place] : borders[place + 1]]
        offsets = np.array([0, len(sentences)], np.int64)
        block = Block(0, np.zeros(1, np.int32), left[0][place : place + 1], sentences, offsets)
        own[place] = dense_scores(_ENGINE, vector[None], block)[0, 0]
    return own


def _reciprocal(own: Floats, others: Floats, rivals: npt.NDArray[np.bool_]) -> Floats:
    """(q) one over the rank of each own score among the rivals' (q, p); of equal ones half are before it."""
    above = ((others > own[:, None]) & rivals).sum(axis=1)
    level = ((others == own[:, None]) & rivals).sum(axis=1)
    return np.asarray(1 / (1 + above + 0.5 * level), np.float32)


@dataclass(frozen=True)
class _Statistics:
    """What the phrase generator asks of a corpus."""

    keyword: KeywordIndex
    fingerprint: str = "gauge"

    def terms(self, text: str) -> list[str]:
        return self.keyword.analyzer.terms(text)

    def idf(self, term: str) -> float:
        return self.keyword.idf(term)


def _questions(corpus: ArrayCorpus, passages: Path, seed: int) -> Iterator[_Question]:
    """Crops of passages of different documents, and what is left of these without them."""
    chosen = _sample(corpus, seed)
    generator = PhraseGenerator(8, seed, _Statistics(corpus.keyword))
    found = list(_read(passages, chosen))
    for written in generator.write(Task(passage) for passage in found):
        for one in written:
            crop = next((text for text, style in one.queries if style == "crop"), "")
            left = _without(one.passage, crop, corpus.keyword) if crop else []
            if left:
                body = " ".join(left)
                whole = encoded_text(one.passage.title, body)
                begin, spans = len(whole) - len(body), []
                for sentence in left:
                    spans.append((begin, begin + len(sentence)))
                    begin += len(sentence) + 1
                yield _Question(crop, one.passage.document, whole, spans)


def _sample(corpus: ArrayCorpus, seed: int) -> Rows:
    """Passages of three sentences or more, of a document one at most."""
    long = np.flatnonzero(np.diff(corpus.offsets) >= 3)
    order = np.random.default_rng(seed).permutation(long)
    _, first = np.unique(corpus.documents[order], return_index=True)
    return np.sort(order[np.sort(first)][:_QUESTIONS])


def _read(file: Path, rows: Rows) -> Iterator[Passage]:
    columns = ["id", "document_id", "document", "title", "text", "start", "end", "sentences"]
    first = 0
    for batch in pq.ParquetFile(file).iter_batches(4096, columns=columns):
        here = rows[(rows >= first) & (rows < first + batch.num_rows)] - first
        for row in batch.take(here).to_pylist():
            ends = row.pop("sentences")
            yield Passage(**row, sentences=tuple(zip(ends[::2], ends[1::2], strict=True)))
        first += batch.num_rows


def _texts(file: Path, count: int) -> list[str]:
    """The texts of some passages, spread over the corpus."""
    step = max(1, count // _QUESTIONS)
    return [passage.text for passage in _read(file, np.arange(0, count, step))]


def _without(passage: Passage, crop: str, keyword: KeywordIndex) -> list[str]:
    """The sentences of a passage that do not hold the rarest of the crop's words; none where all do."""
    parts = [passage.text[start:end] for start, end in passage.sentences]
    terms = [set(keyword.analyzer.terms(part)) for part in parts]
    shared = set(keyword.analyzer.terms(crop)) & set().union(*terms)
    if not shared:
        return []
    rarest = max(sorted(shared), key=keyword.idf)
    return [part for part, held in zip(parts, terms, strict=True) if rarest not in held]
