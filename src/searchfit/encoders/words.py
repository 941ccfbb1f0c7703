"""The words of a text by the tokens that an encoder reads: word pieces joined, punctuation left out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from searchfit.fusion import Floats, Vectors
from searchfit.interaction import centred
from searchfit.keyword import UNSPACED

Flags = npt.NDArray[np.bool_]


def word_vectors(tokens: Vectors, spans: npt.NDArray[np.int64], text: str, centre: Floats) -> Vectors:
    """(w, d) a vector for each word of a text: the sum of its pieces' vectors, centred. `tokens` (t, d) stand
    at `spans` (t, 2) of the text, (0, 0) for those that are no part of it."""
    real = spans[:, 1] > spans[:, 0]
    if not real.any():
        return np.empty((0, tokens.shape[1]), np.float32)
    begins, words = word_borders(spans[real], text)
    starts = np.flatnonzero(begins)
    joined: Vectors = np.add.reduceat(centred(tokens[real], centre), starts, axis=0)
    return joined[words[starts]]


def word_borders(spans: npt.NDArray[np.int64], text: str) -> tuple[Flags, Flags]:
    """Which of the tokens at `spans` (t, 2) of a text begin a word, and which hold a letter or digit."""
    begins, words = np.ones(len(spans), np.bool_), np.zeros(len(spans), np.bool_)
    before = -1
    for place, (start, end) in enumerate(spans.tolist()):
        words[place] = any(map(str.isalnum, text[start:end]))
        if place and start == before and words[place] and words[place - 1]:
            # Some tokenizers count the blank before a word to it; and scripts without blanks have none.
            begins[place] = text[start].isspace() or bool(UNSPACED.match(text, start))
        before = end
    return begins, words
