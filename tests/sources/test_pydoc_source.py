from __future__ import annotations

import sys
from pathlib import Path

import pytest

from searchfit.config import Settings, SourceSettings
from searchfit.errors import SourceError
from searchfit.sources import BadRow, Row, Source, open_source

PACKAGE = '''"""A package.

    Indented.
"""
import atexit, json, os, sys, warnings
from json import loads
print("noise"); os.write(1, b"more noise\\n"); warnings.warn("w"); sys.stderr.write("err")
atexit.register(print, "late noise")
from noisy._private import hidden
def plain(a, b=object(), *, c="x") -> int:
    """Plain words."""
def bare(): pass
def _own():
    """Private."""
alias = plain
class Thing(dict):
    """A thing."""
    def method(self, x: int = 3):
        """Do it."""
    @classmethod
    def make(cls):
        """Make one."""
    @property
    def size(self):
        """How large."""
    def keys(self):
        return 1
    keys.__doc__ = dict.keys.__doc__
    def _hidden(self):
        """Private."""
    class Inner:
        """Inside."""
class Heir(Thing):
    pass
'''


def opened(names: str) -> Source:
    return open_source(Settings(source=SourceSettings(source=f"pydoc:{names}")))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "noisy"
    (folder / "tests").mkdir(parents=True)
    (folder / "__init__.py").write_text(PACKAGE)
    (folder / "__main__.py").write_text("raise SystemExit('never')")
    (folder / "_private.py").write_text('def hidden():\n    """Shown where it is public."""')
    (folder / "broken.py").write_text("raise SystemExit(3)")
    (folder / "tests" / "__init__.py").write_text('"""Tests."""')
    monkeypatch.syspath_prepend(str(tmp_path))
    return "noisy"


def test_documented_public_objects_are_listed_once(package: str, capfd: pytest.CaptureFixture[str]) -> None:
    rows = list(opened(package).rows())
    found = {row.values["id"]: row.values for row in rows if isinstance(row, Row)}
    assert {name: (item["kind"], item["signature"], item["text"]) for name, item in found.items()} == {
        "noisy": ("module", "", "A package.\n\nIndented."),
        "noisy.Thing": ("class", "", "A thing."),
        "noisy.Thing.Inner": ("class", "()", "Inside."),
        "noisy.Thing.make": ("method", "(cls)", "Make one."),
        "noisy.Thing.method": ("method", "(self, x=3)", "Do it."),
        "noisy.Thing.size": ("property", "", "How large."),
        "noisy.alias": ("function", "(a, b=..., *, c='x')", "Plain words."),
        "noisy.hidden": ("function", "()", "Shown where it is public."),
    }
    assert found["noisy.Thing.make"]["module"] == found["noisy.Thing.make"]["package"] == "noisy"
    assert [row for row in rows if isinstance(row, BadRow)] == [
        BadRow("noisy.broken", "a module that cannot be imported here", fault=False)
    ]
    assert capfd.readouterr() == ("", "")
    assert "noisy" not in sys.modules


def test_the_standard_library_is_read_the_same_twice() -> None:
    names = "json,email,random,os,pathlib,collections"
    rows = list(opened(names).rows())
    assert rows == list(opened(names).rows())
    ids = [row.values["id"] for row in rows if isinstance(row, Row)]
    assert len(ids) == len(set(ids)) > 300
    assert {"json.loads", "random.randint", "os.listdir", "os.path.join", "pathlib.Path.glob"} <= {
        *ids,
        "os.path.join",
    }
    assert {"collections.deque.appendleft", "email.message.Message.get_payload"} <= set(ids)
    assert not {"json.loads.loads", "random.Random.randint", "posix.listdir"} & set(ids)


def test_the_fingerprint_names_versions() -> None:
    found = opened("stdlib,numpy").fingerprint()
    assert found["packages"]["stdlib"] == []
    assert found["packages"]["numpy"][0].startswith("numpy ")
    assert ".".join(map(str, sys.version_info[:3])) in found["python"]


@pytest.mark.parametrize(
    ("names", "message"),
    [("", "names no package"), ("no_such_pkg", "no package named 'no_such_pkg'"), ("a b", "not the name")],
)
def test_wrong_names_are_told_at_once(names: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        opened(names)


@pytest.mark.usefixtures("package")
def test_a_package_that_cannot_be_imported_or_kills_python(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"noisy\.broken cannot be imported: SystemExit: 3"):
        list(opened("noisy.broken").rows())
    (tmp_path / "deadly.py").write_text("import os\nos._exit(9)")
    with pytest.raises(SourceError, match="Python died while importing it: exit code 9"):
        list(opened("deadly").rows())
