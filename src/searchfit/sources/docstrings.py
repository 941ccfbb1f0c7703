"""Run as a script by `pydoc.py`: imports packages and prints their documented objects as JSON lines.

It stands alone, on the standard library only, so that what it reads is not mixed with what it needs.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

# Modules that open windows, print, rewire the terminal, or hold nothing but tests and tables.
UNSAFE = {"antigravity", "encodings", "ensurepip", "idlelib", "pydoc_data", "readline", "rlcompleter", "test"}
UNSAFE |= {"this", "tkinter", "turtle", "turtledemo"}
# Modules that Python 3.12 and 3.13 removed: nobody should be led to them.
REMOVED = {"aifc", "asynchat", "asyncore", "audioop", "cgi", "cgitb", "chunk", "crypt", "distutils", "imghdr"}
REMOVED |= {
    "imp",
    "lib2to3",
    "mailcap",
    "msilib",
    "nis",
    "nntplib",
    "ossaudiodev",
    "pipes",
    "smtpd",
    "sndhdr",
}
REMOVED |= {"spwd", "sunau", "telnetlib", "uu", "xdrlib"}
SKIPPED_SUBMODULES = frozenset({"__main__", "test", "tests", "conftest", "idlelib", "turtledemo"})
# Where the standard library's objects are to be imported from, when that is not where they are defined.
PUBLIC = {"posix": "os", "nt": "os", "posixpath": "os.path", "ntpath": "os.path", "genericpath": "os.path"}


class Elided:
    """Stands for a default value whose repr would not be the same on every run."""

    def __repr__(self) -> str:
        return "..."


def main(request: str) -> None:
    """Print one JSON object a document; `failed` marks a module that could not be imported."""
    asked = json.loads(request)
    sys.path[:] = asked["path"]
    # The real standard output is ours alone: what modules print on import must not mix with it.
    with os.fdopen(os.dup(1), "w", encoding="utf-8", errors="surrogatepass") as out:
        os.dup2(2, 1)
        seen: dict[int, Any] = {}  # the objects too: an id stays true only while its object lives
        names: set[str] = set()
        for module, failed in modules(asked["names"]):
            if module is None:
                name, _, why = failed.partition(": ")
                print(json.dumps({"id": name, "failed": why}), file=out)
                continue
            for document in documents(module, seen):
                if document["id"] not in names:
                    names.add(document["id"])
                    print(json.dumps(document), file=out)
        out.flush()
        # Exit handlers and threads of the imported modules have no business here.
        os._exit(0)


def modules(names: list[str]) -> Iterator[tuple[ModuleType | None, str]]:
    """The named modules and their public submodules, each once; (None, "name: why") for one that fails."""
    done: set[str] = set()
    for name in names:
        tops = stdlib() if name == "stdlib" else [name]
        for top in tops:
            yield from walk(top, done)


def stdlib() -> list[str]:
    """The public standard library modules that are safe to import."""
    public = {name for name in sys.stdlib_module_names if not name.startswith("_")}
    return sorted((public - UNSAFE - REMOVED - PUBLIC.keys()) | {"os.path"})


def walk(name: str, done: set[str]) -> Iterator[tuple[ModuleType | None, str]]:
    """A module and, in order of their names, its public submodules."""
    if name in done:
        return
    done.add(name)
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # noqa: BLE001  an import runs anything, and may raise anything
        yield None, f"{name}: {type(error).__name__}: {error}"
        return
    yield module, name
    paths = getattr(module, "__path__", ())
    for found in sorted(pkgutil.iter_modules(list(paths)), key=lambda item: item.name):
        if not found.name.startswith("_") and found.name not in SKIPPED_SUBMODULES:
            yield from walk(f"{name}.{found.name}", done)


def documents(module: ModuleType, seen: dict[int, Any]) -> Iterator[dict[str, str]]:
    """The module itself, its public functions and classes, and the members of those."""
    name = PUBLIC.get(module.__name__, module.__name__)
    if not first(module, seen):
        return
    yield from document(name, name, "module", module)
    members = [(attribute, value) for attribute, value in public(module) if belongs(value, module)]
    # Functions first: random.random is better known so than as random.Random.random.
    for attribute, value in sorted(members, key=lambda member: (inspect.isclass(member[1]), member[0])):
        qualified = f"{name}.{attribute}"
        if inspect.isclass(value):
            yield from of_class(qualified, name, value, seen)
        elif first(value, seen):
            kind = "function" if inspect.isroutine(value) else "object"
            yield from document(qualified, name, kind, value)


def of_class(qualified: str, module: str, cls: type, seen: dict[int, Any]) -> Iterator[dict[str, str]]:
    """A class, its methods and properties, and the classes within it."""
    if not first(cls, seen):
        return
    yield from document(
        qualified, module, "class", cls, [base.__dict__.get("__doc__") for base in cls.__mro__[1:]]
    )
    for attribute, value in sorted(vars(cls).items()):
        if attribute.startswith("_"):
            continue
        inherited = [getattr(vars(base).get(attribute), "__doc__", None) for base in cls.__mro__[1:]]
        if inspect.isclass(value):
            if value.__qualname__ == f"{cls.__qualname__}.{attribute}":
                yield from of_class(f"{qualified}.{attribute}", module, value, seen)
        elif isinstance(value, property):
            yield from document(f"{qualified}.{attribute}", module, "property", value, inherited)
        elif (inspect.isroutine(value) or isinstance(value, (classmethod, staticmethod))) and first(
            value, seen
        ):
            yield from document(f"{qualified}.{attribute}", module, "method", value, inherited)


def public(module: ModuleType) -> list[tuple[str, Any]]:
    """The public names of a module that hold something to call, and what they hold."""
    listed = getattr(module, "__all__", None)
    names = listed if isinstance(listed, (list, tuple)) else vars(module)
    held = []
    for name in sorted({name for name in names if isinstance(name, str) and not name.startswith("_")}):
        value = vars(module).get(name)
        if callable(value) and not isinstance(value, ModuleType):
            held.append((name, value))
    return held


def belongs(value: Any, module: ModuleType) -> bool:
    """Whether this module is where the object is to be imported from.

    That is where it is defined; what is defined in a private module, such as a C accelerator, belongs to
    the first public module of the same package, or of the standard library, that offers it.
    """
    owner = read(value, "__module__")
    if owner is None:
        return inspect.isroutine(value) or read(value, "__name__") is not None
    owner, name = PUBLIC.get(owner, owner), PUBLIC.get(module.__name__, module.__name__)
    if owner == name:
        return True
    if not any(part.startswith("_") for part in owner.split(".")):
        return False
    top, home = owner.partition(".")[0], name.partition(".")[0]
    return top == home or (top in sys.stdlib_module_names and home in sys.stdlib_module_names)


def first(value: Any, seen: dict[int, Any]) -> bool:
    """Whether the function behind this object has not been met yet."""
    inner = read(value, "__func__")
    value = value if inner is None else inner
    if id(value) in seen:
        return False
    seen[id(value)] = value
    return True


def document(
    qualified: str, module: str, kind: str, value: Any, inherited: list[Any] | None = None
) -> Iterator[dict[str, str]]:
    """The document of an object that has words of its own."""
    doc = read(value, "__doc__")
    if not isinstance(doc, str) or doc in (inherited or []) or doc == read(type(value), "__doc__"):
        return
    text = inspect.cleandoc(doc).replace("\0", "").strip()
    if text and not generated(value, text):
        yield {
            "id": qualified,
            "title": qualified,
            "text": text,
            "signature": "" if kind in {"module", "property"} else signature(value),
            "module": module,
            "package": module.partition(".")[0],
            "kind": kind,
        }


def generated(value: Any, text: str) -> bool:
    """Whether dataclasses or namedtuple wrote the docstring: it only repeats the fields."""
    made = inspect.isclass(value) and (dataclasses.is_dataclass(value) or hasattr(value, "_fields"))
    return made and text.startswith(f"{value.__name__}(") and "\n" not in text


def signature(value: Any) -> str:
    """The parameters with their defaults, no annotations; "" where Python cannot tell."""
    inner = read(value, "__func__")
    try:
        found = inspect.signature(value if inner is None or inspect.ismethod(value) else inner)
        plain = [
            parameter.replace(annotation=parameter.empty, default=shown(parameter.default))
            for parameter in found.parameters.values()
        ]
        return str(found.replace(parameters=plain, return_annotation=found.empty))
    except Exception:  # noqa: BLE001  it may run code of the object
        return ""


def shown(default: Any) -> Any:
    """The default where its repr is short and the same on every run."""
    simple = (
        default is inspect.Parameter.empty
        or default is None
        or type(default) in {bool, int, float, str, bytes}
    )
    return default if simple and len(repr(default)) < 60 else Elided()


def read(value: Any, attribute: str) -> Any:
    """An attribute of any object: lazy ones may raise whatever they like."""
    get: Callable[..., Any] = getattr
    try:
        return get(value, attribute, None)
    except Exception:  # noqa: BLE001
        return None


if __name__ == "__main__":
    main(sys.argv[1])
