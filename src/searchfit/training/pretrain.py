"""Pretraining: the encoder reads the passages, without any query, before it is tuned.

"tsdae" makes it squeeze a passage with most of its words deleted into one vector from which a decoder can
write the whole passage (Wang, Reimers, Gurevych 2021, "TSDAE: Using Transformer-based Sequential Denoising
Auto-Encoder for Unsupervised Sentence Embedding Learning"). "mlm" makes it guess hidden tokens (Devlin et
al. 2019, "BERT"; Gururangan et al. 2020, "Don't Stop Pretraining").
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from searchfit.config import ModelSettings, PretrainSettings
from searchfit.encoders import locate
from searchfit.encoders.build import has_two_towers, same, towers_of, transformer_folder
from searchfit.encoders.sentence import SentenceEncoder
from searchfit.errors import SettingsError
from searchfit.training import parallel
from searchfit.training.denoise import Denoising
from searchfit.training.loop import History, Loop, LoopOptions
from searchfit.training.texts import Batches, Texts, write_texts
from searchfit.training.unmask import Masking

if TYPE_CHECKING:
    import torch

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Pretrained:
    """The encoder with its new weights, the losses, and the steps of an epoch. `fresh_head`: mlm began with a
    language model head at random, for the checkpoint has none of its own."""

    encoder: SentenceEncoder
    history: History
    steps_per_epoch: int
    fresh_head: bool


def check_pretrain(model: ModelSettings, settings: PretrainSettings) -> None:
    """Refuse an objective that the model cannot learn, before hours of work, from its config alone.

    Raises SettingsError that says what to do instead, ModelError when there is no such model.
    """
    if settings.objective == "none":
        return
    folder = locate(model.name)
    kind = _model_type(folder)
    asked = f'pretrain.objective = "{settings.objective}"'
    if not kind:
        raise SettingsError(f"{asked}, but the model {model.name} has no transformer.", "Use another model.")
    if has_two_towers(folder):
        raise SettingsError(
            f"{asked}, but the model {model.name} has two towers.",
            "Pretrain the model that its towers began from.",
        )
    if settings.objective == "mlm" and not _can_unmask(kind):
        raise SettingsError(
            f"{asked}, but {kind} models are no masked language models.",
            'Set pretrain.objective = "none", or use a model such as BERT, RoBERTa, MPNet or ModernBERT.',
        )
    if settings.objective == "tsdae" and not _can_decode(kind):
        instead = 'Set pretrain.objective = "mlm"' if _can_unmask(kind) else 'Set pretrain.objective = "none"'
        raise SettingsError(
            f"{asked}, but {kind} models cannot be the decoder that it needs.",
            f"{instead}, or use a model such as BERT, RoBERTa or ELECTRA.",
        )


def warns(model: ModelSettings, settings: PretrainSettings) -> tuple[str, ...]:
    """What the report should say of an objective that is allowed but seldom helps."""
    if settings.objective != "tsdae" or not (locate(model.name) / "modules.json").exists():
        return ()
    return (
        f"TSDAE was put on {model.name}, which has modules of its own and so was most likely tuned for "
        "similarity or retrieval. TSDAE is known to make such models worse: it is meant for raw encoders "
        "that are tuned afterwards.",
    )


def pretrain(
    encoder: SentenceEncoder,
    passages: Iterable[str],
    settings: PretrainSettings,
    seed: int,
    folder: Path,
    progress: Progress,
) -> Pretrained:
    """Pretrain a copy of an encoder on passages, which are read once, as they come; blank ones are left out.

    `folder` holds what a killed run goes on from: the same call then ends with the weights of an undisturbed
    run. Raises SettingsError where `check_pretrain` does, and when there is no passage; SearchfitError when
    the loss is no longer a number.
    """
    if settings.objective == "none":
        raise ValueError("there is nothing to pretrain")
    check_pretrain(encoder.settings, settings)
    if not same(*towers_of(encoder.model).values()):
        raise SettingsError(
            "A model of two towers cannot be pretrained.", "Pretrain the one they began from."
        )
    folder.mkdir(parents=True, exist_ok=True)
    if parallel.is_first():
        write_texts(folder / "passages.arrow", passages)
    # The other processes wait until the file is there, and read it where the first one wrote it.
    texts = Texts(parallel.first(folder / "passages.arrow"))
    if not len(texts.lengths):
        raise SettingsError("There are no passages to pretrain on.", 'Set pretrain.objective = "none".')
    batches = Batches(texts.lengths, settings.batch_size, seed)
    task: _Task = (
        Denoising(encoder, settings.deletion, seed, folder)
        if settings.objective == "tsdae"
        else Masking(encoder, settings, seed)
    )
    per_epoch = -(-batches.per_epoch // parallel.processes())
    options = LoopOptions(
        steps=per_epoch * settings.epochs,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup=settings.warmup,
        schedule=settings.schedule,
        checkpoint_steps=settings.checkpoint_steps,
        seed=seed,
        autocast=encoder.autocast,
    )

    def loss(step: int, part: int) -> torch.Tensor:
        random = np.random.default_rng((seed, step, part, parallel.rank()))
        return task.loss(texts.take(batches.rows(step * parallel.processes() + parallel.rank())), random)

    def report(step: int, _values: Mapping[str, float]) -> None:
        progress("pretrain", step, options.steps)

    history = Loop(task.module, loss, options, folder / "checkpoints", reports=[report]).run()
    weights = {f"0.model.{name}": value.detach() for name, value in task.weights().items()}
    return Pretrained(encoder.with_towers(weights, weights, 1.0), history, per_epoch, task.fresh_head)


class _Task(Protocol):
    """A module that is trained, its loss on a batch of texts, and the encoder's weights in it."""

    @property
    def module(self) -> torch.nn.Module: ...

    @property
    def fresh_head(self) -> bool: ...

    def loss(self, texts: list[str], random: np.random.Generator) -> torch.Tensor: ...

    def weights(self) -> dict[str, torch.Tensor]: ...


def _model_type(folder: Path) -> str:
    file = transformer_folder(folder) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return str(config.get("model_type", ""))


def _can_unmask(model_type: str) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not _encoder_decoder(model_type)


def _can_decode(model_type: str) -> bool:
    """Whether the encoder's architecture has a causal form that attends to a vector from elsewhere."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    if model_type not in CAUSAL or not _can_unmask(model_type):
        return False
    return (
        "encoder_hidden_states"
        in inspect.signature(getattr(transformers, CAUSAL[model_type]).forward).parameters
    )


def _encoder_decoder(model_type: str) -> bool:
    from transformers import CONFIG_MAPPING

    return bool(getattr(CONFIG_MAPPING[model_type](), "is_encoder_decoder", False))
