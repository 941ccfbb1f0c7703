from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from faulty_server import KINDS, FaultyServer, good
from tiny_llama import save_tiny_llama

from searchfit.config import Settings, load_settings
from searchfit.errors import GeneratorError, MissingExtraError, SearchfitError, SettingsError
from searchfit.generators import Task, Written
from searchfit.generators.openai import OpenAIGenerator
from searchfit.generators.openai_wire import _retry_after
from searchfit.records import Passage

KEY = "sk-very-secret-0123456789"
ALWAYS: dict[str, Any] = {"openai.backoff": 0.01, "openai.timeout": 5.0}


def passages(count: int) -> list[Passage]:
    texts = [f"Passage number {n} tells of the rose and of the soil in bed {n}." for n in range(count)]
    return [
        Passage(f"d{n}#0", f"d{n}", n, "Roses", t, 0, len(t), ((0, len(t)),)) for n, t in enumerate(texts)
    ]


def generator(url: str, **values: Any) -> OpenAIGenerator:
    named = {key.replace("__", "."): value for key, value in values.items()}
    settings: Settings = load_settings(values={"openai.base_url": url, **ALWAYS, **named})
    return OpenAIGenerator("openai:m", "m", 5, settings)


def write(url: str, count: int, **values: Any) -> dict[int, Written]:
    groups = list(generator(url, **values).write(Task(passage) for passage in passages(count)))
    flat = [written for group in groups for written in group]
    found = {written.passage.document: written for written in flat}
    assert len(flat) == len(found), "a passage was answered twice"
    return found


@pytest.fixture
def serve() -> Iterator[Callable[..., FaultyServer]]:
    servers: list[FaultyServer] = []

    def start(*args: Any, **kwargs: Any) -> FaultyServer:
        servers.append(FaultyServer(*args, **kwargs))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def test_every_passage_is_answered_with_bounded_concurrency(serve: Callable[..., FaultyServer]) -> None:
    server = serve(latency=0.01)
    found = write(server.url, 30, openai__concurrency=4)
    assert sorted(found) == list(range(30))
    assert all(len(w.queries) == 5 and not w.fault for w in found.values())
    assert found[3].queries[0] == ("what is Passage number 3 tells of the rose and number 0?", "question")
    assert 2 <= server.most_in_flight <= 4
    assert set(server.calls.values()) == {1}
    assert server.bodies[0]["response_format"]["type"] == "json_schema"
    assert server.bodies[0]["max_tokens"] == 320


def test_tasks_are_read_lazily_and_known_ones_left_out(serve: Callable[..., FaultyServer]) -> None:
    server = serve()
    read: list[int] = []

    def tasks() -> Iterator[Task]:
        for passage in passages(100):
            read.append(passage.document)
            yield Task(passage, known=passage.document % 2 == 0)

    stream = generator(server.url, openai__concurrency=3).write(tasks())
    first = next(stream)
    assert first[0].passage.document % 2 == 1
    assert len(read) < 20
    stream.close()
    assert server.calls.total() <= 10


def test_closing_leaves_nothing_behind(serve: Callable[..., FaultyServer]) -> None:
    server = serve(lambda text, _call: "hang" if "number 1 " in text else "")
    stream = generator(server.url, openai__timeout=60.0).write(Task(p) for p in passages(5))
    next(stream)
    started = time.monotonic()
    stream.close()
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("kind", [*KINDS[:-1], "cut", "429:0.02"])
def test_what_may_pass_is_asked_again(serve: Callable[..., FaultyServer], kind: str) -> None:
    server = serve(lambda text, call: kind if call == 1 and "number 1 " in text else "")
    found = write(server.url, 3, openai__timeout=0.5)
    assert [found[n].fault for n in range(3)] == [""] * 3
    assert sorted(server.calls.values()) == [1, 1, 2]


@pytest.mark.parametrize(
    ("kind", "says", "calls"),
    [
        ("400:too long", "HTTP 400): 'too long'", 1),
        ("413", "HTTP 413", 1),
        ("500", "HTTP 500", 3),
        ("hang", "no answer within 0.5 seconds", 3),
        ("drip", "no answer within 0.5 seconds", 3),
        ("reset", "the connection failed", 3),
        ("truncated", "cut off", 3),
        ("no-choices", "no choices", 3),
        ("schema", "no choices", 3),
        ("empty", "empty", 3),
        ("prose", "no queries in the answer: 'Certainly.", 3),
        ("I'm sorry, but I can't help with that.", "refused: \"I'm sorry", 1),
        ("429", "too busy (HTTP 429)", 3),
    ],
)
def test_a_poison_passage_is_set_aside_with_the_reason(
    serve: Callable[..., FaultyServer], kind: str, says: str, calls: int
) -> None:
    server = serve(lambda text, _call: kind if "number 1 " in text else "")
    found = write(server.url, 4, openai__attempts=3, openai__timeout=0.5)
    assert says in found[1].fault
    assert found[1].queries == ()
    assert all(found[n].queries for n in (0, 2, 3))
    assert sorted(server.calls.values()) == [1, 1, 1, calls] if calls > 1 else [1, 1, 1, 1]


