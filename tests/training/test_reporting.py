from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from searchfit.errors import MissingExtraError, SettingsError
from searchfit.training.reporting import KINDS, check_report, load_report


def test_an_unknown_name_is_told_those_there_are(tmp_path: Path) -> None:
    for refuse in (check_report, lambda name: load_report(name, tmp_path, {})):
        with pytest.raises(SettingsError, match="'paper'") as caught:
            refuse("paper")
        assert all(kind in caught.value.hint for kind in KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_a_library_that_is_not_there_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError) as caught:
        load_report(name, tmp_path, {})
    assert name in f"{caught.value} {caught.value.hint}"
