"""Generators write queries for passages. The default, `phrases`, needs no model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from searchfit.config import Settings
from searchfit.encoders import model_digest
from searchfit.errors import SettingsError
from searchfit.executors import LOCAL, Executor
from searchfit.records import Passage
from searchfit.writing import digest

KINDS = ("phrases", "t5[:MODEL]", "chat:MODEL", "openai:MODEL")

QUERIES_PER_PASSAGE = {"phrases": 3, "t5": 3, "chat": 5, "openai": 5}
"""Where `generate.per_passage` is 0."""

DEFAULT_T5 = "BeIR/query-gen-msmarco-t5-base-v1@refs/pr/1"
"""The revision is the one with safetensors weights."""


class Statistics(Protocol):
    """What a generator may know of the corpus."""

    @property
    def fingerprint(self) -> str:
        """Changes with the statistics."""

    def idf(self, term: str) -> float:
        """Rarity of an index term, from 0 (everywhere); highest for a term that is not in the corpus."""

    def terms(self, text: str) -> list[str]:
        """The index terms of a text, in order."""


@dataclass(frozen=True, slots=True)
class Task:
    """A passage to write for. `known`: the ledger has its queries, and it is only here so that batches come
    out as in a run that was not interrupted."""

    passage: Passage
    known: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """What a generator made of one passage: (text, style) of each query, or the fault for which it is set
    aside; tokens read and written, and what they cost."""

    passage: Passage
    queries: tuple[tuple[str, str], ...] = ()
    fault: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0


class Generator(Protocol):
    """Writes queries. What it writes for a passage follows from that passage, not from the others."""

    @property
    def name(self) -> str:
        """As the user named it; stands in `Query.generator`."""

    @property
    def per_passage(self) -> int:
        """The most queries it writes for a passage."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever other queries are to be expected: model revision, template, decoding, number."""

    @property
    def details(self) -> Mapping[str, str]:
        """What the manifest says of it, by name; never a secret."""

    def content(self, passage: Passage) -> tuple[str, ...]:
        """What of a passage its queries follow from."""

    def most_cost(self, passage: Passage) -> float:
        """An upper bound of what this passage will cost; 0 where nothing is paid."""

    def write(self, tasks: Iterable[Task]) -> Iterator[Sequence[Written]]:
        """What was made of each task that is not known, in groups as they get done, in any order.

        `tasks` is read lazily and may end early; what has been read by then is still answered. Raises
        GeneratorError where going on makes no sense; a single bad passage is a `Written.fault`.
        """


@dataclass(frozen=True, slots=True)
class Part:
    """A generator by name, and its share of the passages."""

    kind: str
    model: str
    share: float

    @property
    def name(self) -> str:
        """As the user wrote it."""
        return f"{self.kind}:{self.model}" if self.model else self.kind


def parts(settings: Settings) -> tuple[Part, ...]:
    """The generators that the settings name, shares adding up to 1. Raises SettingsError."""
    names = [name.strip() for name in settings.generate.generator.split(",")]
    shares = settings.generate.shares or (1.0,) * len(names)
    if len(shares) != len(names) or min(shares) < 0 or sum(shares) <= 0:
        raise SettingsError(
            f"generate.shares {list(shares)} do not fit {len(names)} generators.",
            "Give one number, 0 or more, for each generator in the same order.",
        )
    if len(set(names)) != len(names):
        raise SettingsError(f"generate.generator {settings.generate.generator!r} names one twice.")
    found = []
    for name, share in zip(names, shares, strict=True):
        kind, _, model = name.partition(":")
        if kind not in QUERIES_PER_PASSAGE or (kind == "phrases" and model):
            raise SettingsError(
                f"generate.generator {name!r} is not known.", f"There is: {', '.join(KINDS)}."
            )
        if kind in ("chat", "openai") and not model:
            raise SettingsError(f"generate.generator {name!r} names no model.", f"Write it as {kind}:MODEL.")
        found.append(Part(kind, model, share / sum(shares)))
    return tuple(found)


def outside(settings: Settings) -> dict[str, str]:
    """Digests of what the generators depend on beside the settings: models, the template, the examples.

    Raises SettingsError for an unknown generator or an absent file, ModelError for an absent model.
    """
    found = {}
    for part in parts(settings):
        if part.kind in ("t5", "chat"):
            found[part.name] = model_digest(part.model or DEFAULT_T5)
    for role in ("template", "examples"):
        if name := getattr(settings.prompt, role):
            file = Path(name).expanduser()
            if not file.is_file():
                raise SettingsError(f"prompt.{role}: there is no file {name!r}.")
            found[role] = digest(file)
    return found


def load_generator(
    part: Part, settings: Settings, statistics: Statistics, executor: Executor = LOCAL
) -> Generator:
    """Load one generator; it reads the sections generate, t5, prompt, chat, openai and seed.

    Its batches go through the executor, by default in this process; requests to a server always leave from
    here, where what they cost is counted. `statistics` can be pickled.

    Raises MissingExtraError, ModelError, SettingsError, or GeneratorError (an absent key).
    """
    per_passage = settings.generate.per_passage or QUERIES_PER_PASSAGE[part.kind]
    if part.kind == "phrases":
        from searchfit.generators.phrases import PhraseGenerator

        return PhraseGenerator(per_passage, settings.seed, statistics, executor)
    if part.kind == "t5":
        from searchfit.generators.t5 import T5Generator

        return T5Generator(part.name, part.model or DEFAULT_T5, per_passage, settings, executor)
    if part.kind == "chat":
        from searchfit.generators.chat import ChatGenerator

        return ChatGenerator(part.name, part.model, per_passage, settings, executor)
    from searchfit.generators.openai import OpenAIGenerator

    return OpenAIGenerator(part.name, part.model, per_passage, settings)