def test_an_answer_that_was_cut_off_keeps_its_whole_queries(serve: Callable[..., FaultyServer]) -> None:
    texts = {"number 0 ": good("roses")[:130], "number 1 ": '{"queries": [{"style": "ques'}
    server = serve()

    def reply(text: str, _call: int) -> str:
        return next((answer for mark, answer in texts.items() if mark in text), "")

    server.script = reply
    found = write(server.url, 3, openai__attempts=1)
    assert [text for text, _ in found[0].queries] == ["what is roses number 0?", "what is roses number 1?"]
    assert "no queries in the answer" in found[1].fault


def test_one_waiting_passage_does_not_hold_up_the_others(serve: Callable[..., FaultyServer]) -> None:
    server = serve(lambda text, call: "hang" if "number 0 " in text and call == 1 else "")
    order = [
        written.passage.document
        for group in generator(server.url, openai__timeout=1.0, openai__concurrency=2).write(
            Task(p) for p in passages(20)
        )
        for written in group
    ]
    assert order[-1] == 0
    assert sorted(order) == list(range(20))


def test_a_429_slows_all_requests(serve: Callable[..., FaultyServer]) -> None:
    times: list[float] = []

    def script(_text: str, _call: int) -> str:
        times.append(time.monotonic())
        return "429:1" if len(times) == 3 else ""

    server = serve(script)
    found = write(server.url, 8, openai__concurrency=2)
    assert all(w.queries for w in found.values())
    gaps = [b - a for a, b in pairwise(times)]
    # The other request that was in flight may still come in; after it, there is a silence.
    assert max(gaps[2:4]) > 0.8


def test_a_storm_of_429_is_sat_out(serve: Callable[..., FaultyServer]) -> None:
    """It lasts longer than the attempts of one passage; they take turns in trying."""
    begun: list[float] = []

    def script(_text: str, _call: int) -> str:
        begun.append(time.monotonic())
        return "429:0.05" if time.monotonic() < begun[0] + 0.6 else ""

    server = serve(script)
    found = write(server.url, 40, openai__attempts=5, openai__concurrency=8)
    assert all(w.queries for w in found.values())
    assert server.calls.total() <= 40 + 8 + 13


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("7", 7, 7),
        ("0.5", 0.5, 0.5),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("-3", 0, 0),
        ("nan", 0, 0),
        ("inf", 0, 0),
        ("soon", 0, 0),
        ("", 0, 0),
    ],
)
def test_retry_after_in_all_its_forms(value: str, least: float, most: float) -> None:
    assert least <= _retry_after({"retry-after": value}) <= most


def test_retry_after_as_a_date_to_come() -> None:
    value = format_datetime(datetime.now(timezone.utc) + timedelta(hours=1))
    assert 3500 <= _retry_after({"retry-after": value}) <= 3600


def test_the_last_passages_cannot_keep_a_run_from_ending(serve: Callable[..., FaultyServer]) -> None:
    """They hang for ever, so a run that carries on finds nothing but them."""
    server = serve(lambda _text, _call: "hang")
    found = write(server.url, 2, openai__attempts=2, openai__timeout=0.1)
    assert all("no answer within 0.1 seconds (2 attempts)" in w.fault for w in found.values())


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"searchfit\[openai\]"):
        generator("http://127.0.0.1:9/v1")


def test_a_redirect_takes_no_passage_elsewhere(serve: Callable[..., FaultyServer]) -> None:
    other = serve()
    server = serve(lambda _text, _call: f"307:{other.url}/chat/completions")
    with pytest.raises(GeneratorError, match="sends requests elsewhere"):
        write(server.url, 2)
    assert not other.calls


def test_the_form_of_answers_falls_back_once(serve: Callable[..., FaultyServer]) -> None:
    server = serve()

    def refuse(body: dict[str, Any]) -> str:
        kind = body.get("response_format", {}).get("type", "")
        return f"response_format {kind} is not supported" if kind else ""

    server.refuse = refuse
    server.script = lambda _text, _call: "1. rose soil depth\n2. what soil do roses like?"
    found = write(server.url, 40, openai__attempts=1, openai__concurrency=3)
    assert all(w.queries[1][0] == "what soil do roses like?" for w in found.values())
    assert set(server.calls.values()) == {1}
    assert len(server.bodies) - 40 <= 2 * 3
    assert "response_format" not in server.bodies[-1]
    assert "numbered" in server.bodies[-1]["messages"][0]["content"]


