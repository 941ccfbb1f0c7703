"""TSDAE: a passage is written again from the vector of what is left of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from searchfit.encoders.build import towers_of
from searchfit.encoders.device import on_device
from searchfit.encoders.sentence import SentenceEncoder
from searchfit.text import words
from searchfit.training import parallel

if TYPE_CHECKING:
    import torch


def delete_words(text: str, share: float, random: np.random.Generator) -> str:
    """The text without `share` of its words, each with what follows it up to the next (Wang, Reimers,
    Gurevych 2021, "TSDAE", which found deletion of 0.6 the best noise). At least one word stays."""
    spans = words(text)
    if not spans:
        return text
    keep = random.random(len(spans)) >= share
    if not keep.any():
        keep[random.integers(len(spans))] = True
    starts = [0, *(start for start, _ in spans[1:]), len(text)]
    return "".join(text[starts[i] : starts[i + 1]] for i in np.flatnonzero(keep)).strip()


class Denoising:
    """TSDAE: encoder and decoder share their weights, but for the decoder's attention to the vector."""

    fresh_head = False

    def __init__(self, encoder: SentenceEncoder, deletion: float, seed: int, folder: Path) -> None:
        """Copy the encoder of a model of one tower. A file in `folder` is where the decoder is read from."""
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.losses import DenoisingAutoEncoderLoss
        from sentence_transformers.sentence_transformer.modules import Pooling

        own = towers_of(encoder.model)["document"]
        transformer = copy.deepcopy(own[0])
        # The decoder reads the pooled vector: a head would change its size, a normalisation its length.
        pooling = next(module for module in own if isinstance(module, Pooling))
        model = SentenceTransformer(modules=[transformer, pooling], device=str(encoder.model.device))
        source = folder / "decoder"
        if parallel.is_first():
            source.mkdir(exist_ok=True)
            transformer.save(str(source))
        parallel.first(None)  # the others wait until it is there
        transformer.model.config._name_or_path = str(source)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # of the decoder's attention to the vector, which no checkpoint holds
            self.module = DenoisingAutoEncoderLoss(model, tie_encoder_decoder=True)
        self.module.to(encoder.model.device)
        self._deletion = deletion

    def loss(self, texts: list[str], random: np.random.Generator) -> torch.Tensor:
        """The decoder's mean cross entropy over the tokens of the texts."""
        noisy = [delete_words(text, self._deletion, random) for text in texts]
        model = self.module.encoder
        features = [
            {key: on_device(value, model.device) for key, value in model.preprocess(side).items()}
            for side in (noisy, texts)
        ]
        loss: torch.Tensor = self.module(features, None)
        return loss

    def weights(self) -> dict[str, torch.Tensor]:
        """The encoder's weights, by their names in it."""
        return dict(self.module.encoder[0].model.state_dict())
