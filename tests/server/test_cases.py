"""Requests of all kinds, as the OpenAPI document and the page's forms allow them and as they do not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from page_tools import whole
from server_tools import Make
from starlette.testclient import TestClient

from searchfit.config import ServeSettings
from searchfit.server.app import create_app
from searchfit.server.state import State


@pytest.fixture(scope="module")
def client(
    make_workspace: Make, bench: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    place = whole(make_workspace(tmp_path_factory.mktemp("cases") / "notes", reranked=True), bench.folder)
    state = State.open([place], ServeSettings(clicks=True, max_body=100_000, max_texts=64))
    with TestClient(create_app(state), follow_redirects=False) as client:
        yield client
    state.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def _values(schema: dict[str, Any], shapes: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a schema allows, and some that it does not."""
    if name := schema.get("$ref"):
        return _values(shapes[name.rsplit("/", 1)[-1]], shapes)
    if parts := schema.get("anyOf"):
        return st.one_of([_values(part, shapes) for part in parts])
    if "enum" in schema or "const" in schema:
        return st.sampled_from([*schema.get("enum", []), schema.get("const")]) | JSON
    kind = schema.get("type")
    if kind == "object" and "properties" in schema:
        needed = set(schema.get("required", ()))
        own = {name: _values(part, shapes) for name, part in schema["properties"].items()}
        free = {name: part for name, part in own.items() if name not in needed}
        return st.fixed_dictionaries({name: own[name] for name in needed}, optional=free)
    if kind == "array":
        return st.lists(_values(schema["items"], shapes), max_size=5)
    plain: dict[Any, st.SearchStrategy[Any]] = {
        "string": st.text(max_size=50) | st.sampled_from(["price < 3", "place = 'Huesca'", "notes", "keel"]),
        "integer": st.integers(-2, 120) | st.integers(),
        "boolean": st.booleans(),
        "object": JSON | st.just({"column": "price", "op": "<", "value": 3}),
        "number": st.floats(),
    }
    return st.one_of(plain.get(kind, JSON), JSON) if kind != "boolean" else plain[kind]


QUIET = settings(deadline=None, database=None, derandomize=True, suppress_health_check=[*HealthCheck])


def _cases(client: TestClient, count: int) -> set[int]:
    """The statuses of the API's answers; none may be that of a failure."""
    described = client.get("/openapi.json").json()
    shapes = described["components"]["schemas"]
    routes: list[tuple[str, str, st.SearchStrategy[Any]]] = []
    for path, methods in described["paths"].items():
        for method, told in methods.items():
            body = told.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            routes.append((method.upper(), path, _values(body, shapes) if body else st.none()))
    seen: set[int] = set()

    @settings(QUIET, max_examples=count)
    @given(st.data())
    def one(data: st.DataObject) -> None:
        method, path, bodies = data.draw(st.sampled_from(routes))
        body = data.draw(bodies | JSON if method == "POST" else bodies)
        path = path.replace("{document_id}", quote(data.draw(st.text("ab/%é ?#\n", max_size=6))))
        content = None if body is None else json.dumps(body)
        headers = {"content-type": "application/json"}
        answer = client.request(method, path, content=content, headers=headers)
        seen.add(answer.status_code)
        assert answer.status_code < 500, (method, path, content, answer.text)
        assert answer.status_code < 400 or set(answer.json()) == {"error"}

    one()
    return seen


PAGES = {"GET": ("/", "/document", "/compare", "/queries", "/judge"), "POST": ("/mark", "/judge", "/login")}
FIELDS = {
    "q": ["keel", "rose hedge", ""],
    "where": ["price < 3", 'place = "Huesca" and not (price is null)', "price <"],
    "is.place": ["Huesca", "Teruel"],
    "is.price": ["7", "x"],
    "min.price": ["3", "1e400", "nan"],
    "max.number": ["3"],
    "first": ["10", "-1", "9" * 400],
    "like": ["garden-0", "nothing"],
    "id": ["garden-0", "nothing"],
    "at": ["5", "-1", "9" * 400],
    "document": ["garden-0", "nothing"],
    "passage": ["garden-0#0", "garden-0#9"],
    "rank": ["1", "²"],
    "system": ["chosen", "keyword"],
    "judge": ["ann", " "],
    "questions": ["5", "0", "many", "000010" + "0" * 5000],
    "query": ["keel"],
    "action": ["1", "skip", "undo"],
    "grade": ["0", "1", "", "7"],
    "verdict": ["kept", "dropped"],
    "style": ["phrase"],
    "reason": ["duplicate"],
    "whole": ["1"],
    "workspace": ["notes", "else"],
    "back": ["/", "//evil.test"],
    "next": ["/", "https://evil.test"],
    "token": ["x"],
}
"""What the page reads of addresses and forms, with values that mean something."""

USUAL = [("q", "keel"), ("id", "garden-0"), ("document", "garden-0"), ("judge", "ann"), ("query", "keel")]


EVERY = {(path, 200) for path in PAGES["GET"]} | {("/mark", 303), ("/judge", 303)}
"""Answers of the page that are not errors, all of which cases have to come to."""


def _page_cases(client: TestClient, count: int) -> set[tuple[str, int]]:
    """The paths and statuses of the page's answers; none may be that of a failure."""
    pairs = [(name, value) for name, values in FIELDS.items() for value in values]
    pair = st.sampled_from(pairs) | st.tuples(
        st.sampled_from([*FIELDS]) | st.text(max_size=8), st.text(max_size=30)
    )
    cases = st.sampled_from([(method, path) for method, paths in PAGES.items() for path in paths])
    seen: set[tuple[str, int]] = set()

    @settings(QUIET, max_examples=count)
    @given(cases, st.booleans(), st.lists(pair, max_size=8))
    def one(case: tuple[str, str], usual: bool, more: list[tuple[str, str]]) -> None:
        method, path = case
        fields = [*USUAL, *more] if usual else more
        sent = urlencode(fields, errors="surrogatepass")
        if method == "GET":
            answer = client.get(f"{path}?{sent}")
        else:
            answer = client.post(
                path, content=sent, headers={"content-type": "application/x-www-form-urlencoded"}
            )
        seen.add((path, answer.status_code))
        assert answer.status_code < 500, (method, path, fields, answer.text)
        assert "default-src 'none'" in answer.headers["content-security-policy"]

    one()
    return seen


def test_no_request_makes_the_server_fail(client: TestClient) -> None:
    seen = _cases(client, 200)
    assert {200, 422} <= seen
    assert max(seen) < 500


def test_no_address_or_form_makes_the_page_fail(client: TestClient) -> None:
    seen = _page_cases(client, 100)
    assert seen >= EVERY
    assert max(status for _, status in seen) < 500


@pytest.mark.slow
def test_no_request_of_two_thousand_makes_the_server_fail(
    make_workspace: Make, bench: Any, tmp_path: Path
) -> None:
    place = whole(make_workspace(tmp_path / "notes", reranked=True), bench.folder)
    state = State.open([place], ServeSettings(writable=True, clicks=True))
    with TestClient(create_app(state), follow_redirects=False) as client:
        statuses = _cases(client, 2000)
        pages = _page_cases(client, 2000)
    state.close()
    assert {200, 422} <= statuses
    assert pages >= EVERY
    assert max(statuses | {status for _, status in pages}) < 500