def test_newer_names_and_missing_roles_are_found(serve: Callable[..., FaultyServer]) -> None:
    server = serve()

    def refuse(body: dict[str, Any]) -> str:
        if "max_tokens" in body:
            return "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return "system role not supported" if body["messages"][0]["role"] == "system" else ""

    server.refuse = refuse
    found = write(server.url, 3, openai__attempts=1)
    assert all(w.queries for w in found.values())
    assert server.bodies[-1]["max_completion_tokens"] == 320


def test_a_form_that_was_asked_for_is_not_dropped(serve: Callable[..., FaultyServer]) -> None:
    server = serve()
    server.refuse = lambda body: "no response_format here" if "response_format" in body else ""
    with pytest.raises(GeneratorError, match=r"does not take openai.answers schema"):
        write(server.url, 3, openai__answers="schema")
    assert write(server.url, 1, openai__answers="lines")[0].queries


@pytest.mark.parametrize(
    ("kind", "says"),
    [("401", "refuses the key"), ("404:no model m", "no model"), ("429:insufficient_quota", "paid first")],
)
def test_what_no_passage_can_help_stops_the_run(
    serve: Callable[..., FaultyServer], kind: str, says: str
) -> None:
    server = serve(lambda _text, _call: kind)
    with pytest.raises(GeneratorError, match=says):
        write(server.url, 50, openai__concurrency=2)
    assert server.calls.total() <= 4


def test_a_server_that_is_gone_stops_the_run_and_records_nothing(
    serve: Callable[..., FaultyServer],
) -> None:
    server = serve()
    url = server.url
    server.close()
    server.close = lambda: None  # type: ignore[method-assign]
    with pytest.raises(GeneratorError, match="the same command carries on") as caught:
        write(url, 100, openai__attempts=2)
    assert "passages in a row failed" in caught.value.message
    with pytest.raises(GeneratorError, match="does not answer"):
        write(url, 1, openai__attempts=1)


def test_a_server_that_dies_on_the_way_keeps_what_it_wrote(serve: Callable[..., FaultyServer]) -> None:
    server = serve(lambda text, _call: "500" if int(text.split()[2]) >= 30 else "")
    got: list[Written] = []
    stream = generator(server.url, openai__attempts=1, openai__concurrency=2).write(
        Task(p) for p in passages(200)
    )
    with pytest.raises(GeneratorError, match="in a row"):
        got.extend(written for group in stream for written in group)
    assert sorted(w.passage.document for w in got if not w.fault) == list(range(30))
    # With two at once, the first to fail may do so before the last good answer: that one is its own fault.
    assert {w.passage.document for w in got if w.fault} <= {30}


def test_a_server_that_finds_every_request_bad_stops_the_run(serve: Callable[..., FaultyServer]) -> None:
    server = serve(lambda _text, _call: "400:temperature must be 1")
    with pytest.raises(GeneratorError, match="temperature must be 1"):
        write(server.url, 100)
    assert server.calls.total() < 40


