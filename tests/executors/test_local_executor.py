from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from functools import partial

import pytest

from searchfit.config import ExecutorSettings, Settings, load_settings
from searchfit.errors import MissingExtraError, ModelError, SearchfitError
from searchfit.executors import LOCAL, Portable, load_executor
from searchfit.recipe import STAGES


def squares(batches: Iterable[int]) -> Iterator[int]:
    for batch in batches:
        yield batch * batch


def test_results_come_in_order_and_batches_are_read_one_by_one() -> None:
    read: list[int] = []

    def source() -> Iterator[int]:
        for number in range(3):
            read.append(number)
            yield number

    results = LOCAL.map_batches(squares, source())
    assert read == []
    assert next(results) == 0
    assert read == [0]
    assert list(results) == [1, 4]


def test_a_model_is_loaded_once_and_travels_as_the_way_to_load_it() -> None:
    portable = Portable(partial(dict, weights=1))
    assert portable.model is portable.model
    portable.model["weights"] = 2
    again = pickle.loads(pickle.dumps(portable))
    assert again.model == {"weights": 1}


@pytest.mark.parametrize(
    "error", [ModelError("no model", "name one"), MissingExtraError("Ray", "ray"), SearchfitError("x")]
)
def test_errors_travel_between_processes(error: SearchfitError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.message, again.hint) == (str(error), error.message, error.hint)


def test_no_stage_depends_on_where_its_batches_are_worked_on() -> None:
    assert all("executor" not in stage.sections for stage in STAGES)
    assert load_executor(Settings().executor) is LOCAL
    assert load_settings(overrides=["executor.name=ray"]).executor.address == "auto"


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"searchfit\[ray\]"):
        load_executor(ExecutorSettings(name="ray"))
