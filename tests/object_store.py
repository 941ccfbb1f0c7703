"""An S3 server on loopback, for the tests that read from and write to an object store."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest


@pytest.fixture(scope="session")
def s3() -> Iterator[Any]:
    """A client of a server whose address and keys are in the environment."""
    pytest.importorskip("moto.server", reason="moto[server] is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", url.rpartition(":")[2]]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("AWS_ENDPOINT_URL", url),
            ("AWS_ACCESS_KEY_ID", "k"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            patch.setenv(name, value)
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(url, timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.05)  # until it listens
            yield boto3.client("s3")
        finally:
            server.terminate()
            server.wait()


@pytest.fixture
def bucket(s3: Any) -> str:
    """The name of an empty bucket."""
    name = f"b-{uuid4().hex}"
    s3.create_bucket(Bucket=name)
    return name
