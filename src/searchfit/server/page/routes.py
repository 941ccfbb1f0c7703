"""The routes of the page: each reads the address, asks the state, and renders a view."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from searchfit.errors import SearchfitError, SettingsError, WorkspaceError
from searchfit.feedback import Click, Feedback, judged
from searchfit.judgements import Record
from searchfit.records import Hit
from searchfit.request import Request, Switches
from searchfit.server.auth import COOKIE
from searchfit.server.errors import InvalidError, NotThereError, status_of
from searchfit.server.page import compare, document, judge, login, queries, search
from searchfit.server.page.address import Asked
from searchfit.server.page.facets import Counted, Facets
from searchfit.server.page.html import View, failure, frame
from searchfit.server.page.judge import Judging
from searchfit.server.page.marks import Marks
from searchfit.server.page.search import Results
from searchfit.server.page.words import spans, telling
from searchfit.workspace import Workspace

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request as Http
    from starlette.responses import Response

    from searchfit.search import Searcher
    from searchfit.server.state import Served, State

JUDGE = "searchfit_judge"
"""A cookie with the name that a judge gave; without it marks are those of "me", as on the command line."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# The report is one file with its style in it, and has no script.
_REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_ASSETS = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
_EXPLAINED = Switches(explain=True)
_MOST_FIELDS = 200
_YEAR = 365 * 24 * 3600


