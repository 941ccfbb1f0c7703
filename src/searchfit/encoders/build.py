"""What a bi-encoder is made of: an encoder, pooling, an optional head, an optional normalisation.

The settings say what the model should have, not what to add: a saved model that has it stays as it is, so
that loading with the same settings again gives the same model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchfit.config import ModelSettings
from searchfit.errors import SettingsError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# The head's first weights follow from this and its dimensions, so that every load gives the same vectors.
_HEAD_SEED = 20_240_917

# Where sentence-transformers keeps the transformer when it is not at the top, by layout.
_TRANSFORMER_FOLDERS = ("document_0_Transformer", "query_0_Transformer", "0_Transformer")

# Architectures that number their positions from the padding token's id on, so that fewer are for tokens.
_SHIFTED = (
    *("camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta"),
    *("roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
)

Modules = list[Any]


def build(model: SentenceTransformer, settings: ModelSettings) -> SentenceTransformer:
    """The model with the pooling, head and normalisation that the settings ask for, in every tower.

    Returns `model` itself when it has all of that. Raises SettingsError when its modules do not allow it.
    """
    towers = towers_of(model)
    shaped = {task: _shaped(own, settings) for task, own in towers.items()}
    if all(same(shaped[task], own) for task, own in towers.items()):
        return model
    if same(*towers.values()):
        shaped["document"] = shaped["query"]
    return assemble(shaped, model)


def towers_of(model: SentenceTransformer) -> dict[str, Modules]:
    """The modules that a "query" and a "document" pass through: twice the same ones in a plain model."""
    from sentence_transformers.sentence_transformer.modules import Router

    first, *rest = list(model)
    if not isinstance(first, Router):
        return {"query": [first, *rest], "document": [first, *rest]}
    routes = {task: first.sub_modules[_route(first, task)] for task in ("query", "document")}
    return {task: [*own, *rest] for task, own in routes.items()}


def assemble(towers: Mapping[str, Modules], like: SentenceTransformer) -> SentenceTransformer:
    """A model of these "query" and "document" towers, with the prompts, similarity, dimensions and device of
    another one; a plain model when both towers are the same modules, else one with routes."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Router

    query, document = towers["query"], towers["document"]
    if same(query, document):
        modules = query
    else:
        modules = [Router.for_query_document(query_modules=query, document_modules=document)]
    model = SentenceTransformer(
        modules=modules,
        device=str(like.device),
        prompts=like.prompts,
        default_prompt_name=like.default_prompt_name,
        similarity_fn_name=like.similarity_fn_name,
        truncate_dim=like.truncate_dim,
    )
    return model.train(like.training)


def pooling_of(modules: Sequence[Any]) -> str:
    """The name of a tower's pooling, joined by "+" where it has several, "" where it has none."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    found = next((module for module in modules if isinstance(module, Pooling)), None)
    if found is None:
        return ""
    mode = found.pooling_mode
    return mode if isinstance(mode, str) else "+".join(mode)


def remarks(folder: Path, model: SentenceTransformer, settings: ModelSettings) -> tuple[str, ...]:
    """What the user should know about a model loaded from a folder: that pooling was chosen for them."""
    if (folder / "modules.json").exists() or settings.pooling:
        return ()
    mode = pooling_of(list(model))
    return (
        f"The model {settings.name} is a raw encoder that names no pooling: {mode} pooling was taken. "
        "Untuned, such a model seldom finds much.",
    )


def has_two_towers(folder: Path) -> bool:
    """Whether a saved model reads queries and documents with weights of their own."""
    return any((folder / sub).is_dir() for sub in ("document_0_Transformer", "query_0_Transformer"))


def transformer_folder(folder: Path) -> Path:
    """Where in a model's folder its (document tower's) transformer and tokenizer lie."""
    return next((folder / sub for sub in _TRANSFORMER_FOLDERS if (folder / sub).is_dir()), folder)


def window(folder: Path) -> int:
    """The most tokens that a transformer's folder allows for a text, special tokens included."""
    limits = positions(folder)
    for file, key in (
        ("tokenizer_config.json", "model_max_length"),
        ("sentence_bert_config.json", "max_seq_length"),
    ):
        if limit := _held(folder / file).get(key):
            limits.append(int(limit))
    return min(limits, default=512)


