"""Token ids, made once and padded anew for each batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from searchfit.encoders.device import on_device
from searchfit.errors import ModelError
from searchfit.fusion import Rows

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

# Texts in one call of the tokenizer.
_BLOCK = 1024
_MASK = "attention_mask"
# Names under which sentence-transformers models keep the text to put before a query or a document.
_PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}


def prompt_of(model: SentenceTransformer, task: str) -> str | None:
    """The text that the model puts before a query or a document, as encode_query and encode_document do."""
    # The first that is there counts, an empty one too.
    return next((model.prompts[name] for name in _PROMPTS[task] if name in model.prompts), None) or None


@dataclass(frozen=True, slots=True)
class TokenTable:
    """What a model's tokenizer makes of some texts: per text its tokens, without padding.

    `flat` holds each feature's numbers of all texts one after another, text i from offsets[i] to
    offsets[i + 1]; `constants` the features that are the same for every text (as the prompt's length).
    """

    offsets: npt.NDArray[np.int64]
    flat: dict[str, npt.NDArray[Any]]
    constants: dict[str, Any]
    padding: dict[str, int]
    left: bool

    @classmethod
    def build(cls, model: SentenceTransformer, texts: Sequence[str], task: str) -> TokenTable:
        """Tokenise texts as the model would read them as queries or documents.

        Raises ModelError for a model that does not read padded token ids, as static embeddings.
        """
        prompt = prompt_of(model, task)
        pieces: dict[str, list[npt.NDArray[Any]]] = {}
        constants: dict[str, Any] = {}
        lengths: list[npt.NDArray[np.int64]] = []
        for begin in range(0, len(texts), _BLOCK):
            features = model.preprocess(list(texts[begin : begin + _BLOCK]), prompt=prompt)
            if _MASK not in features:
                raise ModelError(
                    f"A model that begins with {type(model[0]).__name__} cannot be trained here.",
                    "A transformer that reads token ids is needed.",
                )
            mask = features.pop(_MASK).numpy().astype(bool)
            lengths.append(mask.sum(axis=1))
            for name, value in features.items():
                if getattr(value, "shape", None) == mask.shape:
                    array = value.numpy()[mask]
                    small = np.min_scalar_type(int(array.max(initial=0)))
                    pieces.setdefault(name, []).append(array.astype(small))
                else:
                    constants[name] = value
        return cls(
            np.concatenate([[0], *lengths]).cumsum(),
            {name: np.concatenate(own) for name, own in pieces.items()},
            constants,
            {"input_ids": int(model.tokenizer.pad_token_id or 0)},
            model.tokenizer.padding_side == "left",
        )

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text, special tokens included, cut at the model's window."""
        return np.diff(self.offsets)

    def collate(self, rows: Rows, device: torch.device | None = None) -> dict[str, Any]:
        """Features of some texts, padded to the longest: what `model.preprocess` gives for them."""
        import torch

        lengths = self.lengths[rows]
        width = int(lengths.max())
        places = np.arange(width)
        mask = (places >= width - lengths[:, None]) if self.left else (places < lengths[:, None])
        inside = np.concatenate([np.arange(self.offsets[row], self.offsets[row + 1]) for row in rows])
        features = dict(self.constants)
        for name, flat in self.flat.items():
            block = np.full(mask.shape, self.padding.get(name, 0), np.int64)
            block[mask] = flat[inside]
            features[name] = torch.from_numpy(block)
        features[_MASK] = torch.from_numpy(mask.astype(np.int64))
        return features if device is None else {key: on_device(v, device) for key, v in features.items()}
