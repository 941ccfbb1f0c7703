"""Masked language modelling: hidden tokens of a passage are guessed from the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from searchfit.config import PretrainSettings
from searchfit.encoders import locate
from searchfit.encoders.build import towers_of, transformer_folder
from searchfit.encoders.device import model_errors
from searchfit.encoders.sentence import SentenceEncoder
from searchfit.errors import SettingsError
from searchfit.fusion import Rows

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""The label of a token that is not to be predicted, as torch's cross entropy has it."""


def mask_tokens(
    ids: Rows, words: Rows, share: float, vocabulary: tuple[int, int], random: np.random.Generator
) -> tuple[Rows, Rows]:
    """Hide `share` of the tokens: (batch, length) ids of which 80% of the hidden are the mask, 10% random and
    10% as they were, and labels, IGNORED where nothing is hidden (Devlin et al. 2019, "BERT").

    `words` (batch, length) numbers the word of each token, -1 for what is never hidden; tokens of one word
    are hidden together. Every text with a word loses at least one. `vocabulary` is the mask's id and the
    number of ids.
    """
    chance = np.take_along_axis(random.random(ids.shape), np.maximum(words, 0), axis=1)
    chance[words < 0] = 2.0
    hidden = (words >= 0) & ((chance < share) | (chance == chance.min(axis=1, keepdims=True)))
    how = random.random(ids.shape)
    mask, size = vocabulary
    changed = np.where(how < 0.8, mask, random.integers(size, size=ids.shape))
    return np.where(hidden & (how < 0.9), changed, ids), np.where(hidden, ids, IGNORED)


class Masking:
    """Masked language modelling, by the checkpoint's own head where it has one."""

    def __init__(self, encoder: SentenceEncoder, settings: PretrainSettings, seed: int) -> None:
        """Put the weights of a model of one tower below the head. Raises SettingsError for a tokenizer that
        cannot do what is asked."""
        import torch
        from transformers import AutoModelForMaskedLM

        transformer = towers_of(encoder.model)["document"][0]
        self._tokenizer, self._window = transformer.tokenizer, transformer.max_seq_length
        self._settings, self._device = settings, encoder.model.device
        if self._tokenizer.mask_token_id is None:
            raise SettingsError(
                'pretrain.objective = "mlm", but the model\'s tokenizer has no mask token.',
                'Set pretrain.objective = "none", or use another model.',
            )
        if settings.whole_words and not self._tokenizer.is_fast:
            raise SettingsError(
                "pretrain.whole_words needs a tokenizer that knows where words begin; the model's does not.",
                "Set pretrain.whole_words = false.",
            )
        source = transformer_folder(locate(encoder.settings.name))
        with model_errors(source), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # of a head that the checkpoint does not hold
            self.module, info = AutoModelForMaskedLM.from_pretrained(
                source, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
        base = f"{self.module.base_model_prefix}."
        self.fresh_head = any(not str(key).startswith(base) for key in info["missing_keys"])
        self.module.base_model.load_state_dict(_matching(transformer.model, self.module.base_model))
        self.module.base_model.register_forward_hook(self._pick)
        self.module.to(self._device)

    def loss(self, texts: list[str], random: np.random.Generator) -> torch.Tensor:
        """The mean cross entropy over the hidden tokens."""
        import torch

        batch = self._tokenizer(
            texts, truncation=True, max_length=self._window, padding=True, return_special_tokens_mask=True
        )
        ids, special = (np.asarray(batch.pop(key)) for key in ("input_ids", "special_tokens_mask"))
        owners = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        if self._settings.whole_words:
            rows = (batch.word_ids(row) for row in range(len(texts)))
            owners = np.array([[-1 if word is None else word for word in row] for row in rows])
        owners = np.where(special == 1, -1, owners)
        mask, size = self._tokenizer.mask_token_id, len(self._tokenizer)
        hidden, labels = mask_tokens(ids, owners, self._settings.masked, (mask, size), random)
        self._places = torch.as_tensor(labels != IGNORED)
        features = {**batch, "input_ids": hidden, "labels": labels[labels != IGNORED][None]}
        tensors = {key: torch.as_tensor(np.asarray(value)) for key, value in features.items()}
        loss: torch.Tensor = self.module(**{key: v.to(self._device) for key, v in tensors.items()}).loss
        return loss

    def _pick(self, _module: Any, _given: Any, output: Any) -> Any:
        """Leave the head only the tokens that are to be guessed: scoring a vocabulary is half of the work."""
        output.last_hidden_state = output.last_hidden_state[self._places.to(self._device)][None]
        return output

    def weights(self) -> dict[str, torch.Tensor]:
        """The encoder's weights, by their names in it."""
        return dict(self.module.base_model.state_dict())


def _matching(encoder: torch.nn.Module, base: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The encoder's weights that the base of a language model has too (it goes without a pooler)."""
    wanted = base.state_dict().keys()
    return {name: value for name, value in encoder.state_dict().items() if name in wanted}
