"""A real MariaDB, started by the tests in a folder and ended by its process id."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pymysql

SERVER, INSTALL = (
    shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin"),
    shutil.which("mariadb-install-db"),
)


class MariaDB:
    """A server of its own, with the user `reader` (password `se:cr@t/1`) and the database `shop`. As root it
    runs as another user."""

    password = "se:cr@t/1"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("nobody")
            os.chown(folder, user.pw_uid, user.pw_gid)
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": folder}
        self._data, self._log = folder / "data", folder / "log"
        self._socket = folder / "socket"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        install = [str(INSTALL), "--no-defaults", f"--datadir={self._data}", "--skip-test-db"]
        install += ["--auth-root-authentication-method=normal"]
        subprocess.run(install, check=True, capture_output=True, timeout=60, **self._as)
        command = [str(SERVER), "--no-defaults", f"--datadir={self._data}", f"--socket={self._socket}"]
        command += [f"--port={self.port}", "--bind-address=127.0.0.1", f"--pid-file={folder / 'pid'}"]
        command += ["--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=16M", "--sql-mode="]
        with self._log.open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **self._as)
        self._wait()
        self.run(
            "CREATE DATABASE shop CHARACTER SET utf8mb4",
            f"CREATE USER reader@'%' IDENTIFIED BY '{self.password}'",
            "GRANT ALL ON shop.* TO reader@'%'",
        )

    def run(self, *statements: str) -> None:
        """Run statements as the server's own user."""
        connection = pymysql.connect(
            unix_socket=str(self._socket), user="root", charset="utf8mb4", autocommit=True
        )
        with connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def _wait(self) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until and self.process.poll() is None:
            try:
                pymysql.connect(unix_socket=str(self._socket), user="root").close()
                return
            except pymysql.OperationalError:
                time.sleep(0.05)
        raise TimeoutError(f"MariaDB does not start:\n{self._log.read_text()[-2000:]}")

    def stop(self) -> None:
        """Stop the server."""
        self.process.terminate()
        self.process.wait(60)