def positions(folder: Path) -> list[int]:
    """How many tokens a transformer has positions for, as often as its folder says so."""
    held = _held(folder / "config.json")
    taken = held.get("pad_token_id", 1) + 1 if held.get("model_type") in _SHIFTED else 0
    said = [held.get(key) for key in ("max_position_embeddings", "n_positions")]
    return [int(limit) - taken for limit in said if limit]


def _held(file: Path) -> dict[str, Any]:
    held: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return held


def same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two towers are the very same modules, so that what one learns the other knows."""
    return [id(module) for module in one] == [id(module) for module in other]


def _route(router: Any, task: str) -> str:
    name: str | None = router._resolve_route_name(task=task, modality="text")
    return name or router.default_route


def _shaped(modules: Modules, settings: ModelSettings) -> Modules:
    made = list(modules)
    if settings.pooling and pooling_of(made) != settings.pooling:
        made = _pooled(made, settings.pooling)
    if settings.head_dropout:
        made = _dropped(made, settings.head_dropout)
    if settings.head_dim:
        made = _projected(made, settings.head_dim)
    if settings.normalize != "auto":
        made = _normalized(made, settings.normalize)
    return made


def _pooled(modules: Modules, mode: str) -> Modules:
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

    place = next((i for i, module in enumerate(modules) if isinstance(module, Pooling)), None)
    first = modules[0]
    if place is None and not isinstance(first, Transformer):
        raise SettingsError(
            f'model.pooling = "{mode}", but a {type(first).__name__} gives no token vectors to pool.',
            "Leave model.pooling empty.",
        )
    old = modules[place] if place is not None else None
    width = old.embedding_dimension if old else first.get_embedding_dimension()
    rest = modules[1 if place is None else place + 1 :]
    head = next((module for module in rest if isinstance(module, Dense)), None)
    if head is not None and head.in_features != width:
        raise SettingsError(
            f'model.pooling = "{mode}" gives {width} dimensions, the model\'s own head takes '
            f"{head.in_features}.",
            "Leave model.pooling empty, or name the encoder without its head.",
        )
    pooling = Pooling(width, mode, include_prompt=old.include_prompt if old else True)
    before = modules[: 1 if place is None else place]
    return [*before, pooling, *rest]


def _dropped(modules: Modules, share: float) -> Modules:
    from sentence_transformers.sentence_transformer.modules import Dropout

    own = [module for module in modules if isinstance(module, Dropout)]
    if own and own[0].dropout == share:
        return modules
    kept = [module for module in modules if not isinstance(module, Dropout)]
    place = _after_pooling(kept, "model.head_dropout")
    return [*kept[:place], Dropout(share), *kept[place:]]


def _projected(modules: Modules, width: int) -> Modules:
    import torch
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize

    heads = [module for module in modules if isinstance(module, Dense)]
    if heads and heads[-1].out_features == width:
        return modules
    place = len(modules)
    while isinstance(modules[place - 1], Normalize):
        place -= 1
    _after_pooling(modules, "model.head_dim")
    before = next(m for m in reversed(modules[:place]) if hasattr(m, "get_embedding_dimension"))
    size = int(before.get_embedding_dimension())
    # Orthogonal rows keep the angles between vectors as well as so few dimensions can.
    weight = torch.nn.init.orthogonal_(
        torch.empty(width, size), generator=torch.Generator().manual_seed(_HEAD_SEED + size)
    )
    dense = Dense(size, width, bias=False, activation_function=torch.nn.Identity(), init_weight=weight)
    return [*modules[:place], dense, *modules[place:]]


def _normalized(modules: Modules, wanted: bool) -> Modules:
    from sentence_transformers.sentence_transformer.modules import Normalize

    ends = isinstance(modules[-1], Normalize)
    if wanted:
        return modules if ends else [*modules, Normalize()]
    kept = list(modules)
    while isinstance(kept[-1], Normalize):
        kept.pop()
    return kept


def _after_pooling(modules: Modules, setting: str) -> int:
    """Where a head begins."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    place = next((i for i, module in enumerate(modules) if isinstance(module, Pooling)), None)
    if place is None:
        raise SettingsError(
            f"{setting} is set, but the model is a {type(modules[0]).__name__} without pooling.",
            f"Leave {setting} at 0.",
        )
    return place + 1
