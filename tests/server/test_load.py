from __future__ import annotations

import asyncio
import http.client
import json
import random
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from server_tools import Make, alter, listening
from starlette.testclient import TestClient

from searchfit import growth
from searchfit.config import ServeSettings
from searchfit.errors import WorkspaceError
from searchfit.search import Searcher
from searchfit.server.app import create_app
from searchfit.server.listening import listen
from searchfit.server.state import State
from searchfit.writing import write_json

QUERIES = ["old anchor", "rose hedge", "glacier hut", "cello bow", "signal box", "garlic broth"]


@pytest.fixture(scope="module")
def place(make_workspace: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("load") / "notes", reranked=True)


@pytest.fixture(scope="module")
def client(place: Path) -> Iterator[TestClient]:
    state = State.open([place], ServeSettings(max_body=100_000, max_texts=64))
    with TestClient(create_app(state)) as client:
        yield client
    state.close()


class Client:
    """A client of the real server."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def post(self, path: str, body: Any) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON and headers."""
        self._connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read()), dict(answer.getheaders())

    def close(self) -> None:
        self._connection.close()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/search", {"query": "a" * 90_000}, 422),
        ("/search", {"query": "a" * 1_000_000}, 413),
        ("/search", {"query": "a", "filter": "(" * 50_000}, 422),
        ("/v1/embeddings", {"input": ["a"] * 65}, 422),
        ("/v1/embeddings", {"input": ["a"] * 10_000}, 422),
        ("/v1/embeddings", {"input": [[1, 2]]}, 422),
        ("/v1/rerank", {"query": "a", "documents": ["a"] * 10_000}, 422),
        ("/feedback", {"query": "a" * 3000, "document_id": "b", "grade": 1}, 422),
        ("/feedback", {"query": "a", "document_id": "b" * 5000, "grade": 1}, 422),
    ],
)
def test_too_much_is_refused(client: TestClient, path: str, body: Any, status: int) -> None:
    started = time.process_time()
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text[:300]
    assert len(answer.text) < 2000
    assert time.process_time() - started < 5  # of all threads; what is refused takes milliseconds


