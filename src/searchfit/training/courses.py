"""From lessons to losses by step: the teacher's lists over frozen passages, or objectives over batches."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from searchfit.config import Settings, TrainSettings
from searchfit.encoders import locate
from searchfit.encoders.build import has_two_towers, transformer_folder
from searchfit.errors import MissingExtraError, SettingsError
from searchfit.fusion import Rows, Vectors
from searchfit.objectives import OBJECTIVES, Objective, load_objective
from searchfit.objectives.distill import listwise_kl
from searchfit.training import parallel
from searchfit.training.batches import Batches, BatchOptions, Mixture, share
from searchfit.training.data import Feed, TrainingSet
from searchfit.training.lessons import Lessons
from searchfit.training.lists import Lists
from searchfit.training.reporting import check_report
from searchfit.training.tokens import TokenTable
from searchfit.training.towers import TOWER, Towers

if TYPE_CHECKING:
    import torch


class Course(Protocol):
    """Says how many steps some epochs are, and the loss of each."""

    def steps(self, epochs: int) -> int:
        """Steps that take so many epochs."""

    def loss(self, step: int, part: int) -> torch.Tensor:
        """The mean loss of a part of a step; what is random in it follows from both."""


def check(settings: Settings) -> None:
    """Refuse settings that contradict each other, before hours of work. Raises SettingsError."""
    train = settings.train
    names(train)
    if settings.pretrain.objective != "none" and train.towers == "query":
        raise SettingsError(
            f'pretrain.objective = "{settings.pretrain.objective}" changes the vectors of passages, but '
            'train.towers = "query" keeps them.',
            'Set train.towers = "shared" or "separate".',
        )
    if train.data == "labelled" and not settings.pairs.file:
        raise SettingsError(
            'train.data = "labelled", but there are no labelled pairs.', "Name them with --pairs."
        )
    if train.lora_rank and train.freeze_embeddings:
        raise SettingsError(
            "train.lora_rank freezes the model's own weights, so train.freeze_embeddings says nothing.",
            "Leave one of them out.",
        )
    if train.lora_rank and importlib.util.find_spec("peft") is None:
        raise MissingExtraError("train.lora_rank", "lora")
    for name in train.report_to:
        check_report(name)
    if train.towers == "shared" and has_two_towers(locate(settings.model.name)):
        raise SettingsError(
            f'train.towers = "shared", but the model {settings.model.name} has two towers.',
            'Set train.towers = "separate" or "query", or begin from the model that it was made from.',
        )
    if train.matryoshka:
        _check_matryoshka(settings)


def _check_matryoshka(settings: Settings) -> None:
    asked = f"train.matryoshka = {list(settings.train.matryoshka)}"
    if settings.model.similarity == "dot":
        raise SettingsError(
            f'{asked} scales shortened vectors to unit length, model.similarity = "dot" needs their lengths.',
            "Leave one of them out.",
        )
    file = transformer_folder(locate(settings.model.name)) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    whole = settings.model.head_dim or int(config.get("hidden_size", 0))
    if min(settings.train.matryoshka) < 1 or (whole and max(settings.train.matryoshka) > whole):
        raise SettingsError(f"{asked}: lengths from 1 to the model's {whole or 'own'} are needed.")


def names(settings: TrainSettings) -> list[str]:
    """The objectives that are named. Raises SettingsError for an unknown one, or weights that do not fit."""
    found = [name.strip() for name in settings.objective.split(",")]
    for name in found:
        if name not in OBJECTIVES:
            raise SettingsError(
                f"train.objective {name!r} is not known.", f"There is: {', '.join(OBJECTIVES)}."
            )
    if settings.weights and len(settings.weights) != len(found):
        raise SettingsError(
            f"train.weights {list(settings.weights)} do not fit {len(found)} objectives.",
            "Give a positive number for each, in the same order.",
        )
    return found


def on_lists(settings: TrainSettings) -> bool:
    """Whether the teacher's whole lists can be learnt: passages are frozen, and it is the only objective."""
    return settings.towers == "query" and names(settings) == ["distill"] and not settings.matryoshka


