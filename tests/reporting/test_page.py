from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from reporting.made_up import HOSTILE, check_alone, check_figures, evidence, parts, render, told

from searchfit import markup
from searchfit.metrics import NAMES
from searchfit.significance import compare

ATTACKS = (
    "</style></title></svg></data><script>window.hit = 1; alert(1)</script>",
    "<img src=http://127.0.0.1:9/x onerror='window.hit = 1'>",
    "<svg onload='window.hit = 1'><animate onbegin='window.hit = 1' attributeName=x dur=1s>",
    "\"'><iframe srcdoc='<script>parent.hit = 1</script>'></iframe><base href=http://127.0.0.1:9/>",
)


def test_the_figures_appear() -> None:
    fit = evidence()
    value = json.loads(json.dumps(told(fit)))
    outline = check_alone(render(fit))
    assert check_figures(outline, value) > 250
    shown, found = outline.text, fit["choice"]["dense_leg"]
    assert f"“tuned 50%, blend” was chosen: {found['gain']:+.3f} nDCG@10" in shown
    assert f"95% interval {found['low']:+.3f} to {found['high']:+.3f}" in shown
    assert f"{found['mean_a']:.3f} → {found['mean_b']:.3f}" in shown
    for system in fit["systems"]["systems"]:
        for metric in NAMES:
            assert f"{system['test'][metric]:.3f}" in shown
        assert f"{system['dev']['ndcg@10']:.3f}" in shown
    for each in [fit["choice"]["dev"], *fit["choice"]["test"].values()]:
        assert f"{each['gain']:+.3f}" in shown
    assert "flatter keyword search" in shown
    assert "listings.csv, row 7; listings.csv, row 91" in re.sub(r" ; ", "; ", shown)
    assert "searchfit fit listings.csv --text description -o my-search" in shown
    assert "documents 3,000" in shown
    assert "mean chars 412.5" in shown
    assert "torch 2.9.0" in shown
    assert "seed 13" in shown
    assert 'generator = "phrases"' in shown
    assert "seconds in all 49.5" in shown
    assert "vocabulary mismatch 20% of the question" in shown
    assert "right answer not found" in shown
    assert "right answer at rank 3" in shown
    assert "Queries that were dropped ( 2 )" in shown


def test_a_figure_that_is_not_the_jsons_is_seen() -> None:
    """The oracle of the other tests can fail."""
    value = told(evidence())
    outline = check_alone(render(evidence()))
    value["proof"]["gain"] += 0.1
    with pytest.raises(AssertionError):
        check_figures(outline, value)


def test_intervals_of_the_other_systems_come_from_their_queries() -> None:
    fit = evidence()
    test = [number for number in range(300) if fit["queries"]["split"][number] == "test"]
    a, b = (np.array(fit["queries"][name])[test] for name in ("untuned dense", "keyword"))
    expected = compare(a, b, 100, 200, 13)
    (row,) = [row for row in told(fit)["systems"] if row["name"] == "keyword"]
    assert row["gain"] == pytest.approx(
        {"mean": expected.gain, "low": expected.low, "high": expected.high}, abs=1e-12
    )


def test_nothing_won() -> None:
    fit = evidence()
    fit["choice"] |= {"system": "untuned dense", "tuned": False, "test": {}, "dense_leg": None}
    fit["choice"]["dev"] |= {"before": "untuned dense", "after": "tuned"}
    outline = check_alone(render(fit))
    gains = np.array(fit["queries"]["tuned"])[1::2] - np.array(fit["queries"]["untuned dense"])[1::2]
    least = (1.959964 + 0.841621) * gains.std(ddof=1) / np.sqrt(150)
    said = f"150 test questions would have shown a gain of {least:.3f} or more."
    assert f"Not better: nothing beat the untuned model, and it was kept. These {said}" in outline.text
    assert "The second was not better for sure on dev and is not in use." in outline.text
    badges = [name for name, attributes in outline.elements if attributes.get("class") == "badge"]
    assert len(badges) == 1
    assert not any(attributes.get("class") == "tiles" for _, attributes in outline.elements)


