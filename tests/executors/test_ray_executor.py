"""On a Ray cluster of three nodes on this machine, reached over its loopback interface only."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pipeline_tools import one_thread
from ray_cluster import NODE, joined, nodes

from searchfit import ranking
from searchfit.config import ExecutorSettings, load_settings
from searchfit.encoders import batched
from searchfit.encoders import corpus as encodings
from searchfit.errors import ModelError, SearchfitError
from searchfit.executors.ray import RayExecutor, _Actor
from searchfit.generators import phrases
from searchfit.pipeline import Fit
from searchfit.recipe import STAGES
from searchfit.stages import Tools, encode, evaluate, generate
from searchfit.workspace import Workspace

sys.path.insert(0, str(Path(__file__).parents[1] / "generators"))

from test_t5 import save_model
from tiny_llama import save_tiny_llama

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other loopback addresses are Linux's")
ray = pytest.importorskip("ray")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors do not see the tests


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes with a processor each."""
    with nodes(NODE, 2) as made:
        yield made


@pytest.fixture
def executor(cluster: Any) -> Iterator[RayExecutor]:
    with joined(cluster, actors=2, patience=60) as made:
        yield made


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Slow:
    """Work that says where it was done, and with which model: each actor has one of its own."""

    def __init__(self) -> None:
        self.model = ""

    def __call__(self, batches: Iterable[int]) -> Iterator[tuple[int, str, str]]:
        for batch in batches:
            self.model = self.model or os.urandom(8).hex()
            time.sleep(0.05)
            yield batch, ray.get_runtime_context().get_node_id(), self.model


def failing(batches: Iterable[int]) -> Iterator[int]:
    for batch in batches:
        if batch == 3:
            raise ModelError("the third is too many", "Ask for two.")
        yield batch


def ending(batches: Iterable[int]) -> Iterator[int]:
    for batch in batches:
        if batch == 3:
            os._exit(1)
        yield batch


def test_an_error_of_the_user_s_arrives_as_itself(executor: RayExecutor) -> None:
    with pytest.raises(ModelError, match="the third") as caught:
        list(executor.map_batches(failing, range(9)))
    assert caught.value.hint == "Ask for two."


def test_equal_work_finds_its_actors_again_unless_they_are_at_what_nobody_waits_for(
    executor: RayExecutor,
) -> None:
    work = Slow()
    first, second = ([model for *_, model in executor.map_batches(work, range(12))] for _ in range(2))
    assert {*first} >= {*second}
    given_up = executor.map_batches(work, range(100))
    assert next(given_up)[2] in first
    third = list(executor.map_batches(work, range(12)))
    assert [batch for batch, *_ in third] == list(range(12))
    assert not {model for *_, model in third} & {*first}


@pytest.mark.slow
def test_a_batch_that_ends_every_actor_is_given_up(executor: RayExecutor) -> None:
    seen: list[int] = []
    with pytest.raises(SearchfitError, match="3 workers on the cluster ended"):
        seen.extend(executor.map_batches(ending, range(9)))
    assert seen == [0, 1, 2]


