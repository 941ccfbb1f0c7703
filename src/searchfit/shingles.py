"""Word shingles: near-duplicate texts by their common runs of words (Broder 1997, "On the resemblance and
containment of documents")."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from searchfit.mapped import let_go, scratch_array

if TYPE_CHECKING:
    import scipy.sparse as sp

Hashes = npt.NDArray[np.uint64]

SIZE = 4
"""Words of a shingle."""

_BANDS, _BAND_ROWS = 32, 4  # texts of Jaccard .7 share a band with probability .9999, of .3 with .23
_UNIT = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")
_SIGNED = 4096  # texts signed before their values are written
_COMPARED = 1 << 16  # pairs compared at once
_LOOKED = 256  # texts compared at once


def shingles(text: str, limit: int = 5000) -> Hashes:
    """Hashes of the distinct word 4-grams of a text's first `limit` words; of shorter texts, of all words."""
    words = _UNIT.findall(text.casefold())[:limit] or [text]
    grams = {" ".join(words[i : i + SIZE]) for i in range(max(1, len(words) - SIZE + 1))}
    digests = b"".join(
        hashlib.blake2b(gram.encode("utf-8", "replace"), digest_size=8).digest() for gram in grams
    )
    return np.frombuffer(digests, np.uint64)


def signatures(
    texts: Iterable[str], count: int, seed: int, file: Path | None = None
) -> npt.NDArray[np.uint32]:
    """(32, count, 4) MinHash values of so many texts, by band: 512 bytes a text, in a file where one is
    named."""
    random = np.random.default_rng(seed)
    size = _BANDS * _BAND_ROWS
    # Multiply-shift hashing on 64-bit words: odd multipliers, wrap-around, the high bits.
    a = random.integers(1, 1 << 63, size, dtype=np.uint64) | np.uint64(1)
    b = random.integers(0, 1 << 63, size, dtype=np.uint64)
    signed = scratch_array(file, np.uint32, (_BANDS, count, _BAND_ROWS))
    part = np.empty((_SIGNED, size), np.uint32)
    rest, start = iter(texts), 0
    while found := list(islice(rest, _SIGNED)):
        for row, text in enumerate(found):
            hashes = (shingles(text)[:, None] * a + b) >> np.uint64(32)
            part[row] = hashes.min(axis=0)
        bands = part[: len(found)].reshape(-1, _BANDS, _BAND_ROWS)
        signed[:, start : start + len(found)] = bands.transpose(1, 0, 2)
        let_go(signed)
        start += len(found)
    return signed


def alike(signed: npt.NDArray[np.uint32], threshold: float) -> Iterator[tuple[int, int]]:
    """Pairs of rows of signatures whose estimated Jaccard similarity reaches the threshold; of a group that
    shares a band, neighbours only. Memory: some 50 bytes a row, whatever the rows share."""
    for band in signed:
        # The four values as two numbers, which sort fast; equal ones stay in the order of their rows.
        keys = np.ascontiguousarray(band).view(np.uint64)
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        keys = keys[order]
        same = np.flatnonzero((keys[1:] == keys[:-1]).all(axis=1))
        for start in range(0, len(same), _COMPARED):
            some = same[start : start + _COMPARED]
            left, right = order[some], order[some + 1]
            agree = sum((other[left] == other[right]).sum(axis=1) for other in signed)
            close = np.asarray(agree) / (_BANDS * _BAND_ROWS) >= threshold
            yield from zip(left[close].tolist(), right[close].tolist(), strict=True)
        let_go(signed)


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