def test_untuned_weights_in_a_blend() -> None:
    fit = evidence()
    fit["choice"] |= {"system": "untuned blend", "tuned": False}
    fit["choice"]["compared"] = {"keyword": {"p_holm": 0.03125}}
    said = "Not better: no tuned model won, and the untuned one was kept; it searches as “untuned blend”"
    outline = check_alone(render(fit))
    assert said in outline.text
    row = re.search(r"<tr><td>keyword<small>.*?</tr>", render(fit))
    assert row
    assert row[0].endswith(">0.031</data></td></tr>")  # under the last heading, p
    assert outline.text.count("nDCG@10 on dev p untuned dense") == 1


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(-0.1, 0.2, "The gain is not certain."), (-0.2, -0.1, "It is worse on these questions.")],
)
@pytest.mark.parametrize("questions", ["generated", "judged"])
def test_a_doubtful_gain_is_called_so(questions: str, low: float, high: float, said: str) -> None:
    fit = evidence()
    found = fit["choice"]
    doubtful = {"gain": (low + high) / 2, "low": low, "high": high, "p": 0.4}
    (found["dense_leg"] if questions == "generated" else found["test"]["untuned dense"]).update(doubtful)
    fit["systems"]["questions"] = questions
    shown = check_alone(render(fit)).text
    assert said in shown
    assert "p = 0.400" in shown
    assert "would have shown a gain of" in shown


@pytest.mark.parametrize(
    ("questions", "test", "said"),
    [
        ("judged", 310, "The 310 test questions are your own, with your judgements."),
        ("judged", 12, "12 are few"),
        ("generated", 0, "too few questions"),
        ("generated", 310, "generated from your documents"),
    ],
)
def test_where_the_questions_came_from(questions: str, test: int, said: str) -> None:
    fit = evidence()
    fit["systems"] |= {"questions": questions, "counts": {"dev": 5, "test": test}}
    assert said in check_alone(render(fit)).text


