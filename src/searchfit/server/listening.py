"""The socket: listen, serve with uvicorn, and end gracefully."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from searchfit.errors import MissingExtraError, SettingsError
from searchfit.server.app import create_app
from searchfit.server.state import State

if TYPE_CHECKING:
    import uvicorn

DRAIN = 30
"""Seconds that running requests have when the server ends."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises SettingsError where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise SettingsError(
            f"cannot listen on {host} port {port}: {error}.", "Name another with --host and --port."
        ) from error
    # Connections inherit it. asyncio leaves it out where a socket does not name its protocol, and the end of
    # each answer then waits 40 ms for the client to acknowledge its beginning.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def make_server(state: State) -> uvicorn.Server:
    """A uvicorn server, to be run with a socket of `listen`. When it ends it takes no more connections, and
    those that run have DRAIN seconds. Raises MissingExtraError without the extra `serve`."""
    try:
        import uvicorn
    except ImportError as error:
        raise MissingExtraError("The server", "serve") from error

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            state.draining = True
            await super().shutdown(sockets)

    config = uvicorn.Config(
        create_app(state),
        http=_patient(state.settings.body_timeout),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN,
    )
    return Server(config)


def _patient(seconds: float) -> Any:
    """uvicorn's protocol, which would wait for ever for the headers of a request to end."""
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Patient(H11Protocol):
        _limit: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._stop()

        def _wait(self) -> None:
            # IDLE is the state of a client whose request has not come, or not to the end of its headers.
            if self.conn.their_state is not h11.IDLE:
                self._stop()
            elif self._limit is None:
                self._limit = self.loop.call_later(seconds, self.transport.close)

        def _stop(self) -> None:
            if self._limit is not None:
                self._limit.cancel()
                self._limit = None

    return Patient
