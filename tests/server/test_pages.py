"""The page as HTML: addresses, filters, marks, the pool, errors, and what is sent with it."""

from __future__ import annotations

import gc
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock
from unittest.mock import Mock
from urllib.parse import parse_qsl, urlsplit
from weakref import ref

import pytest
from page_tools import whole
from server_tools import Make
from starlette.testclient import TestClient

from searchfit.config import ServeSettings
from searchfit.errors import FilterError, SourceError, WorkspaceError
from searchfit.feedback import Feedback
from searchfit.judgements import Record
from searchfit.judging import Pool
from searchfit.records import Engine
from searchfit.search import open_searcher
from searchfit.server.app import create_app
from searchfit.server.auth import Guard
from searchfit.server.page import document
from searchfit.server.page.address import Asked
from searchfit.server.page.compare import Ranked, chosen, compare, view
from searchfit.server.page.facets import Facets
from searchfit.server.page.html import marked
from searchfit.server.page.judge import Desk, Judging
from searchfit.server.page.login import local
from searchfit.server.state import State
from searchfit.workspace import Workspace

TOKEN = "a-token-of-enough-length"
HTML = {"accept": "text/html"}


@pytest.fixture(scope="module")
def place(make_workspace: Make, bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with all that the page shows."""
    return whole(make_workspace(tmp_path_factory.mktemp("paged") / "notes"), bench.folder)


@pytest.fixture(scope="module")
def client(place: Path) -> Iterator[TestClient]:
    state = State.open([place], ServeSettings(clicks=True, max_query=300))
    with TestClient(create_app(state), follow_redirects=False) as client:
        yield client
    state.close()


def test_an_address_says_all_and_is_read_back() -> None:
    pairs = [
        ("q", 'a & b="c"'),
        ("is.pl ace", "São"),
        ("is.pl ace", ""),
        ("min.price", "3"),
        ("where", "x > 1"),
    ]
    asked = Asked.read([*pairs, ("first", "20"), ("workspace", "w"), ("else", "1")])
    query = urlsplit(asked.link("/")).query
    assert Asked.read(parse_qsl(query, keep_blank_values=True)) == asked
    assert asked.values == (("pl ace", "São"), ("pl ace", ""))
    assert asked.toggled("pl ace", "").toggled("pl ace", "").values == asked.values
    assert Asked.read([("first", "-4"), ("min.price", " ")]) == Asked()
    assert Asked.read([("first", "no")]).first == 0


def test_conditions_of_an_address_in_the_filter_language() -> None:
    columns = {"price": "int", "sold": "bool", 'odd "` name': "string"}
    asked = Asked.read(
        [("is.sold", "true"), ('is.odd "` name', 'x" or "'), ("max.price", "7"), ("where", "price > 1")]
    )
    assert asked.condition(columns) == (
        'sold in (true) and `odd "`` name` in ("x\\" or \\"") and price <= 7 and (price > 1)'
    )
    assert Asked().condition(columns) == ""
    for wrong in (
        ("is.price", "x"),
        ("is.nothing", "x"),
        ("where", "price > 1) or (sold"),
        ("min.sold", "true"),
    ):
        with pytest.raises(FilterError):
            Asked.read([wrong]).condition(columns)


def test_facets_are_the_counts_of_the_corpus(place: Path, corpus: list[Any]) -> None:
    searcher, facets = open_searcher(place), Facets()
    counted = facets.count(searcher.corpus, Asked())
    assert counted.documents == len(corpus)
    by_name = {facet.column: facet for facet in counted.facets}
    assert dict(by_name["place"].values) == Counter(doc.place for doc in corpus if doc.place)
    assert by_name["price"].values == ()  # too many numbers: bounds
    some = facets.count(
        searcher.corpus, Asked(values=(("place", "Teruel"),), bounds=(("price", "max", "50"),))
    )
    cheap = [doc for doc in corpus if doc.price <= 50]
    assert some.documents == sum(doc.place == "Teruel" for doc in cheap)
    again = {facet.column: facet for facet in some.facets}
    assert dict(again["place"].values) == Counter(doc.place for doc in cheap if doc.place)
    assert again["place"].values[0][0] == "Teruel"  # what is chosen stays in sight


def test_results_are_those_of_the_searcher(client: TestClient, place: Path) -> None:
    page = client.get("/", params={"q": "violin rehearsal", "is.place": "Huesca", "first": "3"})
    hits = open_searcher(place).search("violin rehearsal", 10, 'place = "Huesca"', offset=3)
    assert page.status_code == 200
    assert re.findall(r'class="open" href="[^"]*id=([^&]+)&', page.text) == [hit.document_id for hit in hits]
    assert re.search(r">4–\d+ of \d+ documents", page.text)
    like = client.get("/", params={"like": hits[0].document_id}).text
    expected = open_searcher(place).more_like(hits[0].document_id, 10)
    assert re.findall(r'class="open" href="[^"]*?&amp;id=([^&]+)&', like) == [
        hit.document_id for hit in expected
    ]


def test_everything_comes_with_a_strict_policy(client: TestClient) -> None:
    for path in ("/", "/?q=rope", "/compare", "/judge", "/queries", "/assets/page.js", "/document?id=no"):
        policy = client.get(path).headers["content-security-policy"]
        assert policy.startswith(
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:"
        )
        assert "unsafe" not in policy
        assert client.get(path).headers["x-content-type-options"] == "nosniff"
    report = client.get("/report").headers["content-security-policy"]
    assert report.startswith("default-src 'none'; style-src 'unsafe-inline';")
    shown = client.get("/?q=rope").text
    assert not re.search(r"<script(?! src=\"/assets/page.js\")|<style| style=| on\w+=", shown)


def test_a_document_opens_at_its_passage(client: TestClient, corpus: list[Any], place: Path) -> None:
    long = max(corpus, key=lambda doc: len(doc.text))
    searcher = open_searcher(place)
    rows = searcher.corpus.store.rows_of(long.id)
    second = searcher.corpus.store.fetch(rows[1:2])[0]
    page = client.get("/document", params={"id": long.id, "passage": second["id"], "q": "old anchor"}).text
    prose = re.search(r'<div class="prose">(.*?)</div></?[a]', page, re.DOTALL)
    match = re.search(r'<div class="match" id="match">(.*?)</div>', page, re.DOTALL)
    assert match
    assert prose
    assert re.sub("<[^>]+>", "", match[1]) == second["text"]
    assert " ".join(re.sub("<[^>]+>", "", prose[1]).split()) == " ".join(long.text.split())


def test_a_long_document_is_read_to_its_end() -> None:
    found = document.Opened(
        "long", "", "".join(chr(97 + n // 1000 % 26) for n in range(500_000)), {}, (), (9, 10)
    )
    asked = Asked(query="x", first=20)  # from the third page of results
    shown = "".join(document.view(asked, found, None))
    assert 'href="/?q=x&amp;first=20"' in shown  # the way back
    read = ""
    for _ in range(3):
        shown = "".join(document.view(asked, found, None, len(read)))
        read += re.sub("<[^>]+>", "", shown[shown.index('<div class="prose">') :].partition("</div><p>")[0])
        later = re.search(r'href="([^"]+)">Later text', shown)
        if later:
            assert f"&amp;first=20&amp;id=long&amp;at={len(read)}" in later[1]
    assert later is None
    assert read.removesuffix("</div></article>") == found.text


def test_marks_are_judgements(client: TestClient, place: Path) -> None:
    (hit,) = open_searcher(place).search("a rope on the ridge", 1)
    form = {"q": "a rope on the ridge", "document": hit.document_id, "grade": "1", "back": "/"}
    done = client.post("/mark", data=form)
    assert (done.status_code, done.headers["location"]) == (303, "/?q=a+rope+on+the+ridge")
    assert [(j.document_id, j.grade, j.judge) for j in Record(place).judgements()] == [
        (hit.document_id, 1, "me")
    ]
    for query in ("a rope on the ridge", " a rope  on the ridge "):
        shown = client.get("/", params={"q": query}).text
        assert shown.count('aria-pressed="true"') == 1
    client.post("/mark", data={**form, "grade": ""})
    assert Record(place).judgements() == []
    for wrong in ({"document": "no such"}, {"grade": "7"}, {"q": " "}):
        assert client.post("/mark", data={**form, **wrong}).status_code in {404, 422}
    assert client.post("/mark", data=form, headers={"origin": "http://evil.test"}).status_code == 403
    assert client.post("/mark", json=form).status_code == 422
    assert client.post("/mark", data={**form, "back": "//evil.test", "grade": ""}).headers["location"] == "/"
    assert Record(place).judgements() == []


def test_clicks_are_kept_where_asked_and_from_our_page(client: TestClient, place: Path) -> None:
    address = "/document?q=old+rope&id=mountain-4&rank=3"
    client.get(address)
    client.get(address, headers={"sec-fetch-site": "cross-site"})
    assert Feedback(place).clicks() == []
    client.get(address, headers={"sec-fetch-site": "same-origin"})
    assert [(c.query, c.document_id, c.rank) for c in Feedback(place).clicks()] == [
        ("old rope", "mountain-4", 3)
    ]


def test_a_click_that_cannot_be_kept_shows_the_document_all_the_same(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with mock.patch.object(Feedback, "add", side_effect=WorkspaceError("clicks.jsonl is full.")):
        shown = client.get(
            "/document?q=old+rope&id=mountain-4&rank=3", headers={"sec-fetch-site": "same-origin"}
        )
    assert shown.status_code == 200
    assert "clicks.jsonl is full" in caplog.text


def hidden(page: str) -> dict[str, str]:
    form = page[page.index('id="grades"') - 300 :]
    return dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', form))


def test_the_number_of_questions_is_one_of_ours() -> None:
    assert [Judging.read("a", count).questions for count in ("50", "7", "", "²", "000010" + "0" * 5000)] == [
        50,
        *[20] * 4,
    ]


def test_pools_take_no_lock_and_go_with_their_sessions(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searcher = open_searcher(place)
    monkeypatch.setattr("searchfit.server.page.judge._pool", lambda *_: Pool(searcher, [], []))
    with ThreadPoolExecutor(1) as threads:
        desk = Desk(threads)

        def pool(count: int) -> Pool:
            desk.pool(place, searcher, "1", count)
            threads.submit(int).result()  # what was begun before has ended
            made = desk.pool(place, searcher, "1", count)
            assert made is not None
            return made

        with desk._lock:  # somebody's judgement is being written
            first = ref(pool(10))
        assert desk.show(place, pool(10), "ann", False).total == 0
        for count in range(20, 24):
            pool(count)
    gc.collect()
    assert first() is None


def test_the_pool_is_judged_one_by_one_and_resumed(client: TestClient, place: Path) -> None:
    def now() -> str:
        for _ in range(10_000):  # each asks the server whether the pool is made
            page = client.get("/judge?judge=eva&questions=10").text
            if "The pool is being made" not in page:
                return page
        raise AssertionError("no pool")

    first = now()
    fields = hidden(first)
    assert "0 of " in first
    client.post("/judge", data={**fields, "action": "2"})
    client.post("/judge", data={**fields, "action": "3"})  # pressed twice: the second is for a past page
    said = [j for j in Record(place).judgements() if j.judge == "eva"]
    assert [(j.query, j.document_id, j.grade) for j in said] == [(fields["query"], fields["document"], 2)]
    second = now()
    assert "1 of " in second
    assert hidden(second)["document"] != fields["document"] or hidden(second)["query"] != fields["query"]
    client.post("/judge", data={**hidden(second), "action": "undo"})
    assert hidden(now())["document"] == fields["document"]
    assert not [j for j in Record(place).judgements() if j.judge == "eva"]
    client.cookies.clear()


def test_compare_draws_the_changes(client: TestClient) -> None:
    page = client.get("/compare", params={"q": "glacier hut"}).text
    assert page.count('class="ranking') == 3
    assert page.count("<path") >= 10
    ids = ["a", "b", "c", "d"]
    left = Ranked("untuned engine", tuple((i, i) for i in ids), {i: n for n, i in enumerate(ids, 1)})
    order = ["b", "a", "c", "e"]
    own = Ranked(
        "chosen engine (tuned)", tuple((i, i) for i in order), {i: n for n, i in enumerate(order, 1)}
    )
    words = Ranked("keyword", (), {})
    tuned = Engine("tuned", query_tower=0.5)
    shown = "".join(view(Asked(query="x"), tuned, [left, words, own], [], {"a": 1, "c": 0}))
    assert shown.count('aria-label="up 1"') == 1
    assert shown.count('aria-label="down 1"') == 1
    assert shown.count('aria-label="same place"') == 1
    assert shown.count('<span class="up">new</span>') == 1
    assert "another first result; of the best 4, 1 is new and 2 moved" in shown
    assert shown.count('class="judged right"') == 2
    assert 'd="M0 30C50 30 50 90 100 90" class="down"' in shown
    names = ["untuned dense", "keyword", "untuned engine", "chosen engine (untuned engine)"]
    assert chosen(Engine("untuned engine"), names, ["", "no such"]) == ("untuned dense", names[-1], "keyword")
    assert "Nothing beat the untuned model" in "".join(view(Asked(), Engine("u"), [], [], {}))


def test_a_folder_that_is_not_whole_is_told(make_workspace: Make, tmp_path: Path) -> None:
    bare = make_workspace(tmp_path / "bare")
    with pytest.raises(WorkspaceError, match=r"has no info\.json, which its systems need"):
        compare(open_searcher(bare), Workspace(bare), "keel")


def test_queries_with_their_reasons(client: TestClient, place: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(place / "screened.parquet").to_pylist()
    dropped = [row for row in table if row["reason"]]
    page = client.get("/queries?verdict=dropped").text
    assert f"{len(table):,} queries were written for the documents" in page
    assert page.count('class="dropped"') == min(50, len(dropped))
    assert dropped
    words = client.get("/queries", params={"q": "glacier"}).text
    assert words.count('class="name"') == min(50, sum("glacier" in row["text"].lower() for row in table))


def test_errors_are_pages(client: TestClient) -> None:
    for path, status in (
        ("/?q=rope&where=price+%3C", 422),
        ("/?q=rope&is.nothing=1", 422),
        ("/?q=" + "x" * 301, 422),
        ("/?workspace=other", 404),
        ("/document?id=no", 404),
        ("/?like=no", 422),
    ):
        page = client.get(path)
        assert page.status_code == status, path
        assert 'role="alert"' in page.text
        assert "Traceback" not in page.text


def test_errors_have_the_status_that_the_api_gives_them(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for raised, status in ((SourceError("no rows."), 422), (WorkspaceError("it is damaged."), 503)):
        monkeypatch.setattr("searchfit.server.page.queries.read", Mock(side_effect=raised))
        assert client.get("/queries").status_code == status
    assert [record.getMessage() for record in caplog.records if record.name == "searchfit.server"] == [
        "WorkspaceError: it is damaged."
    ]


def test_no_link_leads_beyond_the_last_page_that_is_shown(place: Path) -> None:
    state = State.open([place], ServeSettings(max_offset=10))
    with TestClient(create_app(state)) as client:
        turns = [client.get(f"/?q=rope&first={first}").text.count('rel="next"') for first in (0, 10, 20)]
    state.close()
    assert turns == [1, 0, 0]


def test_pages_are_counted_by_their_routes(client: TestClient) -> None:
    for path in (
        "/",
        "/?q=anchor",
        "/queries",
        "/assets/page.css",
        "/openapi.json",
        "/a%20b",
        "/nothing/at/all",
    ):
        client.get(path)
    client.put("/judge")
    lines = client.get("/metrics").text.splitlines()
    told = {tuple(re.findall('"([^"]*)"', line)) for line in lines if line.startswith("searchfit_requests_")}
    here = {("/", "GET", "200"), ("/queries", "GET", "200"), ("/assets/page.css", "GET", "200")}
    assert here | {("/judge", "PUT", "405"), ("other", "GET", "404")} <= told
    routes = {route for route, _, _ in told}
    assert not any("anchor" in route or "nothing" in route or " " in route for route in routes)


def test_people_without_a_token_are_asked_for_it(place: Path) -> None:
    state = State.open([place], ServeSettings(), Guard([TOKEN]))
    with TestClient(create_app(state), follow_redirects=False) as client:
        asked = client.get("/?q=rope&is.place=Huesca", headers=HTML)
        assert (asked.status_code, asked.headers["location"]) == (
            303,
            "/login?next=%2F%3Fq%3Drope%26is.place%3DHuesca",
        )
        assert client.get("/", headers={"accept": "application/json"}).status_code == 401
        assert client.post("/mark", headers=HTML).status_code == 401
        assert client.get("/assets/page.css").status_code == 200
        assert 'type="password"' in client.get("/login?next=/judge").text
        assert client.post("/login", data={"token": "wrong", "next": "/"}).status_code == 401
        entered = client.post("/login", data={"token": TOKEN, "next": "/judge"})
        assert (entered.status_code, entered.headers["location"]) == (303, "/judge")
        assert {"HttpOnly", "SameSite=strict"} <= set(entered.headers["set-cookie"].split("; "))
        assert client.get("/", headers=HTML).status_code == 200
    state.close()


@pytest.mark.parametrize("path", ["//evil.test", "/\\evil.test", "https://evil.test", "/a\nb", "", "/a b"])
def test_the_way_on_never_leads_elsewhere(path: str) -> None:
    assert local(path) == "/"
    assert local("/judge?judge=a%20b") == "/judge?judge=a%20b"


def test_marks_stand_in_escaped_text() -> None:
    raw = "<b>a & b</b>\nnext <i>"
    assert marked(raw, [(0, 3), (4, 7), (5, 9)]) == (
        "<mark>&lt;b&gt;</mark>a<mark> &amp; </mark><mark>b&lt;</mark>/b&gt;\nnext &lt;i&gt;"
    )
    assert marked("word here", [(14, 18)], start=9) == "word <mark>here</mark>"
