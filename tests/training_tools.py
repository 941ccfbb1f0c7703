"""Small models and training sets for the tests of the training room and of the objectives."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from conftest import FRAMES, TOPICS

from searchfit.training.data import TrainingSet


def make_model(tiny: Path, folder: Path, pooling: str = "mean", prompts: dict[str, str] | None = None) -> Any:
    """The tiny BERT without dropout and without normalisation, with another pooling and prompts."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    shutil.copytree(tiny, folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}))
    transformer = Transformer(str(folder), max_seq_length=96)
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling)]
    return SentenceTransformer(modules=modules, device="cpu", prompts=prompts)


def sentences(count: int, seed: int = 0) -> list[str]:
    """Different sentences of one to four clauses."""
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        words = TOPICS[rng.choice(list(TOPICS))].split()
        clauses = [rng.choice(FRAMES).format(*rng.sample(words, 3)) for _ in range(rng.randint(1, 4))]
        found[" ".join(clauses)] = None
    return list(found)


def small_set(count: int = 12, negatives: int = 2, labels: str = "") -> TrainingSet:
    """Queries of a few words with their sentences; labels "binary", "graded", "scores" or none."""
    rng = np.random.default_rng(1)
    texts = sentences(count * (1 + negatives))
    rows = np.arange(len(texts)).reshape(1 + negatives, count).T.copy()
    queries = [" ".join(texts[i].split()[1:6]) + f" {place}" for place, i in enumerate(rows[:, 0])]
    made: Any = {
        "": None,
        "binary": (np.arange(count) % 2).astype(np.float32),
        "graded": rng.random(count).astype(np.float32),
        "scores": rng.random(rows.shape).astype(np.float32),
    }[labels]
    return TrainingSet(queries, texts, rows, made)
