"""Teachers: models slower or richer than the student, whose scores it learns from, and the test they take.

A teacher scores each query with candidate passages of its own. `load_teacher` makes one from its name:

    blend                 the untuned engine: dense and keyword scores
    cross-encoder:MODEL   a model that reads query and passage together
    bi-encoder:MODEL      another embedding model
    A+B                   the ensemble of teachers

MODEL is a folder or a hub id. Before a teacher is used, `judge` compares it with the student.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from searchfit.config import ModelSettings
from searchfit.encoders import fingerprint, load_encoder, model_digest
from searchfit.encoders.batched import BatchedEncoder
from searchfit.encoders.cross import CrossEncoder, score_pairs
from searchfit.errors import SettingsError
from searchfit.executors import LOCAL, Executor, Portable
from searchfit.fusion import Floats, Rows, Vectors
from searchfit.metrics import score_ranking
from searchfit.mining import Taking, score_rows
from searchfit.records import Engine, encoded_text
from searchfit.significance import Comparison, compare
from searchfit.writing import digest, write_json

_PAIRS = 65_536  # pairs whose texts or vectors are held at once
_SCORED = 2048  # pairs that a cross-encoder reads at a time
_CHUNK = 512  # passages encoded between two marks of progress
_MEMBERS = re.compile(r"\+(?=blend(?:\+|$)|cross-encoder:|bi-encoder:)")
_KINDS = "blend, cross-encoder:MODEL, bi-encoder:MODEL, or several joined by +"


class Teacher(Protocol):
    """Scores queries with passages."""

    @property
    def name(self) -> str:
        """What `load_teacher` makes it from."""

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides its scores: equal fingerprints give equal scores."""

    def scores(self, texts: Sequence[str], rows: Rows) -> Floats:
        """(q, c) float32 scores of queries `texts` (q) with passages `rows` (q, c), higher is better; -inf
        where a row is -1."""


@dataclass(frozen=True, slots=True)
class Materials:
    """What teachers are made from: the corpus in arrays with its passages.parquet (row i of both is the same
    passage) and the folder of its keyword index; the untuned engine, its model and `encode`, queries (q) to
    vectors (q, d), which may look up what was encoded before. `folder` keeps the vectors of other models,
    `executor` works on the batches of all models but the engine's own."""

    corpus: Taking
    passages: Path
    keyword: Path
    engine: Engine
    model: ModelSettings
    encode: Callable[[Sequence[str]], Vectors]
    folder: Path
    executor: Executor = LOCAL


def load_teacher(name: str, materials: Materials) -> Teacher:
    """The teacher of that name (see the module); models load when it first scores.

    Raises SettingsError for a name that is none, ModelError when its model is not to be had.
    """
    members = [_load(part, materials) for part in _MEMBERS.split(name)]
    return members[0] if len(members) == 1 else EnsembleTeacher(members)


def outside(name: str) -> list[str]:
    """Digests of the models that a teacher needs. Raises SettingsError for a name that is none, ModelError
    when a model is not to be had."""
    found = []
    for part in _MEMBERS.split(name):
        kind, _, model = part.partition(":")
        if kind in ("cross-encoder", "bi-encoder") and model:
            found.append(model_digest(model))
        elif part != "blend":
            raise SettingsError(f"no teacher is called {part!r}.", f"There are: {_KINDS}.")
    return found


def _load(name: str, materials: Materials) -> Teacher:
    kind, _, model = name.partition(":")
    if name == "blend":
        return BlendTeacher(materials)
    if kind == "cross-encoder" and model:
        return CrossEncoderTeacher(model, materials.passages, materials.model.device, materials.executor)
    if kind == "bi-encoder" and model:
        # The prompts belong to the student's model; another one brings its own.
        settings = ModelSettings(
            name=model, device=materials.model.device, precision=materials.model.precision
        )
        return BiEncoderTeacher(settings, materials.passages, materials.folder, materials.executor)
    raise SettingsError(f"no teacher is called {name!r}.", f"There are: {_KINDS}.")


