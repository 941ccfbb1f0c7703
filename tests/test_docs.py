from __future__ import annotations

import contextlib
import csv
import html
import importlib.metadata
import itertools
import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from generators.faulty_server import FaultyServer
from generators.test_t5 import save_model
from generators.tiny_llama import save_tiny_llama
from packaging.requirements import Requirement
from pipeline_tools import tiny_model

from searchfit import encoders, records
from searchfit.cli import app, main
from searchfit.config import load_settings
from searchfit.indexing import CATALOG
from searchfit.recipe import STAGES
from searchfit.toml import tomllib

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
TABLED = re.compile(r"^\| `(\w+\.\w+)` \| ([^|]+) \|", re.MULTILINE)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SERVER = "http://127.0.0.1:11434/v1"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")


def describe(kind: str, place: str, number: int) -> str:
    """What a listing says of itself."""
    more = ("The owners praise the view.", "The last tenant kept bees.", "It was built by a retired captain.")
    return f"A quiet {kind} {place} with {number % 5 + 1} rooms and {20 + number} trees. {more[number % 3]}"


def write_listings(folder: Path) -> None:
    """listings.csv as the pages speak of it, and judged/, questions with the listings that answer them."""
    kinds = ("house with a pool", "flat above a bakery", "cottage by a lake", "loft in an old mill", "barn")
    places = (
        "near the beach",
        "at the station",
        "on a hill",
        "in the old town",
        "beside the forest",
        "downtown",
    )
    rows = [
        (
            f"L{number}",
            f"{kind} {place}",
            describe(kind, place, number),
            100_000 + 9_000 * number,
            number % 5 + 1,
        )
        for number, (kind, place) in enumerate(itertools.product(kinds, places))
    ]
    with (folder / "listings.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "name", "description", "price", "rooms"), *rows])
    judged = folder / "judged"
    (judged / "qrels").mkdir(parents=True)
    query = {"_id": "q", "text": "cottage in the old town"}
    (judged / "queries.jsonl").write_text(json.dumps(query), encoding="utf-8")
    (judged / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tL15\t1\n", encoding="utf-8")


def write_sources(folder: Path) -> None:
    """shop.sqlite with the listings as a table, and handbook/, Markdown and HTML."""
    with (folder / "listings.csv").open(encoding="utf-8", newline="") as file:
        rows = [
            (row["id"], row["name"], row["description"], int(row["rooms"])) for row in csv.DictReader(file)
        ]
    with contextlib.closing(sqlite3.connect(folder / "shop.sqlite")) as shop:
        shop.execute(
            "CREATE TABLE listings (id TEXT PRIMARY KEY, name TEXT, description TEXT, rooms INTEGER)"
        )
        shop.executemany("INSERT INTO listings VALUES (?, ?, ?, ?)", rows)
        shop.commit()
    handbook = folder / "handbook" / "guides"
    handbook.mkdir(parents=True)
    for number in range(12):
        text = f"# Chapter {number}\n\nThe lamp number {number} is lit by the small key beside the door."
        (handbook / f"chapter-{number}.md").write_text(text, encoding="utf-8")
    brakes = "<title>Brakes</title><h1>Brakes</h1><p>Bleed the rear brake first, then the front one.</p>"
    (handbook.parent / "brakes.html").write_text(brakes, encoding="utf-8")


def write_pairs(folder: Path) -> None:
    """pairs.csv: questions, and the descriptions of the listings that answer them."""
    with (folder / "listings.csv").open(encoding="utf-8", newline="") as file:
        rows = [(f"where is a {row['name']}", row["description"]) for row in csv.DictReader(file)]
    with (folder / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("query", "passage"), *rows])


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the reader's files; the pages' workspaces are made in it."""
    folder = tmp_path_factory.mktemp("desk")
    write_listings(folder)
    save_model(folder / "query-t5", 1)
    save_tiny_llama(folder / "llama")
    write_pairs(folder)
    write_sources(folder)
    (folder / "questions.txt").write_text("is there a quiet barn\nwhere can I keep bees\n", encoding="utf-8")
    made = tiny_model(folder / "made")
    made.rename(folder / "other-model")
    (folder / "made" / "plain").rename(folder / "plain-bert")
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a language-model server, which stands in for the one on the pages."""
    running = FaultyServer()
    yield running.url
    running.close()


@pytest.fixture
def light(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A tiny model in the place of the built-in one: whether a command works does not depend on its size."""
    monkeypatch.setattr(encoders, "_builtin", lambda: desk / "other-model")
    encoders.locate.cache_clear()
    yield
    encoders.locate.cache_clear()


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_on_the_page_work(
    page: Path,
    desk: Path,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(desk)
    for language, block in FENCED.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(block, page.name, "exec"), {})
        else:
            assert language in {"bash", "console"}, f"no way to try a block of {language!r}"
            for line in block.splitlines():
                run_line(line.removeprefix("$ ").replace(SERVER, server), monkeypatch)
    assert "Traceback" not in "".join(capsys.readouterr())


def run_line(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a line of a page; `make` is asked what it would do, `pip` is not run at all."""
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        if shutil.which("make"):
            assert make("-n", *words[1:])
    elif words[:2] == ["pip", "install"]:
        extras = re.search(r"\[(.*)\]", words[2])
        offered = importlib.metadata.metadata("searchfit").get_all("Provides-Extra") or []
        assert words[2].startswith(".")
        assert extras is None or set(extras.group(1).split(",")) <= set(offered)
    elif words[0] == "python":  # benchmarks take long: they are asked whether they know the options
        told = [sys.executable, str(ROOT / words[1]), "--help"]
        usage = subprocess.run(told, capture_output=True, text=True, check=True).stdout
        assert all(word in usage for word in words[2:] if word.startswith("--"))
    else:
        assert words[0] == "searchfit", f"no way to try {line!r}"
        monkeypatch.setattr(sys, "argv", words)
        assert exit_status() == 0, f"{line!r} fails"


def exit_status() -> object:
    """Of the command line, run in this process."""
    try:
        main()
    except SystemExit as ended:
        return ended.code or 0
    return 0


def test_the_page_s_search_finds_what_it_asks_for(desk: Path) -> None:
    """The searches of the README, run by the test above, would also succeed with bad answers."""
    import searchfit

    source = {"text": "description", "id": "id", "title": "name"}
    ws = searchfit.fit(
        desk / "listings.csv", desk / "my-search-2", settings={"train.enabled": False}, **source
    )
    hits = ws.search("quiet house with a pool near the beach", k=5, where="price < 300000")
    assert hits[0].title == "house with a pool near the beach"


def test_the_settings_on_the_pages_are_the_defaults() -> None:
    said = dict(pair for page in PAGES for pair in TABLED.findall(page.read_text(encoding="utf-8")))
    assert len(said) > 20
    # Through the settings' own reader, so that 1.0 and 1, or 0.0001 and 1e-4, are the same.
    stated = {key: f"[{value}]" if "," in value else value for key, value in said.items()}
    assert load_settings(overrides=[f"{key}={value}" for key, value in stated.items()]) == load_settings()


FILES = {"csv", "json", "jsonl", "toml", "parquet", "html", "md", "tsv"}


def test_every_setting_on_the_pages_exists() -> None:
    known: dict[str, Any] = load_settings().model_dump()
    for page in PAGES:
        for section, name in re.findall(r"(?:`|--set )(\w+)\.(\w+)", page.read_text(encoding="utf-8")):
            if section in known and name not in FILES:
                assert name in known[section], f"{page.name}: {section}.{name}"


def test_how_it_works_tells_of_each_stage_in_order() -> None:
    page = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == [stage.name for stage in STAGES]


def anchors(page: Path) -> set[str]:
    """What a link to a heading of a page may name, as Python-Markdown and GitHub spell it."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", head).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_links_lead_to_files_and_headings(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text(encoding="utf-8"))
    for name, anchor in links:
        if "://" in name:
            continue
        place = page.parent / name if name else page
        assert place.is_file(), name
        assert not anchor or anchor in anchors(place), f"{name}#{anchor}"


def site() -> list[str]:
    """The pages in the navigation of the site."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    return re.findall(r": (\S+\.md)$", text, re.MULTILINE)


def test_the_site_has_every_page_once() -> None:
    examples = [f"examples/{page.parent.name}/README.md" for page in ROOT.glob("examples/*/README.md")]
    assert sorted(site()) == sorted([*(page.name for page in (ROOT / "docs").glob("*.md")), *examples])


@pytest.mark.parametrize("page", ["cli.md", "api.md"])
def test_the_pages_told_from_the_code_are_up_to_date(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import reference

    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == reference.PAGES[page]()


def test_the_reference_has_every_public_name_and_command() -> None:
    import searchfit

    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for name in set(searchfit.__all__) - {"__version__"}:
        assert f"### {name}\n" in page
    commands = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## (\S+)$", commands, re.MULTILINE)) == {
        command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands
    }


@pytest.mark.parametrize(
    ("heading", "schema"),
    [
        ("Documents", records.DOCUMENTS),
        ("Passages", records.PASSAGES),
        ("Questions", records.QUERIES),
        ("Screened questions", records.SCREENED),
        ("Holdout", records.HOLDOUT),
        ("Labelled pairs", records.LABELLED),
        ("Index", CATALOG),
    ],
)
def test_the_tables_on_the_page_are_those_that_are_written(heading: str, schema: Any) -> None:
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\w+) \| ([^|]+) \|", section, re.MULTILINE)[1:]
    said = [(name, html.unescape(kind).replace("\\", "")) for name, kind in rows]
    assert said == [(field.name, str(field.type)) for field in schema]


def test_the_picture_is_small() -> None:
    picture = (ROOT / "docs" / "report.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 200_000


def make(*words: str) -> str:
    """What make prints, for the repository."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(["make", *words], cwd=ROOT, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_make
@pytest.mark.parametrize(
    ("target", "does"),
    [
        ("demo", "examples/demo.py"),
        ("test", "-m pytest --numprocesses"),
        ("test-slow", "-m slow"),
        ("lint", "-m mypy"),
    ],
)
def test_make_sets_up_before_anything_else(target: str, does: str, tmp_path: Path) -> None:
    said = make("-n", target, f"VENV={tmp_path / 'venv'}")
    assert said.index("-m venv") < said.index("torch==") < said.index("--requirement") < said.index(does)


@needs_make
def test_make_sets_up_once_and_again_when_the_lock_changes(tmp_path: Path) -> None:
    stamp = tmp_path / ".ready"
    stamp.touch()
    assert "pip" not in make("-n", "setup", f"VENV={tmp_path}")
    newest = max((ROOT / name).stat().st_mtime for name in ("requirements.lock", "pyproject.toml"))
    os.utime(stamp, (newest - 10, newest - 10))
    assert "pip" in make("-n", "setup", f"VENV={tmp_path}")


def pins(python: str) -> dict[str, str]:
    """The versions that the lock asks for under a Python, by normalised name."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    asked = [Requirement(line) for line in lines if line and not line.startswith("#")]
    here = {"python_version": python, "python_full_version": f"{python}.1"}
    kept = [one for one in asked if one.marker is None or one.marker.evaluate(here)]
    assert len({one.name for one in kept}) == len(kept), "a package is pinned twice"
    assert all(re.fullmatch(r"==[^,*]+", str(one.specifier)) for one in kept)
    return {normalised(one.name): str(one.specifier)[2:] for one in kept}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_all_that_the_package_asks_for(python: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    lines = [*project["project"]["dependencies"]]
    lines += [line for extra, lines in extras.items() if extra != "quantize" for line in lines]  # GPUs only
    lines += [*project["dependency-groups"]["dev"], *project["build-system"]["requires"]]
    wanted = [one for one in map(Requirement, lines) if one.name != "torch"]
    locked = pins(python)
    for one in wanted:
        if one.marker is None or one.marker.evaluate({"python_version": python}):
            assert one.specifier.contains(locked[normalised(one.name)]), f"{one} against the lock"


def test_the_lock_is_complete() -> None:
    """Everything that a locked package needs here is locked too, in a version that it takes."""
    locked = pins(".".join(map(str, sys.version_info[:2])))
    for name, version in locked.items():
        if importlib.metadata.version(name) != version:
            continue  # another version is installed, whose needs say nothing of the locked one's
        needs = map(Requirement, importlib.metadata.requires(name) or [])
        for one in needs:
            if one.name != "torch" and (one.marker is None or one.marker.evaluate({"extra": ""})):
                assert one.specifier.contains(locked[normalised(one.name)]), f"{name} needs {one}"


ANSWERS = {
    "run a command and get its output": "subprocess.check_output",
    "cache the results of a function": "functools.lru_cache",
    "temporary file that is deleted when closed": "tempfile.NamedTemporaryFile",
    "convert a timestamp to a date": "datetime.date.fromtimestamp",
    "store an object on disk and load it later": "pickle.load",
}


def test_the_demo_s_corpus_has_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    from searchfit.sources.pydoc import PydocReader
    from searchfit.sources.rows import Row

    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import demo

    rows = PydocReader(demo.SOURCE.removeprefix("pydoc:")).rows()
    ids = {str(row.values["id"]) for row in rows if isinstance(row, Row)}
    assert 2000 <= len(ids) <= 4000
    assert set(ANSWERS) == set(demo.QUESTIONS)
    assert set(ANSWERS.values()) <= ids


@pytest.mark.slow
def test_the_demo_ends_well(tmp_path: Path) -> None:
    import searchfit

    command = [sys.executable, str(ROOT / "examples" / "demo.py"), "found"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    ws = searchfit.open(tmp_path / "found")
    # A class stands between a method and its module, so the corpus tells the module, not the name.
    modules = {row["id"]: row["module"] for row in ws.documents.select(ids=ANSWERS.values())}
    for question, answer in ANSWERS.items():
        assert question in done.stdout
        assert modules[answer] in {hit.metadata["module"] for hit in ws.search(question, k=3)}
    assert (tmp_path / "found" / "report.html").is_file()
