"""Training objectives by name, each a small file on sentence-transformers' own losses.

mnr, mnr-cached, mnr-symmetric     a text answers its query, the other texts of the batch do not
distill                            the order of a teacher over each query's texts
margin-mse                         a teacher's margins between the answer and the negatives
contrastive, online-contrastive    pairs with labels 0 and 1, kept a margin apart
cosine                             pairs with a similarity from 0 to 1
triplet                            the answer nearer than each negative, by a margin
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from searchfit.errors import SettingsError

if TYPE_CHECKING:
    import torch

Need = Literal["pairs", "negatives", "scores", "binary labels", "labels"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Where an objective is made (`builder` of the file `module`), what it needs of the training set, and
    whether texts of a batch stand as negatives for each other's queries."""

    module: str
    builder: str
    needs: Need
    in_batch: bool = False


OBJECTIVES: dict[str, Recipe] = {
    "mnr": Recipe("mnr", "plain", "pairs", in_batch=True),
    "mnr-cached": Recipe("mnr", "cached", "pairs", in_batch=True),
    "mnr-symmetric": Recipe("mnr", "symmetric", "pairs", in_batch=True),
    "distill": Recipe("distill", "distill", "scores"),
    "margin-mse": Recipe("margin_mse", "margin_mse", "scores"),
    "contrastive": Recipe("contrastive", "contrastive", "binary labels"),
    "online-contrastive": Recipe("contrastive", "online", "binary labels"),
    "cosine": Recipe("cosine", "cosine", "labels"),
    "triplet": Recipe("triplet", "triplet", "negatives"),
}


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss with its name, what it needs and whether it uses the batch's other texts as negatives."""

    name: str
    needs: Need
    in_batch: bool
    module: torch.nn.Module

    def check(self, rows: npt.NDArray[np.int64], labels: npt.NDArray[np.float32] | None) -> None:
        """Refuse a training set (its rows and labels) that the objective cannot learn from.

        Raises SettingsError that says what is missing.
        """
        if (rows[:, 0] < 0).any() or not len(rows):
            raise SettingsError(
                f"The objective {self.name!r} needs pairs of a query and a text; there are none."
            )
        few = int((rows >= 0).sum(axis=1).min()) - 1
        wrong = _contradiction(self.needs, few, rows.shape[1] - 1, labels)
        if wrong:
            raise SettingsError(f"The objective {self.name!r} {wrong[0]}.", wrong[1])

    def loss(self, features: Sequence[dict[str, Any]], labels: torch.Tensor | None) -> torch.Tensor:
        """The mean loss of a batch: features of the queries, then of each column of texts; labels (b) or
        (b, columns), or None where none are needed."""
        value: torch.Tensor = self.module(list(features), labels)
        return value


def load_objective(name: str, module: Any, options: Mapping[str, Any] | None = None) -> Objective:
    """An objective by name over `module`, which is called with features and returns "sentence_embedding".

    `options` are the keywords of its builder, and `matryoshka`: lengths at which the vectors' beginnings are
    trained too (Kusupati et al. 2022, "Matryoshka Representation Learning"). Raises SettingsError for an
    unknown name or option, or a value that it cannot have.
    """
    if name not in OBJECTIVES:
        raise SettingsError(f"The objective {name!r} is unknown.", f"Choose one of: {', '.join(OBJECTIVES)}.")
    recipe = OBJECTIVES[name]
    own = dict(options or {})
    dims = tuple(own.pop("matryoshka", ()))
    build = getattr(importlib.import_module(f"searchfit.objectives.{recipe.module}"), recipe.builder)
    allowed = [key for key in inspect.signature(build).parameters if key != "module"]
    for key in own:
        if key not in allowed:
            raise SettingsError(
                f"The objective {name!r} has no option {key!r}.",
                f"Its options: {', '.join([*allowed, 'matryoshka'])}.",
            )
    loss = build(module, **own)
    if dims:
        loss = _matryoshka(module, loss, dims, own)
    return Objective(name, recipe.needs, recipe.in_batch, loss)


def similarity(name: str, pairwise: bool) -> Any:
    """sentence-transformers' function for "cosine" or "dot", of all pairs or of equal rows.

    Raises SettingsError for another name.
    """
    from sentence_transformers import util

    found = {
        "cosine": (util.cos_sim, util.pairwise_cos_sim),
        "dot": (util.dot_score, util.pairwise_dot_score),
    }
    return found[one_of("similarity", name, tuple(found))][pairwise]


def one_of(option: str, value: str, allowed: Sequence[str]) -> str:
    """The value, if it is allowed; else SettingsError."""
    if value not in allowed:
        raise SettingsError(f"The {option} {value!r} is unknown.", f"Choose one of: {', '.join(allowed)}.")
    return value


def above_zero(option: str, value: float) -> float:
    """The value, if it is a positive number; else SettingsError."""
    if not 0 < value < float("inf"):
        raise SettingsError(f"{option} is {value}; a positive number is needed.")
    return value


def _matryoshka(module: Any, loss: Any, dims: tuple[int, ...], options: Mapping[str, Any]) -> Any:
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss

    whole = module.get_embedding_dimension()
    if min(dims) < 1 or max(dims) > whole:
        raise SettingsError(f"matryoshka is {list(dims)}; lengths from 1 to the model's {whole} are needed.")
    if options.get("similarity") == "dot":
        raise SettingsError(
            "matryoshka scales shortened vectors to unit length, a dot product would lose the lengths.",
            "Use similarity = cosine, or no matryoshka.",
        )
    return MatryoshkaLoss(module, loss, sorted({*dims, whole}, reverse=True))


def _contradiction(
    needs: Need, few: int, most: int, labels: npt.NDArray[np.float32] | None
) -> tuple[str, str] | None:
    """What a training set lacks, and what to do; `few` and `most` are its least and most negatives."""
    scored = labels is not None and labels.ndim == 2
    flat = labels if labels is not None and labels.ndim == 1 else np.empty(0, np.float32)
    answers, texts, own = needs in ("pairs", "negatives"), needs in ("negatives", "scores"), "labels" in needs
    low, high = flat.min(initial=0), flat.max(initial=1)
    between = needs == "binary labels" and not np.isin(flat, (0, 1)).all()
    troubles = (
        (
            answers and (flat <= 0).any(),
            f"takes every text as an answer, but {int((flat <= 0).sum())} pairs are labelled as none",
            "Leave those pairs out, or choose contrastive or cosine.",
        ),
        (
            texts and few < 1,
            "needs at least one negative for each query, some have none",
            "Mine negatives first.",
        ),
        (
            needs == "scores" and not scored,
            "needs a teacher's scores of every text",
            "Score the texts with a teacher, or choose triplet or mnr.",
        ),
        (
            own and not len(flat),
            "needs a label for each pair",
            "Give labelled pairs, or choose mnr.",
        ),
        (
            own and most > 0,
            "takes pairs, not negatives",
            "Turn the negatives into pairs with the label 0.",
        ),
        (between, "needs labels that are 0 or 1", "Choose cosine for labels in between."),
        (
            own and (low < 0 or high > 1),
            "needs labels from 0 to 1",
            f"They reach from {low:g} to {high:g}: rescale them.",
        ),
    )
    return next(((said, hint) for wrong, said, hint in troubles if wrong), None)