def test_an_empty_fit() -> None:
    fit = {
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
    shown = check_alone(render(fit, {"examples": {}, "portrait": {}, "queries": {}})).text
    assert "Not better: nothing beat the untuned model, and it was kept." in shown
    assert "nan" not in shown.lower()


def test_missing_figures_are_dashes() -> None:
    fit = evidence()
    for system in fit["systems"]["systems"]:
        system["test"], system["dev"] = {}, {"ndcg@10": None}
    alone = compare([0.2], [0.4], 100, 100, 0).to_dict()
    fit["choice"]["test"] = {"untuned dense": alone}
    fit["choice"]["dense_leg"] |= {"low": None, "high": None}
    fit["manifest"]["stages"]["train"] = {"seconds": None, "counts": {"loss": float("nan"), "device": None}}
    fit["queries"]["keyword"] = [None] * 300
    del fit["queries"]["tuned"]
    shown = check_alone(render(fit)).text
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


def poisoned(hostile: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A fit, and what is told beside it, with the text wherever a person could have put it."""
    fit, others = evidence(), poison(parts(), hostile)
    queries = fit.pop("queries")
    choice = {name: fit["choice"][name] for name in ("system", "untuned", "dense_leg", "dev")}
    fit = {**poison(fit, hostile), "queries": queries}
    fit["choice"] |= choice
    stage = fit["manifest"]["stages"]["ingest"]
    stage["drops"] = [{"reason": hostile, "count": 1, "samples": [hostile] * 7}] * 20
    stage["notes"] = [hostile] * 20
    fit["manifest"]["stages"] = {f"{hostile[:90]}{number}": stage for number in range(12)}
    fit["systems"]["systems"] *= 12
    for kind in ("gains", "losses", "hardest", "easiest", "yours"):
        others["examples"][kind] = [copy.deepcopy(others["examples"][kind][0]) for _ in range(12)]
    return fit, others


@pytest.mark.parametrize("hostile", [HOSTILE, *ATTACKS, "<&'\"" * 700, "🙂" * 2_500, ""])
def test_hostile_text_stays_text(hostile: str) -> None:
    outline = check_alone(render(*poisoned(hostile)))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e\ud800-\udfff]", "".join(outline.words))


def test_a_10_mb_title_is_clipped() -> None:
    others = parts()
    others["examples"]["gains"][0]["top_after"][0]["title"] = "x" * 10_000_000
    page = render(evidence(), others)
    assert len(check_alone(page).text) < 100_000
    assert "x" * 140 + "…" in page


def test_the_same_inputs_make_the_same_page() -> None:
    assert render(evidence()) == render(evidence())


def test_text_and_tags() -> None:
    assert markup.tag("p.a.b", "<&>", markup.tag("b", '"'), title='"') == (
        '<p class="a b" title="&quot;">&lt;&amp;&gt;<b>&quot;</b></p>'
    )
    assert markup.text("a\n\tb\x00", 10) == "a b\ufffd"
    assert markup.text("abcdef", 3) == "abc…"
    assert markup.figure(float("nan")) == markup.figure(None) == markup.figure(True) == "-"
    assert markup.figure(0.12345, "+.3f") == "+0.123"


def test_the_course_of_training_is_drawn() -> None:
    rows = ["epoch,step,loss,score", "0,0,,0.61", "0.5,1,2.25,", "1,2,1.5,0.7042"]
    outline = check_alone(render(evidence() | {"course": "\n".join(rows) + "\n"}))
    lines = [attributes["points"] for name, attributes in outline.elements if name == "polyline"]
    assert "0.00,46.00 100.00,4.00" in lines
    assert "50.00,4.00 100.00,46.00" in lines
    assert "0.6100 at step 0 , 0.7042 at the end" in outline.text


def test_where_nothing_was_trained_there_is_no_curve() -> None:
    assert "<h3>Training" not in render(evidence())


def test_in_a_browser_nothing_runs_loads_or_overflows(browser: Any, tmp_path: Path) -> None:
    """The page of hostile documents, wide and narrow, light and dark, and printed."""
    file = tmp_path / "report.html"
    file.write_text(render(*poisoned(" ".join(ATTACKS))), encoding="utf-8")
    for width, scheme in ((1280, "light"), (400, "dark")):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab = context.new_page()
        said: list[str] = []
        asked: list[str] = []
        tab.on("console", lambda message, said=said: said.append(message.text))
        tab.on("pageerror", lambda error, said=said: said.append(str(error)))
        tab.on("dialog", lambda dialog, said=said: said.append(dialog.message))
        tab.on("request", lambda request, asked=asked: asked.append(request.url))
        tab.goto(file.as_uri())
        assert asked == [file.as_uri()]
        assert said == []
        assert tab.evaluate("window.hit") is None
        assert tab.evaluate("document.scripts.length") == 0
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        context.close()


def test_a_browser_sees_the_figures_of_the_json(browser: Any, tmp_path: Path) -> None:
    value = json.loads(json.dumps(told(evidence())))
    file = tmp_path / "report.html"
    file.write_text(render(evidence()), encoding="utf-8")
    tab = browser.new_page()
    tab.goto(file.as_uri())
    seen = tab.evaluate(
        "[...document.querySelectorAll('data')].map(d => [d.dataset.key, d.value, d.textContent])"
    )
    outline = check_alone(file.read_text(encoding="utf-8"))
    assert [(key, json.loads(full), shown) for key, full, shown in seen] == outline.figures
    assert check_figures(outline, value) == len(seen)
    assert tab.inner_text("h1") == value["verdict"]
    paper = tab.pdf(format="A4")
    assert paper.startswith(b"%PDF")
    tab.close()
