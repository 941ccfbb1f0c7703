"""Multiple negatives ranking: a text answers its query, the other texts of the batch do not.

Source: Henderson et al. 2017, "Efficient Natural Language Response Suggestion for Smart Reply", section 4.4;
with a temperature, van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from searchfit.objectives import above_zero, similarity

if TYPE_CHECKING:
    import torch

# The usual scales: unit vectors need one (a temperature of 0.05), dot products have their own.
_SCALES = {"cosine": 20.0, "dot": 1.0}


def plain(
    module: Any, scale: float | None = None, similarity: str = "cosine", gather: bool = False
) -> torch.nn.Module:
    """Cross-entropy of each query's text among all texts of the batch, hard negatives included.

    `scale` multiplies the similarity (20 for cosine, 1 for dot when None); `gather` takes the texts of all
    processes as negatives.
    """
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    loss: torch.nn.Module = MultipleNegativesRankingLoss(module, **_common(scale, similarity, gather))
    return loss


def symmetric(
    module: Any, scale: float | None = None, similarity: str = "cosine", gather: bool = False
) -> torch.nn.Module:
    """The mean of `plain` and of its mirror image: each text's query among all queries of the batch.

    Source: Guenther et al. 2023, "Jina Embeddings 2".
    """
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    loss: torch.nn.Module = MultipleNegativesRankingLoss(
        module,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
        **_common(scale, similarity, gather),
    )
    return loss


def cached(
    module: Any,
    scale: float | None = None,
    similarity: str = "cosine",
    gather: bool = False,
    mini_batch: int = 32,
) -> torch.nn.Module:
    """`plain` in the memory of `mini_batch` rows, at the cost of a second forward pass.

    Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup".
    """
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    loss: torch.nn.Module = CachedMultipleNegativesRankingLoss(
        module,
        mini_batch_size=int(above_zero("mini_batch", mini_batch)),
        **_common(scale, similarity, gather),
    )
    return loss


def _common(scale: float | None, name: str, gather: bool) -> dict[str, Any]:
    function = similarity(name, pairwise=False)
    scale = _SCALES[name] if scale is None else above_zero("scale", scale)
    return {"scale": scale, "similarity_fct": function, "gather_across_devices": gather}
