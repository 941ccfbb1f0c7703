from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from searchfit import markup
from searchfit.config import Settings, to_toml
from searchfit.errors import WorkspaceError
from searchfit.metrics import NAMES
from searchfit.significance import compare
from searchfit.stages import Tools, report

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

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def hits(label: str, relevant: int) -> list[dict[str, Any]]:
    titles = [
        "csv.reader",
        "Open a ZIP archive",
        "email.message_from_bytes",
        "Beach house, four rooms",
        "Pool",
    ]
    return [
        {"id": f"{label}-{place}", "title": title, "relevant": place == relevant}
        for place, title in enumerate(titles)
    ]


def example(number: int, before: float, after: float) -> dict[str, Any]:
    return {
        "query": QUESTIONS[number % len(QUESTIONS)],
        "style": "keyphrase",
        "before": before,
        "after": after,
        "relevant": [{"id": "d7", "title": "csv.reader"}],
        "top_before": hits("before", 3),
        "top_after": hits("after", 0),
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
                "after": "tuned 50%",
                **against("untuned blend", "test"),
            },
            "examples": {
                "gains": [example(number, 0.0, 1.0) for number in range(8)],
                "losses": [example(number, 0.63, 0.39) for number in range(2)],
            },
            "user_queries": [
                {"query": QUESTIONS[0], "top_before": hits("before", -1), "top_after": hits("after", -1)}
            ],
        },
        "queries": queries,
    }


def render(folder: Path, parts: dict[str, Any], settings: Settings | None = None) -> str:
    evaluation = folder / "evaluation"
    evaluation.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(parts["manifest"]))
    (evaluation / "systems.json").write_text(json.dumps(parts["systems"]))
    (evaluation / "choice.json").write_text(json.dumps(parts["choice"]))
    pq.write_table(pa.table(parts["queries"]), evaluation / "queries.parquet")
    inputs = {name: folder / name for name in ("manifest.json", "evaluation/choice.json", "models/trained")}
    result = report.run(settings or Settings(), inputs, Tools(output=folder))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert result.counts == {"bytes": len(page.encode())}
    return page


def check_alone(page: str) -> Outline:
    """The page parses, runs nothing and loads nothing."""
    outline = Outline(page)
    names = {name for name, _ in outline.elements}
    assert not names & {"script", "img", "link", "iframe", "object", "base", "form"}
    for _, attributes in outline.elements:
        assert not {
            name for name in attributes if name.startswith("on") or name in ("src", "style", "srcset")
        }
        assert attributes.get("href", "#").startswith("#")
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert len(page.encode()) < 2_000_000
    return outline


def test_the_figures_appear(tmp_path: Path) -> None:
    parts = evidence()
    shown = check_alone(render(tmp_path, parts)).text
    found = parts["choice"]["dense_leg"]
    assert f"“tuned 50%, blend” was chosen: {found['gain']:+.3f} nDCG@10" in shown
    assert f"95% interval {found['low']:+.3f} to {found['high']:+.3f}" in shown
    assert f"{found['mean_a']:.3f} → {found['mean_b']:.3f}" in shown
    assert f"{found['wins']} / {found['ties']} / {found['losses']}" in shown
    for system in parts["systems"]["systems"]:
        for metric in NAMES:
            assert f"{system['test'][metric]:.3f}" in shown
        assert f"{system['dev']['ndcg@10']:.3f}" in shown
    for part in ("test", "dev"):
        for comparison in [parts["choice"]["dev"]] if part == "dev" else parts["choice"]["test"].values():
            assert f"{comparison['gain']:+.3f}" in shown
    assert "flatter keyword search" in shown
    assert "listings.csv, row 7; listings.csv, row 91" in re.sub(r" ; ", "; ", shown)
    assert "searchfit fit listings.csv --text description -o my-search" in shown
    assert "documents 3,000" in shown
    assert "mean chars 412.5" in shown
    assert "torch 2.9.0" in shown
    assert "seed 13" in shown
    assert 'generator = "phrases"' in shown
    assert "seconds in all 49.5" in shown
    assert "and 2 more in evaluation/choice.json" in shown


