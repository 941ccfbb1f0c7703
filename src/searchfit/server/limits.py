"""Limits that stand before the application: how large and how slow a body may be, how many requests may be
at work, and how long one may take."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from searchfit.config import ServeSettings
from searchfit.server.errors import (
    ApiError,
    LateError,
    OverloadedError,
    SlowClientError,
    TooLargeError,
    response_of,
)
from searchfit.server.telemetry import Telemetry

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ALWAYS = frozenset({"/livez", "/readyz", "/metrics"})
"""Routes that are answered however busy the server is."""

_SLOW = ("/documents",)  # changes take as long as their documents take to encode
_SENDING = 8  # clients that may be sending a body, for each request that may be at work


class Limits:
    """An ASGI layer. It reads the body itself, so that a slow or endless one takes no place from others:
    413 above `max_body` bytes, 408 after `body_timeout` seconds. Then at most `concurrency` requests go on,
    more get 429 with Retry-After, and one that takes longer than `timeout` seconds gets 504."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, telemetry: Telemetry) -> None:
        self.app, self.settings, self.telemetry = app, settings, telemetry
        self._sending = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http" or scope["path"] in ALWAYS:
            await self.app(scope, receive, send)
            return
        try:
            body = await self._body(scope, receive)
            await self._admitted(scope, _replay(body, receive), send)
        except ApiError as error:
            await response_of(error)(scope, receive, send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        most = self.settings.max_body
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > most:
            raise _too_large(most)
        if self._sending >= _SENDING * self.settings.concurrency:
            raise self._too_many()
        self._sending += 1
        try:
            return await asyncio.wait_for(_read(receive, most), self.settings.body_timeout)
        except (TimeoutError, asyncio.TimeoutError) as error:
            raise SlowClientError(
                f"the request did not come within {self.settings.body_timeout:g} seconds.",
                headers={"Connection": "close"},
            ) from error
        finally:
            self._sending -= 1

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.telemetry.running >= self.settings.concurrency:
            raise self._too_many()
        started = False

        async def noticed(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        limit = None if scope["path"].startswith(_SLOW) else self.settings.timeout
        self.telemetry.running += 1
        try:
            await asyncio.wait_for(self.app(scope, receive, noticed), limit)
        except (TimeoutError, asyncio.TimeoutError) as error:
            if started:
                raise
            raise LateError(
                f"there was no answer within {self.settings.timeout:g} seconds.",
                "Ask for less at once, or try again later.",
            ) from error
        finally:
            self.telemetry.running -= 1

    def _too_many(self) -> OverloadedError:
        self.telemetry.refused()
        return OverloadedError(
            f"more than {self.settings.concurrency} requests at once.",
            "Try again after the seconds in Retry-After.",
            {"Retry-After": "1"},
        )


async def _read(receive: Receive, most: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise SlowClientError("the client has gone.")
        body += message.get("body", b"")
        if len(body) > most:
            raise _too_large(most)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(most: int) -> TooLargeError:
    return TooLargeError(
        f"the body is larger than {most} bytes.", "Send less at once.", {"Connection": "close"}
    )


def _replay(body: bytes, receive: Receive) -> Receive:
    """A body that was read, and then what else the client sends, which is that it has gone."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
