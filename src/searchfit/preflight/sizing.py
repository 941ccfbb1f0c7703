"""How large a workspace gets: bytes by artefact, measured in one and told for another number of passages."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import numpy as np

from searchfit.config import IndexSettings
from searchfit.workspace import Workspace

_INDEX = r"index/[^/]+/"
_VECTORS = r"(encoded|encoded_tuned/[^/]+)/"
_POSTINGS = r"(places|frequencies|lengths|spans|ends|vocabulary)\.bin"

ARTEFACTS = {
    "texts": rf"(documents|passages)\.parquet|{_INDEX}(passages\.lance/.*|catalog\.parquet)",
    "passage vectors": rf"{_VECTORS}(passages|documents)\.npy|{_INDEX}(vectors|rows|documents)\.bin",
    "sentence vectors": rf"{_VECTORS}(sentences|offsets)\.npy|{_INDEX}(sentences|offsets)\.bin",
    "words": rf"{_VECTORS}(words\.bin|word_offsets\.npy)|{_INDEX}(words|word_offsets)\.bin",
    "keywords": rf"keyword/.*|{_INDEX}{_POSTINGS}",
    "approximate index": rf"{_INDEX}vectors\.lance/.*",
}
"""What grows with the passages, by name, as patterns of paths in a workspace. All else is bounded by
settings: models, questions, what was mined, the evaluation."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a workspace of so many passages: by artefact in `fit`, what the stages hand on, and in
    `index`, what is searched; `fixed` is all else. `postings` are the entries of the keyword index."""

    passages: int
    dimension: int
    postings: int
    fit: dict[str, int]
    index: dict[str, int]
    fixed: int

    @property
    def total(self) -> int:
        """Of the workspace."""
        return sum(self.fit.values()) + sum(self.index.values()) + self.fixed

    def at(self, passages: int, settings: IndexSettings) -> Sizes:
        """For another number of passages like these."""
        scale = passages / max(1, self.passages)
        index = {name: round(held * scale) for name, held in self.index.items()}
        # It is a second copy of the vectors and, for each, a bit a dimension and 17 bytes (docs/scale.md).
        large = passages > settings.exact_passages
        index["approximate index"] = round(passages * (4.125 * self.dimension + 17)) if large else 0
        fit = {name: round(held * scale) for name, held in self.fit.items()}
        return Sizes(passages, self.dimension, round(self.postings * scale), fit, index, self.fixed)


def sizes(space: Workspace) -> Sizes:
    """Measured in a finished workspace; a file under two names counts once, an index that is not
    served among what is fixed."""
    passages, dimension = np.load(space.artefact("encoded/passages.npy"), mmap_mode="r").shape
    postings = len(np.load(space.artefact("keyword/rows.npy"), mmap_mode="r"))
    fit, index = dict.fromkeys(ARTEFACTS, 0), dict.fromkeys(ARTEFACTS, 0)
    served = json.loads(space.artefact("engine.json").read_text(encoding="utf-8"))["index"]
    fixed, seen = 0, set()
    for file in sorted(space.path.rglob("*")):
        told = file.stat()
        if not file.is_file() or (told.st_dev, told.st_ino) in seen:
            continue
        seen.add((told.st_dev, told.st_ino))
        path = file.relative_to(space.path).as_posix()
        kind = next((name for name, pattern in ARTEFACTS.items() if re.fullmatch(pattern, path)), None)
        if kind is None or (path.startswith("index/") and not path.startswith(f"{served}/")):
            fixed += told.st_size
        else:
            (index if path.startswith("index/") else fit)[kind] += told.st_size
    return Sizes(passages, dimension, postings, fit, index, fixed)
