"""What a fit will take, stage by stage: the figures of the small fit, scaled by what its work grows with.

Seconds are fixed ones (loading the model) and others in proportion to passages, questions or both. Memory is
what the small fit held, and the arrays that grow with the corpus.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from searchfit.config import Settings
from searchfit.generators import parts
from searchfit.preflight.headroom import Headroom
from searchfit.preflight.sizing import sizes
from searchfit.recipe import STAGES, Stage
from searchfit.workspace import Workspace
from searchfit.writing import size

_PER_PASSAGE = {"phrases": 3, "t5": 3}  # queries where the settings do not say; language models write 5

BATCH = {"encode": 512, "reencode": 512, "generate": 200, "screen": 256, "mine": 256, "evaluate": 256}
"""What an executor is handed at a time, by stage: passages, from `screen` on queries to rank."""


@dataclass(frozen=True, slots=True)
class Size:
    """What a fit works on: `asked` are dev and test questions, `dev` those that measure the course of
    training, `towers` pairs of towers that compete."""

    documents: int
    characters: int
    passages: int
    sentences: int
    queries: int = 0
    kept: int = 0
    train: int = 0
    asked: int = 0
    dev: int = 0
    towers: int = 1
    systems: int = 1
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Work:
    """The sizes of the fit to come and of the two samples. What is not counted is scaled by characters."""

    full: Size
    wide: Size
    narrow: Size

    @property
    def sampled(self) -> bool:
        """Whether some documents were not tried."""
        return self.narrow.characters < self.full.characters

    @classmethod
    def of(cls, settings: Settings, spaces: Mapping[str, Workspace], asked: int) -> Work:
        """Counted in the workspaces "whole", "wide" and "narrow"; `asked`: questions of the user's own."""
        read = spaces["whole"].manifest()["stages"]["ingest"]["counts"]
        wide = _passages(spaces["wide"])
        narrow = _narrow(spaces["narrow"], settings)
        scale = max(1.0, int(read["characters"]) / max(1, wide.characters))
        passages = round(wide.passages * scale)
        written = spaces["narrow"].manifest()["stages"]["generate"]["counts"]
        most = settings.generate.max_queries / _mean(settings)
        queries = round(int(written["queries"]) / max(1, int(written["passages"])) * min(passages, most))
        kept = round(queries * narrow.kept / max(1, narrow.queries))
        held = settings.holdout
        train = min(settings.mine.max_queries, round(kept * (1 - held.dev - held.test)))
        trains = settings.train.enabled and train >= settings.train.min_queries
        merges = settings.evaluate.merges if settings.train.towers == "query" else settings.reencode.merges
        towers = 1 + len({*merges, 1.0}) if trains else 1
        own = [min(settings.evaluate.max_queries, round(kept * share)) for share in (held.dev, held.test)]
        full = Size(
            documents=int(read["documents"]),
            characters=int(read["characters"]),
            passages=passages,
            sentences=round(wide.sentences * scale),
            queries=queries,
            kept=kept,
            train=train,
            asked=asked or sum(own),
            dev=min(settings.train.dev_queries, round(kept * held.dev)),
            towers=towers,
            systems=narrow.systems + 2 * (towers - narrow.towers),
            steps=_steps(settings, train) if trains else 0,
        )
        return cls(full, wide, narrow)


def _mean(settings: Settings) -> float:
    own = settings.generate.per_passage
    return sum(part.share * (own or _PER_PASSAGE.get(part.kind, 5)) for part in parts(settings))


def _steps(settings: Settings, queries: int) -> int:
    batch = settings.train.batch_size * settings.train.accumulate
    return settings.train.epochs * math.ceil(queries / batch)


def _passages(space: Workspace) -> Size:
    counts = space.manifest()["stages"]["ingest"]["counts"]
    table = pq.read_table(space.artefact("passages.parquet"), columns=["sentences"])
    sentences = int(pc.sum(pc.list_value_length(table["sentences"])).as_py() or 0) // 2
    return Size(int(counts["documents"]), int(counts["characters"]), len(table), sentences)


def _narrow(space: Workspace, settings: Settings) -> Size:
    base = _passages(space)
    stages = space.manifest()["stages"]
    evidence = json.loads(space.artefact("evaluation/systems.json").read_text(encoding="utf-8"))
    engines = [system["engine"] for system in evidence["systems"] if system.get("engine")]
    kept = _rows(space, "pairs.parquet")
    return Size(
        base.documents,
        base.characters,
        base.passages,
        base.sentences,
        queries=int(stages["generate"]["counts"]["queries"]),
        kept=kept,
        train=_rows(space, "mined/queries.parquet"),
        asked=_rows(space, "evaluation/queries.parquet"),
        dev=min(settings.train.dev_queries, round(kept * settings.holdout.dev)),
        towers=len({(engine["query_tower"], engine["document_tower"]) for engine in engines}),
        systems=len(evidence["systems"]),
        steps=int(stages["train"]["counts"].get("steps", 0)),
    )