def _send(port: int, data: bytes, seconds: float = 20) -> bytes:
    """What a server answers to raw bytes, until it closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as sent:
        sent.sendall(data)
        answer = b""
        while part := sent.recv(65536):
            answer += part
        return answer


def test_answers_do_not_wait_to_be_acknowledged() -> None:
    with listen("127.0.0.1", 0) as server, socket.create_connection(server.getsockname()):
        accepted, _ = server.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_slow_and_endless_clients_are_let_go(place: Path) -> None:
    head = b"POST /search HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    slow = (
        b"",
        b"POST /search HT",
        b"Content-Length: 100\r\n\r\n{",
        b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
    )
    with (
        listening([place], ServeSettings(body_timeout=1.5, max_body=2048)) as (_, port),
        ThreadPoolExecutor(4) as threads,  # so that the limit, which the quick ones have too, may be long
    ):
        answers = list(threads.map(partial(_send, port), (*slow[:2], *(head + rest for rest in slow[2:]))))
        assert answers[:2] == [b"", b""]
        assert all(b" 408 " in answer for answer in answers[2:])
        chunks = b"400\r\n" + b"a" * 1024 + b"\r\n"
        assert b" 413 " in _send(port, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks * 3)
        assert b" 413 " in _send(port, head + b"Content-Length: 1000000000\r\n\r\n")
        client = Client(port)
        assert client.post("/search", {"query": "keel"})[0] == 200
        client.close()


def test_requests_too_many_get_429(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, real = threading.Event(), Searcher.answer

    def slow(*args: Any) -> Any:
        release.wait(20)
        return real(*args)

    monkeypatch.setattr(Searcher, "answer", slow)
    with listening([place], ServeSettings(concurrency=2, threads=1)) as (state, port):
        answers: list[int] = []

        def ask(query: str) -> None:
            client = Client(port)
            answers.append(client.post("/search", {"query": query})[0])
            client.close()

        threads = [threading.Thread(target=ask, args=(query,)) for query in QUERIES[:2]]
        [thread.start() for thread in threads]
        _until(lambda: state.telemetry.running == 2)
        client = Client(port)
        status, body, headers = client.post("/search", {"query": "one too many"})
        assert (status, body["error"]["type"], headers["retry-after"]) == (429, "overloaded", "1")
        client._connection.request("GET", "/livez")
        assert client._connection.getresponse().read() == b'{"status":"ok"}'
        release.set()
        [thread.join() for thread in threads]
        assert answers == [200, 200]
        assert client.post("/search", {"query": "now there is room"})[0] == 200
        client.close()


def _until(ready: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_an_answer_that_is_late_is_given_up(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(Searcher, "answer", lambda *_: release.wait(20))
    with listening([place], ServeSettings(timeout=0.2)) as (state, port):
        client = Client(port)
        status, body, _ = client.post("/search", {"query": "keel"})
        assert (status, body["error"]["type"]) == (504, "timeout")
        assert state.telemetry.running == 0
        release.set()
        client.close()


def test_running_requests_are_answered_before_the_end(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, real = threading.Event(), Searcher.answer
    monkeypatch.setattr(Searcher, "answer", lambda *args: (release.wait(20), real(*args))[1])
    answers: list[int] = []
    with listening([place]) as (state, port):
        client = Client(port)
        thread = threading.Thread(target=lambda: answers.append(client.post("/search", {"query": "keel"})[0]))
        thread.start()
        _until(lambda: state.telemetry.running == 1)
        threading.Thread(target=lambda: (_until(lambda: state.draining), release.set())).start()
    thread.join()
    client.close()
    assert answers == [200]
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port))


def _second(place: Path) -> str:
    """Another index beside the first, whose model and engine are others; its name."""
    from safetensors.numpy import load_file, save_file

    first = json.loads((place / "engine.json").read_text(encoding="utf-8"))["index"]
    second = f"{Path(first).parent}/other"
    shutil.copytree(place / first, place / second)
    alter(place / second, keyword_weight=0.3, reranker="", rerank_depth=0)
    for file in (place / second / "model").rglob("model.safetensors"):
        # The copy is of linked files: a new one takes the place of the old.
        weights = {name: values * 1.1 for name, values in load_file(file).items()}
        file.unlink()
        save_file(weights, file, metadata={"format": "pt"})
    return second


def _swapped(place: Path, requests: int, swaps: int) -> tuple[list[str], list[Any], str]:
    """Requests from four clients while the index is swapped: the version that each answer names, the answers
    that are not those of theirs, and what the server counted."""
    pointer = json.loads((place / "engine.json").read_text(encoding="utf-8"))
    indexes = [pointer["index"], _second(place)]
    expected = {}
    for index in indexes:
        searcher = Searcher(place / index)
        for query in QUERIES:
            hits = [(hit.passage_id, hit.score) for hit in searcher.search(query)]
            expected[searcher.version(searcher.corpus), query] = hits
    assert len({str(hits) for hits in expected.values()}) == 2 * len(QUERIES)
    seen: list[str] = []
    wrong: list[Any] = []
    # Without a cache, so that each answer is made.
    with listening([place], ServeSettings(cache=0)) as (state, port):

        def ask(number: int) -> None:
            rng, client = random.Random(number), Client(port)
            while not wrong and (len(seen) < requests or swapping.is_alive()):
                query = rng.choice(QUERIES)
                status, body, _ = client.post("/search", {"query": query})
                if status != 200:
                    wrong.append(body)
                    return
                hits = [(hit["passage_id"], hit["score"]) for hit in body["hits"]]
                seen.append(body["version"])
                want = expected[body["version"], query]
                if [one for one, _ in hits] != [one for one, _ in want] or any(
                    abs(a - b) > 1e-4 for (_, a), (_, b) in zip(hits, want, strict=True)
                ):
                    wrong.append((query, body["version"], hits, want))
            client.close()

        def swap() -> None:
            for number in range(swaps):
                before = len(seen)
                write_json(place / "engine.json", {**pointer, "index": indexes[(number + 1) % 2]})
                name = Path(indexes[(number + 1) % 2]).name
                _until(lambda name=name: wrong or seen[-1:] == [f"{name}.0"], 60)
                share = requests // swaps
                _until(lambda before=before, share=share: wrong or len(seen) - before >= share, 300)

        swapping = threading.Thread(target=swap)
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        [thread.start() for thread in (swapping, *threads)]
        [thread.join() for thread in (swapping, *threads)]
        return seen, wrong, state.telemetry.text()


@pytest.mark.parametrize(("requests", "swaps"), [(60, 3), pytest.param(10_000, 20, marks=pytest.mark.slow)])
def test_an_index_is_swapped_under_load(
    make_workspace: Make, tmp_path: Path, requests: int, swaps: int
) -> None:
    seen, wrong, counted = _swapped(make_workspace(tmp_path / "notes", reranked=True), requests, swaps)
    assert wrong == []
    assert len(seen) >= requests
    assert len(set(seen)) == 2
    assert f'searchfit_swaps_total{{workspace="notes"}} {swaps}' in counted


def test_work_begins_again_when_its_version_was_removed(make_workspace: Make, tmp_path: Path) -> None:
    place = make_workspace(tmp_path / "notes")
    state = State.open([place], ServeSettings())
    tried: list[int] = []

    def work(_: Searcher) -> int:
        tried.append(len(tried))
        if len(tried) == 1:
            growth.remove(place, ["garden-0"])
            raise WorkspaceError("a file is gone.")
        return len(tried)

    def damaged(_: Searcher) -> int:
        raise WorkspaceError("a file is gone, and no newer version is there.")

    assert asyncio.run(state.workspace().work(work)) == 2
    with pytest.raises(WorkspaceError, match="no newer"):
        asyncio.run(state.workspace().work(damaged))
    state.close()


def test_a_new_index_that_is_damaged_leaves_the_old_one(make_workspace: Make, tmp_path: Path) -> None:
    place = make_workspace(tmp_path / "notes")
    state = State.open([place], ServeSettings())
    with TestClient(create_app(state)) as client:
        before = client.post("/search", json={"query": "keel"}).json()
        write_json(place / "engine.json", {"engine": {"name": "x"}, "index": "index/absent"})
        for _ in range(3):
            after = client.post("/search", json={"query": "keel"})
            assert (after.status_code, after.json()["version"]) == (200, before["version"])
    state.close()
