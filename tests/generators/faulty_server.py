"""A server with OpenAI's chat API that misbehaves as told and counts its calls; also a program:

python tests/generators/faulty_server.py --port 0 --faults 0.3 --seed 1

prints its port, then serves. GET /counts: calls and good answers by the tag of the passage's delimiters.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Any

KINDS = (
    *("429", "429-date", "500", "503", "hang", "drip", "reset", "truncated"),
    *("html", "schema", "no-choices", "empty", "prose", "400"),
)
"""Each is a way to fail; "400" is for good, the others may pass."""

STATUSES = {
    "429": 429,
    "429-date": 429,
    "500": 500,
    "503": 503,
    "400": 400,
    "401": 401,
    "404": 404,
    "413": 413,
}
_DOCUMENT = re.compile(r"<document-(?P<tag>[0-9a-f]+)>\n(?P<text>.*)\n</document-(?P=tag)>", re.DOTALL)

Script = Callable[[str, int], str]
"""From a passage's text and which call for it this is (from 1) to the fault, "" for none."""


def by_chance(share: float, seed: int, kinds: tuple[str, ...] = KINDS) -> Script:
    """Faults of all kinds, evenly, for a share of the calls; the same for the same seed."""

    def script(text: str, call: int) -> str:
        random = Random(f"{seed}/{call}/{text}")
        return random.choice(kinds) if random.random() < share else ""

    return script


class FaultyServer:
    """Listens on loopback from the moment it is made until `close`."""

    def __init__(self, script: Script = lambda _text, _call: "", port: int = 0, latency: float = 0.0) -> None:
        self.script, self.latency = script, latency
        self.calls: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keep_bodies = True
        self.refuse: Callable[[dict[str, Any]], str] = lambda _body: ""
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.http = _Http(("127.0.0.1", port), _handler(self))
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Free the port, and let go of the calls that hang."""
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the play."""


def _handler(server: FaultyServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # one packet a reply

        def log_message(self, *args: object) -> None:
            """Silence."""

        def do_GET(self) -> None:
            with server.lock:
                body = {"calls": dict(server.calls), "answered": dict(server.answered)}
            self.reply(200, json.dumps(body))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            match = _DOCUMENT.search(body["messages"][-1]["content"])
            tag, text = (match["tag"], match["text"]) if match else ("", "")
            with server.lock:
                refused = server.refuse(body)
                if server.keep_bodies:
                    server.bodies.append(body)
                if not refused:
                    server.calls[tag] += 1
                call = server.calls[tag]
                server.in_flight += 1
                server.most_in_flight = max(server.most_in_flight, server.in_flight)
            try:
                if server.latency:
                    server.closing.wait(server.latency)
                if refused:
                    self.reply(400, json.dumps({"error": {"message": refused}}))
                elif fault := server.script(text, call):
                    self.fail(fault)
                else:
                    with server.lock:
                        server.answered[tag] += 1
                    self.reply(200, completion(good(text)))
            finally:
                with server.lock:
                    server.in_flight -= 1

        def fail(self, fault: str) -> None:
            """One of the KINDS and "cut", "307", "401", "404", "413", "echo", some with a text after a colon;
            anything else is the text of an answer."""
            kind, _, text = fault.partition(":")
            if kind == "hang":
                server.closing.wait(60)
                self.close_connection = True
            elif kind == "drip":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                while not server.closing.wait(0.05):
                    self.wfile.write(b" ")
                    self.wfile.flush()
            elif kind == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
            elif kind == "truncated":
                whole = completion(good("cut off"))
                self.reply(200, whole[: len(whole) // 2])
            elif kind == "cut":
                whole = completion(good("cut off"))
                self.reply(200, whole, length=len(whole) + 100)
                self.close_connection = True
            elif kind == "echo":
                key = self.headers["Authorization"]
                self.reply(int(text or 500), json.dumps({"error": {"message": f"bad header {key}"}}))
            elif kind == "307":
                self.reply(307, "", location=text)
            elif kind in STATUSES:
                after = {"429": text or "0", "429-date": "Wed, 21 Oct 2015 07:28:00 GMT", "503": "0"}
                self.reply(STATUSES[kind], json.dumps({"error": {"message": text or "no"}}), after.get(kind))
            else:
                self.reply(200, odd(fault))

        def reply(
            self,
            status: int,
            body: str,
            after: str | None = None,
            length: int | None = None,
            location: str = "",
        ) -> None:
            data = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(length or len(data)))
            if location:
                self.send_header("Location", location)
            if after is not None:
                self.send_header("Retry-After", after)
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()

    return Handler


def odd(kind: str) -> str:
    """Replies of status 200 that hold no queries, by kind; what is none of these is the answer's text."""
    bodies = {"html": "<html>busy</html>", "schema": '{"output": 1}', "no-choices": '{"choices": []}'}
    texts = {"empty": "", "prose": "Certainly. This is a lovely text about things."}
    return bodies.get(kind) or completion(texts.get(kind, kind))


def good(text: str) -> str:
    """Five queries from a text."""
    words = text.split()[:8]
    queries = [{"style": "question", "text": f"what is {' '.join(words)} number {n}?"} for n in range(5)]
    return json.dumps({"queries": queries})


def completion(content: str, **choice: object) -> str:
    """The body of a chat completion."""
    message = {"role": "assistant", "content": content}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    choices = [{"index": 0, "message": message, "finish_reason": "stop", **choice}]
    return json.dumps({"id": "1", "object": "chat.completion", "choices": choices, "usage": usage})


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description="An OpenAI-compatible server that misbehaves.")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--faults", type=float, default=0.0, help="share of the calls that fail")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each reply")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of faults")
    given = parser.parse_args()
    script = by_chance(given.faults, given.seed, tuple(given.kinds.split(",")))
    server = FaultyServer(script, given.port, given.latency)
    server.keep_bodies = False
    print(server.port, flush=True)
    server.thread.join()


if __name__ == "__main__":
    main()
