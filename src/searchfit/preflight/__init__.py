"""Before any tuning: what a corpus is like, how well it is searched as it is, whether tuning is likely to
pay, and what `fit` will take.

The documents are read whole, by the stage that reads them in a fit. What is expensive is measured on samples:
a whole small fit is made of one, in a temporary folder that is removed, with fewer queries than usual.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from searchfit.config import Settings, load_settings
from searchfit.encoders import load_encoder, load_tokenizer
from searchfit.generators import parts
from searchfit.pipeline import Fit
from searchfit.preflight.cluster import Cluster, Machines, measure_handling, on_cluster
from searchfit.preflight.corpus import Corpus, Near, draw, near_duplicates, survey
from searchfit.preflight.forecast import Forecast, Probe, Work, forecast
from searchfit.preflight.headroom import Headroom, measure
from searchfit.preflight.verdict import Verdict, judge
from searchfit.sources.queries import read_queries
from searchfit.stages import Progress, silent
from searchfit.workspace import Workspace

_WIDE = (20_000, 20_000_000)
"""Documents and characters that passages, near-duplicates and the keyword index are told from."""

_NARROW = (1_000, 1_000_000)
"""Those of the small fit."""

_QUERIES = 1_200
_PARTS = {"source.text": ("text",), "source.id": "id", "source.title": "title", "source.max_bad_share": 1.0}


@dataclass(frozen=True, slots=True)
class Check:
    """What was found; `cluster` where machines were named. `seconds` is what finding it took."""

    corpus: Corpus
    near: Near
    headroom: Headroom | None
    verdict: Verdict
    forecast: Forecast
    cluster: Cluster | None
    notes: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def check(settings: Settings, progress: Progress = silent, machines: Machines | None = None) -> Check:
    """Look at the source of the settings before it is fitted; nothing is left behind. `machines`: forecast
    the fit on so many, too.

    Raises SearchfitError for what would stop the fit: a source that cannot be read or has no documents, a
    model that cannot be loaded, wrong settings.
    """
    started = time.perf_counter()
    asked = len(read_queries(settings.queries).queries) if settings.queries.file else 0
    tokenizer = load_tokenizer(settings.model)
    with tempfile.TemporaryDirectory(prefix="searchfit-check-") as scratch:
        folder = Path(scratch)
        whole = _fit(folder / "whole", settings, "ingest", progress)
        corpus = survey(whole.workspace, tokenizer, progress)
        wide = _sampled(folder / "wide", whole, _WIDE, "keyword", progress)
        near = near_duplicates(wide.workspace, settings, tokenizer)
        load = _first_load(settings)
        narrow = _sampled(folder / "narrow", wide, _NARROW, "report", progress)
        load_again = _first_load(settings)
        progress("headroom", 0, 0)
        headroom = measure(narrow.workspace, wide.workspace, narrow.settings)
        spaces = {"whole": whole.workspace, "wide": wide.workspace, "narrow": narrow.workspace}
        work = Work.of(settings, spaces, asked)
        probe = Probe(spaces, load, load_again, headroom)
        told = forecast(settings, work, probe)
        cluster = None
        if machines:
            handling = measure_handling(narrow.workspace, settings, load)
            cluster = on_cluster(told, machines, settings.executor, handling)
    verdict = judge(settings, corpus, headroom, work)
    notes = _notes(settings, corpus, work)
    return Check(corpus, near, headroom, verdict, told, cluster, notes, time.perf_counter() - started)


def _fit(path: Path, settings: Settings, until: str, progress: Progress) -> Fit:
    work = Fit(Workspace(path), settings, until=until, progress=progress)
    for _ in work.run():
        pass
    return work


def _sampled(path: Path, of: Fit, most: tuple[int, int], until: str, progress: Progress) -> Fit:
    """A fit of some of the documents of another, by the free generator and without questions from outside."""
    file = path.with_suffix(".parquet")
    draw(of.workspace.artefact("documents.parquet"), file, most, of.settings.seed)
    plain = {"generate.generator": "phrases", "generate.shares": ()}
    plain |= dict.fromkeys(("queries.file", "feedback.workspace"), "")
    few = {"generate.max_queries": min(_QUERIES, of.settings.generate.max_queries)}
    source = {**_PARTS, "source.source": str(file)}
    return _fit(path, load_settings(values={**plain, **few, **source}, base=of.settings), until, progress)


def _first_load(settings: Settings) -> float:
    """Seconds to load the model and encode a word: the first time, with the libraries."""
    started = time.perf_counter()
    load_encoder(settings.model).encode_queries(["word"])
    return time.perf_counter() - started


def _notes(settings: Settings, corpus: Corpus, work: Work) -> tuple[str, ...]:
    notes = list(corpus.notes)
    if work.sampled:
        share = work.narrow.characters / work.full.characters
        notes.append(
            f"Encoding, questions and tuning were tried on {work.narrow.documents:,} of "
            f"{work.full.documents:,} documents ({share:.0%} of the characters), passages and "
            f"near-duplicates on {work.wide.documents:,}: among more documents search is worse and "
            "duplicates are more."
        )
    other = [part.name for part in parts(settings) if part.kind != "phrases"]
    if other:
        notes.append(
            f"The questions here are phrases of the documents; what {' and '.join(other)} writes was not "
            "tried, and the time that it takes to write is not in the forecast."
        )
    return tuple(notes)
