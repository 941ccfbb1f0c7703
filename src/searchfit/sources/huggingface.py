"""Hugging Face datasets: of the hub or a folder, row by row, with their types."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from searchfit.config import DatasetSettings
from searchfit.errors import MissingExtraError, SettingsError, SourceError
from searchfit.places import first_line, local
from searchfit.sources.files import fingerprint_files
from searchfit.sources.rows import BadRow, Columns, Row

_SAVED = ("dataset_info.json", "dataset_dict.json")
_BULKY = ("Image", "Audio", "Video", "Pdf", "Nifti", "Mesh")


class DatasetReader:
    """A dataset of the hub by its name, a folder that `save_to_disk` wrote, or one that `load_dataset` reads.

    The code of a dataset is never run. Labels come by their names; images, sound and the like are left out.
    """

    untyped = False
    known: Columns | None = None

    def __init__(self, name: str, settings: DatasetSettings) -> None:
        """Raises MissingExtraError without the extra `datasets`, and SourceError for a dataset, subset or
        split that is not there, and for one of the hub that cannot be reached."""
        self._folder = local(name) if os.path.isdir(local(name)) else ""
        self._path, self._settings = self._folder or name.strip(), settings
        self.name = f"hf:{name}"
        self._data, features = self._opened()
        if not features:
            raise SourceError(f"{self.name} has no rows in its split {settings.split!r}.")
        left = [name for name, kind in features.items() if type(kind).__name__ in _BULKY]
        self._columns = tuple(name for name in features if name not in left)
        self._data = self._data.select_columns(list(self._columns))
        self._labels = {name: kind.names for name, kind in features.items() if hasattr(kind, "str2int")}
        self.notes = tuple(
            f"column {name!r} of type {type(features[name]).__name__} is left out" for name in left
        )

    def columns(self, everything: bool = False) -> tuple[str, ...]:  # noqa: ARG002
        """The columns of the dataset that can be read."""
        return self._columns

    def rows(self) -> Iterator[Row | BadRow]:
        """Every row of the split."""
        number = 0
        try:
            for values in self._data:
                number += 1
                yield Row(f"{self._settings.split}, row {number}", number, self._named(values))
        except _faults() as error:
            raise SourceError(
                f"{self.name} cannot be read after row {number}: {first_line(error)}.",
                "Mend or download the dataset again.",
            ) from error

    def _named(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        labels = {
            name: names[values[name]]
            for name, names in self._labels.items()
            if isinstance(values[name], int) and 0 <= values[name] < len(names)
        }
        return {**values, **labels}

    def fingerprint(self) -> dict[str, Any]:
        """Of a folder its files; of the hub the revision that is read."""
        chosen = [self._settings.subset, self._settings.split]
        if not self._folder:
            version = str(self._data.info.version)
            sums = sorted(self._data.info.download_checksums or {})
            return {"dataset": self._path, "chosen": chosen, "version": version, "files": sums}
        files = (path for path in sorted(Path(self._folder).rglob("*")) if path.is_file())
        return {"chosen": chosen, **fingerprint_files(files)}

    def _opened(self) -> tuple[Any, Mapping[str, Any]]:
        """The split, and its columns with their types; where only the data tell them, those of the first row,
        of type None."""
        try:
            import datasets
        except ImportError as error:
            raise MissingExtraError("reading Hugging Face datasets", "datasets") from error
        try:
            if self._folder and any(Path(self._folder, name).is_file() for name in _SAVED):
                data = self._saved(datasets)
            else:
                data = self._loaded(datasets)
            return data, data.features or dict.fromkeys(next(iter(data), {}))
        except _faults() as error:
            raise self._absent(error) from error

    def _saved(self, datasets: Any) -> Any:
        if self._settings.subset:
            raise SettingsError(
                f"{self.name} was saved without subsets, and dataset.subset is {self._settings.subset!r}.",
                "Leave it out.",
            )
        data = datasets.load_from_disk(self._folder)
        if not hasattr(data, "keys"):
            data = {str(data.split or DatasetSettings().split): data}
        return self._one(data)

    def _loaded(self, datasets: Any) -> Any:
        chosen = {"streaming": self._settings.streaming}
        return self._one(datasets.load_dataset(self._path, self._settings.subset or None, **chosen))

    def _one(self, splits: Mapping[str, Any]) -> Any:
        if self._settings.split not in splits:
            raise SourceError(
                f"{self.name} has no split {self._settings.split!r}. Its splits: {', '.join(splits)}.",
                "Name one with dataset.split.",
            )
        return splits[self._settings.split]

    def _absent(self, error: Exception) -> SourceError:
        if self._folder:
            hint = "Expected a folder that save_to_disk wrote, or data files that load_dataset reads."
        else:
            hint = (
                "There is no folder of that name, and the hub cannot give it. Check the name; without a "
                "network (HF_HUB_OFFLINE=1) only what is in the cache can be read: name a folder, hf:FOLDER."
            )
        return SourceError(f"dataset {self.name} cannot be opened: {first_line(error)}.", hint)


def _faults() -> tuple[type[Exception], ...]:
    import httpx
    import pyarrow as pa
    from datasets.exceptions import DatasetsError

    return (OSError, ValueError, RuntimeError, DatasetsError, pa.ArrowException, httpx.HTTPError)