def _rows(space: Workspace, name: str) -> int:
    return int(pq.ParquetFile(space.artefact(name)).metadata.num_rows)


@dataclass(frozen=True, slots=True)
class Cost:
    """A stage's forecast: seconds, and the most memory (MiB) that the process holds in it. `shared` are the
    seconds of it that several machines can take between them, in so many `pieces` that are not divided."""

    stage: str
    seconds: float
    memory_mb: int
    shared: float = 0.0
    pieces: int = 0


@dataclass(frozen=True, slots=True)
class Forecast:
    """By stage, and together; `disk_mb` is what the workspace will hold."""

    stages: tuple[Cost, ...]
    seconds: float
    memory_mb: int
    disk_mb: int


@dataclass(frozen=True, slots=True)
class Probe:
    """What was measured: the workspaces "whole", "wide" and "narrow", seconds to load the model for the first
    time and again, and the speed of search."""

    spaces: Mapping[str, Workspace]
    first_load: float
    load: float
    headroom: Headroom | None

    def seconds(self, stage: str) -> float:
        """Of a stage of the small fit."""
        return float(self.spaces["narrow"].manifest()["stages"][stage]["seconds"])


def forecast(settings: Settings, work: Work, probe: Probe) -> Forecast:
    """Scale what was measured to the whole."""
    scale = _Scale(settings, work, probe)
    costs = tuple(scale.cost(stage) for stage in STAGES)
    disk = sizes(probe.spaces["narrow"]).at(max(work.full.passages, work.narrow.passages), settings.index)
    return Forecast(
        costs,
        round(sum(cost.seconds for cost in costs), 1),
        max(cost.memory_mb for cost in costs),
        disk.total >> 20,
    )