class Pages:
    """The handlers, over one state."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._facets: dict[str, Facets] = {name: Facets() for name in state.served}
        self._examples: dict[str, list[str]] = {}
        self._marks = Marks()
        self._desk = judge.Desk(state.threads.search)

    async def search(self, http: Http) -> Response:
        """Results as people type, or where to begin."""
        asked, served = self._read(http)
        try:
            if not asked.query.strip() and not asked.like:
                body = await self._start(served, asked)
            else:
                body = search.view(asked, await self._results(served, asked, http))
        except SettingsError as error:  # what was typed, half of a filter perhaps
            view = View("Search", "/", search.refused(asked, error.message, error.hint), 422)
            return self._page(view, asked)
        return self._page(View(asked.query[:80] or "Search", "/", body), asked)

    async def document(self, http: Http) -> Response:
        """A whole document."""
        asked, served = self._read(http)
        given = http.query_params
        id_, passage = given.get("id", ""), given.get("passage", "")
        found = await served.work(partial(document.read, id_=id_, passage=passage, query=asked.query))
        grade = (await self._graded(served, asked, http)).get(id_)
        rank, at = given.get("rank", "")[:6], given.get("at", "")[:9]
        # A page of another site could open links in people's names.
        followed = http.headers.get("sec-fetch-site") == "same-origin"
        if self.state.settings.clicks and followed and rank.isdecimal() and asked.query.strip():
            click = Click(asked.query, id_, max(1, int(rank)))
            keep = partial(Feedback(served.path, clicks=True).add, click)
            try:
                await self.state.on(self.state.threads.search, keep)
            except SearchfitError as error:  # the reader came for the document
                status_of(error)  # the log has it
        body = document.view(asked, found, grade, int(at) if at.isdecimal() else None)
        return self._page(View(found.title or found.id, "/", body), asked)

    async def compare(self, http: Http) -> Response:
        """Systems side by side."""
        asked, served = self._read(http)
        asked = compare.without_filters(asked)
        found: list[compare.Ranked] = []
        if asked.query.strip():
            place = Workspace(served.path)
            found = await served.work(partial(compare.compare, workspace=place, query=asked.query))
        engine = served.opened.searcher.engine
        marks = await self._graded(served, asked, http)
        wanted = http.query_params.getlist("system")
        return self._page(
            View("Compare", "/compare", compare.view(asked, engine, found, wanted, marks)), asked
        )

    async def mark(self, http: Http) -> Response:
        """Keep a mark of right or wrong, and go back to where it was given."""
        fields = await _fields(http)
        asked, served = self._read(http, fields)
        given = dict(fields)
        wanted, name = given.get("document", ""), given.get("grade", "")
        if name not in {"", "0", "1"} or not asked.query.strip():
            raise InvalidError("a mark is 1 for right, 0 for wrong, or empty to take it back, for a query.")
        grade = int(name) if name else None

        def write(searcher: Searcher) -> None:
            if not len(searcher.corpus.store.rows_of(wanted)):
                raise NotThereError(f"there is no document {wanted[:100]!r} in the index.")
            Feedback(served.path).add(judged(asked.query, wanted, grade, _judge(http)))

        await served.work(write)
        return _redirect(login.local(given.get("back", "/")) if given.get("back") != "/" else asked.link("/"))

    async def judge(self, http: Http) -> Response:
        """The blinded pool."""
        asked, served = self._read(http)
        given = http.query_params
        judging = Judging.read(given.get("judge", ""), given.get("questions", ""))
        if not judging.judge:
            said = await self.state.on(self.state.threads.search, Record(served.path).judgements)
            named = replace(judging, judge=_judge(http))
            return self._page(View("Judge", "/judge", judge.welcome(asked, named, said)), asked)
        pool = await self._pool(served, judging)
        if pool is None:
            view = View("Judge", "/judge", judge.waiting(), refresh=2)
        else:
            whole = given.get("whole") == "1"
            call = partial(self._desk.show, served.path, pool, judging.judge, whole)
            shown = await self.state.on(self.state.threads.search, call)
            view = View("Judge", "/judge", judge.view(asked, judging, shown))
        response = self._page(view, asked)
        response.set_cookie(JUDGE, _quoted(judging.judge), max_age=_YEAR, samesite="strict", httponly=True)
        return response

    async def judged(self, http: Http) -> Response:
        """Keep a judgement of the pool, and go on."""
        fields = await _fields(http)
        asked, served = self._read(http, fields)
        given = dict(fields)
        judging = Judging.read(given.get("judge", ""), given.get("questions", ""))
        if not judging.judge:
            raise InvalidError("the judge has no name.")
        pool = await self._pool(served, judging)
        if pool is not None:
            said = judge.Said(given.get("action", ""), given.get("query", ""), given.get("document", ""))
            call = partial(self._desk.act, served.path, pool, judging.judge, said)
            await self.state.on(self.state.threads.search, call)
        return _redirect(Asked(workspace=asked.workspace).link("/judge", *judging.pairs()))

    async def queries(self, http: Http) -> Response:
        """The generated queries."""
        asked, served = self._read(http)
        given = http.query_params
        narrowed = queries.Narrowed(*(given.get(name, "") for name in ("verdict", "style", "reason")))
        call = partial(queries.read, served.path, asked, narrowed)
        found = await self.state.on(self.state.threads.search, call)
        return self._page(View("Queries", "/queries", queries.view(asked, narrowed, found)), asked)

    async def report(self, http: Http) -> Response:
        """The report of the fit, as it stands in the workspace."""
        from starlette.responses import Response as Plain

        _, served = self._read(http)
        try:
            data = Workspace(served.path).artefact("report.html").read_bytes()
        except FileNotFoundError as error:
            raise NotThereError("the workspace has no report yet.", "searchfit fit writes it.") from error
        headers = {**_HEADERS, "Content-Security-Policy": _REPORT_POLICY}
        return Plain(data, media_type="text/html; charset=utf-8", headers=headers)

    async def login(self, http: Http) -> Response:
        """Ask for the token."""
        view = View("Token", "/login", login.view(http.query_params.get("next", "/"), wrong=False))
        return self._page(view, Asked())

    async def enter(self, http: Http) -> Response:
        """Keep a right token in a cookie that no script can read, and go on."""
        given = dict(await _fields(http))
        token, then = given.get("token", "").strip(), given.get("next", "/")
        if not self.state.guard.knows(token):
            return self._page(View("Token", "/login", login.view(then, wrong=True), 401), Asked())
        response = _redirect(login.local(then))
        secure = http.url.scheme == "https"
        response.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=secure)
        return response

    def guarded(self, handler: Callable[[Any], Awaitable[Response]]) -> Callable[[Any], Awaitable[Response]]:
        """The handler, with errors as a page."""

        async def handle(http: Http) -> Response:
            try:
                return await handler(http)
            except SearchfitError as error:
                body = [search.form(Asked()), failure(error.message, error.hint)]
                return self._page(View("Error", "", body, status_of(error)), Asked())

        return handle

    def _page(self, view: View, asked: Asked) -> Response:
        from starlette.responses import HTMLResponse

        html = frame(view, asked, list(self.state.served))
        return HTMLResponse(html.encode("utf-8", "replace"), view.status, _HEADERS)

    def _read(self, http: Http, fields: list[tuple[str, str]] | None = None) -> tuple[Asked, Served]:
        """The address (or the fields of a form), and the workspace that it names. Raises NotThereError for
        one that is not served, InvalidError for a query that is too long."""
        asked = Asked.read(http.query_params.multi_items() if fields is None else fields)
        most = self.state.settings.max_query
        if len(asked.query) > most:
            raise InvalidError(f"{len(asked.query):,} characters of a query: {most:,} at most.")
        asked = (
            replace(asked, first=min(asked.first, self.state.settings.max_offset))
            if http.url.path == "/"
            else asked
        )
        return asked, self.state.workspace(asked.workspace)

    async def _start(self, served: Served, asked: Asked) -> list[Any]:
        if served.name not in self._examples:
            try:
                found = await self.state.on(
                    self.state.threads.search, partial(queries.examples, served.path)
                )  # fmt: skip
            except WorkspaceError:  # nothing was generated here
                found = []
            self._examples[served.name] = found
        counted = await served.work(lambda searcher: self._facets[served.name].count(searcher.corpus, asked))
        engine = served.opened.searcher.engine.name
        told = f"{served.name}: {counted.documents:,} documents, searched by the {engine}."
        return search.start(asked, told, self._examples[served.name])

    async def _results(self, served: Served, asked: Asked, http: Http) -> Results:
        started = time.perf_counter()
        where = asked.condition(served.opened.searcher.columns) or None
        title = ""
        if asked.like:

            def alike(searcher: Searcher) -> tuple[str, Any]:
                rows = searcher.corpus.store.rows_of(asked.like)
                hits = searcher.more_like(asked.like, search.PAGE, where)
                return str(searcher.corpus.store.fetch(rows[:1])[0]["title"] or asked.like), hits

            title, hits = await served.work(alike)
        else:
            request = Request(asked.query, search.PAGE, where, offset=asked.first, switches=_EXPLAINED)
            hits = (await served.search(request)).hits
        seconds = time.perf_counter() - started

        def around(searcher: Searcher) -> tuple[Counted, list[Hit]]:
            corpus, terms = searcher.corpus, telling(searcher.corpus, asked.query)
            shown = [replace(hit, highlights=spans(corpus, hit.snippet, terms)) for hit in hits]
            return self._facets[served.name].count(corpus, asked), shown

        counted, hits = await served.work(around)
        most = min(counted.documents - search.PAGE, self.state.settings.max_offset)
        more = not asked.like and len(hits) == search.PAGE and asked.first < most
        marks = await self._graded(served, asked, http)
        return Results(hits, counted, seconds, more, marks, title)

    async def _graded(self, served: Served, asked: Asked, http: Http) -> Mapping[str, int]:
        """This judge's marks for the query, by document id."""
        call = partial(self._marks.of, served.path, _judge(http), asked.query)
        return await self.state.on(self.state.threads.search, call)

    async def _pool(self, served: Served, judging: Judging) -> Any:
        searcher = served.opened.searcher
        # A newer version may have to be opened. The threads that search may all be making pools.
        version = await asyncio.to_thread(lambda: searcher.version(searcher.corpus))
        return self._desk.pool(served.path, searcher, version, judging.questions)


