"""Training a re-ranker on what a fit left: its queries and mined negatives, judged on its own questions."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from searchfit.config import Settings
from searchfit.encoders import load_encoder, model_digest
from searchfit.encoders.corpus import encoded
from searchfit.encoders.cross import CrossEncoder
from searchfit.encoders.device import autocast, has_fast_bf16
from searchfit.encoders.trained import Trained
from searchfit.errors import SettingsError
from searchfit.fusion import Ranking
from searchfit.interaction import Questions, rank_words, word_scores
from searchfit.metrics import score_ranking
from searchfit.records import Engine
from searchfit.rerank import FOLDER, PairScores, Reranker, first_stage, rerank
from searchfit.screened import artefact
from searchfit.search import ArrayCorpus
from searchfit.significance import Comparison, compare_by
from searchfit.stages import Progress, silent
from searchfit.teachers import PassageTexts
from searchfit.training.loop import History, Loop, LoopOptions
from searchfit.training.rerank import Contrasts, RerankCourse
from searchfit.workspace import Workspace
from searchfit.writing import digest, write_bytes, write_json

CARD = "searchfit.json"
"""In the model's folder: what it was made from and how it did."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RerankerResult:
    """A trained re-ranker: its folder, the weight that did best on dev, and by split the comparison of
    nDCG@10 with re-ranking (b) against the workspace's engine without (a), on `kind` questions."""

    folder: Path
    queries: int
    steps: int
    best_step: int
    kind: str
    depth: int
    weight: float
    comparisons: dict[str, Comparison]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = {split: one.to_dict() for split, one in self.comparisons.items()}
        return {**asdict(self), "folder": str(self.folder), "comparisons": found}


def train_reranker(
    workspace: Path, output: Path, settings: Settings, progress: Progress = silent
) -> RerankerResult:
    """Train a cross-encoder on the mined queries of a fitted workspace and save it, in the layout of
    sentence-transformers' CrossEncoder, to the folder `output`. Killed, the same call carries on.

    Raises WorkspaceError for a workspace whose fit has not ended, SettingsError for an output folder that
    holds something else, or where there is nothing to learn from; ModelError for a base that cannot be had.
    """
    place = Workspace(workspace)
    place.require()
    if output.exists() and not (output / CARD).exists() and (output.is_file() or any(output.iterdir())):
        raise SettingsError(
            f"{output} is there and was not made by train-reranker.", "Name another folder with -o."
        )
    with place.lock():
        work = _Work(workspace, settings, progress)
        partial = _partial(output, work.key)
        model, history = work.train(partial)
        result = work.judge(model, history, partial, output)
        made = partial / "model"
        shutil.rmtree(made, ignore_errors=True)
        model.save(made)
        write_json(made / CARD, {"base": settings.rerank_training.base, **result.to_dict()})
        write_bytes(made / "course.csv", (partial / "course.csv").read_bytes())
        shutil.rmtree(output, ignore_errors=True)
        os.replace(made, output)
        shutil.rmtree(partial)
    return result


def _partial(output: Path, key: str) -> Path:
    """The folder of the work so far, with what a killed run of the same key left."""
    folder = output.with_name(f"{output.name}.partial")
    mark = folder / "key"
    if not mark.exists() or mark.read_text(encoding="ascii") != key:
        shutil.rmtree(folder, ignore_errors=True)
        write_bytes(mark, key.encode())
    return folder


