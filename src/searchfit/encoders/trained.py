"""What training left: the weights of one tower or two, to be merged with the untuned ones by share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from searchfit.writing import write_json

if TYPE_CHECKING:
    import torch

    from searchfit.encoders.sentence import SentenceEncoder

Towers = Literal["", "query", "shared", "separate"]
"""What was trained; "" is nothing."""


@dataclass(frozen=True, slots=True)
class Trained:
    """The artefact models/trained: query_tower.safetensors, and document_tower.safetensors for separate
    towers; shared towers have one file."""

    folder: Path
    towers: Towers

    @classmethod
    def load(cls, folder: Path) -> Trained:
        """Read what there is."""
        return cls(folder, json.loads((folder / "towers.json").read_text(encoding="utf-8"))["towers"])

    @classmethod
    def save(cls, folder: Path, towers: Towers, weights: Mapping[str, Mapping[str, torch.Tensor]]) -> Trained:
        """Write the weights of each tower, "query" and "document"; of shared towers only "query"."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        for side, state in weights.items():
            save_file({name: value.contiguous() for name, value in state.items()}, _file(folder, side))
        write_json(folder / "towers.json", {"towers": towers})
        return cls(folder, towers)

    @property
    def both(self) -> bool:
        """Whether passages have other vectors under the tuned model."""
        return self.towers in ("shared", "separate")

    def encoder(self, untuned: SentenceEncoder, share: float) -> SentenceEncoder:
        """The untuned model with `share` of the trained weights in the towers that were trained."""
        if not share or not self.towers:
            return untuned
        from safetensors.torch import load_file

        query = load_file(_file(self.folder, "query"))
        if self.towers == "shared":
            return untuned.with_towers(query, query, share)
        document = load_file(_file(self.folder, "document")) if self.towers == "separate" else None
        return untuned.with_towers(query, document, share)


def pretrained(untuned: SentenceEncoder, folder: Path) -> SentenceEncoder:
    """The encoder with the weights that pretraining left in the artefact models/pretrained, if any."""
    trained = Trained.load(folder)
    return trained.encoder(untuned, 1.0)


def _file(folder: Path, side: str) -> Path:
    return folder / f"{side}_tower.safetensors"
