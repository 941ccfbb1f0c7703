"""Word shingles: near-duplicate texts by their common runs of words (Broder 1997, "On the resemblance and
containment of documents")."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import scipy.sparse as sp

Hashes = npt.NDArray[np.uint64]

SIZE = 4
"""Words of a shingle."""

_BANDS, _BAND_ROWS = 32, 4  # texts of Jaccard .7 share a band with probability .9999, of .3 with .23
_UNIT = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")
_LOOKED = 256  # texts compared at once


def shingles(text: str, limit: int = 5000) -> Hashes:
    """Hashes of the distinct word 4-grams of a text's first `limit` words; of shorter texts, of all words."""
    words = _UNIT.findall(text.casefold())[:limit] or [text]
    grams = {" ".join(words[i : i + SIZE]) for i in range(max(1, len(words) - SIZE + 1))}
    digests = b"".join(
        hashlib.blake2b(gram.encode("utf-8", "replace"), digest_size=8).digest() for gram in grams
    )
    return np.frombuffer(digests, np.uint64)


def signatures(texts: Iterable[str], count: int, seed: int) -> npt.NDArray[np.uint32]:
    """(count, 128) MinHash values of so many texts."""
    random = np.random.default_rng(seed)
    size = _BANDS * _BAND_ROWS
    # Multiply-shift hashing on 64-bit words: odd multipliers, wrap-around, the high bits.
    a = random.integers(1, 1 << 63, size, dtype=np.uint64) | np.uint64(1)
    b = random.integers(0, 1 << 63, size, dtype=np.uint64)
    found = np.empty((count, size), np.uint32)
    for row, text in enumerate(texts):
        hashes = (shingles(text)[:, None] * a + b) >> np.uint64(32)
        found[row] = hashes.min(axis=0)
    return found


def alike(signed: npt.NDArray[np.uint32], threshold: float) -> Iterator[tuple[int, int]]:
    """Pairs of rows of signatures whose estimated Jaccard similarity reaches the threshold; of a group that
    shares a band, neighbours only."""
    for band in range(_BANDS):
        part = np.ascontiguousarray(signed[:, band * _BAND_ROWS : (band + 1) * _BAND_ROWS])
        keys = part.view(f"V{part.itemsize * _BAND_ROWS}").ravel()
        _, number = np.unique(keys, return_inverse=True)
        order = np.argsort(number, kind="stable")
        same = np.flatnonzero(number[order[1:]] == number[order[:-1]])
        for left, right in zip(order[same], order[same + 1], strict=True):
            if np.mean(signed[left] == signed[right]) >= threshold:
                yield int(left), int(right)


def contained(
    texts: Sequence[str], others: Sequence[str]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """For each text (n) the row of the other text that holds most of its shingles, -1 where none holds any,
    and the share that it holds. Exact; memory grows with the texts' words and, by the block, with the
    others."""
    import scipy.sparse as sp

    own, theirs = [shingles(text) for text in texts], [shingles(text) for text in others]
    best, share = np.full(len(own), -1, np.int64), np.zeros(len(own))
    if not own or not theirs:
        return best, share
    known = np.unique(np.concatenate(own))
    table = _incidence(theirs, known).T.tocsc()
    lengths = np.array([len(hashes) for hashes in own])
    for start in range(0, len(own), _LOOKED):
        block = _incidence(own[start : start + _LOOKED], known)
        common = sp.csr_array(block @ table)
        for place, (a, b) in enumerate(zip(common.indptr[:-1], common.indptr[1:], strict=True), start):
            if b > a:
                at = a + int(np.argmax(common.data[a:b]))
                best[place], share[place] = common.indices[at], common.data[at] / lengths[place]
    return best, share


def _incidence(texts: Sequence[Hashes], known: Hashes) -> sp.csr_array:
    """A sparse 0/1 matrix (texts, known): which of the known shingles stand in which text."""
    import scipy.sparse as sp

    lengths = [len(hashes) for hashes in texts]
    every = np.concatenate(texts)
    place = np.minimum(np.searchsorted(known, every), len(known) - 1)
    there = known[place] == every
    rows = np.repeat(np.arange(len(texts)), lengths)[there]
    ones = np.ones(len(rows), np.int32)
    return sp.csr_array((ones, (rows, place[there])), shape=(len(texts), len(known)))
