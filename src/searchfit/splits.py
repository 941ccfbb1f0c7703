"""Which questions train, and which judge."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from searchfit.config import HoldoutSettings, Settings
from searchfit.errors import SettingsError
from searchfit.generators import parts

JUDGE = b"judging generator"
"""In the metadata of holdout.parquet: the generator whose questions judge and do not train; absent for
none."""


def judging_generator(settings: Settings) -> str:
    """The generator whose questions are for dev and test alone, so that a model that learnt one writer's
    habits is not measured by them; "" where any may do both. Raises SettingsError for one that is not at
    hand."""
    wanted = settings.holdout.judge
    named = [part.name for part in parts(settings) if part.share > 0]
    if wanted == "any" or (wanted == "auto" and len(named) < 2):
        return ""
    if wanted == "auto":
        return named[-1]
    if wanted not in named or len(named) < 2:
        raise SettingsError(
            f"holdout.judge {wanted!r} is not one of several generators; there is: {', '.join(named)}.",
            'Name one of generate.generator, which has to name another one too, or write "auto" or "any".',
        )
    return wanted


def asked_split(id_: str) -> str:
    """Whether a judged question of the user's own chooses ("dev") or measures ("test")."""
    return "dev" if hashlib.blake2b(id_.encode()).digest()[0] % 2 else "test"


def divide(
    sizes: npt.NDArray[np.int64], order: Iterable[int], settings: HoldoutSettings
) -> npt.NDArray[np.str_]:
    """The split of each cluster of so many members: in the order given, test and then dev take whole clusters
    up to their shares; what is left, and what is not in the order, is "train"."""
    room = {"test": settings.test * sizes.sum(), "dev": settings.dev * sizes.sum()}
    split = np.full(len(sizes), "train", dtype="<U5")
    for place in order:
        # A cluster too large for what is left goes to train, and the next ones still fill test and dev.
        name = next((name for name in room if sizes[place] <= room[name] + 1e-9), "train")
        if name in room:
            room[name] -= sizes[place]
            split[place] = name
    return split


def document_splits(holdout: Path) -> npt.NDArray[np.str_]:
    """For each document "train", "dev" or "test", of holdout.parquet: 20 bytes each."""
    with pq.ParquetFile(holdout) as file:
        splits = np.empty(file.metadata.num_rows, "<U5")
        start = 0
        for batch in file.iter_batches(columns=["split"]):
            splits[start : start + batch.num_rows] = batch["split"].to_numpy(zero_copy_only=False)
            start += batch.num_rows
    return splits


def pair_splits(pairs: Path, holdout: Path) -> npt.NDArray[np.str_]:
    """For each row of pairs.parquet "train", "dev" or "test": the split of its document; "" for a question
    that its generator keeps out of that split."""
    table = pq.read_table(pairs, columns=["document", "generator"])
    own: npt.NDArray[np.str_] = document_splits(holdout)[table["document"].to_numpy()]
    judge = (pq.read_schema(holdout).metadata or {}).get(JUDGE)
    if judge is None:
        return own
    judges = np.array([name == judge.decode() for name in table["generator"].to_pylist()], bool)
    kept: npt.NDArray[np.str_] = np.where(judges == (own != "train"), own, "")
    return kept
