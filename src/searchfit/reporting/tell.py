"""What the report tells, as one plain value: report.json, from which the pages take every figure."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from searchfit.markup import number_or_nan
from searchfit.metrics import NAMES
from searchfit.reporting.evidence import Evidence, Floats, Json
from searchfit.reporting.examples import Traits
from searchfit.reporting.verdict import detectable, provenance, verdict
from searchfit.significance import bootstrap_interval

SYSTEMS = 60
DEPTHS = (1, 2, 3, 5, 10, 20, 50, 100)
_LEAST = 8  # questions in a band below which its mean says nothing
_STYLES = 12


def tell(
    evidence: Evidence, traits: Traits, parts: Mapping[str, Any], samples: int, seed: int
) -> dict[str, Any]:
    """Everything that the report shows. `parts` holds what was made elsewhere: examples, portrait, queries.
    `samples` and `seed` are those of the bootstrap."""
    draws = _Draws(samples, seed)
    told = {
        "verdict": verdict(evidence),
        "reason": str(evidence.choice.get("reason") or ""),
        "provenance": provenance(evidence.systems),
        "chosen": evidence.chosen,
        "untuned": evidence.untuned,
        "tuned": bool(evidence.choice.get("tuned")),
        "judged": evidence.judged,
        "questions": dict(evidence.systems.get("counts") or {}),
        "detectable": detectable(evidence),
        "proof": dict(evidence.proof),
        "pair": list(evidence.pair or ()),
        "comparisons": _comparisons(evidence.choice),
        "metrics": _metrics(evidence, draws),
        "recall": _recall(evidence),
        "outcome": _outcome(evidence),
        "bands": _bands(traits, draws),
        "systems": _systems(evidence, draws),
        "training": _training(evidence.course),
        **parts,
        **_made(evidence.manifest, seed),
    }
    found: dict[str, Any] = _finite(told)
    return found


class _Draws:
    """Means with their bootstrap intervals."""

    def __init__(self, samples: int, seed: int) -> None:
        self._samples, self._seed = samples, seed

    def mean(self, values: Floats) -> dict[str, Any]:
        """n, mean, low and high of the finite values."""
        known = values[np.isfinite(values)]
        low, high = bootstrap_interval(known, samples=self._samples, seed=self._seed)
        return {
            "n": len(known),
            "mean": float(known.mean()) if len(known) else None,
            "low": low,
            "high": high,
        }


def _finite(value: Any) -> Any:
    """The value as JSON can hold it: None for what is no number."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be written
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _comparisons(choice: Json) -> list[dict[str, Any]]:
    on_test = [*(choice.get("test") or {}).values(), choice.get("dense_leg")]
    found = [("dev", choice.get("dev")), *(("test", each) for each in on_test)]
    return [{"split": split, **each} for split, each in found if each]


def _metrics(evidence: Evidence, draws: _Draws) -> list[dict[str, Any]]:
    """By metric, the means of the pair on test and of the difference, with intervals."""
    if not evidence.pair:
        return []
    test = evidence.metrics.filter(pc.field("split") == "test")
    before, after = (test.filter(pc.field("system") == name) for name in evidence.pair)
    if not before.num_rows or before["query_id"] != after["query_id"]:
        return []
    rows = []
    for name in NAMES:
        first, second = (np.array(side[name].to_pylist(), dtype=float) for side in (before, after))
        sides = {"before": draws.mean(first), "after": draws.mean(second), "gain": draws.mean(second - first)}
        rows.append({"metric": name, **sides})
    return rows


def _recall(evidence: Evidence) -> list[dict[str, Any]]:
    """Recall at k of the pair on test: the mean share of a question's right documents among the first k."""
    if not evidence.pair or not len(evidence.test):
        return []
    wanted = [max(1, len(row)) for row in evidence.queries["relevant"].take(evidence.test).to_pylist()]
    lists = [evidence.places[name].take(evidence.test).to_pylist() for name in evidence.pair]
    return [
        {
            "k": k,
            **{
                side: float(
                    np.mean([sum(p <= k for p in row) / all_ for row, all_ in zip(rows, wanted, strict=True)])
                )
                for side, rows in zip(("before", "after"), lists, strict=True)
            },
        }
        for k in DEPTHS
    ]


def _outcome(evidence: Evidence) -> dict[str, int]:
    """Test questions won, tied and lost by the second system of the pair."""
    if not evidence.pair:
        return {}
    before, after = (evidence.scores(name)[evidence.test] for name in evidence.pair)
    gain = after - before
    wins, losses = int((gain > 1e-12).sum()), int((gain < -1e-12).sum())
    known = int(np.isfinite(gain).sum())
    return {"wins": wins, "ties": known - wins - losses, "losses": losses, "n": known}


