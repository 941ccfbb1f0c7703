"""Low-rank adapters: training a large encoder through small matrices beside its own, merged on saving."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from searchfit.errors import MissingExtraError, SettingsError

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

_ADAPTER = "default"


def lora_modules(
    model: SentenceTransformer, rank: int = 16, alpha: int = 32, targets: Sequence[str] = ()
) -> SentenceTransformer:
    """Put adapters of a rank, scaled by alpha / rank, into the transformers of a tower that is to be trained
    (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"), and return it.

    The transformers' own weights are frozen; a head stays as it is. `targets` are names of linear layers;
    without any, all linear layers of the transformer are taken (Dettmers et al. 2023, "QLoRA"). The vectors
    are those of the model without adapters until it is trained. Raises MissingExtraError without peft,
    SettingsError for a rank below 1, targets that are not there, or a model that has no transformer.
    """
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError("LoRA adapters", "lora")
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from sentence_transformers.sentence_transformer.modules import Transformer

    if rank < 1 or alpha < 1:
        raise SettingsError(f"LoRA adapters of rank {rank} and alpha {alpha}: both must be at least 1.")
    found = [module.model for module in model.modules() if isinstance(module, Transformer)]
    if not found:
        raise SettingsError("LoRA adapters need a transformer; the model has none.", "Train it without them.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for inner in found:
            names = _linear_layers(inner, targets)
            config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=names)
            inject_adapter_in_model(config, inner, adapter_name=_ADAPTER)
    return model


def merged(model: SentenceTransformer) -> dict[str, torch.Tensor]:
    """The weights of a tower with its adapters added into the layers that they stand beside, by the names
    that they have without adapters. The model stays as it is; without adapters its weights are returned."""
    import torch

    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    weights: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if ".lora_" in name:
                continue
            owner, inner, leaf = name.partition(".base_layer.")
            plain = f"{owner}.{leaf}" if inner else name
            adapted = inner and leaf == "weight"
            weights[plain] = value + _delta(layers[owner]).to(value) if adapted else value.clone()
    return weights


def _delta(layer: Any) -> torch.Tensor:
    delta: torch.Tensor = layer.get_delta_weight(_ADAPTER)
    return delta


def _linear_layers(model: torch.nn.Module, targets: Sequence[str]) -> list[str]:
    """Names of the layers to adapt. The pooler is left out: no sentence vector goes through it."""
    import torch

    linear = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    if not targets:
        return [name for name in linear if "pooler" not in name.split(".")]
    chosen = [name for name in linear if any(f".{name}".endswith(f".{target}") for target in targets)]
    if not chosen:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        raise SettingsError(f"No linear layer is named {', '.join(targets)}.", f"There are: {known}.")
    return chosen