def test_no_cluster_and_no_room_are_said(cluster: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(SearchfitError, match=f"'{address}' cannot be joined"):
            RayExecutor(ExecutorSettings(name="ray", address=address))
    with (
        joined(cluster, gpus=1, patience=0.5) as executor,
        pytest.raises(SearchfitError, match="asks for 1 CPUs and 1 GPUs"),
    ):
        list(executor.map_batches(failing, [1]))


def test_another_version_on_a_machine_is_refused() -> None:
    with pytest.raises(SearchfitError, match=r"has searchfit \S+, the one that asks has 0\.0\.0"):
        _Actor().start(b"", ".", "0.0.0", 0)


def test_what_was_begun_here_is_finished_on_ray_to_identical_files(
    bench: Any, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encodings, "_CHUNK", 20)
    inputs, view = bench.inputs("encode"), bench.settings.only("model")
    encode.run(view, inputs, Tools(tmp_path / "whole"))

    def kill(_label: str, done: int, _total: int) -> None:
        if done == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode.run(view, inputs, Tools(tmp_path / "cut", progress=kill))
    told: list[int] = []
    with joined(cluster, actors=1) as executor:  # an actor more would load its libraries for as long again
        tools = Tools(tmp_path / "cut", progress=lambda _, done, __: told.append(done), executor=executor)
        result = encode.run(view, inputs, tools)
    assert told[0] == 60
    assert told[-1] == result.counts["passages"]
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_queries_are_the_same_and_either_carries_on_what_the_other_began(
    bench: Any, executor: RayExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phrases, "_GROUP", 10)
    inputs = bench.inputs("generate")
    view = load_settings(base=bench.settings).only("generate", "t5", "prompt", "chat", "openai", "seed")
    whole = generate.run(view, inputs, Tools(tmp_path / "whole"))

    def kill(_label: str, done: int, _total: int, _note: str = "") -> None:
        if done >= 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate.run(view, inputs, Tools(tmp_path / "cut", progress=kill, executor=executor))
    assert generate.run(view, inputs, Tools(tmp_path / "cut")) == whole
    alone = generate.run(view, inputs, Tools(tmp_path / "ray", executor=executor))
    assert alone == whole
    for made in ("cut", "ray"):
        assert content(tmp_path / made / "queries") == content(tmp_path / "whole" / "queries")


@pytest.mark.slow
def test_questions_are_read_and_ranked_as_here(
    bench: Any, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batched, "_BATCH", 16)
    monkeypatch.setattr(ranking, "_BATCH", 16)
    sections = next(stage.sections for stage in STAGES if stage.name == "evaluate")
    view, inputs = bench.settings.only(*sections), bench.inputs("evaluate")
    with one_thread():
        here = evaluate.run(view, inputs, Tools(tmp_path / "here"))
    with joined(cluster, actors=1) as executor:
        there = evaluate.run(view, inputs, Tools(tmp_path / "there", executor=executor))
    assert there == here
    assert sum(here.counts[split] for split in ("dev", "test")) > 2 * 16, "there are several batches"
    assert content(tmp_path / "there") == content(tmp_path / "here")


@pytest.mark.slow
def test_a_fit_is_begun_here_and_finished_on_ray(
    small_settings: Any, tiny_reranker: Path, cluster: Any, tmp_path: Path
) -> None:
    """With every kind of model. What was made is the same, and nothing is due when the executor changes."""
    t5 = save_model(tmp_path / "t5", 1)
    chat = save_tiny_llama(tmp_path / "llama")
    values = {
        "generate.generator": f"phrases,t5:{t5},chat:{chat}",
        "generate.shares": (0.8, 0.1, 0.1),
        "chat.max_new_tokens": 24,
        "chat.precision": "fp32",
        "screen.reranker": str(tiny_reranker),
        "screen.reranker_min": 0.01,
        "mine.teacher": f"cross-encoder:{tiny_reranker}",
        "mine.force_teacher": True,
        "mine.max_queries": 60,
        "train.towers": "shared",
        "train.epochs": 1,
        "rerank.model": str(tiny_reranker),
    }
    here = load_settings(base=small_settings, values=values)
    there = {"executor.name": "ray", "executor.address": cluster.address, "executor.actors": 2}
    ray_ = load_settings(base=here, values=there)
    with one_thread():
        for name, settings, until in (
            ("local", here, "evaluate"),
            ("both", here, "encode"),
            ("both", ray_, "evaluate"),
        ):
            list(Fit(Workspace(tmp_path / name), settings, until=until).run())
        steps = list(Fit(Workspace(tmp_path / "both"), here, until="evaluate").plan())
    assert [step.stage for step in steps if step.why] == []
    local, both = (
        {
            artefact: made["digest"]
            for stage in Workspace(tmp_path / name).manifest()["stages"].values()
            for artefact, made in stage["artefacts"].items()
        }
        for name in ("local", "both")
    )
    assert "encoded_tuned" in local
    assert both == local


def test_the_batches_of_a_lost_node_are_done_again_each_once(cluster: Any, executor: RayExecutor) -> None:
    read: list[int] = []

    def batches() -> Iterator[int]:
        for number in range(200):
            read.append(number)
            yield number

    nodes = {node.node_id: node for node in cluster.worker_nodes}
    seen: list[tuple[int, str, str]] = []
    lost = ""
    for result in executor.map_batches(Slow(), batches()):
        seen.append(result)
        assert len(read) - len(seen) <= 2 * 2 * 2, "no further ahead than twice what the actors hold"
        if not lost and len({node for _, node, _ in seen}) == 2:
            lost = next(node for _, node, _ in seen if node in nodes)
            cluster.remove_node(nodes[lost], allow_graceful=False)
    assert [batch for batch, _, _ in seen] == list(range(200))
    assert lost
    assert lost not in {node for _, node, _ in seen[-20:]}
    models = {model: node for _, node, model in seen}
    assert len(models) == 3, "two that began, and one in the place of the one that was lost"
    assert list(models.values()).count(lost) == 1
