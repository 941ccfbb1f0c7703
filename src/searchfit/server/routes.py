"""The routes of the API. Each handler checks, asks the state, and gives plain values."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from searchfit.feedback import Click, Feedback, judged
from searchfit.filters import spelled
from searchfit.fusion import Vectors
from searchfit.judgements import Judgement
from searchfit.records import Hit
from searchfit.request import Request, Switches
from searchfit.server import shapes
from searchfit.server.changes import add_documents, remove_document
from searchfit.server.errors import InvalidError, NotThereError, RefusedError
from searchfit.server.telemetry import note

if TYPE_CHECKING:
    from fastapi import FastAPI

    from searchfit.growth import Growth
    from searchfit.search import Searcher
    from searchfit.server.state import Served, State

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": shapes.ErrorAnswer, "description": "refused"},
    "5XX": {"model": shapes.ErrorAnswer, "description": "failed"},
}


class Api:
    """The handlers, over one state. They give `Any`: an answer that is rendered already."""

    def __init__(self, state: State) -> None:
        self.state = state

    async def search(self, body: shapes.SearchBody) -> Any:
        """Search a workspace. All results of an answer are from one version of its index."""
        started = time.perf_counter()
        settings, served = self.state.settings, self.state.workspace(body.workspace)
        _at_most(len(body.query), settings.max_query, "characters of a query")
        _at_most(body.limit, settings.max_limit, "results of a page")
        _at_most(body.offset, settings.max_offset, "results passed over")
        where = _filter(body.filter)
        switches = Switches(rerank=body.rerank, explain=body.explain)
        if settings.log_queries:
            note(query=body.query)
        passages = body.group == "passage"
        answer = await served.search(Request(body.query, body.limit, where, passages, body.offset, switches))
        return rendered(
            {
                "workspace": served.name,
                "version": answer.version,
                "took_ms": round(1000 * (time.perf_counter() - started), 2),
                "hits": [hit_values(hit) for hit in answer.hits],
            }
        )

    async def embeddings(self, body: shapes.EmbeddingsBody) -> Any:
        """Encode texts with the workspace's model, by its tower for queries or for documents."""
        served = self.state.workspace(body.model)
        texts = [body.input] if isinstance(body.input, str) else body.input
        _at_most(len(texts), self.state.settings.max_texts, "texts")
        encoder = served.opened.searcher.encoder
        if body.dimensions is not None:
            _at_most(body.dimensions, encoder.dimension, "dimensions of this model")
        vectors = await served.encode(texts, body.input_type)
        if body.dimensions is not None and body.dimensions < encoder.dimension:
            vectors = _cut(vectors, body.dimensions, encoder.similarity == "cosine")
        tokens = await self.state.on(self.state.threads.search, partial(encoder.count, texts))
        form = _base64 if body.encoding_format == "base64" else np.ndarray.tolist
        data = [
            {"object": "embedding", "index": index, "embedding": form(vector)}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return rendered({"object": "list", "model": served.name, "data": data, "usage": usage})

    async def rerank(self, body: shapes.RerankBody) -> Any:
        """Score texts for a query with the workspace's re-ranker, where its engine has one."""
        settings, served = self.state.settings, self.state.workspace(body.model)
        _at_most(len(body.query), settings.max_query, "characters of a query")
        _at_most(len(body.documents), settings.max_rerank, "documents")
        texts = [one if isinstance(one, str) else one.text for one in body.documents]
        scores = await served.rerank(body.query, texts)
        results = []
        for index in np.argsort(-scores, kind="stable")[: body.top_n].tolist():
            result: dict[str, Any] = {"index": index, "relevance_score": round(float(scores[index]), 6)}
            if body.return_documents:
                result["document"] = {"text": texts[index]}
            results.append(result)
        return rendered({"model": served.name, "results": results})

    async def add(self, body: shapes.DocumentsBody) -> Any:
        """Add documents, or replace those of the same id. Once it answers they are safe and can be found."""
        served = self._writable(body.workspace)
        _at_most(len(body.documents), self.state.settings.max_texts, "documents")
        return await self._change(served, partial(add_documents, served.path, body.documents))

    async def remove(self, document_id: str, workspace: str | None = None) -> Any:
        """Remove a document."""
        served = self._writable(workspace)
        return await self._change(served, partial(remove_document, served.path, document_id))

    async def feedback(self, body: shapes.JudgementBody | shapes.ClickBody) -> Any:
        """Keep a judgement, or a click where the server keeps clicks. Once it answers it is on the disk."""
        _at_most(len(body.query), self.state.settings.max_query, "characters of a query")
        served = self.state.workspace(body.workspace)
        said: Judgement | Click
        if isinstance(body, shapes.JudgementBody):
            said = judged(body.query, body.document_id, body.grade)
        else:
            said = Click(body.query, body.document_id, body.rank)
        kept = Feedback(served.path, self.state.settings.clicks)
        await asyncio.to_thread(kept.add, said)
        return rendered({"kept": True})

    async def livez(self) -> Any:
        """Whether the process answers."""
        return rendered({"status": "ok"})

    async def readyz(self) -> Any:
        """Whether requests should be sent here: 503 while the server ends."""
        if self.state.draining:
            return rendered({"status": "draining"}, 503)
        return rendered({"status": "ok", "workspaces": list(self.state.served)})

    async def metrics(self) -> Any:
        """Counters in Prometheus' text format."""
        from starlette.responses import PlainTextResponse

        return PlainTextResponse(self.state.telemetry.text(), media_type="text/plain; version=0.0.4")

    async def info(self) -> Any:
        """The workspaces: engine, model, version of the index, hashes, columns that can be filtered on."""
        from searchfit import __version__

        served = [await one.work(partial(_described, one.name)) for one in self.state.served.values()]
        writable = self.state.settings.writable
        return rendered(
            {"name": "searchfit", "version": __version__, "writable": writable, "workspaces": served}
        )

    def _writable(self, workspace: str | None) -> Served:
        if not self.state.settings.writable:
            raise RefusedError("this server is read-only.", "Serve with --writable to change documents.")
        return self.state.workspace(workspace)

    async def _change(self, served: Served, change: Callable[[], Growth]) -> Any:
        growth = await self.state.on(self.state.threads.changes, change)
        if growth.missing:
            raise NotThereError(f"there is no document {growth.missing[0][:100]!r} in {served.name}.")
        told = growth.to_dict()
        del told["missing"]
        return rendered(told)


def add_routes(app: FastAPI, state: State) -> None:
    """The API's routes."""
    api = Api(state)

    def route(method: str, path: str, handler: Callable[..., Any], shape: type | None = None) -> None:
        app.add_api_route(
            path,
            handler,
            methods=[method],
            response_model=shape,
            responses=_ERRORS,
            operation_id=handler.__name__,
        )

    route("POST", "/search", api.search, shapes.SearchAnswer)
    route("POST", "/v1/embeddings", api.embeddings, shapes.EmbeddingsAnswer)
    route("POST", "/v1/rerank", api.rerank, shapes.RerankAnswer)
    route("POST", "/documents", api.add, shapes.GrowthAnswer)
    route("DELETE", "/documents/{document_id:path}", api.remove, shapes.GrowthAnswer)
    route("POST", "/feedback", api.feedback)
    route("GET", "/livez", api.livez)
    route("GET", "/readyz", api.readyz)
    route("GET", "/metrics", api.metrics)
    route("GET", "/info", api.info)


def rendered(value: Any, status: int = 200) -> Any:
    """A JSON response of plain values, dates, and numbers that are no NaN."""
    from starlette.responses import Response

    data = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
    return Response(data.encode(), status, media_type="application/json")


def hit_values(hit: Hit) -> dict[str, Any]:
    """A hit for JSON; JSON has no NaN, which counts as null."""
    values = {name: getattr(hit, name) for name in Hit.__dataclass_fields__}
    values["metadata"] = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in hit.metadata.items()
    }
    return values


