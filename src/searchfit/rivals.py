"""Systems that are compared but never served: whitened vectors, other models, and runs of other engines."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from searchfit.config import ModelSettings, Settings
from searchfit.encoders import fingerprint, load_encoder
from searchfit.encoders.batched import BatchedEncoder
from searchfit.encoders.corpus import encode_corpus, encode_passages
from searchfit.errors import SettingsError, SourceError
from searchfit.executors import LOCAL, Executor, Portable
from searchfit.fusion import Block, Corpus, Floats, Ranking, Vectors
from searchfit.metrics import check_metrics, read_run, trec_order
from searchfit.prior import untuned_engine
from searchfit.ranking import Asked, Round, rank_rounds
from searchfit.records import Engine
from searchfit.search import ArrayCorpus
from searchfit.splits import pair_splits
from searchfit.trust import Trust, gauge
from searchfit.writing import digest

if TYPE_CHECKING:
    import scipy.sparse as sp

DEPTH = 100
"""Results ranked for each question."""

_DIMENSIONS = 256  # that whitening keeps, as its authors do
_FITTED = 50_000  # passages that it is fitted on at most
_BLOCK = 8192

Told = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Whitening:
    """(x - mean) @ matrix, to unit length: directions in which vectors spread least count as much as the
    others (Su et al. 2021, "Whitening Sentence Representations for Better Semantics and Faster Retrieval").
    mean (d), matrix (d, k), the k directions of the largest spread."""

    mean: Floats
    matrix: Floats

    @classmethod
    def fit(cls, vectors: Vectors) -> Whitening:
        """Fit to vectors (n, d). Of few vectors only as many directions are kept as they tell of."""
        mean = vectors.mean(axis=0, dtype=np.float64)
        centred = vectors - mean
        values, directions = np.linalg.eigh(centred.T @ centred / max(1, len(vectors)))
        kept = np.argsort(-values)[: max(1, min(_DIMENSIONS, len(vectors) // 2))]
        kept = kept[values[kept] > 1e-9 * max(values.max(), 1e-30)]
        matrix = directions[:, kept] / np.sqrt(values[kept])
        return cls(mean.astype(np.float32), matrix.astype(np.float32))

    def __call__(self, vectors: Vectors) -> Vectors:
        """(n, d) to (n, k), of unit length."""
        found = (vectors - self.mean) @ self.matrix
        return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12), np.float32)


@dataclass(frozen=True, slots=True)
class WhitenedCorpus:
    """A corpus whose passages are whitened block by block, so that they need not lie in memory. It has no
    sentences."""

    corpus: Corpus
    whitening: Whitening

    @property
    def count(self) -> int:
        """Number of passages."""
        return self.corpus.count

    def keyword_scores(self, queries: Sequence[str]) -> sp.csr_array:
        """The keyword leg, a sparse (len(queries), count) matrix."""
        return self.corpus.keyword_scores(queries)

    def blocks(self, rows: int) -> Iterator[Block]:
        """The blocks in row order."""
        for block in self.corpus.blocks(rows):
            yield replace(block, passages=self.whitening(block.passages))


def whitened(
    held: Portable[Any], trained_on: Vectors, vectors: Vectors, weight: float
) -> tuple[Round, Vectors]:
    """Engines over the vectors of a corpus, whitened by its passages and by the training questions (n, d),
    alone and with keyword weight `weight`, and the whitened vectors of questions (q, d). No answer is looked
    at."""
    corpus = held.model
    step = max(1, -(-corpus.count // _FITTED))
    # Of a block only the passages that are of the sample are copied.
    sample = np.concatenate([block.passages[-block.start % step :: step] for block in corpus.blocks(_BLOCK)])
    few = trained_on[: len(sample)]  # not more questions than passages
    whitening = Whitening.fit(np.concatenate([sample, few]) if len(few) else sample)
    engines = (
        Engine("whitened dense", units="passage", keyword_weight=0.0),
        Engine("whitened blend", units="passage", keyword_weight=weight),
    )
    return Round(Portable(partial(_whitened, held, whitening)), engines), whitening(vectors)


def _whitened(held: Portable[Any], whitening: Whitening) -> WhitenedCorpus:
    return WhitenedCorpus(held.model, whitening)


@dataclass(frozen=True, slots=True)
class Bench:
    """What other models are compared on: the passages, the keyword index, where encodings are kept from run
    to run, the settings (engine, model), whom to tell of progress, and who works on batches."""

    passages: Path
    keyword: Path
    cache: Path
    settings: Settings
    told: Told | None = None
    executor: Executor = LOCAL

    def rankings(self, name: str, texts: Sequence[str]) -> Iterator[tuple[str, Ranking]]:
        """Rankings of the questions by a model, alone and as an engine. The corpus is encoded once: a kill or
        another run goes on with what is there. Raises ModelError for a model that cannot be loaded."""
        own = self.settings.model
        model = ModelSettings(name=name, device=own.device, precision=own.precision)
        portable = Portable(partial(load_encoder, model))
        encoder, batched = portable.model, BatchedEncoder.of(portable, self.executor)
        mark = f"{fingerprint(model)} {encoder.bf16} {digest(self.passages)}"
        folder = self.cache / hashlib.blake2b(mark.encode(), digest_size=8).hexdigest()
        if not (folder / "info.json").exists():
            told = partial(self.told, f"encode with {label(name)}") if self.told else _silent
            encode = partial(self.executor.map_batches, partial(encode_passages, portable))
            encode_corpus(encoder, self.passages, folder, told, encode)
        held = Portable(partial(ArrayCorpus.load, folder, self.keyword))
        corpus = held.model
        if not (folder / "trust.json").exists():
            gauge(batched, corpus, self.passages, self.settings.seed).save(folder / "trust.json")
        trust = Trust.load(folder / "trust.json")
        engine = untuned_engine(self.settings.engine, corpus.encoding, trust, f"{label(name)} engine")
        dense = replace(engine.vectors_alone(f"{label(name)} dense"), units="passage")
        vectors, tokens = batched.encode_questions(texts)
        wanted = Round(held, (dense, engine), 0.0)
        ranked = rank_rounds([wanted], Asked(texts, [vectors], {0.0: tokens}), DEPTH, executor=self.executor)
        for one, ranking in zip(wanted.engines, ranked, strict=True):
            yield one.name, ranking


def _silent(_done: int, _all: int) -> None:
    """Tell nobody."""


def training_vectors(place: Callable[[str], Path]) -> Vectors:
    """The untuned vectors (n, d) of the generated training questions; `place` gives artefacts by name."""
    train = pair_splits(place("pairs.parquet"), place("holdout.parquet")) == "train"
    vectors: Vectors = np.load(place("pair_vectors.npy"), mmap_mode="r")[train]
    return vectors


def label(name: str) -> str:
    """A model or a run file as tables show it: a folder or a file by its own name."""
    path = Path(name).expanduser()
    return path.name if path.is_absolute() or path.exists() else name


def read_rankings(
    file: Path, queries: Sequence[str], known: Mapping[str, int]
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """A TREC run as rows (q, DEPTH) of `known` documents for these query ids, and notes. -1 stands where
    there is no document, and len(known) + n for the n-th of a question that is not known: it holds its place.

    Ranked as trec_eval does (see `metrics.score_run`). Raises SourceError for a file that is no run, or that
    answers none of the questions, or names none of the documents.
    """
    run = read_run(file)
    asked = [query for query in queries if query in run]
    if not asked:
        raise SourceError(
            f"{file} ranks {len(run)} queries, {next(iter(run), '')!r} for one, but none of "
            f"the {len(queries)} judged questions, {next(iter(queries), '')!r} for one.",
            "The ids in its first column have to be those of the questions.",
        )
    rows = np.full((len(queries), DEPTH), -1, np.int64)
    met = 0
    for place, query in enumerate(queries):
        ranking = trec_order(query, run.get(query, {}))[:DEPTH]
        found = [known.get(document, len(known) + n) for n, document in enumerate(ranking)]
        met += sum(row < len(known) for row in found)
        rows[place, : len(found)] = found
    if not met:
        document = next(iter(run[asked[0]]))
        raise SourceError(
            f"{file} names no document of the corpus, {document!r} for one.",
            "The ids in its third column have to be the documents' ids.",
        )
    total = int((rows >= 0).sum())
    notes = []
    if len(asked) < len(queries):
        notes.append(
            f"{file.name} lacks {len(queries) - len(asked)} of {len(queries)} questions; they score 0."
        )
    if met < total:
        notes.append(f"{file.name}: {total - met} of {total} results are not documents of the corpus.")
    return rows, tuple(notes)


def outside(settings: Settings) -> list[Any]:
    """What the rivals depend on outside the workspace. Raises SettingsError for metrics that are not known or
    runs without judged questions, SourceError and ModelError for files and models that cannot be read."""
    from searchfit.sources.queries import read_queries

    options = settings.evaluate
    check_metrics(options.metrics, DEPTH)
    for what, names in (("models", options.models), ("runs", options.runs)):
        labels = [label(name) for name in names]
        if len(set(labels)) < len(labels):
            raise SettingsError(f"evaluate.{what}: two have the same name: {', '.join(labels)}.")
    if options.runs and not (settings.queries.file and read_queries(settings.queries).qrels):
        raise SettingsError(
            "evaluate.runs needs your own judged questions, for a run ranks documents for question ids.",
            "Name them with --queries: a BEIR folder, or a table with document ids.",
        )
    files = [Path(name).expanduser() for name in options.runs]
    for file in files:
        read_run(file)
    models = [fingerprint(ModelSettings(name=name)) for name in options.models]
    return [models, [digest(file) for file in files]]