class ListCourse:
    """The query tower learns the teacher's scores of a hundred candidates a query."""

    def __init__(self, settings: TrainSettings, seed: int, towers: Towers, queries: list[str], lists: Lists):
        self._settings, self._towers, self._lists = settings, towers, lists
        self._tokens = TokenTable.build(towers.query, queries, "query")
        data = TrainingSet(queries, [""], np.zeros((len(queries), 1), np.int64))
        options = BatchOptions(settings.batch_size, seed, distinct=False, multiple=parallel.processes())
        self._mixture = Mixture([Batches(data, self._tokens.lengths, options)], seed=seed)

    def steps(self, epochs: int) -> int:
        """See `Course.steps`."""
        return self._mixture.steps(epochs, self._settings.accumulate)

    def loss(self, step: int, part: int) -> torch.Tensor:
        """See `Course.loss`."""
        _, whole = self._mixture.batch(step * self._settings.accumulate + part)
        rows = share(whole, parallel.rank(), parallel.processes())
        features = self._tokens.collate(rows, self._towers.device) | {TOWER: "query"}
        vectors = self._towers(features)["sentence_embedding"]
        student, teacher = self._lists.student(rows, vectors.float().cpu()), self._lists.teacher(rows)
        return listwise_kl(student, teacher, self._settings.temperature)


@dataclass(frozen=True, slots=True)
class Frozen:
    """The untuned vectors of the corpus (n, d), and how they are compared: "cosine" or "dot", with the
    weight that brings a score to the teacher's scale."""

    vectors: Vectors
    similarity: str
    weight: float = 1.0

    def take(self, rows: Rows | None) -> Vectors:
        """The vectors of some passages. Raises ValueError for texts that are not in the corpus."""
        if rows is None:
            raise ValueError("frozen towers learn texts of the corpus only")
        return np.asarray(self.vectors[rows])


class SetCourse:
    """One objective or several, each over its training sets, batch by batch."""

    def __init__(self, settings: TrainSettings, seed: int, towers: Towers, lessons: Lessons, frozen: Frozen):
        self._settings = settings
        self._lessons: list[tuple[Objective, Feed]] = []
        sets: list[Batches] = []
        weights: list[float] = []
        for place, name in enumerate(names(settings)):
            objective = load_objective(name, towers, _options(name, settings, frozen))
            found = lessons.sets(objective.needs, towers.document is None)
            for lesson in found:
                objective.check(lesson.data.rows, lesson.data.labels)
                vectors = None if towers.document else frozen.take(lesson.passages)
                feed = Feed(lesson.data, towers, vectors)
                options = BatchOptions(
                    settings.batch_size, seed, distinct=objective.in_batch, multiple=parallel.processes()
                )
                self._lessons.append((objective, feed))
                sets.append(Batches(lesson.data, feed.lengths, options))
            if settings.weights:
                sizes = np.array([len(lesson.data) for lesson in found], float)
                weights += (settings.weights[place] * sizes / sizes.sum()).tolist()
        if not sets:
            raise SettingsError(
                f"train.objective {settings.objective!r} finds no pairs in train.data {settings.data!r}."
            )
        self._mixture = Mixture(sets, weights, seed)

    def steps(self, epochs: int) -> int:
        """See `Course.steps`."""
        return self._mixture.steps(epochs, self._settings.accumulate)

    def loss(self, step: int, part: int) -> torch.Tensor:
        """See `Course.loss`."""
        place, whole = self._mixture.batch(step * self._settings.accumulate + part)
        objective, feed = self._lessons[place]
        rows = share(whole, parallel.rank(), parallel.processes())
        return objective.loss(*feed.batch(rows))


def _options(name: str, settings: TrainSettings, frozen: Frozen) -> dict[str, Any]:
    """What of the settings an objective takes."""
    options: dict[str, Any] = {"matryoshka": settings.matryoshka} if settings.matryoshka else {}
    if name in ("distill", "margin-mse") or name.startswith("mnr"):
        options["similarity"] = frozen.similarity
    if name in ("distill", "margin-mse"):
        options["scale"] = frozen.weight
    if name == "distill":
        options["temperature"] = settings.temperature
    if name.startswith("mnr"):
        options["gather"] = parallel.processes() > 1
    if "contrastive" in name or name == "triplet":
        options |= {"margin": settings.margin, "distance": settings.distance}
    return options
