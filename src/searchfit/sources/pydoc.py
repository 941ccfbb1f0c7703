"""The documentation of installed Python packages: `pydoc:NAME,NAME...`.

Importing a module may print, warn, register handlers or crash, so it is done in a child process
(`docstrings.py`) that reports one JSON line a document.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from searchfit.errors import SourceError
from searchfit.sources.files import BAD_UTF8, is_sound
from searchfit.sources.rows import BadRow, Columns, Row

STDLIB = "stdlib"
HINT = "Install it in the Python that runs searchfit, or check its name: the one that is imported."
CHILD = Path(__file__).with_name("docstrings.py")


class PydocReader:
    """Modules, classes, functions and methods: qualified name, docstring, signature, module, kind.

    The name `stdlib` stands for all of the standard library that is safe to import. Private names,
    objects without a docstring and docstrings inherited unchanged are left out.
    """

    untyped = False
    known: Columns | None = Columns(("text",), "id", "title")
    notes: tuple[str, ...] = ()

    def __init__(self, names: str) -> None:
        self.name = f"pydoc:{names}"
        self._names = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
        if not self._names:
            raise SourceError(
                "pydoc: names no package.", "Write for example pydoc:json,email or pydoc:stdlib."
            )
        for name in self._names:
            _check(name)

    def columns(self, everything: bool = False) -> tuple[str, ...]:  # noqa: ARG002
        """Always the same."""
        return ("id", "title", "text", "signature", "module", "package", "kind")

    def fingerprint(self) -> dict[str, Any]:
        """The version of Python and of each package, and when its first file changed."""
        distributions = importlib.metadata.packages_distributions()
        return {
            "names": self._names,
            "python": f"{platform.python_implementation()} {platform.python_version()} {sys.platform}",
            "packages": {name: _version(name.partition(".")[0], distributions) for name in self._names},
        }

    def rows(self) -> Iterator[Row | BadRow]:
        """One row a documented object."""
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints:
            child = _start(self._names, complaints)
            try:
                yield from self._read(child)
                if child.wait() != 0:
                    complaints.seek(0)
                    last = (complaints.read().strip().splitlines() or [f"exit code {child.returncode}"])[-1]
                    raise SourceError(
                        f"reading {self.name} failed: Python died while importing it: {last}",
                        "Leave out the package that does not survive its import.",
                    )
            finally:
                child.kill()
                child.communicate()

    def _read(self, child: subprocess.Popen[str]) -> Iterator[Row | BadRow]:
        number = 0
        for line in child.stdout or ():
            if not line.endswith("\n"):
                return  # the child died while it wrote
            values = json.loads(line)
            where = f"{self.name}, {values['id']}"
            if "failed" in values:
                if values["id"] in self._names:
                    raise SourceError(f"pydoc: {values['id']} cannot be imported: {values['failed']}", HINT)
                yield BadRow(values["id"], "a module that cannot be imported here", fault=False)
                continue
            number += 1
            yield Row(where, number, values) if is_sound(values["text"]) else BadRow(where, BAD_UTF8)


def _start(names: list[str], complaints: IO[str]) -> subprocess.Popen[str]:
    request = json.dumps({"names": names, "path": sys.path})
    return subprocess.Popen(
        [sys.executable, "-I", "-W", "ignore", str(CHILD), request],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=complaints,
        text=True,
        encoding="utf-8",
    )


def _check(name: str) -> None:
    if name == STDLIB:
        return
    if not all(part.isidentifier() for part in name.split(".")):
        raise SourceError(f"pydoc: {name!r} is not the name of a Python package.", HINT)
    top = name.partition(".")[0]
    try:
        found = top in sys.builtin_module_names or importlib.util.find_spec(top) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise SourceError(f"pydoc: there is no package named {top!r} here.", HINT)


def _version(name: str, distributions: Any) -> list[Any]:
    if name == STDLIB or name in sys.stdlib_module_names:
        return []
    versions = sorted(
        f"{dist} {importlib.metadata.version(dist)}" for dist in set(distributions.get(name, ()))
    )
    spec = importlib.util.find_spec(name)
    changed = (
        Path(spec.origin).stat().st_mtime_ns if spec and spec.origin and Path(spec.origin).is_file() else 0
    )
    return [*versions, changed]
