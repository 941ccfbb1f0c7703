from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import searchfit

ROOT = Path(searchfit.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# Top to bottom: an import points down this list, or stays on its floor.
FLOORS = (
    *(
        "__main__",
        "cli",
        "server",
        "__init__",
        "contest",
        "preflight",
        "pipeline",
        "recipe",
        *("growth", "merging", "additions"),
        "reranking",
        "stages",
        "indexing",
        "reporting",
        "compare",
        "similar",
        "exchange",
        "judging",
        "judged",
        "export",
        "board",
        *("rivals", "weighing", "questions"),
        "prior",
        "trust",
        "ranking",
        "search",
        *("views", "catalog", "screened"),
        "found",
        "request",
        *("feedback", "judgements"),
        "rerank",
    ),
    *("leaks", "teachers", "splits"),
    *("sources", "generators", "training", "objectives", "encoders", "stores", "executors", "filters"),
    "parsers",
    "languages",
    *("overlap", "screening", "snippets", "keyword", "text", "shingles"),
    "inversion",
    *("markup", "saving", "cleaning"),
    "mining",
    *("legs", "semantic", "interaction", "fusion"),
    *(
        "metrics",
        "similarity",
        "significance",
        "journal",
        "distinct",
        "mapped",
        "workspace",
        "mirror",
        "places",
    ),
    *("layout", "writing", "config", "toml", "records", "errors"),
)

# Rooms whose files are strangers to each other: only their own __init__ may be shared.
STRANGERS = ("stages", "objectives")

HEAVY = (
    "torch",
    "transformers",
    "sentence_transformers",
    "numpy",
    "pyarrow",
    "pydantic",
    "lancedb",
    "scipy",
    "rich",
)


def name(path: Path) -> str:
    """sources.csv for sources/csv.py, sources for sources/__init__.py, __init__ for the package's own."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def floor(module: str) -> int:
    return FLOORS.index(module.split(".", maxsplit=1)[0])


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of each import of our own modules, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            if (node.module or "").split(".")[0] == "searchfit":
                module = (node.module or "").removeprefix("searchfit").lstrip(".")
                for alias in node.names:
                    inner = ROOT.joinpath(*module.split("."), alias.name) if module else ROOT / alias.name
                    is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
                    found = ".".join(filter(None, [module, alias.name])) if is_module else module
                    yield node.lineno, found or "__init__"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "searchfit":
                    yield node.lineno, alias.name.removeprefix("searchfit").lstrip(".") or "__init__"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_point_down_the_house(path: Path) -> None:
    own = name(path)
    for line, module in imports(path):
        assert floor(module) >= floor(own), f"{path}:{line}: {own} imports {module}, which is above it"
        room, _, file = own.partition(".")
        other, _, stranger = module.partition(".")
        if room == other and room in STRANGERS and file:
            assert not stranger, f"{path}:{line}: {own} imports {module}, its neighbour"


def test_every_module_has_its_floor() -> None:
    assert {name(path).split(".")[0] for path in FILES} <= set(FLOORS)


def test_only_the_pipeline_knows_the_stages() -> None:
    for path in FILES:
        for line, module in imports(path):
            if module.startswith("stages.") or module == "pipeline":
                allowed = {"pipeline", "contest", "preflight", "additions", "cli", "__init__", "server"}
                assert name(path).split(".")[0] in allowed, f"{path}:{line} imports {module}"
            if module == "workspace" and name(path).startswith("stages."):
                names = {
                    alias.name
                    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                    if isinstance(node, ast.ImportFrom) and node.module == "searchfit.workspace"
                    for alias in node.names
                }
                assert "Workspace" not in names, f"{path} opens the workspace"


def test_only_one_file_imports_ray() -> None:
    found = {
        name(path)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for module in [getattr(node, "module", None) or node.names[0].name]
        if module.split(".")[0] == "ray"
    }
    assert found == {"executors.ray"}


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, searchfit; searchfit.__version__; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "module", ["cli", "pipeline", "config", "encoders", "keyword", "workspace", "sources"]
)
def test_no_model_library_is_loaded_before_a_model(module: str) -> None:
    heavy = [library for library in HEAVY if library.startswith(("torch", "transf", "sent", "lance"))]
    code = f"import sys, searchfit.{module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def undocumented(node: ast.AST, prefix: str = "") -> Iterator[str]:
    """Public classes, functions and methods without a docstring; what stands inside functions is private."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if child.name.startswith("_"):
                continue
            if not ast.get_docstring(child):
                yield prefix + child.name
            if isinstance(child, ast.ClassDef):
                yield from undocumented(child, f"{prefix}{child.name}.")


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_room_is_in_order(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(tree), "a module says what it is for"
    assert list(undocumented(tree)) == []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: a bare except"
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            empty = all(isinstance(line, (ast.Pass, ast.Continue)) for line in node.body)
            swallowed = empty and "ImportError" in map(ast.unparse, caught)
            assert not swallowed, f"line {node.lineno}: a swallowed ImportError"
        if isinstance(node, ast.Assert):
            pytest.fail(f"line {node.lineno}: an assert in src")


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", FILES, ids=name)
def test_bodies_are_short(path: Path) -> None:
    for node in functions(ast.parse(path.read_text(encoding="utf-8"))):
        assert body_lines(node) < 50, f"{path}:{node.lineno} {node.name}"


def test_only_the_command_line_prints_and_exits() -> None:
    for path in FILES:
        # sources.docstrings is run as a process of its own.
        if name(path).split(".")[0] in ("cli", "__main__") or name(path) == "sources.docstrings":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "exit", "sys.exit", "os._exit"), (
                    f"{path}:{node.lineno} {called}"
                )


def test_the_public_names_are_sorted_and_there() -> None:
    assert searchfit.__all__ == sorted(searchfit.__all__)
    for public in searchfit.__all__:
        assert getattr(searchfit, public)
    with pytest.raises(AttributeError, match="nothing"):
        _ = searchfit.nothing
