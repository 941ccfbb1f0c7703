from __future__ import annotations

import base64
import json
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_tools import Make, listening
from starlette.testclient import TestClient

from searchfit.cli import serving
from searchfit.config import ServeSettings
from searchfit.errors import SettingsError, WorkspaceError
from searchfit.judgements import Record
from searchfit.rerank import Reranker
from searchfit.search import open_searcher
from searchfit.server.app import create_app
from searchfit.server.auth import COOKIE, LOOPBACK, Guard, read_tokens
from searchfit.server.state import State

TOKEN = "a-token-of-some-length"
API = ("/search", "/v1", "/documents", "/feedback", "/info", "/metrics", "/readyz", "/openapi", "/livez")


@pytest.fixture(scope="module")
def place(make_workspace: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("served") / "notes")


@pytest.fixture(scope="module")
def ranked(make_workspace: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("ranked") / "ranked", reranked=True)


@pytest.fixture(scope="module")
def state(place: Path, ranked: Path) -> Iterator[State]:
    state = State.open([place, ranked], ServeSettings())
    yield state
    state.close()


@pytest.fixture(scope="module")
def client(state: State) -> Iterator[TestClient]:
    with TestClient(create_app(state)) as client:
        yield client


def error(answer: Any, status: int, type_: str) -> str:
    """The message of an error, after a look at its form."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"type", "message", "hint"}
    assert answer.json()["error"]["type"] == type_
    assert "Traceback" not in answer.text
    return str(answer.json()["error"]["message"])


def test_search_answers_as_the_searcher_does(client: TestClient, place: Path) -> None:
    asked = {"query": "violin and cello rehearsal", "limit": 4, "offset": 1, "filter": "price < 80"}
    answer = client.post("/search", json=asked).json()
    hits = open_searcher(place).search("violin and cello rehearsal", 4, "price < 80", offset=1)
    assert answer["hits"] == json.loads(json.dumps([hit.to_dict() for hit in hits], default=str))
    assert len(answer["hits"]) == 4
    assert answer["workspace"] == "notes"
    assert answer["version"].endswith(".0")
    assert client.post("/search", json=asked).json()["hits"] == answer["hits"]


def test_a_filter_may_be_an_object(client: TestClient) -> None:
    part = {"column": "price", "op": "<", "value": 30}
    found = client.post("/search", json={"query": "glacier hut", "filter": part, "limit": 50}).json()
    spelled = client.post("/search", json={"query": "glacier hut", "filter": "price < 30", "limit": 50})
    assert found["hits"] == spelled.json()["hits"]
    assert found["hits"]
    assert all(hit["metadata"]["price"] < 30 for hit in found["hits"])


def test_search_by_passages_with_every_score(client: TestClient) -> None:
    asked = {"query": "rose hedge", "group": "passage", "explain": True, "limit": 60}
    hits = client.post("/search", json=asked).json()["hits"]
    assert len({hit["document_id"] for hit in hits}) < len({hit["passage_id"] for hit in hits})
    plain = client.post("/search", json={"query": "rose hedge"}).json()["hits"][0]
    assert len(hits[0]["scores"]) > len(plain["scores"])


def test_workspaces_are_asked_by_name(client: TestClient) -> None:
    asked = {"query": "anchor and keel"}
    first, second = (
        client.post("/search", json=asked | name).json() for name in ({}, {"workspace": "ranked"})
    )
    assert (first["workspace"], second["workspace"]) == ("notes", "ranked")
    assert "rerank" in " ".join(second["hits"][0]["scores"])
    off = client.post("/search", json=asked | {"workspace": "ranked", "rerank": False}).json()
    assert [hit["score"] for hit in off["hits"]] == [hit["score"] for hit in first["hits"]]
    error(client.post("/search", json=asked | {"workspace": "other"}), 404, "not_found")


def test_the_openai_client_embeds(place: Path) -> None:
    openai = pytest.importorskip("openai")
    texts = ["pruning the hedge", "the locomotive signal", "glacier"]
    encoder = open_searcher(place).encoder
    with listening([place]) as (_, port):
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        coded = client.embeddings.create(model="notes", input=texts)
        plain = client.embeddings.create(model="notes", input=texts[0], encoding_format="float")
        query = client.embeddings.create(
            model="notes", input=texts[:1], dimensions=8, extra_body={"input_type": "query"}
        )
        with pytest.raises(openai.NotFoundError, match="no workspace"):
            client.embeddings.create(model="text-embedding-3-small", input="a")
        with pytest.raises(openai.UnprocessableEntityError, match="dimensions"):
            client.embeddings.create(model="notes", input="a", dimensions=4096)
        client.close()
    expected = encoder.encode_documents(texts)
    np.testing.assert_allclose([one.embedding for one in coded.data], expected, atol=1e-5)
    np.testing.assert_allclose(plain.data[0].embedding, expected[0], atol=1e-5)
    cut = encoder.encode_queries(texts[:1])[0, :8]
    np.testing.assert_allclose(query.data[0].embedding, cut / np.linalg.norm(cut), atol=1e-5)
    assert coded.usage.total_tokens == sum(len(encoder.model.tokenizer(text).input_ids) for text in texts)


def test_base64_is_little_endian_float32(client: TestClient) -> None:
    coded, plain = (
        client.post("/v1/embeddings", json={"input": "keel", "encoding_format": form}).json()
        for form in ("base64", "float")
    )
    raw = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(raw, plain["data"][0]["embedding"], rtol=1e-6)


def test_rerank_scores_as_the_reranker_does(client: TestClient, tiny_reranker: Path) -> None:
    texts = ["the keel of a hull", "a tulip", "an anchor", "a summit hut"] * 20
    asked = {"model": "ranked", "query": "anchor", "documents": texts, "return_documents": True}
    results = client.post("/v1/rerank", json=asked).json()["results"]
    scores = Reranker.load(str(tiny_reranker), "cpu", "fp32").scores("anchor", texts)
    np.testing.assert_allclose([one["relevance_score"] for one in results], np.sort(scores)[::-1], atol=1e-4)
    assert all(one["document"]["text"] == texts[one["index"]] for one in results)
    mixed = [{"text": text} for text in texts]
    best = client.post("/v1/rerank", json={**asked, "documents": mixed, "top_n": 2}).json()["results"]
    assert best == results[:2]
    error(client.post("/v1/rerank", json={"query": "a", "documents": ["b"]}), 404, "not_found")


def test_feedback_is_kept(client: TestClient, place: Path) -> None:
    said = {"query": "old anchor", "document_id": "sailing-2"}
    assert client.post("/feedback", json={**said, "grade": 1}).json() == {"kept": True}
    (kept,) = Record(place).judgements()
    assert (kept.query, kept.document_id, kept.grade) == ("old anchor", "sailing-2", 1)
    assert "clicks" in error(client.post("/feedback", json={**said, "rank": 1}), 422, "invalid")
    error(client.post("/feedback", json=said), 422, "invalid")


def test_documents_are_added_and_removed(make_workspace: Make, tmp_path: Path) -> None:
    place = make_workspace(tmp_path / "grows")
    state = State.open([place], ServeSettings(writable=True))
    one = {"id": "a/b c", "title": "New", "text": "A zeppelin.", "metadata": {"price": 3, "place": None}}
    with TestClient(create_app(state)) as client:
        before = client.post("/search", json={"query": "zeppelin"}).json()
        grown = client.post("/documents", json={"documents": [one]}).json()
        assert (grown["added"], grown["generation"]) == (1, 1)
        after = client.post("/search", json={"query": "zeppelin", "filter": "price = 3"}).json()
        assert after["version"] != before["version"]
        (found,) = [hit for hit in after["hits"] if hit["document_id"] == "a/b c"]
        assert found["metadata"]["price"] == 3
        assert found["scores"]["keyword"] > 0.5
        assert client.post("/documents", json={"documents": [one]}).json()["unchanged"] == 1
        message = error(
            client.post("/documents", json={"documents": [{**one, "metadata": {"price": "much"}}]}),
            422,
            "invalid",
        )
        assert "price" in message
        assert str(tmp_path) not in message
        error(client.post("/documents", json={"documents": [one, one]}), 422, "invalid")
        error(client.post("/documents", json={"documents": [{**one, "metadata": {"id": 3}}]}), 422, "invalid")
        error(client.post("/documents", json={"documents": [{"id": "x", "text": " "}]}), 422, "invalid")
        assert client.delete("/documents/a%2Fb%20c").json()["removed"] == 1
        error(client.delete("/documents/a%2Fb%20c"), 404, "not_found")
        again = client.post("/search", json={"query": "zeppelin"}).json()
        assert [hit["document_id"] for hit in again["hits"]] == [hit["document_id"] for hit in before["hits"]]
    state.close()


def test_a_read_only_server_changes_nothing(client: TestClient) -> None:
    body = {"documents": [{"id": "a", "text": "b"}]}
    assert "read-only" in error(client.post("/documents", json=body), 403, "forbidden")
    error(client.delete("/documents/garden-0"), 403, "forbidden")


def test_what_the_server_tells_of_itself(client: TestClient) -> None:
    assert client.get("/livez").json() == {"status": "ok"}
    assert client.get("/readyz").json()["workspaces"] == ["notes", "ranked"]
    first, second = client.get("/info").json()["workspaces"]
    assert (first["documents"], first["columns"]["price"], first["reranker"]) == (72, "int", False)
    assert second["reranker"]
    assert first["version"] == client.post("/search", json={"query": "keel"}).json()["version"]
    described = client.get("/openapi.json").json()["paths"]
    assert {"/search", "/v1/embeddings", "/v1/rerank", "/documents", "/feedback"} <= set(described)
    error(client.get("/docs"), 404, "not_found")
    lines = client.get("/metrics").text.splitlines()
    counted = [line for line in lines if 'route="/info"' in line and line.startswith("searchfit_requests")]
    assert counted == ['searchfit_requests_total{route="/info",method="GET",status="200"} 1']
    assert any(line.startswith('searchfit_cache_total{result="hit"}') for line in lines)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"query": "   "}, "empty"),
        ({"query": "a", "filter": "cost < 3"}, "cost"),
        ({"query": "a", "filter": {"column": "price", "op": "~", "value": 1}}, "cannot read"),
        ({"query": "a", "limit": 101}, "100 at most"),
        ({"query": "a", "limit": 10**30}, "100 at most"),
        ({"query": "a", "offset": 1001}, "1000 at most"),
        ({"query": "a", "limit": 0}, "limit"),
        ({"query": "a", "hits": 3}, "hits"),
        ({"query": 3}, "query"),
        ({}, "query"),
        ([], "dictionary"),
    ],
)
def test_wrong_values_are_told(client: TestClient, body: Any, told: str) -> None:
    assert told in error(client.post("/search", json=body), 422, "invalid")


@pytest.mark.parametrize(
    ("text", "told"),
    [('{"query": "\\ud800"}', "valid string"), ('{"query": "a", "filter": "\\ud800"}', "half of a char")],
)
def test_half_a_character_is_no_text(client: TestClient, text: str, told: str) -> None:
    sent = client.post("/search", content=text, headers={"content-type": "application/json"})
    assert told in error(sent, 422, "invalid")


def test_errors_have_one_form(client: TestClient) -> None:
    error(client.get("/nothing"), 404, "not_found")
    error(client.get("/search"), 405, "method_not_allowed")
    error(client.post("/search", content="{", headers={"content-type": "application/json"}), 422, "invalid")
    deep = '{"query":"a","filter":' + '{"not":' * 50_000 + "1" + "}" * 50_001
    sent = client.post("/search", content=deep, headers={"content-type": "application/json"})
    assert sent.status_code in (400, 422)
    deep = '{"query":"a","filter":' + '{"not":' * 300 + "1" + "}" * 301
    sent = client.post("/search", content=deep, headers={"content-type": "application/json"})
    error(sent, 422, "invalid")


def test_a_bug_is_logged_and_not_shown(
    state: State, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("searchfit.server.routes.hit_values", lambda _: 1 / 0)
    with caplog.at_level(logging.ERROR, "searchfit.server"):
        answer = TestClient(create_app(state)).post("/search", json={"query": "keel"})
    assert "division" not in error(answer, 500, "internal")
    assert any("ZeroDivisionError" in str(record.exc_info) for record in caplog.records)


def test_an_index_that_fails_is_unavailable(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise WorkspaceError("/secret/place is damaged.")

    monkeypatch.setattr("searchfit.search.Searcher.answer", broken)
    answer = TestClient(create_app(state)).post("/search", json={"query": "never asked"})
    assert "secret" not in error(answer, 503, "unavailable")
    assert answer.headers["retry-after"]


def test_the_log_has_queries_only_where_asked(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = []
    for asked in (False, True):
        state = State.open([place], ServeSettings(log_queries=asked))
        caplog.clear()
        with caplog.at_level(logging.INFO, "searchfit.access"):
            TestClient(create_app(state)).post("/search", json={"query": "hidden words"})
        lines.append(json.loads(caplog.records[-1].getMessage()))
        state.close()
    assert "hidden" not in json.dumps(lines[0])
    assert lines[1]["query"] == "hidden words"
    assert (lines[0]["route"], lines[0]["status"], lines[0]["method"]) == ("/search", 200, "POST")


def guarded(state: State, guard: Guard, **settings: Any) -> TestClient:
    other = State(ServeSettings(**settings), guard, served=state.served)
    other.close()
    return TestClient(create_app(other))


def test_every_route_but_liveness_needs_the_token(state: State) -> None:
    guard = Guard([TOKEN, "another-of-some-length"])
    client = guarded(state, guard)
    routes = client.app.app.app.app.routes  # type: ignore[attr-defined]
    paths = {(method, route.path) for route in routes for method in route.methods - {"HEAD"}}
    assert len(paths) > 9
    assert not {path for path in guard.public if path.startswith(API)} - {"/livez"}
    for method, path in sorted(one for one in paths if one[1] not in guard.public):
        asked = client.request(method, path, json={})
        error(asked, 401, "unauthorized")
        assert asked.headers["www-authenticate"] == "Bearer"
    assert client.get("/livez").status_code == 200
    for wrong in (TOKEN[:-1], TOKEN + "x", "", "é"):
        error(client.get("/info", headers={"authorization": f"Bearer {wrong}".encode()}), 401, "unauthorized")
    assert client.get("/info", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    for others in ("", 'theirs={"a": 1}; ', "a b=é; "):  # of other servers on this host, too
        held = {"cookie": f"{others}{COOKIE}={TOKEN}".encode()}
        assert client.get("/info", headers=held).status_code == 200


def test_pages_of_other_sites_are_kept_out(state: State) -> None:
    client, body = guarded(state, Guard()), {"query": "keel"}
    for origin in ("http://evil.example", "null", "http://[", "http://testserver.evil"):
        error(client.post("/search", json=body, headers={"origin": origin}), 403, "forbidden")
    assert client.post("/search", json=body, headers={"origin": "http://testserver"}).status_code == 200
    assert "access-control-allow-origin" not in client.get("/livez", headers={"origin": "http://a.b"}).headers
    text = client.post("/search", content=json.dumps(body), headers={"content-type": "text/plain"})
    assert text.status_code == 422
    local = guarded(state, Guard(hosts=LOOPBACK))
    error(local.get("/info", headers={"host": "rebound.example:8000"}), 421, "wrong_host")
    for host in ("localhost:8000", "127.0.0.1", "[::1]:80"):
        assert local.get("/info", headers={"host": host}).status_code == 200


def test_cors_opens_to_the_origins_named(state: State) -> None:
    origin = "https://app.example"
    client = guarded(state, Guard([TOKEN], origins=[origin]), cors=(origin,))
    asked = {"origin": origin, "access-control-request-method": "POST"}
    preflight = client.options("/search", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == origin
    headers = {"origin": origin, "authorization": f"Bearer {TOKEN}"}
    answer = client.post("/search", json={"query": "keel"}, headers=headers)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
    refused = client.post("/search", json={}, headers={"origin": origin})
    assert refused.headers["access-control-allow-origin"] == origin
    assert client.options("/search", headers={**asked, "origin": "https://b.c"}).status_code == 400


def test_tokens_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# of ours\n\n  {TOKEN}  \n", encoding="utf-8")
    assert read_tokens(file) == [TOKEN]
    for text, told in (("# none\n", "has none"), ("short\n", "fewer than 16"), ("é" * 16, "ASCII")):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(SettingsError, match=told):
            read_tokens(file)
    with pytest.raises(SettingsError, match="cannot be read"):
        read_tokens(tmp_path / "absent")


def test_two_workspaces_of_one_name_are_refused(place: Path) -> None:
    with pytest.raises(SettingsError, match="name 'notes'"):
        State.open([place, place], ServeSettings())


def test_an_open_address_without_a_token_is_warned_of(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert not serving._guard("0.0.0.0", None, []).needed
    assert "WARNING" in capsys.readouterr().err
    assert serving._guard("127.0.0.1", None, []).hosts == LOOPBACK
    (tmp_path / "tokens").write_text(TOKEN, encoding="utf-8")
    assert serving._guard("0.0.0.0", tmp_path / "tokens", []).needed
    assert not capsys.readouterr().err


def test_concurrent_queries_are_encoded_together(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = [f"the {word} query {number}" for number in range(6) for word in ("rose", "keel", "hut", "bow")]
    expected = {query: [hit.passage_id for hit in open_searcher(place).search(query)] for query in queries}
    with listening([place], ServeSettings(cache=0)) as (state, port):
        import httpx

        sizes: list[int] = []
        monkeypatch.setattr(state.telemetry, "batch", lambda _, texts: sizes.append(texts))
        found: dict[str, list[str]] = {}

        def ask(mine: list[str]) -> None:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
                for query in mine:
                    hits = client.post("/search", json={"query": query}).json()["hits"]
                    found[query] = [hit["passage_id"] for hit in hits]

        threads = [threading.Thread(target=ask, args=(queries[i::8],)) for i in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert found == expected
    assert sum(sizes) == len(queries)
    assert max(sizes) > 1


def test_the_page_states_the_defaults() -> None:
    page = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
    said = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", page, re.MULTILINE))
    defaults = {name: value for name, value in ServeSettings().model_dump().items() if name in said}
    assert {name: float(value) for name, value in said.items()} == defaults
    assert len(said) == 13
