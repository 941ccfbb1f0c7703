"""What the tests of the server share: a real one in a thread, and engines of indexes that are altered."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from searchfit.config import ServeSettings
from searchfit.records import Engine
from searchfit.server.auth import Guard
from searchfit.server.listening import listen, make_server
from searchfit.server.state import State

Make = Callable[..., Path]


def alter(index: Path, **values: Any) -> None:
    """Change the engine that an index names."""
    info = json.loads((index / "info.json").read_text(encoding="utf-8"))
    info["engine"] = replace(Engine(**info["engine"]), **values).to_dict()
    (index / "info.json").write_text(json.dumps(info), encoding="utf-8")


@contextmanager
def listening(
    workspaces: list[Path], settings: ServeSettings | None = None, guard: Guard | None = None
) -> Iterator[tuple[State, int]]:
    """A real server in a thread, on a free port of the loopback; its state and port."""
    state = State.open(workspaces, settings or ServeSettings(), guard)
    with listen("127.0.0.1", 0) as socket:
        server = make_server(state)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        try:
            yield state, socket.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(40)
            state.close()
    assert not thread.is_alive()