class _Scale:
    """From the samples to the whole."""

    def __init__(self, settings: Settings, work: Work, probe: Probe) -> None:
        self.settings, self.probe = settings, probe
        self.full, self.wide, self.narrow = work.full, work.wide, work.narrow
        self.encode = probe.headroom.encode if probe.headroom else 0.0
        self._special: dict[str, Callable[[float], float]] = {
            "ingest": lambda _: self._of("whole", "ingest"),
            "split": lambda _: self._of("wide", "split") * self._ratio("characters", self.wide),
            "keyword": lambda _: self._of("wide", "keyword") * self._ratio("characters", self.wide),
            "encode": self._encoding,
            # A sample of passages, asked among another: their numbers are bounded.
            "gauge": lambda own: self._loaded(own, max(1.0, min(4.0, self._ratio("passages")))),
            "generate": lambda own: own * self._ratio("queries"),
            "screen": self._screen,
            "label": lambda own: own,
            "mine": lambda own: self._loaded(own, self._ratio("train") * self.growth()),
            "train": self._train,
            "reencode": self._reencode,
            "evaluate": self._evaluate,
            "choose": lambda own: self._loaded(own, self._ratio("asked") * self._ratio("systems")),
            "report": lambda own: self._loaded(own, max(1.0, self._ratio("asked")) ** 0.5),
        }

    def cost(self, stage: Stage) -> Cost:
        """Of a stage."""
        seconds = self.seconds(stage)
        shared, pieces = self.shared(stage, seconds)
        return Cost(stage.name, round(seconds, 2), self.memory(stage), round(shared, 2), pieces)

    def shared(self, stage: Stage, seconds: float) -> tuple[float, int]:
        """Seconds of a stage's that go in batches to an executor, or in shares of a batch to processes that
        train together, and the number of these."""
        ours, full = self.settings, self.full
        apart = [part for part in parts(ours) if part.kind != "openai"]
        again = len({*ours.reencode.merges, 1.0}) if ours.train.towers != "query" and full.steps else 0
        free = max(0.0, seconds - self.probe.load)
        counted: dict[str, tuple[float, float]] = {
            "encode": (max(0.0, seconds - self.probe.first_load), full.passages),
            "reencode": (free, full.passages * again),
            "generate": (seconds * sum(part.share for part in apart), full.queries / _mean(ours)),
            "screen": (free, full.queries),
            "mine": (free, full.train),
            "evaluate": (free, full.asked),
        }
        if stage.trains:
            looked = self._looks(full) * self._look() if stage.name == "train" else 0.0
            batch = ours.train.batch_size if stage.name == "train" else ours.pretrain.batch_size
            if stage.name == "pretrain" and ours.pretrain.objective == "none":
                batch = 0
            shared, pieces = max(0.0, free - looked), batch
        else:
            shared, rows = counted.get(stage.name, (0.0, 0))
            pieces = math.ceil(rows / BATCH.get(stage.name, 1))
        return (shared, pieces) if shared and pieces else (0.0, 0)

    def seconds(self, stage: Stage) -> float:
        """Of a stage; of one without a rule, in proportion to the passages."""
        own = self.probe.seconds(stage.name)
        rule = self._special.get(stage.name)
        return rule(own) if rule else self._loaded(own, self._ratio("passages"))

    def memory(self, stage: Stage) -> int:
        """The small fit's peak (of reading: the peak of having read all) and what grows: vectors where they
        are read or written, the keyword index likewise, texts."""
        spaces = self.probe.spaces
        early = {"ingest": "whole", "split": "wide", "keyword": "wide"}  # before the model is loaded
        space = spaces[early.get(stage.name, "narrow")]
        entry: Mapping[str, Any] = space.manifest()["stages"][stage.name]
        if stage.name == "ingest":
            return int(entry["peak_memory_mb"])
        used = {*stage.reads, *stage.writes}
        more = 0.0
        if used & {"encoded", "index/{key}"}:
            more += size(spaces["narrow"].artefact("encoded")) * (self._ratio("passages") - 1)
        if "keyword" in used:
            more += 2 * size(spaces["wide"].artefact("keyword")) * self._ratio("passages", self.wide)
        if "passages.parquet" in used:
            more += 120 * (self.full.passages - self.narrow.passages)
        return int(entry["peak_memory_mb"]) + (int(more) >> 20)

    def growth(self) -> float:
        """By how much ranking a query takes longer over all passages than over the sample's: a line through
        two measured sizes."""
        timed = self.probe.headroom.rank_at if self.probe.headroom else {}
        if len(timed) < 2 or self.full.passages <= self.narrow.passages:
            return 1.0
        (few, quick), (many, slow) = sorted(timed.items())
        each = max(0.0, (slow - quick) / (many - few))
        return (quick + each * max(0, self.full.passages - few)) / quick

    def _of(self, space: str, stage: str) -> float:
        return float(self.probe.spaces[space].manifest()["stages"][stage]["seconds"])

    def _ratio(self, name: str, of: Size | None = None) -> float:
        return float(getattr(self.full, name) / max(1, getattr(of or self.narrow, name)))

    def _loaded(self, own: float, factor: float) -> float:
        """All but loading the model grows."""
        fixed = min(own, self.probe.load)
        return fixed + (own - fixed) * factor

    def _encoding(self, own: float) -> float:
        return self.probe.first_load + max(0.0, own - self.probe.load) * self._ratio("passages")

    def _screen(self, own: float) -> float:
        fixed, encoding = min(own, self.probe.load), self.encode * self.narrow.queries
        rest = max(0.0, own - fixed - encoding)
        return fixed + (encoding + rest * self.growth()) * self._ratio("queries")

    def _train(self, own: float) -> float:
        if not self.full.steps:
            return min(own, self.probe.load)
        if (
            not self.narrow.steps
        ):  # too few questions in the sample to train on: as many passes as by encoding
            return self.probe.load + 8 * self.encode * self.full.train * self.settings.train.epochs
        fixed = min(own, self.probe.load)
        looks, all_looks = (self._looks(one) for one in (self.narrow, self.full))
        look = self.encode * self.narrow.dev
        step = max(0.0, own - fixed - looks * look) / self.narrow.steps
        return fixed + self.full.steps * step + all_looks * self._look()

    def _look(self) -> float:
        """Seconds to measure the course of training once."""
        return self.encode * self.full.dev * self.growth()

    def _looks(self, one: Size) -> int:
        """How often the course is measured: at the start, and four times an epoch where that costs little."""
        train = self.settings.train
        epoch = max(1, one.steps // train.epochs)
        often = train.measure_steps or max(1, epoch // (4 if train.towers == "query" else 1))
        return 1 + one.steps // often

    def _reencode(self, own: float) -> float:
        if self.settings.train.towers == "query" or not self.full.steps:
            return own
        shares = len({*self.settings.reencode.merges, 1.0})
        once = max(0.0, self.probe.seconds("encode") - self.probe.load) * self._ratio("passages")
        return self.probe.load + shares * once

    def _evaluate(self, own: float) -> float:
        fixed = min(own, self.probe.load)
        encoding = self.encode * self.narrow.asked * self.narrow.towers
        rest = max(0.0, own - fixed - encoding) / self.narrow.systems
        towers = self.full.towers / max(1, self.narrow.towers)
        grown = encoding * towers + rest * self.full.systems * self.growth()
        return fixed + grown * self._ratio("asked")