def test_the_key_is_in_no_message(
    serve: Callable[..., FaultyServer], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    server = serve()
    seen: list[str] = []
    for status in (400, 401, 403, 404, 422, 429, 500):
        server.script = lambda _text, _call, status=status: f"echo:{status}"
        try:
            seen += [repr(w) for w in write(server.url, 2, openai__attempts=1).values()]
        except SearchfitError as error:
            seen += ["".join(traceback.format_exception(type(error), error, None)), repr(error)]
    server.script = lambda _text, _call: f"1. what is {KEY} for?\n2. another plain query"
    answered = write(server.url, 1)[0]
    assert answered.queries[1][0] == "another plain query"
    ours = generator(server.url)
    seen += [repr(answered), repr(ours), repr(ours.details), ours.fingerprint, caplog.text]
    assert seen
    assert not any("very-secret" in text for text in seen)
    monkeypatch.setenv("OPENAI_API_KEY", "")
    with pytest.raises(GeneratorError, match="OPENAI_API_KEY is not set"):
        generator("https://llm.example.org/v1")
    with pytest.raises(GeneratorError, match="OPENAI_API_KEY is not set"):
        generator("")
    assert generator(server.url), "a server on this machine needs no key"


@pytest.mark.parametrize("url", ["http://u:p@localhost/v1", "http://localhost/v1?key=1", "localhost:80", "x"])
def test_addresses_that_cannot_be_used(url: str) -> None:
    with pytest.raises(SettingsError, match="base_url"):
        generator(url)


def test_costs_count_what_was_charged(serve: Callable[..., FaultyServer]) -> None:
    server = serve(lambda _text, call: "empty" if call == 1 else "")
    prices = {"openai__price_input": 1000.0, "openai__price_output": 2000.0}
    ours = generator(server.url, **prices)
    (written,) = next(ours.write([Task(passages(1)[0])]))
    assert (written.tokens_in, written.tokens_out) == (200, 20)
    assert written.cost == pytest.approx((200 * 1000 + 20 * 2000) / 1e6)
    assert ours.most_cost(passages(1)[0]) >= written.cost / 2


def test_the_fingerprint_follows_what_changes_answers(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/v1"
    base = generator(url).fingerprint
    assert (
        generator("http://localhost:8/v1", openai__timeout=1.0, openai__price_input=1.0).fingerprint == base
    )
    template = tmp_path / "t.txt"
    template.write_text("Write {count} for {passage}", encoding="utf-8")
    others = [
        generator(url, openai__temperature=0.1),
        generator(url, openai__max_new_tokens=10),
        generator(url, prompt__language="French"),
        generator(url, prompt__template=str(template)),
        OpenAIGenerator("openai:x", "x", 5, load_settings(values={"openai.base_url": url})),
        OpenAIGenerator("openai:m", "m", 4, load_settings(values={"openai.base_url": url})),
    ]
    assert len({base, *(other.fingerprint for other in others)}) == len(others) + 1


def test_it_works_where_a_loop_is_running_already(serve: Callable[..., FaultyServer]) -> None:
    server = serve()

    async def notebook() -> dict[int, Written]:
        return write(server.url, 3)

    assert len(asyncio.run(notebook())) == 3


def test_a_busy_caller_costs_no_request_its_time(serve: Callable[..., FaultyServer]) -> None:
    server = serve(lambda _text, _call: "", latency=0.05)
    stream = generator(server.url, openai__timeout=0.6, openai__concurrency=4).write(
        Task(p) for p in passages(8)
    )
    got = list(next(stream))
    time.sleep(0.8)  # the caller's work, longer than the time-out
    got += [written for group in stream for written in group]
    assert len(got) == 8
    assert set(server.calls.values()) == {1}


def timed(share: float, count: int) -> tuple[float, dict[int, Written], dict[str, int]]:
    here = Path(__file__).parent / "faulty_server.py"
    command = [sys.executable, str(here), "--faults", str(share), "--seed", "1", "--latency", "0.1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        started = time.monotonic()
        found = write(f"http://127.0.0.1:{port}/v1", count, openai__timeout=0.5, openai__concurrency=16)
        spent = time.monotonic() - started
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/counts") as reply:
            calls = json.load(reply)["calls"]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    return spent, found, calls


@pytest.mark.parametrize("count", [300, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_passages_with_a_third_of_all_calls_failing(count: int) -> None:
    good_time, good_found, _ = timed(0.0, count)
    assert all(w.queries for w in good_found.values())
    bad_time, found, calls = timed(0.3, count)
    assert sorted(found) == list(range(count))
    assert all(bool(w.queries) != bool(w.fault) for w in found.values())
    faults = [w.fault for w in found.values() if w.fault]
    # By design of the server: one of 14 kinds is for good, and the chance of five others in a row is 0.2%.
    assert 0.005 * count <= len(faults) <= 0.06 * count
    assert max(calls.values()) <= 5
    assert sum(calls.values()) < 1.6 * count
    if bad_time >= 2 * good_time:  # once more: other work on the machine may have come in between
        bad_time = min(bad_time, timed(0.3, count)[0])
    figures = f"{good_time:.2f} s without faults, {bad_time:.2f} s with, {sum(calls.values())} calls"
    assert bad_time < 2 * good_time, figures


@pytest.fixture(scope="module")
def transformers_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(base URL, model) of the server program that comes with transformers."""
    folder = str(save_tiny_llama(tmp_path_factory.mktemp("served")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = str(Path(sys.executable).with_name("transformers"))
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    log = tmp_path_factory.mktemp("log") / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [program, "serve", folder, *options], stdout=out, stderr=out, env=environment
        )
    try:
        deadline = time.monotonic() + 50
        while not healthy(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", folder
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def test_a_real_server_program(transformers_server: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model's answers are nonsense, so what counts is that they came, and were counted."""
    url, model = transformers_server
    monkeypatch.delenv("OPENAI_API_KEY")
    values = {
        "openai.base_url": url,
        "openai.max_new_tokens": 12,
        "openai.attempts": 2,
        "openai.timeout": 30.0,
    }
    ours = OpenAIGenerator(
        f"openai:{model}", model, 5, load_settings(values=values | {"openai.backoff": 0.0})
    )
    found = [written for group in ours.write(Task(p) for p in passages(4)) for written in group]
    assert sorted(written.passage.document for written in found) == list(range(4))
    for written in found:
        assert written.queries or "no queries in the answer" in written.fault or "cut off" in written.fault
        assert written.tokens_in > 100
        assert 1 <= written.tokens_out <= 24
