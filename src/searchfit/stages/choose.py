"""Choose: the tuned model that wins on dev for sure, else the untuned engine. Proof on test.

Generated questions copy words from their passages, so on them keyword search, and with it every blend, is
close to perfect and hides what tuning did. There the dense legs are compared, and the blend has only to be
no worse for sure. On the user's own judged questions the blends themselves are compared. Of the merges that
win, the one nearest to the untuned weights that keeps most of the gain is taken: on real questions, which
are unlike generated ones, full tuning overshoots (docs/lab.md).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.config import Settings
from searchfit.encoders import load_encoder
from searchfit.encoders.trained import Trained
from searchfit.records import Engine, StageResult
from searchfit.significance import compare
from searchfit.stages import Tools
from searchfit.workspace import write_json

VERSION = 1

_BASELINES = ("untuned dense", "untuned blend", "untuned engine")
_EXAMPLES = 10
_KEPT_GAIN = 2 / 3  # share of the best gain that a smaller move must keep


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Write evaluation/choice.json and models/tuned/, the model that search will use."""
    systems = json.loads((inputs["evaluation/systems.json"]).read_text(encoding="utf-8"))
    table = pq.read_table(inputs["evaluation/queries.parquet"])
    chosen, deciding, reason = _choose(systems, table, settings)
    engine = Engine(**chosen["engine"])
    on_test = {name: _compare(table, "test", (name, engine.name), settings) for name in _BASELINES}
    untuned, tuned = (
        _dense_leg(systems["systems"], system)["name"] for system in (_untuned(systems), chosen)
    )
    choice: dict[str, Any] = {
        "chosen": engine.to_dict(),
        "system": engine.name,
        "untuned": "untuned dense",
        "tuned": engine.query_tower > 0,
        "reason": reason,
        "dev": deciding,
        "test": {name: found for name, found in on_test.items() if found},
        "dense_leg": _compare(table, "test", (untuned, tuned), settings),
        **_examples(inputs, systems, table, engine.name),
    }
    write_json(tools.output / "evaluation" / "choice.json", choice)
    _save_model(settings, Trained.load(inputs["models/trained"]), engine, tools.output / "models" / "tuned")
    gain = (on_test["untuned dense"] or {}).get("gain")
    counts = {"chosen": engine.name, "test gain over untuned dense": "-" if gain is None else round(gain, 4)}
    return StageResult(counts=counts, notes=(reason,))


def _choose(
    evidence: Mapping[str, Any], table: pa.Table, settings: Settings
) -> tuple[dict[str, Any], dict[str, Any] | None, str]:
    """The chosen system, the comparison on dev that decided, and the reason in a sentence."""
    systems = evidence["systems"]
    untuned = _untuned(evidence)
    tuned = [system for system in systems if system["kind"] == "candidate" and system is not untuned]
    if not tuned:
        return untuned, None, "Nothing was trained, so the untuned model was kept."
    if not evidence["counts"]["dev"]:
        return untuned, None, "There are no dev questions to judge by, so the untuned model was kept."

    judged = evidence["questions"] == "judged"
    compared: dict[str, dict[str, Any]] = {}
    for system in tuned:
        pair = (untuned, system) if judged else (_dense_leg(systems, untuned), _dense_leg(systems, system))
        found = _compare(table, "dev", (pair[0]["name"], pair[1]["name"]), settings)
        compared[system["name"]] = found or {}
    best = max(compared.values(), key=lambda found: float(found["gain"]))
    for system in sorted(tuned, key=lambda system: float(system["engine"]["query_tower"])):
        found = compared[system["name"]]
        sure = found["gain"] > 0 and found["p"] < settings.choose.alpha
        on_dev = _compare(table, "dev", (untuned["name"], system["name"]), settings) or {}
        worse = on_dev["gain"] < 0 and on_dev["p"] < settings.choose.alpha
        if sure and found["gain"] >= _KEPT_GAIN * best["gain"] and not worse:
            return system, found, f"{_figures(found)}, and the whole engine is not worse."
    return (
        untuned,
        best,
        f"No tuned engine was better for sure, so the untuned one was kept. {_figures(best)}.",
    )


