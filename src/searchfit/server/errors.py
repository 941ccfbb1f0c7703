"""Errors as answers: one JSON shape for all of them, and no traceback leaves the server.

{"error": {"type": "too_large", "message": "what was got and expected", "hint": "what to do"}}
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from searchfit.errors import MissingExtraError, SearchfitError, SettingsError, SourceError

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

_log = logging.getLogger("searchfit.server")

TYPES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "slow_client",
    413: "too_large",
    415: "unsupported_media_type",
    421: "wrong_host",
    422: "invalid",
    429: "overloaded",
    500: "internal",
    501: "not_installed",
    503: "unavailable",
    504: "timeout",
}
"""The type of an error by its status."""


class ApiError(SearchfitError):
    """A request that is refused, with the status of the answer and headers for it."""

    status = 400

    def __init__(self, message: str, hint: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message, hint)
        self.headers = headers or {}


class NotThereError(ApiError):
    """404: what is named is not there."""

    status = 404


class RefusedError(ApiError):
    """403: it is there, and may not be done."""

    status = 403


class UnauthorizedError(ApiError):
    """401: no token, or not one of ours."""

    status = 401


class WrongHostError(ApiError):
    """421: the request is for another host."""

    status = 421


class TooLargeError(ApiError):
    """413: the body is larger than allowed."""

    status = 413


class SlowClientError(ApiError):
    """408: the body did not come in time."""

    status = 408


class OverloadedError(ApiError):
    """429: too many requests at once."""

    status = 429


class InvalidError(ApiError):
    """422: the request has the right form and a value that does not fit."""

    status = 422


class LateError(ApiError):
    """504: the answer was not ready in time."""

    status = 504


def body_of(status: int, message: str, hint: str = "") -> dict[str, Any]:
    """The JSON of an error. What it repeats of a request may be no text."""
    whole = message.encode("utf-8", "replace").decode()
    return {"error": {"type": TYPES.get(status, "bad_request"), "message": whole, "hint": hint}}


def status_of(error: SearchfitError) -> int:
    """The status of the answer for an error. Of what the client cannot repair the log has the details."""
    if isinstance(error, ApiError):
        return error.status
    if isinstance(error, (SettingsError, SourceError)):
        return 422
    if isinstance(error, MissingExtraError):
        return 501
    _log.error("%s: %s", type(error).__name__, error)
    return 503


def response_of(error: Exception) -> Response:
    """The answer for an error. Of bugs the log has the details."""
    from starlette.responses import JSONResponse

    if isinstance(error, SearchfitError):
        status = status_of(error)
        if status == 503:
            body = body_of(
                503,
                "the index cannot be read or changed just now.",
                "Try again; the server's log says more.",
            )
            return JSONResponse(body, 503, {"Retry-After": "2"})
        headers = error.headers if isinstance(error, ApiError) else None
        return JSONResponse(body_of(status, error.message, error.hint), status, headers)
    _log.error("a request failed", exc_info=error)
    return JSONResponse(body_of(500, "the server failed.", "This is a bug; its log says more."), 500)


def add_errors(app: FastAPI) -> None:
    """Let every error of the application have the one shape."""
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse

    async def ours(_: Request, error: Exception) -> Response:
        return response_of(error)

    async def invalid(_: Request, error: Exception) -> Response:
        found = error.errors() if isinstance(error, RequestValidationError) else []
        told = [f"{'.'.join(str(part)[:40] for part in one['loc'])}: {one['msg']}" for one in found]
        more = f" and {len(told) - 5} more" if len(told) > 5 else ""
        message = "; ".join(told[:5])[:1000] + more
        return JSONResponse(body_of(422, message, "The fields are described in /openapi.json."), 422)

    async def http(_: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        hint = "The routes are described in /openapi.json." if error.status_code in (404, 405) else ""
        body = body_of(error.status_code, str(error.detail), hint)
        return JSONResponse(body, error.status_code, error.headers)

    app.add_exception_handler(SearchfitError, ours)
    app.add_exception_handler(Exception, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
