"""A loopback stand-in for Pinecone: it keeps records in memory, answers as the published API says, and
refuses what the API would refuse. It is not Pinecone."""

from __future__ import annotations

import json
import threading
from collections import Counter
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

PAGE = 100


class Refused(Exception):
    """What Pinecone answers with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def want(body: dict[str, Any], needed: dict[str, Any], others: dict[str, Any]) -> None:
    """The request has the fields that it needs, others that there are, and the right types."""
    known = needed | others
    if unknown := set(body) - set(known):
        raise Refused(400, f"unknown fields {unknown}")
    if missing := set(needed) - set(body):
        raise Refused(400, f"missing fields {missing}")
    for name, value in body.items():
        if not isinstance(value, known[name]):
            raise Refused(400, f"{name} must be {known[name]}, got {value!r:.80}")


def check_metadata(metadata: dict[str, Any]) -> None:
    """Flat, of the types that there are, and at most 40 kB."""
    for name, value in metadata.items():
        plain = isinstance(value, (str, bool, int, float))
        if not plain and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            raise Refused(400, f"metadata {name!r} must be text, a number, a boolean or a list of texts")
        if isinstance(value, (int, float)) and not abs(value) < 2**53 and float(value) != value:
            raise Refused(400, f"metadata {name!r} is no 64-bit floating-point number")
    if len(json.dumps(metadata, ensure_ascii=False).encode()) > 40_960:
        raise Refused(400, "metadata size is larger than 40960 bytes")


ORDER = {
    "$gt": lambda a, b: a > b,
    "$gte": lambda a, b: a >= b,
    "$lt": lambda a, b: a < b,
    "$lte": lambda a, b: a <= b,
}


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def passes(where: dict[str, Any], metadata: dict[str, Any]) -> bool:
    """Whether a record passes a metadata filter. Of a field that is absent $ne and $nin are true here, which
    is the harder case."""
    if not where:
        raise Refused(400, "an empty filter")
    results = []
    for name, condition in where.items():
        if name in {"$and", "$or"}:
            if not isinstance(condition, list) or not condition:
                raise Refused(400, f"{name} takes a list")
            join = all if name == "$and" else any
            results.append(join([passes(part, metadata) for part in condition]))
        elif name.startswith("$") or not isinstance(condition, dict) or len(condition) != 1:
            raise Refused(400, f"cannot read {name}: {condition}")
        else:
            results += [holds(sign, value, metadata.get(name)) for sign, value in condition.items()]
    return all(results)


def holds(sign: str, value: Any, held: Any) -> bool:
    if sign == "$exists":
        return (held is not None) == value
    if sign in {"$in", "$nin"}:
        if not isinstance(value, list) or not 1 <= len(value) <= 10_000:
            raise Refused(400, f"{sign} takes 1 to 10,000 values")
        return (held in members(tuple(value))) == (sign == "$in")
    if sign in {"$eq", "$ne"}:
        return same(held, value) == (sign == "$eq")
    if sign not in ORDER or not is_number(value):
        raise Refused(400, f"{sign} takes a number, got {value!r}")
    return is_number(held) and ORDER[sign](float(held), float(value))


@lru_cache(maxsize=8)
def members(values: tuple[Any, ...]) -> frozenset[Any]:
    """The values of a list, which are of one type."""
    if len({str if isinstance(each, str) else float for each in values}) != 1:
        raise Refused(400, "a list of several types")
    return frozenset(values)


def same(held: Any, value: Any) -> bool:
    if is_number(held) and is_number(value):
        return float(held) == float(value)
    return type(held) is type(value) and held == value


class StandIn:
    """The server; `host` is its address. `faults` are statuses to answer with before anything else, 0 for a
    connection that is cut; `asked` counts requests by path."""

    def __init__(self) -> None:
        self.indexes: dict[str, dict[str, Any]] = {}
        self.spaces: dict[str, dict[str, dict[str, Any]]] = {}
        self.faults: list[int] = []
        self.asked: Counter[str] = Counter()
        self.lock = threading.Lock()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer({}, parse_qs(urlsplit(self.path).query))

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                if len(data) > 2 * 2**20:
                    self.reply(400, {"message": "request larger than 2 MB"})
                else:
                    self.answer(json.loads(data), {})

            def answer(self, body: dict[str, Any], query: dict[str, list[str]]) -> None:
                path = urlsplit(self.path).path
                with stand_in.lock:
                    stand_in.asked[path] += 1
                    fault = stand_in.faults.pop(0) if stand_in.faults and path != "/indexes/docs" else None
                    if fault == 0:
                        self.close_connection = True
                        self.connection.close()
                        return
                    if fault is not None:
                        return self.reply(fault, {"error": {"message": "a fault"}, "status": fault})
                    if self.headers.get("Api-Key") != "secret":
                        return self.reply(401, {"message": "wrong key"})
                    try:
                        self.reply(200, stand_in.serve(path, body, query))
                    except Refused as refused:
                        self.reply(refused.status, {"message": str(refused)})

            def reply(self, status: int, answer: dict[str, Any]) -> None:
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.host = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def serve(self, path: str, body: dict[str, Any], query: dict[str, list[str]]) -> dict[str, Any]:
        """The answer to a request."""
        if path == "/indexes":
            want(body, {"name": str, "schema": dict, "deployment": dict}, {"deletion_protection": str})
            field = body["schema"]["fields"]["_values"]
            assert (field["type"], field["metric"] in {"cosine", "dotproduct"}) == ("dense_vector", True)
            assert body["deployment"]["cloud"] == "aws"
            self.indexes[body["name"]] = body | {
                "host": self.host,
                "status": {"ready": True, "state": "Ready"},
                "deletion_protection": "disabled",
            }
            return self.indexes[body["name"]]
        if path.startswith("/indexes/"):
            name = path.removeprefix("/indexes/")
            if name not in self.indexes:
                raise Refused(404, f"there is no index {name}")
            return self.indexes[name]
        actions = {
            "/vectors/upsert": self.upsert,
            "/query": self.query,
            "/vectors/delete": self.delete,
            "/describe_index_stats": self.stats,
        }
        if path in actions:
            return actions[path](body)
        return {"/vectors/fetch": self.fetch, "/vectors/list": self.listed}[path](query)

    @property
    def field(self) -> dict[str, Any]:
        """The vector field of the one index that there is."""
        (index,) = self.indexes.values()
        field: dict[str, Any] = index["schema"]["fields"]["_values"]
        return field

    def upsert(self, body: dict[str, Any]) -> dict[str, Any]:
        want(body, {"vectors": list}, {"namespace": str})
        assert 1 <= len(body["vectors"]) <= 1000
        for vector in body["vectors"]:
            want(vector, {"id": str, "values": list}, {"metadata": dict})
            if len(vector["values"]) != self.field["dimension"] or not any(vector["values"]):
                raise Refused(400, "a vector of another dimension, or of zeros")
            check_metadata(vector["metadata"])
        space = self.spaces.setdefault(body.get("namespace", ""), {})
        space.update({vector["id"]: vector for vector in body["vectors"]})
        return {"upsertedCount": len(body["vectors"])}

    def query(self, body: dict[str, Any]) -> dict[str, Any]:
        needed = {"topK": int, "vector": list}
        others = {"namespace": str, "filter": dict, "includeValues": bool, "includeMetadata": bool}
        want(body, needed, others)
        limit = 1000 if body.get("includeMetadata") or body.get("includeValues") else 10_000
        if not 1 <= body["topK"] <= limit or len(body["vector"]) != self.field["dimension"]:
            raise Refused(400, f"topK is 1 to {limit}, the vector has {self.field['dimension']} dimensions")
        where = body.get("filter")
        records = [
            record
            for record in self.spaces.get(body["namespace"], {}).values()
            if where is None or passes(where, record["metadata"])
        ]
        asked = np.array(body["vector"])
        held = np.array([record["values"] for record in records]).reshape(-1, len(asked))
        scores = held @ asked
        if self.field["metric"] == "cosine":
            scores = scores / np.linalg.norm(held, axis=1) / np.linalg.norm(asked)
        best = np.argsort(-scores, kind="stable")[: body["topK"]]
        matches = [
            {"id": records[place]["id"], "score": float(scores[place]), "values": []} for place in best
        ]
        if body.get("includeMetadata"):
            for match, place in zip(matches, best, strict=True):
                match["metadata"] = records[place]["metadata"]
        return {"matches": matches, "namespace": body["namespace"], "usage": {"readUnits": 1}}

    def fetch(self, query: dict[str, list[str]]) -> dict[str, Any]:
        assert set(query) <= {"ids", "namespace"}
        space = self.spaces.get(query["namespace"][0], {})
        found = {each: space[each] for each in query["ids"] if each in space}
        return {"vectors": found, "namespace": query["namespace"][0], "usage": {"readUnits": 1}}

    def listed(self, query: dict[str, list[str]]) -> dict[str, Any]:
        assert set(query) <= {"prefix", "namespace", "paginationToken", "limit"}
        prefix, start = query.get("prefix", [""])[0], int(query.get("paginationToken", ["0"])[0])
        ids = sorted(each for each in self.spaces.get(query["namespace"][0], {}) if each.startswith(prefix))
        page = ids[start : start + PAGE]
        more = {"pagination": {"next": str(start + PAGE)}} if start + PAGE < len(ids) else {}
        answer = {"vectors": [{"id": each} for each in page], "namespace": query["namespace"][0]}
        return {**answer, **more, "usage": {"readUnits": 1}}

    def delete(self, body: dict[str, Any]) -> dict[str, Any]:
        want(body, {"namespace": str}, {"ids": list, "deleteAll": bool})
        if body["namespace"] not in self.spaces:
            raise Refused(404, "there is no such namespace")
        assert ("ids" in body) != ("deleteAll" in body)
        assert len(body.get("ids", ())) <= 1000
        if "deleteAll" in body:
            del self.spaces[body["namespace"]]
        for each in body.get("ids", ()):
            self.spaces[body["namespace"]].pop(each, None)
        return {}

    def stats(self, body: dict[str, Any]) -> dict[str, Any]:
        want(body, {}, {})
        counts = {name: {"vectorCount": len(space)} for name, space in self.spaces.items()}
        return {
            "namespaces": counts,
            "dimension": self.field["dimension"],
            "metric": self.field["metric"],
            "indexFullness": 0,
            "totalVectorCount": sum(map(len, self.spaces.values())),
        }
