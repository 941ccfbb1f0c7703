"""Whole fits whose corpus and workspace lie in an object store."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pipeline_tools import Corpus, cli, environment, fit, options, ran, tiny_model, write_corpus

import searchfit
from searchfit import growth
from searchfit.config import ServeSettings
from searchfit.mirror import ENVIRONMENT, lease
from searchfit.recipe import STAGES
from searchfit.request import Request
from searchfit.server import state
from searchfit.workspace import Workspace, located

SETTINGS: dict[str, Any] = {"train__checkpoint_steps": 1, "train__batch_size": 32}
QUESTION = "which bakery is flooded in spring?"


@pytest.fixture(scope="module")
def place(s3: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Corpus]:
    """The URL of a bucket, and a corpus in it with the model to fit."""
    name, folder = f"b-{uuid4().hex}", tmp_path_factory.mktemp("source")
    s3.create_bucket(Bucket=name)
    s3.upload_file(str(write_corpus(folder / "places.csv")), name, "corpus/places.csv")
    return f"s3://{name}", Corpus(f"s3://{name}/corpus/*.csv", str(tiny_model(folder)))  # type: ignore[arg-type]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Go to another machine: one that has the mirrors of its own."""
    return lambda name: monkeypatch.setenv(ENVIRONMENT, str(tmp_path / name))


