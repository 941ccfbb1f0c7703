"""A made-up fit for the tests of the report: evidence, as the stages leave it, and what is told of it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa

from searchfit.config import ModelSettings, Settings, to_toml
from searchfit.metrics import NAMES
from searchfit.reporting.card import markdown
from searchfit.reporting.evidence import Evidence
from searchfit.reporting.page import page
from searchfit.reporting.tell import tell
from searchfit.significance import compare

VOID = {"meta", "br"}
HOSTILE = (
    "</style></title><script>alert(1)</script><img src=http://evil.example/x onerror='x'>"
    '\x00\x1b[31m\u202e\ud800 "q"'
)
LEGS = ("query_tower", "units", "dense_weight", "keyword_weight")
SYSTEMS = {
    "untuned dense": (0.634, (0.0, "passage", 1.0, 0.0)),
    "keyword": (0.66, (0.0, "passage", 0.0, 1.0)),
    "untuned blend": (0.701, (0.0, "both", 1.0, 1.0)),
    "tuned": (0.671, (1.0, "both", 1.0, 0.0)),
    "tuned 50%, blend": (0.728, (0.5, "both", 1.0, 1.0)),
    "tuned 100%, blend": (0.716, (1.0, "both", 1.0, 1.0)),
    "tuned 50%, blend 0.5": (0.6, (0.5, "both", 1.0, 0.5)),
}
STAGES = ("ingest", "split", "encode", "generate", "screen", "holdout", "mine", "train", "evaluate")
QUESTIONS = (
    "quiet house with a pool near the beach",
    "read a CSV file row by row",
    "¿cómo se abre un archivo comprimido?",
    "كيف أقرأ ملفا",
    "parse an e-mail message from bytes",
)


class Outline(HTMLParser):
    """Checks that elements nest and close, and keeps what was shown and what would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.figures: list[tuple[str, float, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)
        if self.open[-1:] == ["data"]:
            attributes = self.elements[-1][1]
            self.figures.append((attributes["data-key"] or "", json.loads(attributes["value"] or ""), data))

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def hits(label: str, relevant: int) -> list[dict[str, Any]]:
    titles = ["csv.reader", "Open a ZIP archive", "email.message_from_bytes", "Beach house", "Pool"]
    return [
        {"id": f"{label}-{place}", "title": title, "relevant": place == relevant}
        for place, title in enumerate(titles)
    ]


def card(number: int, before: float, after: float) -> dict[str, Any]:
    return {
        "query": QUESTIONS[number % len(QUESTIONS)],
        "style": "keyphrase",
        "before": before,
        "after": after,
        "rank_before": None,
        "rank_after": number + 1,
        "relevant": [{"id": "d7", "title": "csv.reader"}],
        "top_before": hits("before", 3),
        "top_after": hits("after", 0),
        "cause": "vocabulary mismatch",
        "why": "20% of the question's content words stand in the right passage.",
    }


def parts() -> dict[str, Any]:
    """What is told beside the evaluation: examples, portrait and queries."""
    random = np.random.default_rng(3)
    names = ("queries_before", "passages_before", "queries_after", "passages_after")
    clouds = {name: random.normal(size=(40, 2)).round(4).tolist() for name in names}
    shares = {f"{kind}_{side}": [0.25] * 4 for kind in ("right", "other") for side in ("before", "after")}
    means = {side: {"right": 0.61, "other": 0.12, "auc": 0.98} for side in ("before", "after")}
    yours = {"query": QUESTIONS[0], "top_before": hits("before", -1), "top_after": hits("after", -1)}
    return {
        "examples": {
            "gains": [card(number, 0.0, 1.0) for number in range(8)],
            "losses": [card(number, 0.63, 0.39) for number in range(2)],
            "hardest": [card(number, 0.0, 0.0) for number in range(3)],
            "easiest": [card(number, 1.0, 1.0) for number in range(3)],
            "yours": [yours],
        },
        "portrait": {
            "systems": ["untuned dense", "tuned"],
            "questions": 120,
            "others": 200,
            "scores": {"edges": [-0.1, 0.1, 0.3, 0.6, 0.9], **shares, **means},
            "map": {"variance": 0.2, "cosine_before": 0.5, "cosine_after": 0.6, "shown": 40, **clouds},
            "twins": {"cosine": 0.9, "answers": 4, "of": 120},
        },
        "queries": {
            "kept": 1234,
            "dropped": 2,
            "styles": [{"name": "keyphrase", "count": 1234, "samples": list(QUESTIONS)}],
            "reasons": [{"name": "too short", "count": 2, "samples": ["a", "b"]}],
        },
    }


def scores() -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    base = random.beta(2, 1.2, 300)
    return {
        name: np.clip(base + random.normal(mean - 0.634, 0.25, 300) * (name != "untuned dense"), 0, 1)
        for name, (mean, _) in SYSTEMS.items()
    }


def evidence() -> dict[str, Any]:
    """A realistic fit: the manifest and the evaluation's files."""
    column = scores()
    split = np.array(["dev", "test"] * 150)
    queries = {
        "query_id": [f"q{number}" for number in range(300)],
        "split": split.tolist(),
        "text": [f"{QUESTIONS[number % 5]} {number}" for number in range(300)],
        "style": [("keyphrase", "crop", "title")[number % 3] for number in range(300)],
        "relevant": [["d7"]] * 300,
        **{name: values.tolist() for name, values in column.items()},
    }

    def metrics(name: str, part: str) -> dict[str, float]:
        mean = float(column[name][split == part].mean())
        return dict(zip(NAMES, (mean, mean - 0.04, mean - 0.05, mean + 0.1, mean + 0.2), strict=True))

    def against(name: str, part: str) -> dict[str, Any]:
        a, b = (column[key][split == part] for key in (name, "tuned 50%, blend"))
        return compare(a, b, 500, 500, 13).to_dict()

    stages = {
        name: {
            "key": "k",
            "version": 1,
            "seconds": 1.25 * place + 0.5,
            "peak_memory_mb": 300.0 + 97 * place,
            "finished": f"2026-11-20T23:{place:02}:00Z",
            "counts": {"documents": 3000 + place, "mean_chars": 412.5, "language": "english"},
            "drops": [
                {
                    "reason": "empty text",
                    "count": 3,
                    "samples": ["listings.csv, row 7", "listings.csv, row 91"],
                }
            ]
            if place % 4 == 0
            else [],
            "notes": ["Column description was taken as the text."] if place == 0 else [],
        }
        for place, name in enumerate(STAGES)
    }
    return {
        "manifest": {
            "searchfit": "0.1.0",
            "command": "searchfit fit listings.csv --text description -o my-search",
            "settings_toml": to_toml(Settings()),
            "versions": {"python": "3.11.9", "torch": "2.9.0", "sentence-transformers": "6.2.1"},
            "stages": stages,
        },
        "systems": {
            "unjudged": [],
            "questions": "generated",
            "counts": {"dev": 150, "test": 150},
            "systems": [
                {
                    "name": name,
                    "kind": "candidate" if "tuned " in name else "baseline",
                    "engine": {"name": name, **dict(zip(LEGS, engine, strict=True))},
                    "dev": metrics(name, "dev"),
                    "test": metrics(name, "test"),
                }
                for name, (_, engine) in SYSTEMS.items()
            ],
        },
        "choice": {
            "chosen": {"name": "tuned 50%, blend"},
            "system": "tuned 50%, blend",
            "untuned": "untuned dense",
            "tuned": True,
            "reason": "It had the best nDCG@10 on dev and its gain there is significant.",
            "dev": against("untuned dense", "dev"),
            "test": {name: against(name, "test") for name in ("untuned dense", "untuned blend")},
            "dense_leg": {
                "before": "untuned dense",
                "after": "tuned",
                **against("untuned blend", "test"),
            },
        },
        "queries": queries,
    }


def built(fit: dict[str, Any]) -> Evidence:
    """The evidence of a made-up fit: metrics, top and places follow from its scores."""
    queries = pa.table(fit["queries"])
    count, names = queries.num_rows, [name for name in SYSTEMS if name in queries.column_names]
    rows = [
        {"query_id": str(id_), "split": split, "system": name}
        | {metric: None if score is None else score / (number + 1) for number, metric in enumerate(NAMES)}
        for name in names
        for id_, split, score in zip(
            *(queries[column].to_pylist() for column in ("query_id", "split", name)), strict=True
        )
    ]
    kinds = [("query_id", pa.string()), ("split", pa.string()), ("system", pa.string())]
    schema = pa.schema([*kinds, *((name, pa.float64()) for name in NAMES)])
    places = {name: pa.array([[1 + n % 7] for n in range(count)], pa.list_(pa.int32())) for name in names}
    top = {name: pa.array([[0, 1]] * count, pa.list_(pa.int32())) for name in names}
    metrics = pa.Table.from_pylist(rows, schema=schema)
    course = fit.get("course", "")
    return Evidence(
        fit["manifest"],
        fit["systems"],
        fit["choice"],
        queries,
        metrics,
        pa.table(top),
        pa.table(places),
        course,
    )


TRAITS: dict[str, list[Any]] = {
    "style": ["crop", "title"] * 30,
    "words": [2, 5, 8] * 20,
    "overlap": [0.1, 0.5, 1.0, float("nan")] * 15,
    "document_words": list(range(10, 70)),
    "gain": [0.1, -0.05, 0.0] * 20,
}


def told(fit: dict[str, Any], others: dict[str, Any] | None = None) -> dict[str, Any]:
    """report.json of a made-up fit."""
    return tell(built(fit), TRAITS, parts() if others is None else others, 200, 13)


def render(fit: dict[str, Any], others: dict[str, Any] | None = None) -> str:
    """report.html of a made-up fit, made from the JSON as it is written."""
    return page(json.loads(json.dumps(told(fit, others), allow_nan=False)))


def card_of(fit: dict[str, Any], others: dict[str, Any] | None = None, model: str = "minilm") -> str:
    """report.md of a made-up fit."""
    return markdown(built(fit), told(fit, others), ModelSettings(name=model), "english")


def check_alone(page: str) -> Outline:
    """The page parses, runs nothing and loads nothing."""
    outline = Outline(page)
    names = {name for name, _ in outline.elements}
    assert not names & {"script", "img", "link", "iframe", "object", "base", "form"}
    for _, attributes in outline.elements:
        assert not {
            name for name in attributes if name.startswith("on") or name in ("src", "style", "srcset")
        }
        assert (attributes.get("href") or "#").startswith("#")
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert len(page.encode()) < 2_000_000
    return outline


def look_up(value: Any, key: str) -> Any:
    """A value of report.json by its key."""
    for part in key.split("/"):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def check_figures(outline: Outline, value: Any) -> int:
    """Every figure on the page is the one of the JSON, rounded as shown; how many there are."""
    for key, full, shown in outline.figures:
        held = look_up(value, key)
        assert full == held, key
        percent = shown.endswith("%")
        bare = shown.rstrip("%").replace(",", "")
        digits = len(bare.partition(".")[2])
        # Six significant digits are what a count shows at most.
        slack = max(0.5 * 10**-digits, abs(held) * 5e-6) * 1.000001
        assert abs(float(bare) - held * (100 if percent else 1)) <= slack, (key, shown, held)
    return len(outline.figures)
