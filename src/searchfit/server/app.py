"""The application: the API and the page, and the layers that stand before them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from searchfit.errors import MissingExtraError
from searchfit.server.auth import Guarded
from searchfit.server.errors import add_errors
from searchfit.server.limits import Limits
from searchfit.server.page import add_page
from searchfit.server.routes import add_routes
from searchfit.server.telemetry import Watch

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp

    from searchfit.server.state import State


def create_app(state: State) -> ASGIApp:
    """The whole server as an ASGI application. From outside in: times and logs, CORS, who may ask, how much,
    and the routes. Raises MissingExtraError without the extra `serve`."""
    app: ASGIApp = create_api(state)
    app = Limits(app, state.settings, state.telemetry)
    app = Guarded(app, state.guard)
    if state.settings.cors:
        from starlette.middleware.cors import CORSMiddleware

        app = CORSMiddleware(
            app,
            allow_origins=state.settings.cors,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            max_age=600,
        )
    return Watch(app, state.telemetry)


def create_api(state: State) -> FastAPI:
    """The routes, without what stands before them. /openapi.json describes them; the usual pages that show it
    load scripts from elsewhere, and are left out."""
    try:
        from fastapi import FastAPI
    except ImportError as error:
        raise MissingExtraError("The server", "serve") from error
    from searchfit import __version__

    app = FastAPI(
        title="searchfit",
        version=__version__,
        description="A search engine that was fitted to its documents.",
        docs_url=None,
        redoc_url=None,
    )
    add_errors(app)
    add_routes(app, state)
    add_page(app, state)
    return app
