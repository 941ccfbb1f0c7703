"""The command that serves workspaces over HTTP."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from searchfit.cli.app import app, workspace_path
from searchfit.cli.options import given

if TYPE_CHECKING:
    from searchfit.server.auth import Guard

Workspaces = Annotated[
    list[Path],
    Argument(
        parser=workspace_path,
        metavar="WORKSPACE...",
        help="folders that `searchfit fit` made, or their s3:// URLs",
    ),
]


@app.command()
def serve(
    workspaces: Workspaces,
    host: Annotated[str, Option(help="address to listen on; another than the loopback needs a token")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, Option(min=0, max=65535, help="0 takes a free one")] = 8000,
    token_file: Annotated[Path | None, Option(help="who may ask: tokens, one a line")] = None,
    writable: Annotated[bool, Option("--writable", help="allow to add and remove documents")] = False,
    cors: Annotated[list[str] | None, Option(help="origin whose pages may ask; repeatable")] = None,
    clicks: Annotated[bool, Option("--clicks", help="keep what readers click, for feedback")] = False,
    log_queries: Annotated[bool, Option("--log-queries", help="write queries into the access log")] = False,
    set_: Annotated[
        list[str] | None, Option("--set", help="another setting, say timeout=10; repeatable")
    ] = None,
) -> None:
    """Serve workspaces: an HTTP API and a page."""
    from searchfit.config import serve_settings
    from searchfit.server.listening import listen, make_server
    from searchfit.server.state import State

    named = {"writable": writable, "cors": tuple(cors or ()), "clicks": clicks, "log_queries": log_queries}
    settings = serve_settings(set_ or (), given(named))
    guard = _guard(host, token_file, settings.cors)
    _log_to_stderr()
    with listen(host, port) as socket:
        state = State.open(workspaces, settings, guard)
        try:
            server = make_server(state)
            shown = f"[{host}]" if ":" in host else host
            print(
                f"serving {', '.join(state.served)} on http://{shown}:{socket.getsockname()[1]}/", flush=True
            )
            server.run(sockets=[socket])
        finally:
            state.close()


def _guard(host: str, token_file: Path | None, origins: Sequence[str]) -> Guard:
    from searchfit.server.auth import LOOPBACK, Guard, read_tokens

    if token_file is not None:
        return Guard(read_tokens(token_file), origins=origins)
    if host in LOOPBACK:
        return Guard(hosts=LOOPBACK, origins=origins)
    print(
        f"WARNING: everybody who reaches {host} may ask, as there is no token: name a file of tokens with "
        "--token-file, or listen on 127.0.0.1.",
        file=sys.stderr,
    )
    return Guard(origins=origins)


def _log_to_stderr() -> None:
    import logging

    from searchfit.server.telemetry import JsonLines

    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name, level in (("searchfit", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