def test_intervals_of_the_other_systems_come_from_their_queries(tmp_path: Path) -> None:
    parts = evidence()
    shown = check_alone(render(tmp_path, parts)).text
    test = [number for number in range(300) if parts["queries"]["split"][number] == "test"]
    a, b = (np.array(parts["queries"][name])[test] for name in ("untuned dense", "keyword"))
    expected = compare(a, b, 100, 2000, 13)
    assert f"{expected.gain:+.3f} ({expected.low:+.3f} to {expected.high:+.3f})" in shown


def test_nothing_won(tmp_path: Path) -> None:
    parts = evidence()
    parts["choice"] |= {"system": "untuned dense", "tuned": False, "test": {}, "dev": None}
    outline = check_alone(render(tmp_path, parts))
    assert "Nothing beat the untuned model; it was kept." in outline.text
    badges = [name for name, attributes in outline.elements if attributes.get("class") == "badge"]
    assert len(badges) == 1


def test_untuned_weights_in_a_blend(tmp_path: Path) -> None:
    parts = evidence()
    parts["choice"] |= {"system": "untuned blend", "tuned": False}
    assert (
        "the untuned one was kept and searches as “untuned blend”"
        in check_alone(render(tmp_path, parts)).text
    )


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(-0.1, 0.2, "The gain is not certain."), (-0.2, -0.1, "It is worse on these questions.")],
)
@pytest.mark.parametrize("questions", ["generated", "judged"])
def test_a_doubtful_gain_is_called_so(
    tmp_path: Path, questions: str, low: float, high: float, said: str
) -> None:
    parts = evidence()
    found = parts["choice"]
    doubtful = {"gain": (low + high) / 2, "low": low, "high": high, "p": 0.4}
    (found["dense_leg"] if questions == "generated" else found["test"]["untuned dense"]).update(doubtful)
    parts["systems"]["questions"] = questions
    shown = check_alone(render(tmp_path, parts)).text
    assert said in shown
    assert "p = 0.400" in shown


@pytest.mark.parametrize(
    ("questions", "test", "said"),
    [
        ("judged", 310, "The 310 test questions are your own, with your judgements."),
        ("judged", 12, "12 are few"),
        ("generated", 0, "too few questions"),
        ("generated", 310, "generated from your documents"),
    ],
)
def test_where_the_questions_came_from(tmp_path: Path, questions: str, test: int, said: str) -> None:
    parts = evidence()
    parts["systems"] |= {"questions": questions, "counts": {"dev": 5, "test": test}}
    assert said in check_alone(render(tmp_path, parts)).text


def test_an_empty_fit(tmp_path: Path) -> None:
    parts = {
        "manifest": {"searchfit": "0.1.0"},
        "systems": {"questions": "generated", "counts": {"dev": 0, "test": 0}, "systems": []},
        "choice": {
            "system": "untuned dense",
            "untuned": "untuned dense",
            "tuned": False,
            "test": {},
            "dev": None,
        },
        "queries": {name: pa.array([], pa.string()) for name in ("query_id", "split", "text", "style")},
    }
    shown = check_alone(render(tmp_path, parts)).text
    assert "Nothing beat the untuned model; it was kept." in shown
    assert "nan" not in shown.lower()


def test_missing_figures_are_dashes(tmp_path: Path) -> None:
    parts = evidence()
    for system in parts["systems"]["systems"]:
        system["test"], system["dev"] = {}, {"ndcg@10": None}
    parts["choice"]["test"] = {"untuned dense": compare([0.2], [0.4], 100, 100, 0).to_dict()}
    parts["manifest"]["stages"]["train"] = {"seconds": None, "counts": {"loss": float("nan"), "device": None}}
    parts["queries"]["keyword"] = [None] * 300
    del parts["queries"]["tuned"]
    shown = check_alone(render(tmp_path, parts)).text
    assert "95% interval - to -" in shown
    assert "loss -" in shown
    assert not re.search(r"\b(nan|None)\b", shown)


