"""Exact search among plain embeddings, in chunks on both sides."""

from __future__ import annotations

import numpy as np

from searchfit.errors import SettingsError
from searchfit.fusion import Ranking, Vectors


def semantic_search(
    query_embeddings: Vectors,
    corpus_embeddings: Vectors,
    k: int = 10,
    query_chunk_size: int = 256,
    corpus_chunk_size: int = 65_536,
) -> Ranking:
    """The k rows of highest dot product in `corpus_embeddings` (n, d), in memory or mapped, for each of
    `query_embeddings` (q, d): (q, k) rows and scores, -1 and -inf where n < k; ties go to the earlier row.

    At most query_chunk_size * corpus_chunk_size scores are held at once. Raises SettingsError for k or a
    chunk below 1 and for embeddings of two lengths.
    """
    if min(k, query_chunk_size, corpus_chunk_size) < 1:
        raise SettingsError(f"k and chunks must be at least 1: {k}, {query_chunk_size}, {corpus_chunk_size}.")
    queries = np.atleast_2d(np.asarray(query_embeddings, np.float32))
    if queries.shape[1:] != corpus_embeddings.shape[1:]:
        raise SettingsError(
            f"queries have {queries.shape[-1]} dimensions, the corpus {corpus_embeddings.shape[-1]}."
        )
    rows = np.full((len(queries), k), -1, np.int64)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    for first in range(0, len(queries), query_chunk_size):
        chunk = slice(first, first + query_chunk_size)
        for start in range(0, len(corpus_embeddings), corpus_chunk_size):
            found = queries[chunk] @ np.asarray(corpus_embeddings[start : start + corpus_chunk_size]).T
            some = min(k, found.shape[1])
            best = np.sort(np.argpartition(found, found.shape[1] - some, axis=1)[:, -some:], axis=1)
            # Earlier rows stand first, so that a stable sort leaves ties to them.
            both = np.concatenate([scores[chunk], np.take_along_axis(found, best, axis=1)], axis=1)
            names = np.concatenate([rows[chunk], best + start], axis=1)
            order = np.argsort(-both, axis=1, kind="stable")[:, :k]
            scores[chunk] = np.take_along_axis(both, order, axis=1)
            rows[chunk] = np.take_along_axis(names, order, axis=1)
    return Ranking(rows, scores)