@dataclass(frozen=True)
class BlendTeacher:
    """The untuned engine as a teacher: its blend of dense and keyword scores."""

    materials: Materials

    @property
    def name(self) -> str:
        """blend"""
        return "blend"

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the engine's form, its model, the passages and the keyword index."""
        made = self.materials
        form = {key: value for key, value in made.engine.to_dict().items() if key != "name"}
        files = [fingerprint(made.model), digest(made.passages), digest(made.keyword)]
        return _hash("blend", json.dumps(form, sort_keys=True), *files)

    def scores(self, texts: Sequence[str], rows: Rows) -> Floats:
        """(q, c) scores as the engine has them in search, before rounding."""
        made = self.materials
        dense = made.engine.dense_weight
        vectors = made.encode(texts) if dense and len(texts) else np.empty((len(texts), 0), np.float32)
        return score_rows(made.engine, made.corpus, vectors, texts, rows)


class CrossEncoderTeacher:
    """A cross-encoder as a teacher. Its scores are the sigmoid of the model's output, 0..1: on the scale of
    cosines and blends, so that one temperature, margin and guard serves all teachers."""

    def __init__(self, model: str, passages: Path, device: str = "auto", executor: Executor = LOCAL) -> None:
        """`model` is a folder or a hub id, `passages` is passages.parquet. Raises ModelError when the model
        is not to be had; one that is damaged raises it when it first scores."""
        self.name = f"cross-encoder:{model}"
        self._passages, self._executor = passages, executor
        self._score = partial(score_pairs, Portable(partial(CrossEncoder.load, model, device)))
        self._digest = model_digest(model)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the model's files and the passages."""
        return _hash("cross-encoder", self._digest, digest(self._passages))

    @cached_property
    def _texts(self) -> PassageTexts:
        return PassageTexts(self._passages)

    def scores(self, texts: Sequence[str], rows: Rows) -> Floats:
        """(q, c) in 0..1. The passages' texts are read for some queries at a time."""
        scores = np.full(rows.shape, -np.inf, np.float32)
        for part in _parts(rows):
            there = rows[part] >= 0
            query = np.nonzero(there)[0]
            passages = self._texts.take(rows[part][there])
            if passages:
                asked = [texts[part.start + place] for place in query.tolist()]
                starts = range(0, len(asked), _SCORED)
                pairs = ((asked[i : i + _SCORED], passages[i : i + _SCORED]) for i in starts)
                scores[part][there] = np.concatenate([*self._executor.map_batches(self._score, pairs)])
        return scores


class BiEncoderTeacher:
    """Another embedding model as a teacher, by its own similarity, cosine or dot product. Passages are
    encoded once, into a file that is mapped; killed, it goes on where it stopped."""

    def __init__(
        self, settings: ModelSettings, passages: Path, folder: Path, executor: Executor = LOCAL
    ) -> None:
        """`settings` names the model, `passages` is passages.parquet, `folder` takes the vectors. Raises
        ModelError when the model is not to be had."""
        self.name = f"bi-encoder:{settings.name}"
        self._settings, self._passages, self._folder = settings, passages, folder
        self._model = fingerprint(settings)
        self._encoder = BatchedEncoder.of(Portable(partial(load_encoder, settings)), executor)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the model's files, its prompts and precision, and the passages."""
        precise = f"{self._settings.precision} {self._settings.device}"
        return _hash("bi-encoder", self._model, precise, digest(self._passages))

    @cached_property
    def vectors(self) -> Vectors:
        """(n, d) float32 of all passages, mapped; encoded when this is first asked for."""
        texts = PassageTexts(self._passages)
        file = self._folder / f"{self.fingerprint}.npy"
        mark = file.with_suffix(".json")
        target = _open(file, (texts.count, self._encoder.dimension))
        done = json.loads(mark.read_text())["passages"] if mark.exists() else 0
        for vectors in self._encoder.encode_documents(batch for _, batch in texts.batches(done)):
            start, done = done, done + len(vectors)
            target[start:done] = vectors
            target.flush()
            write_json(mark, {"passages": done})
        return target

    def scores(self, texts: Sequence[str], rows: Rows) -> Floats:
        """(q, c) similarities."""
        scores = np.full(rows.shape, -np.inf, np.float32)
        asked = self._encoder.encode_queries(texts)
        for part in _parts(rows):
            for place in range(part.start, part.stop):
                there = rows[place] >= 0
                scores[place, there] = self.vectors[rows[place, there]] @ asked[place]
        return scores