def _filter(value: str | dict[str, Any] | None) -> str | None:
    where = spelled(value) if isinstance(value, dict) else value
    if where and any("\ud800" <= char <= "\udfff" for char in where):
        raise InvalidError("the filter holds half of a character.", "Send UTF-8.")
    return where


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, date) else str(value)


def _at_most(got: int, most: int, what: str) -> None:
    if got > most:
        raise InvalidError(f"{got} {what}: {most} at most.")


def _cut(vectors: Vectors, dimensions: int, unit: bool) -> Vectors:
    """The first dimensions, of unit length again (Kusupati et al. 2022, "Matryoshka Representation
    Learning")."""
    vectors = vectors[:, :dimensions]
    if unit:
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors


def _base64(vector: Vectors) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def _described(name: str, searcher: Searcher) -> dict[str, Any]:
    corpus, engine = searcher.corpus, searcher.engine
    info = corpus.info
    return {
        "name": name,
        "version": searcher.version(corpus),
        "passages": corpus.count,
        "documents": len(np.unique(corpus.documents)),
        "engine": engine.name,
        "reranker": bool(engine.reranker),
        "dimension": info["dimension"],
        "similarity": info.get("similarity", "cosine"),
        "language": info["keyword"]["language"],
        "columns": searcher.columns,
        "hashes": {"lineage": info["lineage"], "model": info["model_digest"]},
    }
