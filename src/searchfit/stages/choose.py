"""Choose: the tuned model that wins on dev for sure, else the untuned engine. Proof on test.

Generated questions copy words from their passages, so on them keyword search, and with it every blend, is
close to perfect and hides what tuning did. There the dense legs are compared, and the blend has only to be
no worse for sure. On the user's own judged questions the blends themselves are compared; where these are too
few to tell, the dense legs, of which more is to be seen, and the blend has to gain by its mean. Of the merges
that win, the one nearest to the untuned weights that keeps most of the gain is taken: on real questions,
which are unlike generated ones, full tuning overshoots (docs/lab.md). Where passages were
tuned, or words are looked at, generated questions alone are not enough.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from searchfit.config import Settings
from searchfit.encoders import load_encoder
from searchfit.encoders.cross import CrossEncoder
from searchfit.encoders.trained import Trained
from searchfit.keyword import KeywordIndex
from searchfit.records import Engine, StageResult
from searchfit.reporting.card import model_card
from searchfit.reporting.evidence import Evidence
from searchfit.rerank import first_stage
from searchfit.significance import compare_by, holm
from searchfit.stages import Tools
from searchfit.writing import write_bytes, write_json

VERSION = 6

_BASELINES = ("untuned dense", "untuned blend", "untuned engine")
_KEPT_GAIN = 2 / 3  # share of the best gain that a smaller move must keep


def run(settings: Settings, inputs: Mapping[str, Path], tools: Tools) -> StageResult:
    """Write evaluation/choice.json, models/tuned/, the model that search will use, with its model card, and
    models/reranker/, its re-ranker, empty where there is none."""
    systems = json.loads((inputs["evaluation/systems.json"]).read_text(encoding="utf-8"))
    table = pq.read_table(inputs["evaluation/queries.parquet"])
    chosen, deciding, reason = _choose(systems, table, settings)
    untuned, tuned = (
        _dense_leg(systems["systems"], system)["name"] for system in (_untuned(systems), chosen)
    )
    tested, reranking = _reranked(systems, table, chosen, settings)
    if tested is not None:
        chosen = tested
    engine = Engine(**chosen["engine"])
    on_test = {name: _compare(table, "test", (name, engine.name), settings) for name in _BASELINES}
    choice: dict[str, Any] = {
        "chosen": engine.to_dict(),
        "system": engine.name,
        "untuned": "untuned dense",
        "tuned": engine.query_tower > 0,
        "reason": reason,
        "dev": deciding,
        "reranking": reranking,
        "test": {name: found for name, found in on_test.items() if found},
        "dense_leg": _compare(table, "test", (untuned, tuned), settings),
        "compared": _all_compared(systems, table, settings),
    }
    write_json(tools.output / "evaluation" / "choice.json", choice)
    model = tools.output / "models" / "tuned"
    _save_model(settings, Trained.load(inputs["models/trained"]), engine, model)
    _save_reranker(settings, engine, tools.output / "models" / "reranker")
    card = model_card(Evidence({}, systems, choice, table), settings.model, _language(inputs["keyword"]))
    write_bytes(model / "README.md", card.encode())
    gain = (on_test["untuned dense"] or {}).get("gain")
    counts = {"chosen": engine.name, "test gain over untuned dense": "-" if gain is None else round(gain, 4)}
    return StageResult(counts=counts, notes=(reason, *filter(None, [reranking])))


def _all_compared(
    evidence: Mapping[str, Any], table: pa.Table, settings: Settings
) -> dict[str, dict[str, Any]]:
    """Every system against the untuned engine on test, with `p_holm`: p corrected for so many comparisons."""
    base = _untuned(evidence)["name"]
    each = {s["name"]: _compare(table, "test", (base, s["name"]), settings) for s in evidence["systems"]}
    found = {name: one for name, one in each.items() if one}
    corrected = holm([one["p"] for one in found.values()])
    return {name: {**one, "p_holm": p} for (name, one), p in zip(found.items(), corrected, strict=True)}


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
    tuned, flattered = _proven(evidence, tuned, settings.choose.proof)
    if not tuned:
        return untuned, None, flattered
    whole = {system["name"]: _on_dev(table, untuned, system, settings) for system in tuned}
    base = _dense_leg(systems, untuned)
    legs = {s["name"]: _on_dev(table, base, _dense_leg(systems, s), settings) for s in tuned}
    for compared in (whole, legs) if judged else (legs,):
        best = max(compared.values(), key=lambda found: float(found["gain"]))
        for system in sorted(tuned, key=lambda system: float(system["engine"]["query_tower"])):
            found, engine = compared[system["name"]], whole[system["name"]]
            sure = found["gain"] > 0 and found["p"] < settings.choose.alpha
            lost = engine["gain"] < 0 and engine["p"] < settings.choose.alpha
            kept = engine["gain"] > 0 if judged else not lost
            if sure and found["gain"] >= _KEPT_GAIN * best["gain"] and kept:
                return system, found, f"{_figures(found)}, and the whole engine is not worse."
    best = max((whole if judged else legs).values(), key=lambda found: float(found["gain"]))
    return (
        untuned,
        best,
        f"No tuned engine was better for sure, so the untuned one was kept. {_figures(best)}.",
    )


def _proven(
    evidence: Mapping[str, Any], tuned: list[dict[str, Any]], least: float
) -> tuple[list[dict[str, Any]], str]:
    """The candidates but for those that only generated questions speak for, and what to say where none is
    left.

    What is tuned on generated questions meets their like, which share their words with the passages. Where
    passages were tuned it loses on real ones what it gains there, and where words are looked at too, which
    nobody tuned, nothing is left to gain (docs/lab.md). A model that was not made for retrieval, or for this
    language, finds more of what no word gives away, too; that is asked for.
    """
    found: Mapping[str, float] = evidence["towers"]
    if evidence["questions"] == "judged":
        return tuned, ""
    asked = [one for one in tuned if one["engine"]["document_tower"] or one["engine"]["token_weight"]]
    gains = {one["name"]: found.get(f"{one['engine']['query_tower']:g}", 0.0) for one in asked}
    left = [one for one in tuned if gains.get(one["name"], least) >= least]
    said = (
        f"finds {max(gains.values(), default=0.0):.2f} times as well (choose.proof asks {least:g})"
        if found
        else "should find much better: too few passages have three sentences, so that cannot be told"
    )
    return left, (
        "The untuned model was kept: only generated questions, which flatter what was tuned on their like, "
        "speak for the tuned one. What is left of passages without the sentences that were asked for it "
        f"{said}. Questions that you judge can tell: searchfit judge."
    )


def _on_dev(
    table: pa.Table, before: Mapping[str, Any], after: Mapping[str, Any], settings: Settings
) -> dict[str, Any]:
    return _compare(table, "dev", (before["name"], after["name"]), settings) or {}


def _reranked(
    evidence: Mapping[str, Any], table: pa.Table, chosen: Mapping[str, Any], settings: Settings
) -> tuple[dict[str, Any] | None, str]:
    """The chosen system with its re-ranker where that is better on dev for sure, and a sentence about it.

    The weight with the best mean on dev is tested, at a level divided by their number (Bonferroni).
    """
    first = first_stage(Engine(**chosen["engine"]))
    tried = [
        system
        for system in evidence["systems"]
        if system["kind"] == "re-ranked" and first_stage(Engine(**system["engine"])) == first
    ]
    if not tried or not evidence["counts"]["dev"]:
        return None, ""
    best = max(tried, key=lambda system: float(system["dev"]["ndcg@10"]))
    found = _on_dev(table, chosen, best, settings)
    if found["gain"] > 0 and found["p"] * len(tried) < settings.choose.alpha:
        return best, f"The re-ranker is used. {_figures(found)}."
    return None, f"The re-ranker was not better for sure and is not used. {_figures(found)}."


def _untuned(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """The untuned engine: the candidate that is always in."""
    return next(s for s in evidence["systems"] if s["kind"] == "candidate" and not s["engine"]["query_tower"])


def _dense_leg(systems: list[dict[str, Any]], system: dict[str, Any]) -> dict[str, Any]:
    """The system that is this one by its vectors alone."""
    wanted = Engine(**system["engine"]).vectors_alone().to_dict()
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
    found = compare_by(settings, rows[before].to_numpy(), rows[after].to_numpy())
    return {"before": before, "after": after, **found.to_dict()}


def _language(keyword: Path) -> str:
    """The language of the corpus, as the keyword index took it."""
    return KeywordIndex.load(keyword).analyzer.language


def _save_reranker(settings: Settings, engine: Engine, folder: Path) -> None:
    """Save the engine's re-ranker; an empty folder where it has none."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if engine.reranker:
        CrossEncoder.load(settings.rerank.model, settings.model.device).save(folder)


def _save_model(settings: Settings, trained: Trained, engine: Engine, folder: Path) -> None:
    """Save what search will use: the chosen merge as a two-tower model, or the untuned model as it is."""
    shutil.rmtree(folder, ignore_errors=True)
    trained.encoder(load_encoder(settings.model), engine.query_tower).save(folder)