class EnsembleTeacher:
    """Several teachers as one: the mean of their z-scores among a query's candidates, stretched and shifted
    to the mean of the members' own spreads and means.

    Z-scores and not min-max, whose scale hangs on the two most extreme candidates; stretched back, so that a
    temperature or margin that fits the members fits the ensemble. The scores of a query can be compared
    within one call only: give a positive together with the candidates it is compared with.
    """

    def __init__(self, members: Sequence[Teacher]) -> None:
        self.members = tuple(members)
        self.name = "+".join(member.name for member in members)

    @property
    def fingerprint(self) -> str:
        """A hash of the members' fingerprints."""
        return _hash("ensemble", *(member.fingerprint for member in self.members))

    def scores(self, texts: Sequence[str], rows: Rows) -> Floats:
        """(q, c) scores, on the members' mean scale."""
        there = rows >= 0
        count = np.maximum(there.sum(axis=1, keepdims=True), 1)
        level, spread = np.zeros((len(rows), 1)), np.zeros((len(rows), 1))
        shape = np.zeros(rows.shape)
        for member in self.members:
            own = np.where(there, member.scores(texts, rows), 0.0).astype(np.float64)
            mean = own.sum(axis=1, keepdims=True) / count
            away = np.where(there, own - mean, 0.0)
            deviation = np.sqrt((away**2).sum(axis=1, keepdims=True) / count)
            level, spread = level + mean, spread + deviation
            # A member to whom all candidates are alike has no say.
            shape += np.divide(away, deviation, out=np.zeros_like(away), where=deviation > 1e-9)
        members = len(self.members)
        return np.where(there, level / members + spread / members * shape / members, -np.inf).astype(
            np.float32
        )


class PassageTexts:
    """What encoders see of the passages in passages.parquet, by row; row groups are read when asked for."""

    def __init__(self, file: Path) -> None:
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(file)
        meta = self._file.metadata
        sizes = [meta.row_group(number).num_rows for number in range(meta.num_row_groups)]
        self._borders = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.count = int(self._borders[-1])

    def take(self, rows: Rows) -> list[str]:
        """The texts of these rows, in their order. Raises IndexError for a row that is not there."""
        asked, place = np.unique(rows, return_inverse=True)
        if len(asked) and not 0 <= asked[0] <= asked[-1] < self.count:
            raise IndexError(f"rows {asked[0]} to {asked[-1]} of {self.count} passages")
        group = np.searchsorted(self._borders, asked, side="right") - 1
        texts: list[str] = []
        for number in np.unique(group).tolist():
            table = self._file.read_row_group(number, columns=["title", "text"])
            texts += _texts(table.take(asked[group == number] - self._borders[number]))
        return [texts[i] for i in place.tolist()]

    def batches(self, start: int = 0) -> Iterator[tuple[int, list[str]]]:
        """(first row, texts) of all passages from row `start`, a multiple of the batch, on."""
        row = 0
        for batch in self._file.iter_batches(_CHUNK, columns=["title", "text"]):
            if row >= start:
                yield row, _texts(batch)
            row += batch.num_rows


