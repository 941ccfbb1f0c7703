"""The vectors before and after: how near right and other passages are to their questions, and a map."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from searchfit.encoders.corpus import encoded
from searchfit.encoders.trained import Trained
from searchfit.fusion import Vectors
from searchfit.reporting.causes import TWIN
from searchfit.reporting.evidence import Evidence
from searchfit.reporting.library import Library

if TYPE_CHECKING:
    from searchfit.encoders.sentence import SentenceEncoder

QUESTIONS, OTHERS, ON_THE_MAP = 300, 200, 150
_BINS = 32
_BLOCK = 1 << 15

Floats = npt.NDArray[np.float64]


def draw(
    evidence: Evidence, library: Library, encoder: SentenceEncoder, inputs: Mapping[str, Path], seed: int
) -> dict[str, Any]:
    """Of up to 300 test questions, sampled: histograms of the similarity to their right passage and to
    others, a 2-D map, and how many answers have a near-duplicate elsewhere. Empty without a pair to compare,
    and where a system of the pair has no vectors.
    """
    names = evidence.pair
    engines = [evidence.engine(name) for name in names] if names else []
    if not names or not all(engine.get("dense_weight") for engine in engines):
        return {}
    random = np.random.default_rng(seed)
    questions = evidence.queries.select(["text", "relevant"])
    rows = np.sort(random.permutation(evidence.test)[:QUESTIONS])
    asked = questions.take(rows).to_pylist()
    right = [[library.row_of[i] for i in row["relevant"] if i in library.row_of] for row in asked]
    there = [number for number, documents in enumerate(right) if len(library.passages(documents))]
    if len(there) < 2:
        return {}
    texts, right = [asked[number]["text"] for number in there], [right[number] for number in there]
    others = np.sort(random.permutation(library.corpus.count)[:OTHERS])
    trained = Trained.load(inputs["models/trained"])
    sides = []
    for engine in engines:
        query, document = float(engine["query_tower"]), float(engine["document_tower"])
        vectors = trained.encoder(encoder, query).encode_queries(texts).astype(np.float64)
        passages = np.load(encoded(inputs, document) / "passages.npy", mmap_mode="r")
        sides.append((vectors, passages))
    nearest = _nearest(library, right, sides[0])
    return {
        "systems": list(names),
        "questions": len(texts),
        "others": len(others),
        "scores": _histograms(library, right, others, sides),
        "map": _map(nearest, sides),
        "twins": {"cosine": TWIN, "answers": _twins(library, nearest), "of": len(nearest)},
    }


Side = tuple[Floats, Vectors]


def _nearest(library: Library, right: list[list[int]], side: Side) -> npt.NDArray[np.int64]:
    """The passage of each question's right documents that is nearest to it."""
    vectors, passages = side
    found = []
    for vector, documents in zip(vectors, right, strict=True):
        rows = library.passages(documents)
        found.append(int(rows[np.argmax(np.asarray(passages[rows], np.float64) @ vector)]))
    return np.array(found)


def _histograms(
    library: Library, right: list[list[int]], others: npt.NDArray[np.int64], sides: list[Side]
) -> dict[str, Any]:
    """Shares of scores by bin, of right passages and others, before and after, over common edges; the means;
    and the chance that a right passage scores above another one of the same question (AUC)."""
    documents = np.asarray(library.corpus.documents[others])
    foreign = np.array([~np.isin(documents, mine) for mine in right])
    scores: dict[str, Floats] = {}
    figures: dict[str, Any] = {}
    for name, (vectors, passages) in zip(("before", "after"), sides, strict=True):
        wide = vectors @ np.asarray(passages[others], np.float64).T
        best = np.array(
            [
                (np.asarray(passages[library.passages(mine)], np.float64) @ vector).max()
                for vector, mine in zip(vectors, right, strict=True)
            ]
        )
        scores[f"right_{name}"], scores[f"other_{name}"] = best, wide[foreign]
        above = np.where(wide < best[:, None], 1.0, np.where(wide == best[:, None], 0.5, 0.0))
        figures[name] = {
            "right": float(best.mean()),
            "other": float(wide[foreign].mean()) if foreign.any() else None,
            "auc": float(above[foreign].mean()) if foreign.any() else None,
        }
    every = np.concatenate(list(scores.values()))
    edges = np.linspace(every.min(), max(every.max(), every.min() + 1e-6), _BINS + 1)
    shares = {
        name: (np.histogram(values, edges)[0] / max(1, len(values))).round(5).tolist()
        for name, values in scores.items()
    }
    return {"edges": edges.round(5).tolist(), **shares, **figures}


def _map(nearest: npt.NDArray[np.int64], sides: list[Side]) -> dict[str, Any]:
    """The two main axes (PCA) of all unit vectors together, so that both pictures share them: places (n, 2)
    of questions and of their right passages, before and after, and the share of variance that they show."""
    step = np.linspace(0, len(nearest) - 1, min(len(nearest), ON_THE_MAP)).astype(int)
    some = nearest[step]
    clouds = [_unit(cloud) for vectors, passages in sides for cloud in (vectors[step], passages[some])]
    both = np.concatenate(clouds)
    _, lengths, axes = np.linalg.svd(both - both.mean(axis=0), full_matrices=False)
    axes = axes[:2] * np.sign(axes[:2][range(len(axes[:2])), np.abs(axes[:2]).argmax(axis=1)])[:, None]
    places = [((cloud - both.mean(axis=0)) @ axes.T).round(4).tolist() for cloud in clouds]
    total = float((lengths**2).sum())
    return {
        "variance": float((lengths[:2] ** 2).sum()) / total if total else 0.0,
        "cosine_before": float((clouds[0] * clouds[1]).sum(axis=1).mean()),
        "cosine_after": float((clouds[2] * clouds[3]).sum(axis=1).mean()),
        "shown": len(some),
        **dict(
            zip(("queries_before", "passages_before", "queries_after", "passages_after"), places, strict=True)
        ),
    }


def _twins(library: Library, nearest: npt.NDArray[np.int64]) -> int:
    """How many of the passages have a near-duplicate in another document."""
    corpus = library.corpus
    mine, documents = _unit(corpus.passages[nearest]), np.asarray(corpus.documents[nearest])
    twin = np.zeros(len(nearest), bool)
    for start in range(0, corpus.count, _BLOCK):
        block = slice(start, start + _BLOCK)
        near = mine @ _unit(corpus.passages[block]).T >= TWIN
        twin |= (near & (documents[:, None] != np.asarray(corpus.documents[block]))).any(axis=1)
    return int(twin.sum())


def _unit(vectors: npt.NDArray[Any]) -> Floats:
    wide = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(lengths == 0, 1, lengths)
