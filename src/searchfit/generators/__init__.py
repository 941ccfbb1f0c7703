"""Generators write queries for passages. The default, `phrases`, needs no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from searchfit.config import GenerateSettings
from searchfit.errors import SettingsError
from searchfit.records import Passage, Query

NAMES = ("phrases",)


class Statistics(Protocol):
    """What a generator may know of the corpus."""

    def idf(self, term: str) -> float:
        """Rarity of an index term, from 0 (everywhere); highest for a term that is not in the corpus."""

    def terms(self, text: str) -> list[str]:
        """The index terms of a text, in order."""


class Generator(Protocol):
    """Writes queries. What it writes for a passage depends on that passage, not on the others."""

    @property
    def name(self) -> str:
        """Stands in `Query.generator`."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the same passage would get other queries from equal settings."""

    def generate(self, passages: Sequence[Passage]) -> list[list[Query]]:
        """The queries of each passage, in order; a passage that allows none has an empty list."""


def load_generator(settings: GenerateSettings, seed: int, statistics: Statistics) -> Generator:
    """The generator that the settings name. Raises SettingsError for an unknown one."""
    if settings.generator == "phrases":
        from searchfit.generators.phrases import PhraseGenerator

        return PhraseGenerator(settings.per_passage, seed, statistics)
    raise SettingsError(
        f"generate.generator {settings.generator!r} is not known.", f"There is: {', '.join(NAMES)}."
    )