@dataclass(frozen=True, slots=True)
class Verdict:
    """Teacher `name` against the student by nDCG@10 on dev queries, over the same candidates: in `comparison`
    a is the student and b the teacher."""

    name: str
    comparison: Comparison
    level: float = 0.05

    @property
    def sure(self) -> bool:
        """Whether the difference, whichever way, is more than chance at the level asked."""
        return self.comparison.p < self.level

    @property
    def worse(self) -> bool:
        """Whether it should not be used: worse than the student or just as good, or nothing to tell by."""
        return not self.comparison.gain > 0

    @property
    def message(self) -> str:
        """One sentence for people."""
        found = self.comparison
        if not found.n:
            return (
                f"The teacher {self.name} could not be compared with the student: there are no dev queries."
            )
        how = "better than" if found.gain > 0 else "worse than" if found.gain < 0 else "level with"
        return (
            f"The teacher {self.name} is {how} the student on {found.n} dev queries: nDCG@10 "
            f"{found.mean_b:.3f} against {found.mean_a:.3f} (p = {found.p:.3f}"
            f"{'' if self.sure else ', which may be chance'})."
        )

    def require(self, force: bool = False) -> None:
        """Raise SettingsError for a teacher that should not be used, unless forced."""
        if self.worse and not force:
            raise SettingsError(
                self.message,
                "Take another teacher, or force this one; a student learns no more than it knows.",
            )


def judge(
    teacher: Teacher,
    texts: Sequence[str],
    rows: Rows,
    student_scores: Floats,
    relevant: npt.NDArray[np.bool_],
    seed: int = 0,
) -> Verdict:
    """Compare a teacher with the student on dev queries `texts` (q) with known answers.

    `rows` (q, c) are the candidates of each query, -1 where there are fewer, `student_scores` (q, c) the
    student's scores of them and `relevant` (q, c) marks the answers. Queries with no answer among their
    candidates are left aside. Among equal scores answers come last, so that a model which cannot tell gains
    nothing by it. Tested as `significance.compare` describes, with 10,000 permutations.
    """
    asked = np.flatnonzero((relevant & (rows >= 0)).any(axis=1))
    rows, relevant = rows[asked], relevant[asked] & (rows[asked] >= 0)
    scores = teacher.scores([texts[place] for place in asked.tolist()], rows)
    student, taught = (_ndcg(each, rows, relevant) for each in (student_scores[asked], scores))
    return Verdict(teacher.name, compare(student, taught, permutations=10_000, samples=2_000, seed=seed))


def _ndcg(scores: Floats, rows: Rows, relevant: npt.NDArray[np.bool_]) -> list[float]:
    """(q) nDCG@10 of the candidates ranked by their scores."""
    found = []
    for each, own, right in zip(scores, rows, relevant, strict=True):
        order = [str(place) for place in np.lexsort((right, -each)) if own[place] >= 0]
        grades = {str(place): 1 for place in np.flatnonzero(right)}
        found.append(score_ranking(order, grades)["ndcg@10"])
    return found


def _parts(rows: Rows) -> Iterator[slice]:
    """The queries in stretches of about _PAIRS pairs."""
    step = max(1, _PAIRS // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        yield slice(start, min(len(rows), start + step))


def _texts(table: Any) -> list[str]:
    titles, texts = (table[name].to_pylist() for name in ("title", "text"))
    return [encoded_text(title, text) for title, text in zip(titles, texts, strict=True)]


def _open(path: Path, shape: tuple[int, int]) -> np.memmap[tuple[int, int], np.dtype[np.float32]]:
    """The vectors' file, mapped for writing; made whole, or not at all, when it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)
        beside = path.with_name(f"{path.name}.tmp")
        np.lib.format.open_memmap(beside, mode="w+", dtype=np.float32, shape=shape).flush()
        beside.replace(path)
    return np.lib.format.open_memmap(path, mode="r+")


def _hash(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
