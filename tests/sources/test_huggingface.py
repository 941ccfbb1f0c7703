from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from searchfit.config import DatasetSettings, Settings, SourceSettings
from searchfit.errors import SettingsError, SourceError
from searchfit.sources import Row, Source, open_source

datasets: Any = pytest.importorskip("datasets", reason="the extra datasets is not installed")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def table() -> Any:
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["bad", "good"]),
            "at": datasets.Value("timestamp[us]"),
            "picture": datasets.Image(),
        }
    )
    rows = {"id": ["a", "b"], "text": ["one", "two"], "label": [1, 0], "at": [datetime(2024, 1, 2)] * 2}
    return datasets.Dataset.from_dict({**rows, "picture": [None, None]}, features=features)


def source(name: object, **options: object) -> Source:
    chosen = DatasetSettings(**options)  # type: ignore[arg-type]
    return open_source(Settings(source=SourceSettings(source=f"hf:{name}"), dataset=chosen))


def test_a_saved_dataset_comes_with_its_types(tmp_path: Path, table: Any) -> None:
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(tmp_path / "d")
    found = source(tmp_path / "d")
    assert [row.values for row in found.rows() if isinstance(row, Row)] == [
        {"id": "a", "text": "one", "label": "good", "at": datetime(2024, 1, 2)},
        {"id": "b", "text": "two", "label": "bad", "at": datetime(2024, 1, 2)},
    ]
    assert "column 'picture' of type Image is left out" in found.notes
    assert [row.number for row in source(tmp_path / "d", split="test").rows() if isinstance(row, Row)] == [1]
    with pytest.raises(SourceError, match=r"no split 'validation'\. Its splits: train, test"):
        source(tmp_path / "d", split="validation")
    with pytest.raises(SettingsError, match="saved without subsets"):
        source(tmp_path / "d", subset="x")


@pytest.mark.parametrize("streaming", [True, False])
def test_a_folder_of_data_files(
    tmp_path: Path, table: Any, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "d").mkdir()
    table.remove_columns("picture").to_parquet(tmp_path / "d" / "test.parquet")
    found = source(tmp_path / "d", split="test", streaming=streaming)
    assert [row.values["text"] for row in found.rows() if isinstance(row, Row)] == ["one", "two"]
    before = found.fingerprint()
    table.select([0]).remove_columns("picture").to_parquet(tmp_path / "d" / "test.parquet")
    assert source(tmp_path / "d", split="test", streaming=streaming).fingerprint() != before


def test_the_code_of_a_dataset_is_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nimport datasets\n")
    with pytest.raises(SourceError, match="cannot be opened"):
        source(folder)
    assert not (tmp_path / "ran").exists()


def test_a_name_that_is_not_in_the_cache_says_what_to_do() -> None:
    with pytest.raises(SourceError, match="hf:nobody/nothing cannot be opened") as caught:
        source("nobody/nothing")
    assert "name a folder" in caught.value.hint


@pytest.mark.parametrize("streaming", [True, False])
def test_broken_data_are_an_error_of_the_source(tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": broken\n', "utf-8")
    with pytest.raises(SourceError, match="cannot be opened"):
        source(tmp_path, streaming=streaming)
