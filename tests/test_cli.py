"""The command line: exit codes, what goes to stdout and to stderr, and how long it takes to start."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import typer.main
from pipeline_tools import (
    CUT,
    Corpus,
    Done,
    children_seconds,
    cli,
    command,
    environment,
    fit,
    options,
    tiny_model,
    write_corpus,
)

import searchfit
from searchfit.cli import app, main
from searchfit.recipe import STAGES
from searchfit.search import open_searcher
from searchfit.stores.push import remember

COMMANDS = ("fit", "search", "status", "evaluate")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("source")
    return Corpus(write_corpus(folder / "places.csv"), str(tiny_model(folder)))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Path:
    path = tmp_path_factory.mktemp("fitted") / "ws"
    fit(path, corpus)
    return path


def best_of_five(*arguments: str) -> float:
    """Seconds of processor time that Python takes; the least of five runs: a busy machine only ever adds."""
    times = []
    for _ in range(5):
        started = children_seconds()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True, env=environment())
        times.append(children_seconds() - started)
    return min(times)


@pytest.mark.parametrize(
    ("arguments", "seconds", "bare"),
    [(("-m", "searchfit", "--help"), 0.6, 20), (("-c", "import searchfit"), 0.2, 7)],
    ids=["help", "import"],
)
def test_starting_is_quick(arguments: tuple[str, ...], seconds: float, bare: int) -> None:
    """On a slow machine: no longer than so many times what Python itself takes to start."""
    assert best_of_five(*arguments) < max(seconds, bare * best_of_five("-c", "pass"))


def test_help_lists_the_commands() -> None:
    done = cli("--help")
    assert done.returncode == 0
    assert re.findall(r"^  (fit|search|status|evaluate) ", done.stdout, re.M) == [*COMMANDS]
    for name in COMMANDS:
        assert f"searchfit {name}" in cli(name, "--help").stdout


def test_a_process_ends_with_the_status_and_no_traceback(tmp_path: Path, workspace: Path) -> None:
    assert command("status", workspace).returncode == 0
    for status, arguments in ((1, ("status", tmp_path)), (2, ("fit", "x", "-o", "y", "--set", "z=1"))):
        done = command(*arguments)
        assert (done.returncode, done.stdout) == (status, "")
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr


def test_fit_prints_nothing_to_stdout_but_json(tmp_path: Path, corpus: Corpus) -> None:
    path = tmp_path / "ws"
    plain = cli("fit", "-o", path, "--until", "split", *options(corpus))
    assert (plain.returncode, plain.stdout) == (0, "")
    assert "documents 56" in plain.stderr
    assert "report" not in plain.stderr
    done = cli("fit", "-o", path, "--json", *options(corpus))
    steps = json.loads(done.stdout)
    assert [step["stage"] for step in steps] == [stage.name for stage in STAGES]
    assert [bool(step["why"]) for step in steps] == [False, False] + [True] * (len(STAGES) - 2)
    assert "next:" not in done.stdout
    again = cli("fit", "-o", path, *options(corpus))
    assert (again.returncode, again.stdout) == (0, "")
    assert "nothing to do" in again.stderr
    assert "searchfit search" in again.stderr


def test_a_workspace_name_that_looks_like_markup(tmp_path: Path, corpus: Corpus) -> None:
    path = tmp_path / "[bold]"
    cli("fit", "-o", path, "--until", "ingest", *options(corpus))
    done = cli("fit", "-o", path, "--until", "ingest", *options(corpus))
    assert f"{path}: nothing to do" in done.stderr


def test_search_json_is_what_the_searcher_gives(workspace: Path) -> None:
    done = cli("search", workspace, "haunted library", "-k", 3, "--json")
    hits = json.loads(done.stdout)
    expected = open_searcher(workspace).search("haunted library", k=3)
    assert [hit["document_id"] for hit in hits] == [hit.document_id for hit in expected]
    assert [hit["rank"] for hit in hits] == [1, 2, 3]
    assert hits[0]["title"] == "haunted library"
    assert [hit["score"] for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-5)
    start, end = hits[0]["highlights"][0]
    assert hits[0]["snippet"][start:end].lower() in {"haunted", "library"}
    assert hits[0]["metadata"]["town"] in {"Ciutadella", "Es Castell"}


def test_search_for_people(workspace: Path) -> None:
    done = cli("search", workspace, "haunted library", "-k", 2)
    assert done.returncode == 0
    assert done.stdout.startswith("1. haunted library  doc-21")
    assert done.stdout.count("\n2. ") == 1
    assert done.stderr == ""


def test_k_beyond_the_corpus_gives_all(workspace: Path) -> None:
    assert len(json.loads(cli("search", workspace, "harbour", "-k", 1000, "--json").stdout)) == 56


def test_where_filters(workspace: Path) -> None:
    where = 'price < 1300 and rooms >= 3 and town = "Es Castell"'
    hits = json.loads(cli("search", workspace, "windy harbour", "-k", 50, "--where", where, "--json").stdout)
    wanted = {f"doc-{i}" for i in range(56) if 1000 + 13 * i < 1300 and i % 7 >= 3 and i % 2}
    assert {hit["document_id"] for hit in hits} == wanted != set()


def test_a_filter_that_nothing_passes(workspace: Path) -> None:
    done = cli("search", workspace, "windy harbour", "--where", "price < 0")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no results" in done.stderr
    assert json.loads(cli("search", workspace, "x", "--where", "price < 0", "--json").stdout) == []


def test_passages_gives_every_passage(tmp_path: Path, corpus: Corpus) -> None:
    path = tmp_path / "ws"
    fit(path, corpus, train__enabled=False, **CUT)
    documents = json.loads(cli("search", path, "painted bakery", "-k", 30, "--json").stdout)
    passages = json.loads(cli("search", path, "painted bakery", "-k", 30, "--passages", "--json").stdout)
    assert len({hit["document_id"] for hit in documents}) == 30
    assert len({hit["passage_id"] for hit in passages}) == 30 > len({hit["document_id"] for hit in passages})


def test_status(workspace: Path) -> None:
    done = cli("status", workspace, "--json")
    manifest = json.loads(done.stdout)
    assert list(manifest["stages"]) == [stage.name for stage in STAGES]
    plain = cli("status", workspace)
    assert [line.split()[0] for line in plain.stdout.splitlines()] == [
        *manifest["stages"],
        "serves",
        "index",
    ]
    assert "documents 56" in plain.stdout


def test_status_of_an_unfinished_fit(tmp_path: Path, corpus: Corpus) -> None:
    fit(tmp_path / "ws", corpus, until="split")
    done = cli("status", tmp_path / "ws")
    assert done.returncode == 0
    assert "not finished" in done.stdout
    assert cli("search", tmp_path / "ws", "harbour").returncode == 1


USAGE = [
    (["search", "WS", ""], "expected a question"),
    (["search", "WS", "  \t "], "query is empty"),
    (["search", "WS", "x", "-k", "0"], "-k"),
    (["search", "WS", "x", "-k", "many"], "-k"),
    (["search", "WS", "x", "--where", "prise < 3"], "prise"),
    (["search", "WS", "x", "--where", "price <"], "price"),
    (["search", "WS", "x", "--where", "price < 'cheap'"], "price"),
    (["search", "WS", "x", "--where", "price < 3 or 1=1; drop"], "where|filter|1"),
    (["search", "WS", "x", "--colour"], "--colour"),
    (["search", "WS"], "expected a question"),
    (["fit", "CSV"], "-o"),
    (["fit", "CSV", "-o", "NEW", "--set", "train.epoch=1"], "train.epochs"),
    (["fit", "CSV", "-o", "NEW", "--set", "trian.epochs=1"], "train.epochs"),
    (["fit", "CSV", "-o", "NEW", "--set", "train.epochs=0"], "train.epochs"),
    (["fit", "CSV", "-o", "NEW", "--set", "train.epochs=few"], "train.epochs"),
    (["fit", "CSV", "-o", "NEW", "--set", "train.epochs"], "train.epochs"),
    (["fit", "CSV", "-o", "NEW", "--set", "train=1"], "train"),
    (["fit", "CSV", "-o", "NEW", "--set", "=1"], "setting"),
    (["fit", "CSV", "-o", "NEW", "--set", "engine.keyword_weight=inf"], "keyword_weight"),
    (["fit", "CSV", "-o", "NEW", "--set", "generate.generator=magic", "--until", "generate"], "magic"),
    (["fit", "CSV", "-o", "NEW", "--config", "absent.toml"], "absent.toml"),
    (["fit", "CSV", "-o", "NEW", "--config", "."], "TOML|folder|directory"),
    (["fit", "CSV", "-o", "NEW", "--config", "CSV"], "TOML"),
    (["fit", "CSV", "-o", "NEW", "--force", "everything"], "everything"),
    (["fit", b"\xff\xfe.csv", "-o", "NEW"], "UTF-8"),
    (["frobnicate"], "frobnicate"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE, ids=[" ".join(map(str, a)) for a, _ in USAGE])
def test_usage_errors(
    tmp_path: Path, workspace: Path, corpus: Corpus, arguments: list[str | bytes], message: str
) -> None:
    done = _run(arguments, tmp_path, workspace, corpus)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert re.search(message, done.stderr), done.stderr


FAILURES = [
    (["fit", "absent.csv", "-o", "NEW"], "absent.csv does not exist"),
    (["fit", "ftp://host/x", "-o", "NEW"], "unknown kind"),
    (["fit", "/dev/null", "-o", "NEW"], "/dev/null"),
    (["fit", "pydoc:no_such_module_here", "-o", "NEW"], "no_such_module_here"),
    (["fit", "CSV", "-o", "CSV"], "is a file"),
    (["fit", "CSV", "-o", "CSV/below"], "cannot make|not a folder"),
    (["fit", "CSV", "-o", "CSV/below", "--dry-run"], "cannot|not a folder"),
    (["fit", "CSV", "-o", "FULL"], "not empty"),
    (["fit", "CSV", "-o", "FULL", "--dry-run"], "not empty"),
    (["fit", "CSV", "-o", "NEW", "--text", "boddy"], "boddy"),
    (["fit", "CSV", "-o", "NEW", "--id", "boddy"], "boddy"),
    (["fit", "CSV", "-o", "NEW", "--model", "./no-model"], "no-model"),
    (["fit", "CSV", "-o", "NEW", "--queries", "absent.txt", "--until", "evaluate"], "absent.txt"),
    (["search", "FULL", "x"], "no finished search engine"),
    (["search", "ABSENT", "x"], "no finished search engine"),
    (["search", "CSV", "x"], "no finished search engine|not a"),
    (["status", "FULL"], "not a searchfit workspace"),
    (["status", "CSV"], "not a"),
    (["evaluate", "FULL", "."], "not a searchfit workspace"),
    (["evaluate", "WS", "FULL"], "queries.jsonl"),
    (["evaluate", "WS", "ABSENT"], "does not exist"),
]


@pytest.mark.parametrize(("arguments", "message"), FAILURES, ids=[" ".join(map(str, a)) for a, _ in FAILURES])
def test_failures(
    tmp_path: Path, workspace: Path, corpus: Corpus, arguments: list[str | bytes], message: str
) -> None:
    done = _run(arguments, tmp_path, workspace, corpus)
    assert (done.returncode, done.stdout) == (1, ""), (done.returncode, done.stderr)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, done.stderr), done.stderr


def _run(arguments: list[str] | list[str | bytes], folder: Path, workspace: Path, corpus: Corpus) -> Done:
    full = folder / "full"
    full.mkdir()
    (full / "holiday.jpg").write_bytes(b"x")
    places = {
        "WS": workspace,
        "CSV": corpus.source,
        "CSV/below": corpus.source / "below",
        "NEW": folder / "new",
        "FULL": full,
        "ABSENT": folder / "absent",
    }
    named = [os.fsdecode(arg) if isinstance(arg, bytes) else str(places.get(arg, arg)) for arg in arguments]
    if "NEW" in arguments and "--model" not in arguments:
        named += ["--model", corpus.model]
    return cli(*named)


def test_damaged_pointer(tmp_path: Path, workspace: Path) -> None:
    copy = tmp_path / "ws"
    copy.mkdir()
    (copy / "manifest.json").write_bytes((workspace / "manifest.json").read_bytes())
    for text in ('{"engine"', "[]", '{"index": "index/none"}'):
        (copy / "engine.json").write_text(text, encoding="utf-8")
        for arguments in (["search", copy, "x"], ["status", copy]):
            done = cli(*arguments)
            assert done.returncode == 1, (text, arguments)
            assert done.stderr.startswith("error: ")


def test_help_cuts_nothing_at_80_columns() -> None:
    with mock.patch.dict(os.environ, {"COLUMNS": "80"}):
        done = subprocess.run(
            [sys.executable, "-m", "searchfit", "--help"], capture_output=True, encoding="utf-8", check=True
        )
    commands = done.stdout.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in commands[:4]] == ["fit", "search", "status", "serve"]
    assert all(line.endswith(".") and not line.endswith("...") for line in commands)
    assert all(len(line.partition("  ")[2]) <= 80 for line in commands)


def test_flags_that_are_off_have_no_other_half() -> None:
    """What is on can be turned off; what is off is just not given."""
    commands: Any = typer.main.get_command(app)
    halves = {
        option
        for each in commands.commands.values()
        for parameter in each.params
        if parameter.default is False
        for option in parameter.secondary_opts
    }
    assert halves == set()
    assert "--no-rerank" in cli("search", "--help").stdout


def test_the_version_is_that_of_the_package() -> None:
    assert cli("--version").stdout == f"searchfit {searchfit.__version__}\n"


def test_status_names_the_store_that_is_searched(workspace: Path, tmp_path: Path) -> None:
    copy = tmp_path / "ws"
    shutil.copytree(workspace, copy)
    assert "store" not in json.loads(cli("status", copy, "--json").stdout)
    remember(copy, "qdrant://reader:secret@search.example/places")
    shown = cli("status", copy).stdout
    assert "store     qdrant://reader@search.example/places" in shown
    assert "secret" not in shown
    assert json.loads(cli("status", copy, "--json").stdout)["store"].endswith("example/places")


@pytest.mark.parametrize(("name", "more"), [("status", ""), ("judge", "; the same command carries on")])
def test_only_what_resumes_is_said_to_carry_on(name: str, more: str, capsys: Any) -> None:
    with (
        mock.patch.object(sys, "argv", ["searchfit", name]),
        mock.patch("searchfit.cli.app", side_effect=SystemExit(130)),
        pytest.raises(SystemExit),
    ):
        main()
    assert capsys.readouterr().err == f"\ninterrupted{more}\n"


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_interrupted_by_the_user(tmp_path: Path, corpus: Corpus) -> None:
    """Ctrl-C: exit status 130, a word on how to go on, and no traceback."""
    code = (
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from searchfit.__main__ import main\nmain()"
    )
    path = tmp_path / "ws"
    arguments = [sys.executable, "-c", code, "fit", "-o", str(path), *options(corpus)]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, encoding="utf-8", env=environment()) as process:
        deadline = time.monotonic() + 60
        while not (path / ".partial" / "encode").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command carries on" in errors
    assert "Traceback" not in errors
    assert cli("fit", "-o", path, *options(corpus)).returncode == 0


def test_a_reader_that_hangs_up(workspace: Path) -> None:
    """As `searchfit status WORKSPACE | head -0` does."""
    arguments = [sys.executable, "-m", "searchfit", "status", str(workspace), "--json"]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
    assert "Traceback" not in errors


def test_what_a_new_fit_leaves_behind_comes_back_with_the_command_told(
    workspace: Path, corpus: Corpus, tmp_path: Path
) -> None:
    path = tmp_path / "my notes"
    shutil.copytree(workspace, path)
    more = tmp_path / "more.csv"
    more.write_text(
        "id,name,body,price,rooms,town\n"
        "new-1,sunken submarine,The submarine lies in the bay and divers see its rusty periscope.,7,1,Mahon\n"
        "doc-3,painted quarry,The quarry was filled with water and swans live there now.,9,2,Ciutadella\n",
        encoding="utf-8",
    )
    added = json.loads(cli("add", path, more, "--json").stdout)
    assert (added["added"], added["changed"]) == (1, 1)
    assert cli("remove", path, "--id", "doc-5").returncode == 0

    def first(query: str, *more: str) -> dict[str, Any]:
        hit: dict[str, Any] = json.loads(cli("search", path, query, "--json", *more).stdout)[0]
        return {name: hit[name] for name in ("document_id", "title", "text", "metadata")}

    before = [first("rusty periscope"), first("swans")]
    assert [hit["document_id"] for hit in before] == ["new-1", "doc-3"]
    refit = cli("train", path, "--set", "index.merge=3")
    assert refit.returncode == 0, refit.stderr
    assert "1 documents that were removed" in refit.stderr
    assert "2 documents that were added or changed" in refit.stderr
    assert "swans" not in first("swans")["text"]
    told = re.search(r"back: searchfit (add .*)$", refit.stderr, re.M)
    assert told is not None
    done = cli(*shlex.split(told[1]), "--json")
    assert done.returncode == 0, done.stderr
    back = json.loads(done.stdout)
    assert (back["added"], back["changed"], back["notes"]) == (1, 1, [])
    assert [
        first("rusty periscope", "--where", "price = 7"),
        first("swans", "--where", "price = 9"),
    ] == before
    # What is changed back to what the source has need not be kept by the next fit.
    lines = corpus.source.read_text(encoding="utf-8").splitlines()
    more.write_text("\n".join(line for line in lines if line.startswith(("id,", "doc-3,"))), encoding="utf-8")
    assert json.loads(cli("add", path, more, "--json").stdout)["changed"] == 1
    once = cli("train", path, "--set", "index.merge=4")
    assert "1 documents that were added or changed" in once.stderr
    assert "removed" not in once.stderr
