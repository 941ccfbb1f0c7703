"""The model card: README.md of the tuned model, and report.md, which goes on with the rest of the report.

The card holds nothing of the documents and no time or path, so that it may be given away with the model, and
is the same whenever the same model is made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from searchfit.config import ModelSettings
from searchfit.markup import figure, text
from searchfit.metrics import NAMES
from searchfit.reporting.evidence import Evidence, Json
from searchfit.reporting.verdict import measure, provenance, verdict

_CODES = {
    "arabic": "ar", "danish": "da", "dutch": "nl", "english": "en", "finnish": "fi", "french": "fr",
    "german": "de", "greek": "el", "hungarian": "hu", "italian": "it", "norwegian": "no", "portuguese": "pt",
    "romanian": "ro", "russian": "ru", "spanish": "es", "swedish": "sv", "turkish": "tr",
}  # fmt: skip
_BUILTIN = {"minilm": "sentence-transformers/all-MiniLM-L6-v2"}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SPECIAL = re.compile(r"([\\`*_\[\]|#~])")
_EXAMPLES = 3

_USE = """## Use

```
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
questions = model.encode_query(["..."])
passages = model.encode_document(["..."])
scores = model.similarity(questions, passages)
```

Encode questions and passages each with their own method: they may go through different weights.
"""
_LIMITS = """## Limits

