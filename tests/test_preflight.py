"""The check before a fit: what it finds in known corpora, that its forecast scales, what it leaves."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pipeline_tools import cli, one_thread

from searchfit import preflight
from searchfit.config import ChooseSettings, QueriesSettings, Settings, load_settings
from searchfit.errors import SourceError
from searchfit.pipeline import Fit
from searchfit.preflight import check
from searchfit.preflight.cluster import Machines, measure_handling
from searchfit.preflight.forecast import Probe, Work, forecast
from searchfit.preflight.headroom import Headroom
from searchfit.preflight.verdict import judge
from searchfit.recipe import STAGES
from searchfit.workspace import Workspace
from searchfit.writing import size


@pytest.fixture(scope="module")
def settings(small_settings: Settings) -> Settings:
    return load_settings(base=small_settings, values={"generate.max_queries": 150, "train.epochs": 1})


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of temporary files, empty before and after."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def fitted(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A whole fit, to be forecast from itself."""
    work = Fit(Workspace(tmp_path_factory.mktemp("preflight") / "ws"), settings)
    with one_thread():
        list(work.run())
    return work.workspace


def test_a_fit_is_forecast_from_itself(settings: Settings, fitted: Workspace) -> None:
    spaces = dict.fromkeys(("whole", "wide", "narrow"), fitted)
    work = Work.of(settings, spaces, 0)
    stages = fitted.manifest()["stages"]
    assert work.full.passages == stages["split"]["counts"]["passages"]
    assert work.full.sentences == stages["split"]["counts"]["sentences"]
    assert work.full.queries == pytest.approx(stages["generate"]["counts"]["queries"], rel=0.02)
    assert work.full.kept == pytest.approx(stages["screen"]["counts"]["kept"], rel=0.02)
    assert work.full.train == pytest.approx(work.narrow.train, rel=0.2)
    assert work.full.steps == pytest.approx(stages["train"]["counts"]["steps"], abs=1)
    found = forecast(settings, work, Probe(spaces, 0.0, 0.0, None))
    for cost in found.stages:
        seconds = stages[cost.stage]["seconds"]
        if cost.stage not in {"evaluate", "choose", "train"}:  # these depend on what training finds
            assert cost.seconds == pytest.approx(seconds, rel=0.3, abs=0.1), cost.stage
        assert cost.memory_mb >= stages[cost.stage]["peak_memory_mb"]
        assert 0 <= cost.shared <= cost.seconds
    pieces = {cost.stage: cost.pieces for cost in found.stages if cost.pieces}
    assert set(pieces) == {"encode", "generate", "screen", "mine", "train", "evaluate"}
    assert pieces["encode"] == -(-work.full.passages // 512)
    assert pieces["train"] == settings.train.batch_size
    assert found.disk_mb == size(fitted.path) >> 20
    assert found.seconds == pytest.approx(sum(cost.seconds for cost in found.stages), abs=0.1)


def test_a_batch_is_handled_and_comes_back_whole(settings: Settings, fitted: Workspace) -> None:
    with one_thread():
        found = measure_handling(fitted, settings, 3.0)
    held = sum(
        size(fitted.artefact(f"encoded/{name}")) for name in ("passages.npy", "sentences.npy", "words.bin")
    )
    passages = fitted.manifest()["stages"]["split"]["counts"]["passages"]
    assert found.batch_bytes == pytest.approx(512 * held / passages, rel=0.1)
    assert 0 < found.batch < 10
    assert found.start > 3
    assert found.actor_mb == fitted.manifest()["stages"]["encode"]["peak_memory_mb"]


def test_a_sample_is_scaled_to_the_whole(settings: Settings, fitted: Workspace) -> None:
    spaces = dict.fromkeys(("whole", "wide", "narrow"), fitted)
    work = Work.of(settings, spaces, 0)
    many = replace(work.full, **{name: 10 * getattr(work.full, name) for name in ("passages", "characters")})
    ten = Work(many, work.wide, work.narrow)
    headroom = Headroom(9, 9, {}, "", 0.0, {work.narrow.passages: 1.0, 5 * work.narrow.passages: 3.0})
    once = {c.stage: c for c in forecast(settings, work, Probe(spaces, 0.0, 0.0, None)).stages}
    grown = {c.stage: c for c in forecast(settings, ten, Probe(spaces, 0.0, 0.0, headroom)).stages}
    for stage in ("split", "keyword", "encode", "index"):
        assert grown[stage].seconds == pytest.approx(10 * once[stage].seconds, rel=0.2, abs=0.1)
    # A line through (1, 1) and (5, 3) is 5.5 at 10.
    assert grown["mine"].seconds == pytest.approx(5.5 * once["mine"].seconds, rel=0.2, abs=0.1)
    assert grown["generate"].seconds == once["generate"].seconds
    assert all(grown[stage].memory_mb >= once[stage].memory_mb for stage in once)


def test_the_check_finds_what_is_in_the_documents(
    settings: Settings, corpus: list[Any], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "_NARROW", (40, 10**6))
    rows = [{"id": doc.id, "title": doc.title, "text": doc.text} for doc in corpus]
    rows += [{"id": "copy", "title": "", "text": corpus[7].text}, {"id": "empty", "title": "", "text": " "}]
    source = scratch.parent / "corpus.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with one_thread():
        named = load_settings(base=settings, values={"source.source": str(source)})
        found = check(named, machines=Machines(4, 2.0))
    texts = [row["text"] for row in rows[:-1]]
    assert found.corpus.documents == len(texts)
    assert found.corpus.characters == sum(map(len, texts))
    assert found.corpus.left_out == {"empty text": 1}
    assert (found.corpus.same_text, found.corpus.without_title) == (1, 1)
    assert found.corpus.chars["most"] == max(map(len, texts))
    assert found.corpus.languages == {"english": 1.0}
    assert 0 < found.corpus.beyond_window < 0.3
    assert found.near.beyond_window <= 0.05
    assert found.near.near_duplicates >= 1
    assert found.headroom is not None
    assert found.headroom.documents == 40
    assert set(found.headroom.systems) == {"keyword", "dense", "blend", "engine"}
    dense = found.headroom.systems["dense"]
    assert 0 < dense["ndcg@10"] <= dense["recall@100"] <= 1
    assert found.headroom.systems[found.headroom.best]["ndcg@10"] == max(
        row["ndcg@10"] for row in found.headroom.systems.values()
    )
    assert [cost.stage for cost in found.forecast.stages] == [stage.name for stage in STAGES]
    assert any("40 of 73 documents" in note for note in found.notes)
    assert found.cluster is not None
    assert [share.stage for share in found.cluster.stages] == [stage.name for stage in STAGES]
    assert found.cluster.seconds == pytest.approx(
        sum(share.seconds for share in found.cluster.stages), abs=0.1
    )
    assert found.cluster.cost == pytest.approx(2 * found.cluster.node_hours, abs=0.01)
    json.dumps(found.to_dict())


def test_the_check_tells_of_a_cluster(tiny_model: Path, scratch: Path, corpus: list[Any]) -> None:
    source = scratch.parent / "corpus.jsonl"
    source.write_text("".join(json.dumps(vars(doc)) + "\n" for doc in corpus), encoding="utf-8")
    sets = ["generate.max_queries=90", "train.enabled=false", "choose.permutations=100"]
    options = ["--model", tiny_model, *(part for each in sets for part in ("--set", each))]
    done = cli("check", source, *options, "--nodes", 3, "--price-per-hour", 7.5)
    assert done.returncode == 0, done.stderr
    assert re.search(r"cluster +about \d+ s on 3 machines, \d+ actors, against \d+ s on one;", done.stdout)
    assert re.search(
        r"hours of machines, \d+\.\d\d at 7\.5 an hour; by stage:\n +encode +\d+ s: ", done.stdout
    )
    done = cli("check", source, *options, "--price-per-hour", 7.5, "--json")
    cluster = json.loads(done.stdout)["cluster"]
    assert (cluster["nodes"], cluster["price_per_hour"]) == (1, 7.5)
    assert cluster["seconds"] == pytest.approx(cluster["alone"], abs=0.1)
    assert cli("check", source, "--nodes", 0).returncode == 2


def test_one_huge_document_in_another_language(settings: Settings, scratch: Path) -> None:
    source = scratch.parent / "one.jsonl"
    text = "Die Tür ist nicht mehr da und der Hund auch nicht, aber wir sind noch in dem Haus. " * 4_000
    source.write_text(json.dumps({"id": "a", "text": text}), encoding="utf-8")
    values = {"source.source": str(source), "source.title": ""}
    with one_thread():
        found = check(load_settings(base=settings, values=values))
    assert found.corpus.documents == 1
    assert found.corpus.languages == {"german": 1.0}
    assert found.verdict.tuning == "unlikely"
    assert any("of the characters" in note for note in found.notes)


def test_a_source_that_holds_nothing(settings: Settings, scratch: Path) -> None:
    source = scratch.parent / "nothing.jsonl"
    source.write_text("", encoding="utf-8")
    with pytest.raises(SourceError):
        check(load_settings(base=settings, values={"source.source": str(source)}))
    done = cli("check", source)
    assert (done.returncode, done.stdout) == (1, "")
    assert cli("check", source, "--set", "no.such=1").returncode == 2


@pytest.mark.parametrize(
    ("train", "dense", "engine", "recall", "expected"),
    [
        (2000, 0.6, 0.7, 0.9, "likely"),
        (499, 0.6, 0.7, 0.9, "open"),
        (2000, 0.6, 0.61, 0.9, "open"),
        (2000, 0.6, 0.7, 0.64, "open"),
        (2000, 0.6, 0.6, 0.9, "unlikely"),
        (7, 0.6, 0.7, 0.9, "unlikely"),
    ],
)
def test_the_rule(
    settings: Settings,
    fitted: Workspace,
    train: int,
    dense: float,
    engine: float,
    recall: float,
    expected: str,
) -> None:
    spaces = dict.fromkeys(("whole", "wide", "narrow"), fitted)
    work = Work.of(settings, spaces, 0)
    work = Work(replace(work.full, train=train), work.wide, work.narrow)
    languages = preflight.Corpus(1, 1, {}, 0, 0, {}, 1, {"english": 1.0}, 96, 0.0, ())
    systems = {"dense": {"ndcg@10": dense, "recall@100": recall}, "engine": {"ndcg@10": engine}}
    headroom = Headroom(500, 100, systems, "engine", 0.01, {})
    told = settings.model_copy(update={"queries": QueriesSettings(file="questions.csv")})
    verdict = judge(told, languages, headroom, work)
    assert verdict.tuning == expected
    assert verdict.reasons
    alone = judge(settings, languages, headroom, work)  # generated questions alone cannot prove it
    assert alone.tuning == ("open" if expected == "likely" else expected)
    assert "choose.proof" in " ".join(alone.reasons) or expected == "unlikely"
    lenient = settings.model_copy(update={"choose": ChooseSettings(proof=0)})
    assert judge(lenient, languages, headroom, work).tuning == expected