def _untuned(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """The untuned engine: the candidate that is always in."""
    return next(s for s in evidence["systems"] if s["kind"] == "candidate" and not s["engine"]["query_tower"])


def _dense_leg(systems: list[dict[str, Any]], system: dict[str, Any]) -> dict[str, Any]:
    """The system that is this one without its keyword leg."""
    wanted = {**system["engine"], "keyword_weight": 0, "name": ""}
    return next(system for system in systems if {**system["engine"], "name": ""} == wanted)


def _figures(found: Mapping[str, Any]) -> str:
    means = f"nDCG@10 {found['mean_a']:.4f} -> {found['mean_b']:.4f} on {found['n']} dev questions"
    return f"{found['after']} against {found['before']}: {means}, p = {found['p']:.4f}"


def _compare(
    table: pa.Table, split: str, names: tuple[str, str], settings: Settings
) -> dict[str, Any] | None:
    """Significance of the second system over the first; None for equal systems or without questions."""
    rows = table.filter(pa.array(table["split"].to_numpy() == split))
    before, after = names
    if before == after or not len(rows):
        return None
    options = settings.choose
    found = compare(
        rows[before].to_numpy(),
        rows[after].to_numpy(),
        permutations=options.permutations,
        samples=options.bootstrap,
        seed=settings.seed,
    )
    return {"before": before, "after": after, **found.to_dict()}


def _examples(
    inputs: Mapping[str, Path], systems: Mapping[str, Any], table: pa.Table, chosen: str
) -> dict[str, Any]:
    """The largest gains and losses on test, and the user's unjudged questions, before and after."""
    documents = pq.read_table(inputs["documents.parquet"], columns=["id", "title"])
    top = pq.read_table(inputs["evaluation/top.parquet"])
    before, after = table["untuned dense"].to_numpy(), table[chosen].to_numpy()
    gain = np.where(table["split"].to_numpy() == "test", after - before, 0)
    order = np.argsort(gain, kind="stable")

    def results(name: str, row: int, relevant: list[str]) -> list[dict[str, Any]]:
        rows = [int(i) for i in top[name][row].as_py()[:5] if i >= 0]
        some = documents.take(rows).to_pylist()
        return [{"id": d["id"], "title": d["title"], "relevant": d["id"] in relevant} for d in some]

    def example(row: int) -> dict[str, Any]:
        query = table.slice(row, 1).to_pylist()[0]
        titles = dict(zip(documents["id"].to_pylist(), documents["title"].to_pylist(), strict=True))
        return {
            "query": query["text"],
            "style": query["style"],
            "before": float(before[row]),
            "after": float(after[row]),
            "relevant": [{"id": id_, "title": titles.get(id_, "")} for id_ in query["relevant"][:5]],
            "top_before": results("untuned dense", row, query["relevant"]),
            "top_after": results(chosen, row, query["relevant"]),
        }

    unjudged = [
        {
            "query": text,
            "top_before": results("untuned dense", len(table) + i, []),
            "top_after": results(chosen, len(table) + i, []),
        }
        for i, text in enumerate(systems["unjudged"][:50])
    ]
    gains = [example(int(row)) for row in order[::-1][:_EXAMPLES] if gain[row] > 0]
    losses = [example(int(row)) for row in order[:_EXAMPLES] if gain[row] < 0]
    return {"examples": {"gains": gains, "losses": losses}, "user_queries": unjudged}


def _save_model(settings: Settings, trained: Trained, engine: Engine, folder: Path) -> None:
    """Save what search will use: the chosen merge as a two-tower model, or the untuned model as it is."""
    shutil.rmtree(folder, ignore_errors=True)
    trained.encoder(load_encoder(settings.model), engine.query_tower).save(folder)
