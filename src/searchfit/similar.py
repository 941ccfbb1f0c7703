"""The most similar pairs: of vectors, of the passages or documents of a workspace, of texts.

Exact and blocked: every pair is compared once, by matrix products of two blocks of rows, and only pairs that
can still be among the best are held. A million passages take what the products take, in the memory of two
blocks beside the vectors, which are read from the file as they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from searchfit.config import ModelSettings, load_settings
from searchfit.encoders import load_encoder
from searchfit.errors import SettingsError, WorkspaceError
from searchfit.fusion import Floats, Rows, Vectors
from searchfit.search import open_searcher
from searchfit.workspace import Workspace, located

if TYPE_CHECKING:
    from searchfit.encoders.sentence import SentenceEncoder

_BLOCK = 2048
"""Rows on either side of a product: 16 MiB of scores."""

Groups = npt.NDArray[np.int32]
Tell = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of rows, `first < second`, best first: (n,) row numbers and (n,) cosines."""

    first: Rows
    second: Rows
    scores: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts and the cosine of their vectors; ids are those of passages or documents, or the places of
    the texts in a list."""

    score: float
    id_a: str
    id_b: str
    text_a: str
    text_b: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which pairs: the best `k` of those whose cosine is `threshold` or more. k 0: all of them."""

    k: int = 10
    threshold: float | None = None

    def check(self) -> None:
        """Raise SettingsError for a number below zero, a threshold that no cosine is, or neither bound."""
        if self.k < 0 or (self.k == 0 and self.threshold is None):
            raise SettingsError(f"k is {self.k}.", "Ask for k pairs (1 or more), or for a threshold.")
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise SettingsError(f"the threshold is {self.threshold:g}.", "A cosine is from -1 to 1.")


def most_similar(
    vectors: Vectors, wanted: Wanted, groups: Groups | None = None, tell: Tell | None = None
) -> Pairs:
    """The most similar pairs of rows of (n, d) vectors, by cosine; rows of zeros are similar to none.

    Pairs within one group (n,) are left out. `vectors` may be mapped from a file. `tell` is told of (done,
    all) blocks. Where more pairs than are wanted have the score of the last one, which of them is left open.
    Raises SettingsError like `Wanted.check`.
    """
    wanted.check()
    best = _Best(wanted)
    starts = range(0, len(vectors), _BLOCK)
    total, done = len(starts) * (len(starts) + 1) // 2, 0
    product = np.empty(_BLOCK * _BLOCK, np.float32)
    for one in starts:
        left = _unit(vectors[one : one + _BLOCK])
        for other in range(one, len(vectors), _BLOCK):
            right = left if other == one else _unit(vectors[other : other + _BLOCK])
            out = product[: len(left) * len(right)].reshape(len(left), len(right))
            np.matmul(left, right.T, out=out)
            _mask(out, one, other, groups)
            best.add(out, one, other)
            done += 1
            if tell:
                tell(done, total)
    return best.result(vectors)


def _unit(rows: Vectors) -> Floats:
    """Rows scaled to unit length."""
    held = np.asarray(rows, np.float32)
    lengths = np.linalg.norm(held, axis=1, keepdims=True)
    return np.asarray(held / np.where(lengths > 0, lengths, np.inf), np.float32)


def _mask(scores: Floats, one: int, other: int, groups: Groups | None) -> None:
    """Set to -inf what is no pair: a row with itself or, again, with an earlier one, or with its group."""
    if one == other:
        scores[np.tri(len(scores), dtype=bool)] = -np.inf
    if groups is not None:
        left, right = groups[one : one + len(scores)], groups[other : other + scores.shape[1]]
        if left.max() >= right.min() and right.max() >= left.min():
            scores[left[:, None] == right[None, :]] = -np.inf