def add_page(app: FastAPI, state: State) -> None:
    """The page's routes. With tokens, people without one are sent to a form that asks for it."""
    pages = Pages(state)
    state.guard.public |= {"/login", *(f"/assets/{name}" for name in _ASSETS)}
    state.guard.login = "/login"
    routes = (
        ("GET", "/", pages.search),
        ("GET", "/document", pages.document),
        ("GET", "/compare", pages.compare),
        ("POST", "/mark", pages.mark),
        ("GET", "/judge", pages.judge),
        ("POST", "/judge", pages.judged),
        ("GET", "/queries", pages.queries),
        ("GET", "/report", pages.report),
        ("GET", "/login", pages.login),
        ("POST", "/login", pages.enter),
    )
    for method, path, handler in routes:
        app.add_route(path, pages.guarded(handler), [method], include_in_schema=False)
    for name, kind in _ASSETS.items():
        app.add_route(f"/assets/{name}", _asset(name, kind), ["GET"], include_in_schema=False)


def _asset(name: str, kind: str) -> Callable[[Any], Awaitable[Response]]:
    """A file of the page; the palette is that of the report."""
    data = resources.files("searchfit.server.page").joinpath(name).read_bytes()
    if name == "page.css":
        data = resources.files("searchfit.reporting").joinpath("palette.css").read_bytes() + data

    async def serve(_: Http) -> Response:
        from starlette.responses import Response as Plain

        return Plain(data, media_type=kind, headers=_HEADERS)

    return serve


async def _fields(http: Http) -> list[tuple[str, str]]:
    """The fields of a form. Raises InvalidError for another kind of body, or too many fields."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise InvalidError("a form is expected.", "Send application/x-www-form-urlencoded.")
    body = (await http.body()).decode("utf-8", "replace")
    try:
        return parse_qsl(body, keep_blank_values=True, errors="replace", max_num_fields=_MOST_FIELDS)
    except ValueError as error:
        raise InvalidError(f"a form of more than {_MOST_FIELDS} fields.") from error


def _judge(http: Http) -> str:
    """Whose marks these are."""
    held = dict(parse_qsl("name=" + http.cookies.get(JUDGE, ""))).get("name", "")
    return held.strip()[: judge.NAME_CHARS] or "me"


def _quoted(name: str) -> str:
    """A name as a cookie may hold it."""
    return urlencode({"": name})[1:]


def _redirect(where: str) -> Response:
    from starlette.responses import RedirectResponse

    return RedirectResponse(where, 303, _HEADERS)
