"""Mine: what each training query learns from: the teacher's best passages and some random ones, scored.

The teacher is the untuned engine, a blend of dense and keyword scores. Only training documents are
candidates: a dev or test passage, or a near copy of one, is never trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.config import Settings
from searchfit.fusion import Rows, Vectors, dense_scores, rank
from searchfit.records import Engine, StageResult
from searchfit.search import ArrayCorpus
from searchfit.stages import Tools

VERSION = 1


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Write mined/: queries.npy (n rows of pairs.parquet), passages.npy and scores.npy (n, c), and for all
    queries negatives.npy (r), negative_scores.npy (n, r), -inf where the negative is a candidate too."""
    folder = tools.output / "mined"
    folder.mkdir(parents=True, exist_ok=True)
    pairs = pq.read_table(inputs["pairs.parquet"], columns=["text", "style", "document"])
    split = pq.read_table(inputs["holdout.parquet"], columns=["split"])["split"].to_numpy()
    corpus = ArrayCorpus.load(inputs["encoded"], inputs["keyword"])
    allowed = split[corpus.documents] == "train"
    rows = _sample(pairs, split, settings)
    texts = pairs["text"].take(rows).to_pylist()
    vectors = np.load(inputs["pair_vectors.npy"])[rows]

    tools.progress("mine", 0, len(texts))
    engine = Engine("teacher", units=settings.engine.units, keyword_weight=settings.engine.keyword_weight)
    width = min(settings.mine.candidates, int(allowed.sum()))
    ranking = rank([engine], corpus, vectors, texts, width, allowed)[0]
    random = np.random.default_rng(settings.seed)
    pool = np.flatnonzero(allowed)
    negatives = np.sort(random.choice(pool, min(settings.mine.negatives, len(pool)), replace=False))
    negative_scores = _score(engine, corpus, vectors, texts, negatives)
    negative_scores[_among(ranking.rows, negatives)] = -np.inf
    arrays: dict[str, npt.NDArray[Any]] = {
        "queries": rows,
        "passages": ranking.rows,
        "scores": ranking.scores,
        "negatives": negatives,
        "negative_scores": negative_scores,
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    held_out = int((~allowed[ranking.rows]).sum() + (~allowed[negatives]).sum())
    return StageResult(
        counts={
            "training queries": len(rows),
            "candidates": width,
            "negatives": len(negatives),
            "held-out passages among them": held_out,
        }
    )


def _sample(pairs: pa.Table, split: npt.NDArray[np.object_], settings: Settings) -> npt.NDArray[np.int64]:
    """Rows of the training pairs, at most max_queries, the same share of each style."""
    rows = np.flatnonzero(split[pairs["document"].to_numpy()] == "train")
    rows = np.random.default_rng(settings.seed).permutation(rows)
    _, styles = np.unique(pairs["style"].take(rows).to_numpy(), return_inverse=True)
    order = np.argsort(styles, kind="stable")
    share = np.concatenate([np.arange(n) / n for n in np.bincount(styles)]) if len(rows) else np.empty(0)
    return np.sort(rows[order[np.argsort(share, kind="stable")[: settings.mine.max_queries]]])


def _score(
    engine: Engine, corpus: ArrayCorpus, vectors: Vectors, texts: list[str], rows: Rows
) -> npt.NDArray[np.float32]:
    keyword = corpus.keyword_scores(texts).tocsc()[:, rows].toarray()
    dense = dense_scores(engine, vectors, corpus.take(rows))
    return np.asarray(engine.dense_weight * dense + engine.keyword_weight * keyword, np.float32)


def _among(candidates: Rows, negatives: Rows) -> npt.NDArray[np.bool_]:
    """(n, r): whether negative j is among the candidates of query i."""
    place = np.searchsorted(negatives, candidates).clip(max=max(0, len(negatives) - 1))
    found = np.zeros((len(candidates), len(negatives)), bool)
    if len(negatives):
        query, column = np.nonzero(negatives[place] == candidates)
        found[query, place[query, column]] = True
    return found
