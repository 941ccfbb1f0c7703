from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline_tools import Killed

from searchfit.errors import WorkspaceError
from searchfit.mirror import ENVIRONMENT, download, lease
from searchfit.mirror.bucket import Bucket
from searchfit.workspace import Workspace, located
from searchfit.writing import digest, size, write_bytes


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Go to another machine: one that has the mirrors of its own."""

    def go(name: str) -> None:
        monkeypatch.setenv(ENVIRONMENT, str(tmp_path / name))

    go("first")
    return go


def open_(url: str) -> Workspace:
    return Workspace(located(url))


STAGES: dict[str, dict[str, dict[str, bytes]]] = {
    "ingest": {"documents.parquet": {"": b"d" * 3000}},
    "train": {"models/trained": {"weights": b"w" * 9000, "deep/config": b"c"}, "models/reranker": {}},
    "index": {"index/one": {"rows": b"r" * 700, "data/part": b"p"}, "engine.json": {"": b'{"index": 1}'}},
}
"""What stands for the stages of a fit: the files of each artefact; "" for an artefact that is a file."""


def made(stage: str, name: str, edition: int) -> dict[str, bytes]:
    more = {"only-2": b""} if edition == 2 and name == "models/trained" else {}
    return {file: data + bytes([edition]) for file, data in (STAGES[stage][name] | more).items()}


def work(url: str, edition: int = 1) -> list[str]:
    """What Fit does with a workspace, stage by stage, without the stages; those that ran."""
    space = open_(url)
    space.create()
    ran = []
    with space.lock():
        for stage, artefacts in STAGES.items():
            entry = space.manifest()["stages"].get(stage)
            done = entry is not None and entry["edition"] == edition
            if done and all(space.size_of(name) == bytes_ for name, bytes_ in entry["sizes"].items()):
                continue
            ran.append(stage)
            _run(space, stage, artefacts, edition)
    return ran


def _run(space: Workspace, stage: str, artefacts: dict[str, dict[str, bytes]], edition: int) -> None:
    partial = space.partial(stage)
    for name, files in artefacts.items():
        for file, data in made(stage, name, edition).items():
            write_bytes(partial / name / file if file else partial / name, data)
        if not files:
            (partial / name).mkdir(parents=True)
    sizes = {name: size(partial / name) for name in artefacts}
    manifest = space.manifest()
    if manifest["stages"].pop(stage, None):
        space.write_manifest(manifest)
    for name in artefacts:
        space.publish(stage, name)
    manifest["stages"][stage] = {"edition": edition, "sizes": sizes}
    space.write_manifest(manifest)
    space.share()


def check(url: str, edition: int) -> None:
    """All artefacts are as the edition makes them, and nothing else."""
    space = open_(url)
    for stage, artefacts in STAGES.items():
        for name in artefacts:
            path, wanted = space.artefact(name), made(stage, name, edition)
            files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
            found = {"" if p == path else p.relative_to(path).as_posix(): p.read_bytes() for p in files}
            assert path.exists()
            assert found == wanted, name


def objects(s3: Any, bucket: str) -> dict[str, Any]:
    found = s3.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {one["Key"]: one["LastModified"] for one in found}


def test_what_one_machine_made_another_finds(
    s3: Any, bucket: str, machine: Callable[[str], None], tmp_path: Path
) -> None:
    url = f"s3://{bucket}/search"
    assert work(url) == list(STAGES)
    check(url, 1)
    machine("second")
    space = open_(url)
    space.require()
    assert space.name == url
    assert not (space.path / "models").exists()  # it is not needed yet
    assert space.size_of("models/trained") == 9003
    assert space.size_of("models/reranker") == 0
    assert space.size_of("models/none") == -1
    check(url, 1)
    there = {key for key in objects(s3, bucket) if key.startswith("search/objects/")}
    assert work(url) == []
    assert {key for key in objects(s3, bucket) if key.startswith("search/objects/")} == there
    download(url, tmp_path / "here")
    here = Workspace(tmp_path / "here")
    assert digest(here.artefact("models")) == digest(space.path / "models")
    assert here.name == str(here.path)
    assert sorted(path.name for path in here.path.iterdir()) == sorted(
        ["documents.parquet", "models", "index", "engine.json", "manifest.json"]
    )


def test_another_edition_takes_the_place_of_the_old(
    s3: Any, bucket: str, machine: Callable[[str], None]
) -> None:
    url = f"s3://{bucket}/search"
    work(url, 1)
    machine("second")
    check(url, 1)
    assert work(url, 2) == list(STAGES)
    check(url, 2)
    machine("first")
    check(url, 2)
    assert work(url, 2) == []
    # Of the edition before, only what the last stage replaced is left, for who is reading it.
    assert len(objects(s3, bucket)) <= 2 + 8 + 4


EACH = [pytest.param(after, 1, marks=pytest.mark.slow) for after in (False, True)]


@pytest.mark.parametrize(("after", "step"), [(False, 7), (True, 7), *EACH])
def test_killed_at_requests_that_change_something(
    bucket: str, machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, after: bool, step: int
) -> None:
    """Killed before, or after, a put or removal, then carried on here or on a machine that has nothing.
    Whoever reads meanwhile finds whole stages, and what the manifest says of them."""
    count = left = 0

    def struck(method: str) -> Callable[..., Any]:
        do = getattr(Bucket, method)

        def strike(self: Bucket, *arguments: Any) -> Any:
            nonlocal count, left
            count, left = count + 1, left - 1
            if left < 0 or (left == 0 and not after):
                raise Killed  # and the dead do nothing any more
            done = do(self, *arguments)
            if left == 0:
                raise Killed
            return done

        return strike

    def attempt(url: str, strike_at: int) -> bool:
        nonlocal left
        with monkeypatch.context() as patch:
            for method in ("put", "upload", "remove"):
                patch.setattr(Bucket, method, struck(method))
            left = strike_at
            try:
                work(url, 2)
            except Killed:
                return True
        return False

    def prepared(number: int) -> str:
        machine(f"killed-{number}")
        work(f"s3://{bucket}/{number}", 1)
        return f"s3://{bucket}/{number}"

    monkeypatch.setattr(lease, "STALE", 0.0)
    assert not attempt(prepared(0), 1_000_000)
    assert count > 15
    for number in range(4 + 2 * after, count, step):  # the first three take the lock
        url = prepared(number)
        assert attempt(url, number)
        machine(f"reader-{number}")
        space = open_(url)
        for stage, entry in space.manifest()["stages"].items():
            for name, bytes_ in entry["sizes"].items():
                assert size(space.artefact(name)) == bytes_, (stage, name, number)
        machine(f"killed-{number}" if (number + after) % 2 else f"reader-{number}")
        work(url, 2)
        machine(f"last-{number}")
        check(url, 2)


def test_the_lock(bucket: str, machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"s3://{bucket}/search"
    work(url)
    space = open_(url)
    with space.lock():
        with pytest.raises(WorkspaceError, match="another process is writing"), space.lock():
            pass
        machine("second")
        other = open_(url)
        with pytest.raises(WorkspaceError, match=rf"writing to {url} \(host .*, pid \d+") as caught:
            other.lock().__enter__()
        assert "after 300 without that" in caught.value.hint
        write_bytes(space.path / "more.json", b"{}")
        monkeypatch.setattr(lease, "STALE", 0.0)
        with other.lock():  # that of the first is stale: it is taken over
            with pytest.raises(WorkspaceError, match="has taken over"):
                space.share()
            assert open_(url).size_of("more.json") == -1
        (space.path / "more.json").unlink()
    with other.lock():
        pass


def test_a_lock_that_was_lost_stops_the_end_of_the_work(
    bucket: str, machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{bucket}/search"
    work(url)
    space = open_(url)
    machine("second")
    monkeypatch.setattr(lease, "STALE", 0.0)

    def slow() -> None:
        with space.lock():
            write_bytes(space.path / "trust.json", b"mine")
            other = open_(url)
            with other.lock():
                write_bytes(other.path / "trust.json", b"theirs")

    with pytest.raises(WorkspaceError, match="has taken over"):
        slow()
    machine("first")
    assert open_(url).artefact("trust.json").read_bytes() == b"theirs"


@pytest.mark.usefixtures("machine")
def test_a_lock_of_a_killed_writer_of_this_mirror_is_free_at_once(s3: Any, bucket: str) -> None:
    url = f"s3://{bucket}/search"
    work(url)
    name = json.loads((located(url) / ".mirror" / "mirror.json").read_text("utf-8"))["name"]
    s3.put_object(Bucket=bucket, Key="search/lock.json", Body=json.dumps({"holder": "x", "mirror": name}))
    with open_(url).lock():
        pass
    s3.put_object(Bucket=bucket, Key="search/lock.json", Body=b"spoilt")
    with pytest.raises(WorkspaceError, match="another process is writing"), open_(url).lock():
        pass


@pytest.mark.usefixtures("machine")
def test_the_lock_is_renewed_and_a_fault_of_the_renewal_is_not_the_end(
    s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW", 0.02)
    renew, seen = lease.Lease.renew, []

    def renewed(self: lease.Lease) -> None:
        seen.append(1)
        if len(seen) == 2:
            raise WorkspaceError("no network")
        renew(self)

    monkeypatch.setattr(lease.Lease, "renew", renewed)
    with open_(f"s3://{bucket}/search").lock():
        tags = set()
        while len(seen) < 6:
            tags.add(s3.head_object(Bucket=bucket, Key="search/lock.json")["ETag"])
    assert len(tags) > 2


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("ignored", ["IfNoneMatch", "IfMatch"])
def test_a_store_that_does_not_heed_conditions_is_refused(
    s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch, ignored: str
) -> None:
    call = Bucket._call

    def heedless(self: Bucket, method: str, key: str, **arguments: Any) -> Any:
        arguments.pop(ignored, None)
        return call(self, method, key, **arguments)

    monkeypatch.setattr(Bucket, "_call", heedless)
    with pytest.raises(WorkspaceError, match="two writers could not be kept apart") as caught:
        work(f"s3://{bucket}/search")
    assert "Fit into a local folder" in caught.value.hint
    assert objects(s3, bucket) == {}


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("url", ["memory://a/b", "gs://a/b", "https://a/b"])
def test_a_store_without_conditions_is_refused(url: str) -> None:
    for name in (url, Path(url)):
        with pytest.raises(WorkspaceError, match="a put on a condition") as caught:
            located(name)
    assert "Fit into a local folder" in caught.value.hint


@pytest.mark.usefixtures("machine")
def test_a_place_that_holds_something_else_is_left_alone(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="holiday/photo.jpg", Body=b"x")
    with pytest.raises(WorkspaceError, match=r"is not a searchfit workspace; it has photo\.jpg"):
        work(f"s3://{bucket}/holiday")
    with pytest.raises(WorkspaceError, match="a whole bucket"):
        located(f"s3://{bucket}")
    with pytest.raises(WorkspaceError, match="is not a searchfit workspace"):
        open_(f"s3://{bucket}/nothing").require()
    assert list(objects(s3, bucket)) == ["holiday/photo.jpg"]


def _answers(file: Path) -> dict[str, str]:
    with sqlite3.connect(file) as base:
        rows = dict(base.execute("select key, queries from answers").fetchall())
    base.close()
    return rows


def _answer(file: Path, **answers: str) -> None:
    with sqlite3.connect(file) as base:
        base.execute(
            "create table if not exists answers (key blob primary key, queries text, fault text) "
            "without rowid"
        )
        base.executemany("insert or replace into answers values (?, ?, '')", answers.items())
    base.close()


def test_what_generators_answered_is_kept_when_the_work_fails(
    bucket: str, machine: Callable[[str], None]
) -> None:
    url = f"s3://{bucket}/search"
    work(url)
    space = open_(url)

    def interrupted() -> None:
        with space.lock():
            _answer(space.ledger, one="1")
            write_bytes(space.path / "half.json", b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    machine("second")
    other = open_(url)
    assert _answers(other.ledger) == {"one": "1"}
    assert other.size_of("half.json") == -1
    with other.lock():
        _answer(other.ledger, two="2")
    machine("first")
    _answer(space.path / "ledger.sqlite", three="3")  # by one that was killed before it could put it
    with open_(url).lock():
        assert _answers(space.ledger) == {"one": "1", "two": "2", "three": "3"}
    machine("third")
    assert _answers(open_(url).ledger) == {"one": "1", "two": "2", "three": "3"}


@pytest.mark.usefixtures("machine")
def test_judgements_are_refused(bucket: str) -> None:
    from searchfit.judgements import Judgement, Record

    url = f"s3://{bucket}/search"
    work(url)
    with pytest.raises(WorkspaceError, match="cannot be kept in a workspace in an object store") as caught:
        Record(located(url)).add(Judgement("q", "query", "d", 1, "me"))
    assert "searchfit download" in caught.value.hint


def test_a_damaged_object_and_damaged_contents_are_told(
    s3: Any, bucket: str, machine: Callable[[str], None]
) -> None:
    url = f"s3://{bucket}/search"
    work(url)
    for key in objects(s3, bucket):
        if "/objects/" in key:
            s3.put_object(Bucket=bucket, Key=key, Body=b"other")
    machine("second")
    with pytest.raises(WorkspaceError, match="is damaged"):
        open_(url)
    for name in ("../out", "/out", "models/../../out", "", ".mirror/mirror.json", ".partial/x", "a\\..\\b"):
        held = json.dumps({"format": 1, "files": {name: [1, "0" * 32]}})
        s3.put_object(Bucket=bucket, Key="search/contents.json", Body=held)
        with pytest.raises(WorkspaceError, match="no file of a workspace"):
            open_(url)
    s3.put_object(Bucket=bucket, Key="search/contents.json", Body=b"{")
    with pytest.raises(WorkspaceError, match=r"contents\.json is damaged"):
        open_(url)


@pytest.mark.parametrize("number", range(3))
def test_faults_of_the_store_are_told_and_the_same_work_carries_on(
    s3: Any, bucket: str, machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    from botocore.exceptions import ConnectTimeoutError, NoCredentialsError

    fault, told = (
        (PermissionError("Access Denied"), "may not be written: permission denied"),
        (NoCredentialsError(), "cannot be written without credentials"),
        (ConnectTimeoutError(endpoint_url="http://s3"), "cannot be written: .*timeout"),
    )[number]
    url, call, left = f"s3://{bucket}/search", Bucket._call, 4

    def faulty(self: Bucket, method: str, key: str, **arguments: Any) -> Any:
        nonlocal left
        left -= method == "put_object"
        if left < 0:
            raise fault
        return call(self, method, key, **arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "_call", faulty)
        with pytest.raises(WorkspaceError, match=told) as caught:
            work(url)
        assert "s3://" in caught.value.message
        assert caught.value.hint
    assert "search/contents.json" not in objects(s3, bucket)
    assert work(url) == [name for name in STAGES if name != "ingest"]  # that is here, and is put now
    machine("second")
    check(url, 1)


@pytest.mark.usefixtures("s3")
def test_a_store_that_is_not_there(machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    machine("third")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    try:
        with pytest.raises(WorkspaceError, match="cannot be read: Could not connect") as caught:
            located("s3://unreachable/search")
        assert "carries on" in caught.value.hint
    finally:
        fsspec.get_filesystem_class("s3").clear_instance_cache()
