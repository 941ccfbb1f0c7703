"""Choose: the candidate that wins on dev, if it wins for sure; else the untuned engine. Proof on test."""

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
from searchfit.records import Engine, StageResult
from searchfit.significance import Comparison, compare
from searchfit.stages import Tools
from searchfit.workspace import write_json

VERSION = 1

_BASELINES = ("untuned dense", "untuned blend", "untuned engine")
_EXAMPLES = 10


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Write evaluation/choice.json and models/tuned/, the model that search will use."""
    systems = json.loads((inputs["evaluation/systems.json"]).read_text(encoding="utf-8"))
    table = pq.read_table(inputs["evaluation/queries.parquet"])
    chosen, on_dev, reason = _choose(systems["systems"], table, settings)
    engine = Engine(**chosen["engine"])
    test = _split(table, "test")
    on_test = {
        name: _compare(test, name, engine.name, settings).to_dict()
        for name in _BASELINES
        if len(test) and name != engine.name
    }
    choice: dict[str, Any] = {
        "chosen": engine.to_dict(),
        "system": engine.name,
        "untuned": "untuned dense",
        "tuned": engine.query_tower > 0,
        "reason": reason,
        "dev": on_dev.to_dict() if on_dev else None,
        "test": on_test,
        **_examples(inputs, systems, table, engine.name),
    }
    write_json(tools.output / "evaluation" / "choice.json", choice)
    _save_model(settings, inputs["models/trained"], engine, tools.output / "models" / "tuned")
    gain = on_test.get("untuned dense", {}).get("gain")
    counts = {"chosen": engine.name, "test gain over untuned dense": "-" if gain is None else round(gain, 4)}
    return StageResult(counts=counts, notes=(reason,))


def _choose(
    systems: list[dict[str, Any]], table: pa.Table, settings: Settings
) -> tuple[dict[str, Any], Comparison | None, str]:
    """The chosen system, its comparison with the untuned engine on dev, and the reason in a sentence."""
    candidates = [system for system in systems if system["kind"] == "candidate"]
    untuned, tuned = candidates[0], candidates[1:]
    dev = _split(table, "dev")
    if not tuned:
        return untuned, None, "Nothing was trained, so the untuned model was kept."
    if not len(dev):
        return untuned, None, "There are no dev questions to judge by, so the untuned model was kept."
    best = max(tuned, key=lambda system: (system["dev"]["ndcg@10"], -system["engine"]["query_tower"]))
    comparison = _compare(dev, untuned["name"], best["name"], settings)
    figures = f"nDCG@10 {comparison.mean_a:.4f} -> {comparison.mean_b:.4f} on {comparison.n} dev questions"
    if comparison.gain > 0 and comparison.p < settings.evaluate.alpha:
        return best, comparison, f"{best['name']} beat the untuned engine: {figures}, p = {comparison.p:.4f}."
    return untuned, comparison, (
        f"No tuned engine beat the untuned one for sure, so it was kept; the best was {best['name']}: "
        f"{figures}, p = {comparison.p:.4f}."
    )  # fmt: skip


def _split(table: pa.Table, name: str) -> pa.Table:
    return table.filter(pa.array(table["split"].to_numpy() == name))


def _compare(table: pa.Table, a: str, b: str, settings: Settings) -> Comparison:
    return compare(
        table[a].to_numpy(), table[b].to_numpy(),
        permutations=settings.evaluate.permutations, samples=settings.evaluate.bootstrap, seed=settings.seed,
    )  # fmt: skip


def _examples(
    inputs: Mapping[str, Path], systems: Mapping[str, Any], table: pa.Table, chosen: str
) -> dict[str, Any]:
    """The largest gains and losses on test, and the user's unjudged questions, with results before and after."""
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
            "query": query["text"], "style": query["style"], "before": float(before[row]), "after": float(after[row]),
            "relevant": [{"id": id_, "title": titles.get(id_, "")} for id_ in query["relevant"][:5]],
            "top_before": results("untuned dense", row, query["relevant"]),
            "top_after": results(chosen, row, query["relevant"]),
        }  # fmt: skip

    unjudged = [
        {"query": text, "top_before": results("untuned dense", len(table) + i, []),
         "top_after": results(chosen, len(table) + i, [])}
        for i, text in enumerate(systems["unjudged"][:50])
    ]  # fmt: skip
    gains = [example(int(row)) for row in order[::-1][:_EXAMPLES] if gain[row] > 0]
    losses = [example(int(row)) for row in order[:_EXAMPLES] if gain[row] < 0]
    return {"examples": {"gains": gains, "losses": losses}, "user_queries": unjudged}


def _save_model(settings: Settings, trained: Path, engine: Engine, folder: Path) -> None:
    """Save what search will use: the chosen merge as a two-tower model, or the untuned model as it is."""
    shutil.rmtree(folder, ignore_errors=True)
    encoder = load_encoder(settings.model)
    if engine.query_tower:
        from safetensors.torch import load_file

        weights = load_file(trained / "query_tower.safetensors")
        encoder = encoder.with_query_weights(weights, engine.query_tower)
    encoder.save(folder)