def poison(value: Any, hostile: str) -> Any:
    """The same structure with every text a person could have written replaced."""
    if isinstance(value, dict):
        return {key: poison(item, hostile) for key, item in value.items()}
    if isinstance(value, list):
        return [poison(item, hostile) for item in value]
    return hostile if isinstance(value, str) else value


@pytest.mark.parametrize("hostile", [HOSTILE, "<&'\"" * 700, "🙂" * 2_500, ""])
def test_hostile_text_stays_text(tmp_path: Path, hostile: str) -> None:
    parts = poison(evidence(), hostile)
    many = [copy.deepcopy(parts["choice"]["examples"]["gains"][0]) for _ in range(12)]
    parts["choice"]["examples"] = {"gains": many, "losses": many}
    parts["choice"]["user_queries"] = many
    parts["systems"]["systems"] *= 12
    stage = parts["manifest"]["stages"]["ingest"]
    stage["drops"] = [{"reason": hostile, "count": 1, "samples": [hostile] * 7}] * 20
    stage["notes"] = [hostile] * 20
    parts["manifest"]["stages"] = {f"{hostile[:90]}{number}": stage for number in range(12)}
    clean = hostile.encode("utf-8", "replace").decode()  # Parquet holds no surrogates
    parts["queries"] |= {"query_id": ["q"] * 300, "split": ["test"] * 300}
    parts["queries"] |= {"text": [clean[:2000]] * 300, "style": [f"{clean[:90]}{n}" for n in range(300)]}
    outline = check_alone(render(tmp_path, parts))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e\ud800-\udfff]", "".join(outline.words))


def test_a_10_mb_title_is_clipped(tmp_path: Path) -> None:
    parts = evidence()
    parts["choice"]["examples"]["gains"][0]["top_after"][0]["title"] = "x" * 10_000_000
    page = render(tmp_path, parts)
    assert len(check_alone(page).text) < 100_000
    assert "x" * 140 + "…" in page


def test_the_same_inputs_make_the_same_page(tmp_path: Path) -> None:
    assert render(tmp_path, evidence()) == render(tmp_path, evidence())


@pytest.mark.parametrize("name", ["manifest.json", "evaluation/systems.json", "evaluation/queries.parquet"])
@pytest.mark.parametrize("content", [None, b"{", b"[]"])
def test_a_damaged_input_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    render(tmp_path, evidence())
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    inputs = {name: tmp_path / name for name in ("manifest.json", "evaluation/choice.json", "models/trained")}
    with pytest.raises(WorkspaceError, match=re.escape(name)):
        report.run(Settings(), inputs, Tools(output=tmp_path))


def test_only_declared_settings_are_read(tmp_path: Path) -> None:
    check_alone(render(tmp_path, evidence(), Settings().only("seed", "choose")))


def test_text_and_tags() -> None:
    assert markup.tag("p.a", "<&>", markup.tag("b", '"'), title='"') == (
        '<p class="a" title="&quot;">&lt;&amp;&gt;<b>&quot;</b></p>'
    )
    assert markup.text("a\n\tb\x00", 10) == "a b\ufffd"
    assert markup.text("abcdef", 3) == "abc…"
    assert markup.figure(float("nan")) == markup.figure(None) == markup.figure(True) == "-"
    assert markup.figure(0.12345, "+.3f") == "+0.123"


def test_the_course_of_training_is_drawn(tmp_path: Path) -> None:
    trained = tmp_path / "models" / "trained"
    trained.mkdir(parents=True)
    rows = ["epoch,step,loss,score", "0,0,,0.61", "0.5,1,2.25,", "1,2,1.5,0.7042"]
    (trained / "course.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    page = render(tmp_path, evidence())
    outline = Outline(page)
    assert "nDCG@10 on dev questions: 0.6100 at step 0, 0.7042 at the end" in outline.text
    assert "loss: 2.250 at step 1, 1.500 at the end" in outline.text
    curves = [attributes["points"] for name, attributes in outline.elements if name == "polyline"]
    assert curves == ["0.00,38.00 100.00,2.00", "50.00,2.00 100.00,38.00"]


def test_where_nothing_was_trained_there_is_no_curve(tmp_path: Path) -> None:
    assert "<polyline" not in render(tmp_path, evidence())