The model was fitted to one collection of documents; on others it may be worse than the model it comes from.
It keeps that model's licence and biases.
"""


def model_card(evidence: Evidence, model: ModelSettings, language: str) -> str:
    """README.md of the model: metadata as the hub expects it, verdict, figures on test, how to use it."""
    name = _base(model.name)
    kept = f"The untuned model {_code(name)}, kept as it is."
    tuned = f"The model {_code(name)}, tuned by searchfit on questions about one collection of documents."
    parts = [
        _front_matter(evidence, model.name, language),
        "# A search model fitted to its documents\n",
        f"{_plain(verdict(evidence))}\n",
        f"{tuned if evidence.choice.get('tuned') else kept}\n",
        _figures(evidence),
        _USE,
        _LIMITS,
    ]
    return "\n".join(part for part in parts if part)


def markdown(evidence: Evidence, told: Json, model: ModelSettings, language: str) -> str:
    """report.md: the card, then gains by kind of question, systems, examples, stages."""
    systems = [
        [_plain(row["name"]) + (" (chosen)" if row["chosen"] else ""), _gain(row["gain"])]
        + [figure(row["test"].get(name)) for name in NAMES]
        for row in told["systems"]
    ]
    bands = [
        [_plain(group["title"]), _plain(row["band"]), f"{row['n']:,}", _gain(row)]
        for group in told["bands"]
        for row in group["rows"]
    ]
    stages = [
        [
            _plain(stage["stage"]),
            figure(stage["seconds"], ",.1f"),
            figure(stage["peak_memory_mb"], ",.0f"),
            "; ".join(f"{_plain(each['name'])} {_plain(each['value'])}" for each in stage["counts"]),
        ]
        for stage in told["stages"]
    ]
    parts = [
        model_card(evidence, model, language),
        _section("Where the gain is", _table(("By", "Band", "Questions", "Gain in nDCG@10"), bands)),
        _section(
            "All systems, on test",
            _table(("System", f"Gain over {_plain(told['untuned'])}", *NAMES), systems),
        ),
        *(_cards(title, told["examples"].get(kind) or []) for kind, title in _KINDS.items()),
        _section("Stages", _table(("Stage", "Seconds", "Peak memory, MB", "Counts"), stages)),
        _section("Run it again", f"    {' '.join(str(told['command']).split())}\n"),
        _versions(told),
    ]
    return "\n".join(part for part in parts if part)


_KINDS = {"gains": "Largest gains", "losses": "Largest losses", "hardest": "Hardest questions"}


def _front_matter(evidence: Evidence, name: str, language: str) -> str:
    """YAML between its marks; values are written as JSON, which YAML reads."""
    lines = [f"language: [{json.dumps(_CODES[language])}]"] if language in _CODES else []
    base = _BUILTIN.get(name, name)
    if _HUB_ID.fullmatch(base) and not Path(base).exists():
        lines.append(f"base_model: {json.dumps(base)}")
    lines += [
        "library_name: sentence-transformers",
        "pipeline_tag: sentence-similarity",
        "tags: [sentence-transformers, sentence-similarity, feature-extraction, searchfit]",
        f"metrics: {json.dumps(list(NAMES))}",
        *_model_index(evidence),
    ]
    return "\n".join(["---", *lines, "---", ""])


def _model_index(evidence: Evidence) -> list[str]:
    system = evidence.alone
    test = (system or {}).get("test") or {}
    found = [
        {"type": name, "name": name, "value": round(test[name], 6)}
        for name in NAMES
        if test.get(name) is not None
    ]
    if not found:
        return []
    origin = "held-out judged questions" if evidence.judged else "held-out generated questions"
    result = {
        "task": {"type": "information-retrieval", "name": "Information Retrieval"},
        "dataset": {"type": "searchfit", "name": origin},
        "metrics": found,
    }
    return [f"model-index: {json.dumps([{'name': 'searchfit model', 'results': [result]}])}"]


def _figures(evidence: Evidence) -> str:
    """The means on test of the model by itself, untuned and as it is, and of the engine it searches in."""
    names = [evidence.untuned, str((evidence.alone or {}).get("name", "")), evidence.chosen]
    systems = {str(row.get("name")): row.get("test") or {} for row in evidence.systems.get("systems") or []}
    rows = [
        [_plain(name), *(figure(systems[name].get(metric)) for metric in NAMES)]
        for name in dict.fromkeys(names)
        if name in systems
    ]
    table = _table(("System", *NAMES), rows)
    proof = (
        f"{_plain(measure(evidence.proof))} for {_plain(evidence.proof['after'])}.\n"
        if evidence.proof
        else ""
    )
    said = f"{_plain(provenance(evidence.systems))}\n"
    return "\n".join(part for part in ("## Figures\n", said, table, proof) if part)


def _cards(title: str, cards: Sequence[Json]) -> str:
    lines = []
    for card in cards[:_EXAMPLES]:
        ranks = [str(card[name]) if card[name] else "not found" for name in ("rank_before", "rank_after")]
        lines.append(f"- {_plain(card['query'])}: right answer at rank {ranks[0]} before, {ranks[1]} after.")
        lines.append(f"  Likely cause: {_plain(card['cause'])}. {_plain(card['why'])}")
    return _section(title, "\n".join(lines) + "\n") if lines else ""


def _versions(told: Json) -> str:
    found = [f"{_plain(each['name'])} {_plain(each['version'])}" for each in told["versions"]]
    return ", ".join([f"searchfit {_plain(told['searchfit'])}", f"seed {told['seed']}", *found]) + ".\n"


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body.strip() else ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if not lines:
        return ""
    return "\n".join(["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads), *lines]) + "\n"


def _gain(found: Json) -> str:
    bounds = f" ({figure(found['low'], '+.3f')} to {figure(found['high'], '+.3f')})"
    return figure(found["mean"], "+.3f") + (bounds if found["low"] is not None else "")


def _base(name: str) -> str:
    """The base model's name, of a folder only its last part: a card tells no paths."""
    return _BUILTIN.get(name) or (
        name if _HUB_ID.fullmatch(name) and not Path(name).exists() else Path(name).name
    )


def _code(name: str) -> str:
    return "`" + name.replace("`", "'") + "`"


def _plain(value: Any) -> str:
    """One line of text in which neither Markdown nor HTML means anything."""
    shown = format(value, ",.6g") if isinstance(value, float) else value
    return _SPECIAL.sub(r"\\\1", text(shown))
