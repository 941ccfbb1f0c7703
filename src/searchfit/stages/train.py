"""Train: query-side tuning. Passage vectors are frozen; the query encoder learns the teacher's ranking.

The student's score is the engine's own dense leg (passage, best sentence, or the mean of both), so what is
trained is what is served, and the index need not be rebuilt. Steps are a function of the seed alone:
a run resumed from a complete checkpoint gives the weights of an undisturbed one.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from searchfit.config import Settings, TrainSettings
from searchfit.encoders import load_encoder
from searchfit.encoders.sentence import on_device
from searchfit.fusion import Rows
from searchfit.objectives.distill import listwise_kl
from searchfit.records import StageResult
from searchfit.search import ArrayCorpus
from searchfit.stages import Tools
from searchfit.workspace import sync_file, write_json

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

VERSION = 1


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Write models/trained/: query_tower.safetensors (absent when nothing was trained) and losses.json."""
    folder = tools.output / "models" / "trained"
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.load(inputs["mined"] / "queries.npy")
    why_not = _why_not(len(rows), settings.train)
    if why_not:
        write_json(folder / "losses.json", [])
        return StageResult(counts={"steps": 0}, notes=(why_not,))
    texts = pq.read_table(inputs["pairs.parquet"], columns=["text"])["text"].take(rows).to_pylist()
    encoder = load_encoder(settings.model)
    trainer = _Trainer(
        settings, encoder.query_modules(), encoder.autocast, _Lists.load(inputs, settings), texts
    )
    losses = trainer.fit(tools)
    _save_weights(trainer.model, folder / "query_tower.safetensors")
    write_json(folder / "losses.json", losses)
    tail = losses[-max(1, len(losses) // 10) :]
    return StageResult(
        counts={
            "queries": len(rows),
            "steps": len(losses),
            "first loss": round(losses[0], 4),
            "last losses, mean": round(sum(tail) / len(tail), 4),
        }
    )


def _why_not(count: int, settings: TrainSettings) -> str:
    if not settings.enabled:
        return "Training is switched off (train.enabled = false)."
    if count < settings.min_queries:
        least = settings.min_queries
        return f"Too few training queries: {count}, train.min_queries is {least}. Nothing was tuned."
    return ""


@dataclass(frozen=True, slots=True)
class _Lists:
    """For each training query its candidate passages and the teacher's scores, with the vectors to score."""

    corpus: ArrayCorpus
    units: str
    candidates: Rows
    scores: np.ndarray[Any, np.dtype[np.float32]]
    negatives: Rows
    negative_scores: np.ndarray[Any, np.dtype[np.float32]]

    @classmethod
    def load(cls, inputs: Mapping[str, Path], settings: Settings) -> _Lists:
        names = ("passages", "scores", "negatives", "negative_scores")
        return cls(
            ArrayCorpus.load(inputs["encoded"], inputs["keyword"]),
            settings.engine.units,
            *(np.load(inputs["mined"] / f"{name}.npy") for name in names),
        )

    def teacher(self, batch: Rows) -> torch.Tensor:
        """(batch, candidates + negatives) teacher scores."""
        import torch

        return torch.from_numpy(np.concatenate([self.scores[batch], self.negative_scores[batch]], axis=1))

    def student(self, batch: Rows, queries: torch.Tensor) -> torch.Tensor:
        """(batch, candidates + negatives) dense scores of the query vectors, differentiable."""
        import torch

        # Each passage of the batch is read and scored once, for every query of the batch.
        rows, place = np.unique(
            np.concatenate([self.candidates[batch].ravel(), self.negatives]), return_inverse=True
        )
        block = self.corpus.take(rows)
        scores = torch.zeros(len(batch), len(rows))
        if self.units != "sentence":
            scores = queries @ torch.from_numpy(block.passages).T
        if self.units != "passage":
            each = queries @ torch.from_numpy(block.sentences).T
            owner = torch.from_numpy(np.repeat(np.arange(len(rows)), np.diff(block.offsets)))
            best = torch.full((len(batch), len(rows)), -torch.inf)
            best = best.scatter_reduce(1, owner.expand_as(each), each, "amax")
            scores = best if self.units == "sentence" else (scores + best) / 2
        split = self.candidates[batch].size
        own = torch.from_numpy(place[:split].reshape(len(batch), -1))
        shared = torch.from_numpy(place[split:])
        return torch.cat([scores.gather(1, own), scores[:, shared]], dim=1)


class _Trainer:
    """AdamW with linear warm-up and decay; everything that changes from step to step is in the checkpoint."""

    def __init__(
        self, settings: Settings, model: SentenceTransformer, autocast: Any, lists: _Lists, texts: list[str]
    ) -> None:
        import torch

        self.settings, self.seed = settings.train, settings.seed
        self.prompt = model.prompts.get("query") or None
        self.model, self.autocast, self.lists, self.texts = model, autocast, lists, texts
        self.model.train()
        self.per_epoch = math.ceil(len(texts) / self.settings.batch_size)
        self.steps = self.per_epoch * self.settings.epochs
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
            fused=True,
        )
        warm = max(1, round(self.steps * self.settings.warmup))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: min((step + 1) / warm, (self.steps - step) / max(1, self.steps - warm)),
        )

    def fit(self, tools: Tools) -> list[float]:
        """Train to the end; the loss of each step."""
        folder = tools.output / "checkpoints"
        losses = self._resume(folder)
        for step in range(len(losses), self.steps):
            losses.append(self._step(step))
            tools.progress("train", step + 1, self.steps)
            if (step + 1) % self.settings.checkpoint_steps == 0 and step + 1 < self.steps:
                self._checkpoint(folder, losses)
        self.model.eval()
        return losses

    @cached_property
    def _lengths(self) -> Rows:
        return np.array([len(text) for text in self.texts])

    def _batches(self, epoch: int) -> list[Rows]:
        """The epoch's batches: shuffled, but of texts of like length, so that little is padding."""
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(len(self.texts))
        window = 16 * self.settings.batch_size
        parts = [order[begin : begin + window] for begin in range(0, len(order), window)]
        near = np.concatenate([part[np.argsort(self._lengths[part], kind="stable")] for part in parts])
        batches = np.split(near, range(self.settings.batch_size, len(near), self.settings.batch_size))
        return [batches[i] for i in random.permutation(len(batches))]

    def _step(self, step: int) -> float:
        import torch

        # The seed and the step decide the order and the dropout, so a resumed run takes the same steps.
        torch.manual_seed(self.seed * 1_000_003 + step)
        epoch, place = divmod(step, self.per_epoch)
        batch = self._batches(epoch)[place]
        features = self.model.preprocess([self.texts[i] for i in batch], prompt=self.prompt)
        features = {key: on_device(value, self.model.device) for key, value in features.items()}
        with self.autocast():
            vectors = self.model(features)["sentence_embedding"]
        queries = torch.nn.functional.normalize(vectors.float(), dim=-1).cpu()
        loss = listwise_kl(
            self.lists.student(batch, queries), self.lists.teacher(batch), self.settings.temperature
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return float(loss.detach())

    def _checkpoint(self, folder: Path, losses: list[float]) -> None:
        """Write beside, then rename: a checkpoint that has its name is complete."""
        from safetensors.torch import save_file

        beside, place = folder / "new.tmp", folder / f"step-{len(losses):08d}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        _save_weights(self.model, beside / "model.safetensors")
        moments = {
            f"{number}.{name}": value.contiguous()
            for number, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        save_file(moments, beside / "optimizer.safetensors")
        sync_file(beside / "optimizer.safetensors")
        write_json(beside / "losses.json", losses)
        os.replace(beside, place)
        for old in folder.glob("step-*"):
            if old != place:
                shutil.rmtree(old)

    def _resume(self, folder: Path) -> list[float]:
        from safetensors.torch import load_file

        done = max(folder.glob("step-*"), default=None)
        if done is None:
            return []
        self.model.load_state_dict(load_file(done / "model.safetensors"))
        losses: list[float] = json.loads((done / "losses.json").read_text(encoding="utf-8"))
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in load_file(done / "optimizer.safetensors").items():
            number, _, name = key.partition(".")
            state.setdefault(int(number), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.schedule.last_epoch = len(losses)
        for group, rate in zip(self.optimizer.param_groups, self.schedule.get_lr(), strict=True):
            group["lr"] = rate
        return losses


def _save_weights(model: SentenceTransformer, path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    sync_file(path)