class _Best:
    """The best pairs so far."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._floor = -np.inf if wanted.threshold is None else wanted.threshold - 1e-6
        self._found: list[tuple[Rows, Rows, Floats]] = []
        self._count = 0

    def add(self, scores: Floats, one: int, other: int) -> None:
        """Take what a block adds."""
        flat = scores.ravel()
        places = np.flatnonzero(flat > self._floor)
        if not places.size:
            return
        k, width = self._wanted.k, scores.shape[1]
        if k and places.size > k:
            places = places[np.argpartition(-flat[places], k - 1)[:k]]
        self._found.append((one + places // width, other + places % width, flat[places]))
        self._count += places.size
        if k and self._count >= (k if np.isinf(self._floor) else max(2 * k, _BLOCK)):
            self._prune()

    def _prune(self) -> None:
        first, second, scores = (np.concatenate(part) for part in zip(*self._found, strict=True))
        k = self._wanted.k
        if len(scores) >= k:
            kept = np.argpartition(-scores, k - 1)[:k]
            first, second, scores = first[kept], second[kept], scores[kept]
            self._floor = max(self._floor, float(scores.min()))
        self._found, self._count = [(first, second, scores)], len(scores)

    def result(self, vectors: Vectors) -> Pairs:
        """Best first, with the scores in double precision."""
        if not self._found:
            return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
        first, second, rough = (np.concatenate(part) for part in zip(*self._found, strict=True))
        some = np.isfinite(rough)
        first, second = first[some], second[some]
        scores = np.concatenate([np.empty(0), *_exact(vectors, first, second)])
        kept = np.lexsort((second, first, -scores))
        if self._wanted.threshold is not None:
            kept = kept[scores[kept] >= self._wanted.threshold - 1e-9]
        kept = kept[: self._wanted.k or None]
        return Pairs(first[kept], second[kept], scores[kept])


def _exact(vectors: Vectors, first: Rows, second: Rows) -> Iterator[npt.NDArray[np.float64]]:
    for start in range(0, len(first), _BLOCK):
        part = slice(start, start + _BLOCK)
        a, b = (np.asarray(vectors[rows[part]], np.float64) for rows in (first, second))
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        yield np.clip(np.einsum("nd,nd->n", a, b) / np.where(lengths > 0, lengths, np.inf), -1.0, 1.0)


def similar_passages(
    workspace: Path | str,
    k: int = 10,
    threshold: float | None = None,
    *,
    documents: bool = False,
    within: bool = False,
    tell: Tell | None = None,
) -> list[Pair]:
    """The most similar pairs of passages of a workspace, best first, under the model that it serves.

    `documents` compares documents instead, by the mean of their passages' vectors; `within` counts pairs of
    passages of one document too. Raises WorkspaceError where nothing is encoded, SettingsError like `Wanted`.
    """
    wanted = Wanted(k, threshold)
    wanted.check()
    place = Workspace(located(workspace))
    folder = _encoded(place)
    vectors = np.load(folder / "passages.npy", mmap_mode="r")
    owners: Groups = np.load(folder / "documents.npy")
    if documents:
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        pairs = most_similar(_means(vectors, starts), wanted, tell=tell)
        pairs = Pairs(starts[pairs.first], starts[pairs.second], pairs.scores)
    else:
        pairs = most_similar(vectors, wanted, None if within else owners, tell)
    return _told(place, pairs, documents)


def _encoded(workspace: Workspace) -> Path:
    """The vectors of the passages under the document tower that is served, or, before that, the untuned."""
    workspace.require()
    served = workspace.served()
    share = float(served["engine"].get("document_tower", 0.0)) if served else 0.0
    folder = workspace.artefact(f"encoded_tuned/{share:g}" if share else "encoded")
    if not (folder / "info.json").exists():
        runs = sorted(path.name for path in workspace.path.glob("runs/*") if path.is_dir())
        hint = f"Name one of its runs, {workspace.path}/runs/{runs[0]} for one." if runs else ""
        raise WorkspaceError(
            f"{workspace.path} holds no vectors of its passages.",
            hint or "Run the fit again, to its end or with --until encode.",
        )
    return folder


def _means(vectors: Vectors, starts: Rows) -> Vectors:
    """(documents, d) means of the rows from each start to the next."""
    means = np.empty((len(starts), vectors.shape[1]), np.float32)
    for begin in range(0, len(starts), _BLOCK):
        own = starts[begin : begin + _BLOCK]
        end = starts[begin + _BLOCK] if begin + _BLOCK < len(starts) else len(vectors)
        means[begin : begin + len(own)] = np.add.reduceat(vectors[own[0] : end], own - own[0], axis=0)
    return means  # sums: their cosines are those of the means


def _told(workspace: Workspace, pairs: Pairs, documents: bool) -> list[Pair]:
    """The pairs with their ids and texts; only the passages that are in one are held."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = np.unique(np.concatenate([pairs.first, pairs.second]))
    held: dict[int, dict[str, str]] = {}
    start = 0
    with pq.ParquetFile(workspace.artefact("passages.parquet")) as file:
        for batch in file.iter_batches(4096, columns=["id", "document_id", "text"]):
            own = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + batch.num_rows)]
            held |= dict(zip(own.tolist(), batch.take(pa.array(own - start)).to_pylist(), strict=True))
            start += batch.num_rows
    name = "document_id" if documents else "id"
    return [
        Pair(float(score), held[a][name], held[b][name], held[a]["text"], held[b]["text"])
        for a, b, score in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.scores, strict=True)
    ]


def similar_texts(
    texts: Sequence[str],
    k: int = 10,
    threshold: float | None = None,
    *,
    model: str = "minilm",
    workspace: Path | str | None = None,
) -> list[Pair]:
    """The most similar pairs among some texts, best first, by `model` or the one that a workspace serves (its
    document tower). Raises SettingsError for an empty text or bounds like `Wanted`, ModelError or
    WorkspaceError.

    >>> similar_texts(["a cat", "one cat", "a train"], k=1)[0].id_b  # doctest: +SKIP
    '1'
    """
    wanted = Wanted(k, threshold)
    wanted.check()
    vectors = _encode(texts, model, workspace)
    pairs = most_similar(vectors, wanted)
    return [
        Pair(float(score), str(a), str(b), texts[a], texts[b])
        for a, b, score in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.scores, strict=True)
    ]


def similarity(a: str, b: str, *, model: str = "minilm", workspace: Path | str | None = None) -> float:
    """The cosine of two texts; arguments and errors as of `similar_texts`."""
    one, other = _encode([a, b], model, workspace).astype(np.float64)
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(np.clip(one @ other / lengths, -1.0, 1.0)) if lengths else 0.0


def _encode(texts: Sequence[str], model: str, workspace: Path | str | None) -> Vectors:
    if isinstance(texts, str):
        raise SettingsError("one text was given.", "Give a list of texts.")
    for number, text in enumerate(texts):
        if not text.strip():
            raise SettingsError(
                f"text {number + 1} of {len(texts)} is empty.", "Give texts with words in them."
            )
    return _model(model, workspace).encode_documents(texts)


def _model(model: str, workspace: Path | str | None) -> SentenceEncoder:
    if workspace is None:
        return load_encoder(ModelSettings(name=model))
    place = Workspace(located(workspace))
    place.require()
    if place.served() is not None:
        return open_searcher(place.path).encoder
    return load_encoder(load_settings(place.settings_file).model)