def _bands(traits: Traits, draws: _Draws) -> list[dict[str, Any]]:
    """The gain by what questions are like; bands of fewer questions than say anything are left out."""
    if not traits or not traits["gain"]:
        return []
    gain = np.array(traits["gain"])
    words, overlap, lengths = (
        np.array(traits[name], float) for name in ("words", "overlap", "document_words")
    )
    cuts = np.unique(np.quantile(lengths, [1 / 3, 2 / 3]).round())
    styles = np.array(traits["style"])
    names = [str(name) for name in dict.fromkeys(sorted(traits["style"]))][:_STYLES]
    groups = {
        "words in the question": _cut(words, (4, 7, 11), "{:.0f}"),
        "share of its words in the answer": _cut(overlap, (1 / 3, 2 / 3), "{:.0%}"),
        "words in the document": _cut(lengths, cuts, "{:,.0f}"),
        "style": [(name, styles == name) for name in names],
    }
    told = []
    for title, bands in groups.items():
        rows = [{"band": name, **draws.mean(gain[mask])} for name, mask in bands if mask.sum() >= _LEAST]
        if rows:
            told.append({"title": title, "rows": rows})
    return told


def _cut(values: Floats, cuts: Sequence[float] | Floats, form: str) -> list[tuple[str, Any]]:
    """Bands between cuts, each named by the least and the largest value in it."""
    place = np.digitize(values, np.asarray(cuts))
    bands = []
    for number in range(len(cuts) + 1):
        mask = (place == number) & np.isfinite(values)
        if mask.any():
            ends = [form.format(end) for end in (values[mask].min(), values[mask].max())]
            bands.append((ends[0] if ends[0] == ends[1] else " to ".join(ends), mask))
    return bands


def _systems(evidence: Evidence, draws: _Draws) -> list[dict[str, Any]]:
    """The systems with their means, the gain over the untuned one on test and its interval."""
    rows = []
    for system in (evidence.systems.get("systems") or [])[:SYSTEMS]:
        name = str(system.get("name", "-"))
        row: dict[str, Any] = {key: system.get(key) or {} for key in ("engine", "dev", "test")}
        against = (evidence.choice.get("compared") or {}).get(name) or {}
        row |= {"gain": _gain(evidence, name, draws), "p_holm": against.get("p_holm")}
        rows.append({"name": name, "chosen": name == evidence.chosen, **row})
    return rows


def _gain(evidence: Evidence, name: str, draws: _Draws) -> dict[str, Any]:
    against = (evidence.choice.get("test") or {}).get(evidence.untuned) or {}
    if name == evidence.chosen != evidence.untuned and against.get("n"):
        # The figure that the choice was made with, so that the page never shows two.
        return {"mean": against.get("gain"), "low": against.get("low"), "high": against.get("high")}
    there = set(evidence.queries.column_names)
    if name == evidence.untuned or not {name, evidence.untuned} <= there:
        return {"mean": None, "low": None, "high": None}
    found = draws.mean(
        evidence.scores(name)[evidence.test] - evidence.scores(evidence.untuned)[evidence.test]
    )
    return {key: found[key] for key in ("mean", "low", "high")}


def _training(course: str) -> dict[str, list[list[float]]]:
    """(step, value) of loss and dev score, from the CSV that training writes (epoch, step, loss, score)."""
    rows: Sequence[dict[str, str]] = list(csv.DictReader(io.StringIO(course)))
    return {
        name: [[float(row["step"]), float(row[name])] for row in rows if row.get(name)]
        for name in ("score", "loss")
    }


def _made(manifest: Json, seed: int) -> dict[str, Any]:
    """The stages with counts, drops, time and memory; versions, seed, command and settings."""
    stages = [
        {
            "stage": name,
            "seconds": stage.get("seconds"),
            "peak_memory_mb": stage.get("peak_memory_mb"),
            "key": stage.get("key"),
            "counts": [{"name": key, "value": value} for key, value in (stage.get("counts") or {}).items()],
            "drops": [dict(drop) for drop in stage.get("drops") or []],
            "notes": list(stage.get("notes") or []),
        }
        for name, stage in (manifest.get("stages") or {}).items()
        if name != "report"
    ]
    times = (number_or_nan(stage["seconds"]) for stage in stages)
    ended = (str(stage.get("finished") or "") for stage in (manifest.get("stages") or {}).values())
    return {
        "stages": stages,
        "seconds": round(math.fsum(time for time in times if math.isfinite(time)), 2),
        "finished": max(ended, default=""),
        "searchfit": manifest.get("searchfit", "-"),
        "command": manifest.get("command") or "-",
        "seed": seed,
        "versions": [
            {"name": name, "version": found} for name, found in (manifest.get("versions") or {}).items()
        ],
        "settings": str(manifest.get("settings_toml") or "-"),
    }
