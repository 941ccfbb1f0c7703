"""Query and document towers as one thing that the losses call like a model.

query      the query tower learns; documents enter as frozen vectors
shared     one model reads queries and documents
separate   two models with weights of their own
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from searchfit.errors import SettingsError

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer
    from torch import nn

    Features = dict[str, Any]

Task = Literal["query", "document"]
Kind = Literal["query", "shared", "separate"]

TOWER = "tower"
"""The feature that says which tower reads the others."""

CHUNK_TOKENS = 2_600
"""Padded tokens in one forward pass on a CPU: activations that stay in cache are the fastest."""


class Towers:
    """Routes features to their tower and returns {"sentence_embedding": (n, d) float32}.

    Features are what `TokenTable.collate` makes, or {"sentence_embedding": vectors} for documents whose
    vectors are known, which pass through. A tower reads its rows sorted by length in chunks of at most
    `chunk_tokens` padded tokens (None: all at once), so that little is padding; vectors come back in the
    order of the rows. `module` holds the weights that are trained.
    """

    def __init__(
        self,
        query: SentenceTransformer,
        document: SentenceTransformer | None,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
        chunk_tokens: int | None = CHUNK_TOKENS,
    ) -> None:
        from torch import nn

        self.query, self.document = query, document
        self.autocast, self.chunk_tokens = autocast, chunk_tokens
        parts: dict[str, nn.Module] = {"query": query}
        if document is not None and document is not query:
            parts["document"] = document
        self.module = nn.ModuleDict(parts)

    @classmethod
    def of(cls, kind: Kind, base: SentenceTransformer, **options: Any) -> Towers:
        """Towers that begin as copies of a model's own; `options` as in the constructor.

        Raises SettingsError for an unknown kind, or for "shared" on a model that has two towers already.
        """
        if kind == "query":
            return cls(copy.deepcopy(tower(base, "query")), None, **options)
        if kind == "separate":
            return cls(copy.deepcopy(tower(base, "query")), copy.deepcopy(tower(base, "document")), **options)
        if kind != "shared":
            raise SettingsError(f"The towers {kind!r} are unknown.", "Choose query, shared or separate.")
        if tower(base, "query") is not base:
            raise SettingsError(
                "The model has two towers, they cannot be trained as one.",
                "Use towers = separate or query, or begin from the model that it was made from.",
            )
        both = copy.deepcopy(base)
        return cls(both, both, **options)

    def part(self, task: Task) -> SentenceTransformer:
        """The model that reads queries or documents. Raises ValueError where documents are frozen."""
        if task == "query":
            return self.query
        if self.document is None:
            raise ValueError("the document tower is frozen: documents enter as vectors")
        return self.document

    def assemble(self, base: SentenceTransformer) -> SentenceTransformer:
        """One model with these weights, which `save_pretrained` saves with its routing; what was frozen is
        `base`'s."""
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Router

        if self.document is self.query:
            return self.query
        document = self.document if self.document is not None else tower(base, "document")
        router = Router.for_query_document(query_modules=list(self.query), document_modules=list(document))
        return SentenceTransformer(
            modules=[router],
            device=str(self.device),
            prompts=base.prompts,
            similarity_fn_name=base.similarity_fn_name,
        )

    def __call__(self, features: Features) -> Features:
        """As `forward`, which a loss may replace for a while (Matryoshka does)."""
        return self.forward(features)

    def forward(self, features: Features) -> Features:
        """{"sentence_embedding": (n, d)} of the rows of `features`, which are left as they are."""
        import torch

        if "sentence_embedding" in features:
            return {"sentence_embedding": features["sentence_embedding"]}
        part = self.part(features[TOWER])
        inner = {name: value for name, value in features.items() if name != TOWER}
        mask = inner["attention_mask"]
        groups = self._groups(mask)
        if len(groups) == 1:
            with self.autocast():
                return {"sentence_embedding": part(inner)["sentence_embedding"].float()}
        vectors = []
        for rows in groups:
            with self.autocast():
                vectors.append(part(_take(inner, rows, mask))["sentence_embedding"].float())
        back = torch.argsort(torch.cat(groups))
        return {"sentence_embedding": torch.cat(vectors)[back]}

    def _groups(self, mask: torch.Tensor) -> list[torch.Tensor]:
        """Row numbers by rising length, cut so that each group's padded tokens keep to the budget."""
        import torch

        if self.chunk_tokens is None or mask.numel() <= self.chunk_tokens:
            return [torch.arange(len(mask))]
        lengths = mask.sum(dim=1).cpu()
        order = torch.argsort(lengths, stable=True)
        groups, begin = [], 0
        for end, length in enumerate(lengths[order].tolist(), 1):
            if (end - begin) * length > self.chunk_tokens and end - 1 > begin:
                groups.append(order[begin : end - 1])
                begin = end - 1
        return [*groups, order[begin:]]

    def __getitem__(self, number: int) -> nn.Module:
        """The query tower's modules, as of a model."""
        module: nn.Module = self.query[number]
        return module

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.query.device
        return device

    def get_embedding_dimension(self) -> int:
        """Length of the vectors."""
        return int(self.query.get_embedding_dimension() or 0)


def tower(model: SentenceTransformer, task: Task) -> SentenceTransformer:
    """The part of a model that reads queries or documents: itself where there is only one."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Router

    first = model[0]
    if not isinstance(first, Router):
        return model
    return SentenceTransformer(
        modules=list(first.sub_modules[task]),
        device=str(model.device),
        prompts=model.prompts,
        similarity_fn_name=model.similarity_fn_name,
    )


def freeze_word_embeddings(module: nn.Module) -> int:
    """Take the input embeddings of every transformer inside out of training; how many numbers that froze."""
    from transformers import PreTrainedModel

    frozen = 0
    for inner in module.modules():
        if isinstance(inner, PreTrainedModel):
            weight = inner.get_input_embeddings().weight
            frozen += weight.numel() if weight.requires_grad else 0
            weight.requires_grad_(False)
    return frozen


def _take(features: Features, rows: torch.Tensor, mask: torch.Tensor) -> Features:
    """Some rows of a batch, without the columns that are padding in all of them."""
    import torch

    rows = rows.to(mask.device)
    used = mask[rows].any(dim=0).nonzero()
    first, last = int(used[0]), int(used[-1]) + 1
    taken: Features = {}
    for name, value in features.items():
        if not isinstance(value, torch.Tensor) or value.ndim == 0 or len(value) != len(mask):
            taken[name] = value
        elif value.ndim > 1 and value.shape[1] == mask.shape[1]:
            taken[name] = value[rows, first:last]
        else:
            taken[name] = value[rows]
    return taken
