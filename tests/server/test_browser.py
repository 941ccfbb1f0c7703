"""The page in headless Chromium: as people use it, by keys alone, and over documents that attack it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_tools import whole
from pipeline_tools import CUT, Corpus, fit
from server_tools import Make, listening

from searchfit.judgements import Record

ATTACKS = (
    "</title></style></textarea><script>window.hit = 1; alert(1)</script>",
    "<img src=http://127.0.0.1:9/x onerror='window.hit = 1'>",
    "\"' autofocus onfocus='window.hit = 1' x=\"",
    "<svg onload='window.hit = 1'><a href='javascript:window.hit = 1'>x</a></svg>",
    "javascript:window.hit=1//{{7*7}}${7*7}<iframe srcdoc='<script>parent.hit = 1</script>'></iframe>",
    "\u202e&lt;script&gt;window.hit=1&lt;/script&gt;",
)

RULES = Path(__file__).with_name("rules.js").read_text(encoding="utf-8").partition("\n")[2]


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A workspace of hostile documents, whose column names attack too."""
    folder = tmp_path_factory.mktemp("attacked")
    column = "c <img src=x onerror='window.hit=1'>"
    rows = [
        {
            "id": f"{attack} {number}",
            "title": f"{attack} {number}",
            "text": f"A rope {number} near the anchor. {attack} The violin and the {attack} rest.",
            column: attack,
            "n": number,
        }
        for number in range(4)
        for attack in ATTACKS
    ]
    (folder / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    corpus = Corpus(folder / "bad.jsonl", str(tiny_model))
    columns = {"source__text": ("text",), "source__id": "id", "source__title": "title"}
    fit(folder / "bad", corpus, **CUT, **columns, train__enabled=False, until="index")
    return folder / "bad"


@pytest.fixture(scope="module")
def address(
    make_workspace: Make, bench: Any, attacked: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """A real server on loopback with both workspaces: (its address, the friendly one's folder)."""
    place = whole(make_workspace(tmp_path_factory.mktemp("browsed") / "notes"), bench.folder)
    with listening([place, attacked]) as (_, port):
        yield f"http://127.0.0.1:{port}", place


class Tab:
    """A page of the browser that keeps all that it should not have said."""

    def __init__(self, browser: Any, width: int = 1280, scheme: str = "light", script: bool = True) -> None:
        size = {"width": width, "height": 900}
        self.context = browser.new_context(viewport=size, color_scheme=scheme, java_script_enabled=script)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.said: list[str] = []
        self.foreign: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.foreign.append(request.url))

    def close(self, base: str) -> None:
        """Nothing was said or loaded from elsewhere."""
        assert self.said == []
        assert not [url for url in self.foreign if not url.startswith((base, "data:"))]
        self.context.close()


def test_people_search_filter_mark_and_come_back(browser: Any, address: tuple[str, Path]) -> None:
    base, place = address
    tab = Tab(browser)
    page = tab.page
    page.goto(f"{base}/")
    page.keyboard.type("violin and cello rehearsal")  # the field has the focus
    page.wait_for_selector("#hits .open")
    page.wait_for_url("**/?q=violin+and+cello+rehearsal")
    assert "music" in page.inner_text("#hit-1")
    assert page.locator("#hits mark").count() > 0
    page.click(".facet a:has-text('Huesca')")
    page.wait_for_selector(".chip")
    assert "is.place=Huesca" in page.url
    shown = page.inner_text("#hits")
    other = Tab(browser)
    other.page.goto(page.url)  # a permalink
    assert other.page.inner_text("#hits") == shown
    other.close(base)
    page.click(".mark >> nth=0")
    page.wait_for_selector(".mark[aria-pressed=true]")
    assert [(j.query, j.grade) for j in Record(place).judgements()] == [("violin and cello rehearsal", 1)]
    page.go_back()
    page.wait_for_selector(".chip", state="detached")
    assert page.input_value("#q") == "violin and cello rehearsal"
    tab.close(base)


def test_by_keys_alone(browser: Any, address: tuple[str, Path]) -> None:
    base, _ = address
    tab = Tab(browser)
    page = tab.page
    page.goto(f"{base}/?q=glacier+hut")
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.id") == "hit-2"
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.id") == "hit-1"
    title = page.inner_text("#hit-1")
    page.keyboard.press("w")
    page.wait_for_selector("li:first-child .mark[aria-pressed=true]")
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("Escape")
    assert not page.is_visible("#help")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector(".document")
    assert page.inner_text("h1") == title
    assert page.is_visible("#match")
    page.keyboard.press("m")
    page.wait_for_url("**like=**")
    page.keyboard.press("c")
    page.wait_for_selector(".compare")
    tab.close(base)


def test_compare_and_judge(browser: Any, address: tuple[str, Path]) -> None:
    base, place = address
    tab = Tab(browser)
    page = tab.page
    page.goto(f"{base}/compare?q=rope+on+the+ridge")
    assert page.locator(".ranking").count() == 3
    assert page.locator(".slopes path").count() >= 10
    page.select_option("select[name=system] >> nth=2", "untuned dense")  # shows it at once
    page.wait_for_url("**system=untuned+dense")
    assert "Untuned vectors alone" in page.inner_text(".ranking >> nth=2")
    page.goto(f"{base}/judge?judge=tess&questions=10")
    page.wait_for_selector("#grades")
    page.wait_for_load_state()
    for key, done in (("y", 1), ("n", 2), ("u", 1), ("3", 2)):
        with page.expect_navigation():  # to its end: keys work once the script is there
            page.keyboard.press(key)
        assert page.inner_text("#status").strip().startswith(f"{done} of")
    assert [j.grade for j in Record(place).judgements() if j.judge == "tess"] == [1, 3]
    tab.close(base)


def test_it_works_without_script(browser: Any, address: tuple[str, Path]) -> None:
    base, place = address
    tab = Tab(browser, script=False)
    page = tab.page
    page.goto(f"{base}/")
    page.fill("#q", "old locomotive")
    page.click("form.search button")
    page.click(".mark >> nth=1")
    assert page.locator(".mark[aria-pressed=true]").inner_text() == "Wrong"
    assert [j.grade for j in Record(place).judgements() if j.query == "old locomotive"] == [0]
    page.click(".open >> nth=0")
    assert page.is_visible("#match")
    page.click(".back")
    assert page.locator("#hits > li").count() == 10
    tab.close(base)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_every_view_keeps_the_rules(browser: Any, address: tuple[str, Path], width: int, scheme: str) -> None:
    base, _ = address
    tab = Tab(browser, width, scheme)
    for path in (
        "/",
        "/?q=old+violin&is.place=Huesca&min.price=5",
        "/?q=x&where=nonsense",
        "/document?id=garden-0&q=rose",
        "/compare?q=old+violin",
        "/judge",
        "/judge?judge=me&questions=10",
        "/queries?verdict=dropped",
        "/login",
    ):
        tab.page.goto(base + path)
        if "judge=me" in path:
            tab.page.wait_for_selector("#grades")
        assert tab.page.evaluate(RULES) == [], path
    tab.said = [line for line in tab.said if "422" not in line]  # the browser notes that status
    tab.close(base)


def test_hostile_documents_and_queries_stay_text(browser: Any, address: tuple[str, Path]) -> None:
    base, _ = address
    tab = Tab(browser)
    page = tab.page
    for attack in ATTACKS[:4]:  # the documents have them all
        page.goto(f"{base}/?workspace=bad")
        page.fill("#q", attack)
        page.wait_for_selector("#hits .open")
        page.click(".facet a >> nth=0")
        page.wait_for_selector(".chip")
        page.locator(".why summary").first.click()
        page.locator(".mark").first.click()
        page.wait_for_selector(".mark[aria-pressed=true]")
        assert page.evaluate("window.hit") is None
        page.locator(".open").first.click()
        page.wait_for_selector(".document")
        assert page.evaluate("window.hit") is None
        page.locator(".like").click()
        page.wait_for_selector("#hits")
        assert page.evaluate("[window.hit, document.scripts.length]") == [None, 1]
    assert re.search(r"workspace=bad", page.url)
    tab.close(base)