class _Work:
    """What a fit left, as far as a re-ranker learns from it and is judged on it."""

    def __init__(self, workspace: Path, settings: Settings, progress: Progress) -> None:
        self.settings, self.options, self.progress = settings, settings.rerank_training, progress
        self.files = {
            name: artefact(workspace, name, stage)
            for name, stage in (
                ("mined", "mine"),
                ("passages.parquet", "split"),
                ("documents.parquet", "ingest"),
                ("models/trained", "train"),
                ("encoded", "encode"),
                ("encoded_tuned", "reencode"),
                ("keyword", "keyword"),
                ("evaluation/systems.json", "evaluate"),
                ("evaluation/queries.parquet", "evaluate"),
                ("evaluation/choice.json", "choose"),
            )
        }
        choice = json.loads(self.files["evaluation/choice.json"].read_text(encoding="utf-8"))
        self.engine = replace(
            first_stage(Engine(**choice["chosen"])), reranker=FOLDER, rerank_depth=settings.rerank.depth
        )
        self.texts = PassageTexts(self.files["passages.parquet"])
        documents = np.load(self.files["encoded"] / "documents.npy")
        self.data = Contrasts.load(self.files["mined"], documents, self.options, settings.mine, settings.seed)
        if not len(self.data):
            raise SettingsError(
                "there is nothing to learn from: no training query has both an answer and a wrong answer.",
                "Fit with more queries (generate.max_queries, mine.max_queries), or name labelled pairs.",
            )

    @property
    def key(self) -> str:
        """A hash of all that decides the outcome."""
        settings = self.settings
        parts = [
            settings.rerank_training.model_dump(mode="json"),
            settings.rerank.model_dump(mode="json", exclude={"model"}),
            settings.mine.model_dump(mode="json"),
            settings.model.model_dump(mode="json"),
            settings.seed,
            self.engine.to_dict(),
            model_digest(self.options.base),
            *(digest(path) for path in self.files.values()),
        ]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    def train(self, partial: Path) -> tuple[CrossEncoder, History]:
        """The model with the weights that did best on dev."""
        options, precision = self.options, self.settings.model.precision
        model = CrossEncoder.start(options.base, self.settings.model.device)
        fast = has_fast_bf16(model.model.device)
        model.bf16 = precision == "bf16" or (precision == "auto" and fast)
        course = RerankCourse(options, self.settings.seed, model, self.data, self.texts.take)
        questions = self.questions("dev", options.dev_queries)

        def measure(_: int) -> float:
            pairs = PairScores(lambda: Reranker(model), self.texts.take)
            return max(float(scores.mean()) for scores in questions.reranked(pairs).values())

        loop = Loop(
            model.model,
            course.loss,
            LoopOptions(
                steps=course.steps,
                learning_rate=options.learning_rate,
                weight_decay=options.weight_decay,
                warmup=options.warmup,
                accumulate=course.parts,
                checkpoint_steps=options.checkpoint_steps,
                measure_steps=max(1, -(-course.steps // options.measures)),
                seed=self.settings.seed,
                autocast=lambda: autocast(model.model.device, model.bf16),
            ),
            partial / "checkpoints",
            measure if len(questions) else None,
            [lambda step, _: self.progress("train", step, course.steps)],
        )
        history = loop.run()
        history.write_csv(partial / "course.csv", course.per_epoch)
        return model, history

    def judge(self, model: CrossEncoder, history: History, partial: Path, output: Path) -> RerankerResult:
        """The weight that is best on dev, and what it brings there and on test."""
        pairs = PairScores(lambda: Reranker(model), self.texts.take, partial / "pairs.npz")
        found: dict[str, tuple[Floats, dict[float, Floats]]] = {}
        for number, split in enumerate(("dev", "test")):
            self.progress("judge", number, 2)
            questions = self.questions(split, self.settings.rerank.max_queries)
            found[split] = questions.plain(), questions.reranked(pairs)
        means = {weight: float(scores.sum()) for weight, scores in found["dev"][1].items()}
        weight = max(means, key=lambda weight: means[weight])
        comparisons = {
            split: compare_by(self.settings, plain, reranked[weight])
            for split, (plain, reranked) in found.items()
        }
        systems = json.loads(self.files["evaluation/systems.json"].read_text(encoding="utf-8"))
        return RerankerResult(
            output,
            len(self.data),
            len(history.losses),
            history.best_step,
            systems["questions"],
            self.engine.rerank_depth,
            weight,
            comparisons,
        )

    def questions(self, split: str, most: int) -> _Questions:
        """At most so many of the fit's questions of a split, with the engine's ranking."""
        table = pq.read_table(self.files["evaluation/queries.parquet"], columns=["text", "split", "relevant"])
        mine = np.flatnonzero(table["split"].to_numpy() == split)
        chosen = table.take(np.sort(np.random.default_rng(self.settings.seed).permutation(mine)[:most]))
        texts = chosen["text"].to_pylist()
        tower, plain = self.engine.document_tower, first_stage(self.engine)
        corpus = ArrayCorpus.load(encoded(self.files, tower), self.files["keyword"])
        trained = Trained.load(self.files["models/trained"])
        encoder = trained.encoder(load_encoder(self.settings.model), plain.query_tower)
        width = max(10, self.engine.rerank_depth)
        vectors, tokens = encoder.encode_questions(texts)
        asked = Questions(texts, vectors, word_scores(corpus, corpus.words, texts, tokens))
        ranking = rank_words([plain], corpus, asked, width)[0]
        ids = pq.read_table(self.files["documents.parquet"], columns=["id"])["id"].to_pylist()
        names = [[ids[corpus.documents[row]] if row >= 0 else "" for row in own] for own in ranking.rows]
        weights = self.settings.rerank.weights
        return _Questions(texts, chosen["relevant"].to_pylist(), ranking, names, self.engine, weights)


@dataclass(frozen=True, slots=True)
class _Questions:
    """Questions (n), the ids of the documents that answer each, the engine's ranking of passages (n, k) and
    the ids of their documents ("" where there is none)."""

    texts: list[str]
    relevant: list[list[str]]
    ranking: Ranking
    names: list[list[str]]
    engine: Engine
    weights: Iterable[float]

    def __len__(self) -> int:
        return len(self.texts)

    def plain(self) -> Floats:
        """(n) nDCG@10 without re-ranking, answers counted alike whatever their grade."""
        return self._ndcg(self.ranking)

    def reranked(self, pairs: PairScores) -> dict[float, Floats]:
        """(n) nDCG@10 with re-ranking, by weight."""
        raw = pairs(self.texts, self.ranking.rows[:, : self.engine.rerank_depth])
        return {
            weight: self._ndcg(rerank(replace(self.engine, rerank_weight=weight), self.ranking, raw))
            for weight in self.weights
        }

    def _ndcg(self, ranking: Ranking) -> Floats:
        scores = []
        for names, before, after, relevant in zip(
            self.names, self.ranking.rows.tolist(), ranking.rows.tolist(), self.relevant, strict=True
        ):
            name = dict(zip(before, names, strict=True))
            order = [name[row] for row in after if row >= 0]
            scores.append(score_ranking(order, dict.fromkeys(relevant, 1))["ndcg@10"])
        return np.array(scores, np.float64)