@pytest.fixture(scope="module")
def calm(place: tuple[str, Corpus], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit into a folder, of the same corpus."""
    folder = tmp_path_factory.mktemp("calm")
    fit(folder, place[1], **SETTINGS)
    return folder


def digests(workspace: Path) -> dict[str, str]:
    """By artefact; of what tells no times, and of no index, whose files LanceDB names by chance."""
    stages = Workspace(workspace).manifest()["stages"]
    made = {name: one["digest"] for stage in stages.values() for name, one in stage["artefacts"].items()}
    return {
        name: digest
        for name, digest in made.items()
        if not name.startswith(("index/", "report", "engine.json"))
    }


def test_fit_search_and_change_by_url(
    s3: Any,
    place: tuple[str, Corpus],
    calm: Path,
    machine: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, corpus = place
    url = f"{root}/whole"
    machine("first")
    assert ran(fit(located(url), corpus, **SETTINGS)) == [stage.name for stage in STAGES]
    assert digests(located(url)) == digests(calm)
    before = _objects(s3, url)
    assert ran(fit(located(url), corpus, **SETTINGS)) == []
    machine("second")
    ws = searchfit.open(url)
    assert ws.search(QUESTION) == searchfit.open(calm).search(QUESTION)
    assert not (located(url) / "encoded").exists()  # a search has no need of it
    assert ran(fit(located(url), corpus, **SETTINGS)) == []
    assert not (located(url) / "encoded").exists()
    assert _objects(s3, url) == before
    assert ws.documents.to_arrow().num_rows == 56

    growth.remove(located(url), ["doc-1"])
    machine("first")
    assert all(hit.document_id != "doc-1" for hit in searchfit.open(url).search(QUESTION, 56))
    growth.remove(located(url), ["doc-2"])
    machine("second")
    assert len(ws.search("the bay of a place", 56)) == 55  # as it was opened
    assert len(searchfit.open(url).search("the bay of a place", 56)) == 54
    monkeypatch.setattr(state, "PULL", 0.0)
    served = state.State.open([located(url)], ServeSettings())
    try:
        machine("first")
        growth.remove(located(url), ["doc-3"])
        assert asyncio.run(_served(served.workspace("whole"), 53)) == 53
    finally:
        served.close()
    machine("third")
    assert ran(fit(located(url), corpus, **SETTINGS, force=["index"])) == ["index", "report"]
    assert len(searchfit.open(url).search("the bay of a place", 56)) == 56


async def _served(workspace: state.Served, wanted: int) -> int:
    """How many documents a server finds, once it has looked into the store."""
    for _ in range(200):
        found = len((await workspace.search(Request("the bay of a place", 100))).hits)
        if found == wanted:
            break
        await asyncio.sleep(0.02)
    return found


def _objects(s3: Any, url: str) -> dict[str, Any]:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    found = s3.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/objects/")["Contents"]
    return {one["Key"]: one["LastModified"] for one in found}


def test_kill_9_and_carry_on_here_and_elsewhere(
    place: tuple[str, Corpus],
    calm: Path,
    machine: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    root, corpus = place
    url = f"{root}/killed"
    machine("first")
    arguments = ["fit", *options(corpus, **SETTINGS), "-o", url]
    _killed(arguments, tmp_path / "first", "screen")
    done = Workspace(located(url)).manifest()["stages"]
    machine("second")
    refused = cli(*arguments)
    assert refused.returncode == 1
    assert f"another process is writing to {url}" in refused.stderr
    monkeypatch.setattr(lease, "STALE", 0.0)
    steps = fit(located(url), corpus, **SETTINGS, until="mine")
    assert not set(ran(steps)) & set(done)
    assert set(ran(steps)) < {stage.name for stage in STAGES}
    machine("first")  # which was killed: its own work is carried on or gives way
    fit(located(url), corpus, **SETTINGS)
    machine("third")
    assert digests(located(url)) == digests(calm)
    assert searchfit.open(url).search(QUESTION) == searchfit.open(calm).search(QUESTION)


def _killed(arguments: list[str], mirrors: Path, stage: str) -> None:
    """Run the command and kill it, with all its children, when a stage is at work."""
    process = subprocess.Popen(
        [sys.executable, "-m", "searchfit", *arguments],
        env={**environment(), ENVIRONMENT: str(mirrors)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while process.poll() is None and not next(mirrors.glob(f"*/.partial/{stage}/key"), None):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_commands_take_a_url(
    place: tuple[str, Corpus], machine: Callable[[str], None], tmp_path: Path
) -> None:
    root, corpus = place
    url = f"{root}/commands"
    machine("first")
    done = cli("fit", *options(corpus), "-o", url, "--effort", "quick")
    assert done.returncode == 0, done.stderr
    assert f"searchfit search {url}" in done.stderr
    machine("second")
    assert json.loads(cli("status", url, "--json").stdout)["stages"]["report"]
    assert "1." in cli("search", url, QUESTION).stdout
    assert "doc-1" in cli("documents", url, "--json").stdout
    for words in (["status", f"{root}/none"], ["status", "s3://no-such-bucket-here/x"]):
        refused = cli(*words)
        assert refused.returncode == 1
        assert f"{words[1]} is not a searchfit workspace" in refused.stderr
    refused = cli("fit", *options(corpus), "-o", "s3://no-such-bucket-here/x")
    assert refused.returncode == 1
    assert "does not exist" in refused.stderr
    assert cli("download", url, tmp_path / "here").returncode == 0
    assert cli("search", tmp_path / "here", QUESTION).stdout == cli("search", url, QUESTION).stdout
    refused = cli("train", url, "--feedback")
    assert (refused.returncode, "keeps no feedback" in refused.stderr) == (2, True)
    refused = cli("download", f"{root}/none", tmp_path / "there")
    assert "is not a searchfit workspace" in refused.stderr


def test_several_models_in_one_place(
    place: tuple[str, Corpus], machine: Callable[[str], None], tmp_path: Path
) -> None:
    root, corpus = place
    url, other = f"{root}/contest", str(tiny_model(tmp_path))
    machine("first")
    words = [
        "fit",
        *options(corpus),
        "-o",
        url,
        "--effort",
        "quick",
        "--model",
        corpus.model,
        "--model",
        other,
    ]
    done = cli(*words)
    assert done.returncode == 0, done.stderr
    machine("second")
    board = json.loads(cli("status", url, "--json").stdout)["leaderboard"]
    run = board["rows"][0]["folder"]
    assert "1." in cli("search", url, QUESTION).stdout
    assert "1." in cli("search", f"{url}/{run}", QUESTION).stdout
    assert json.loads(cli("compare", url, "--json").stdout)["rows"]
    again = json.loads(cli(*words, "--json").stdout)
    assert [step["stage"] for step in again if step["why"]] == []
