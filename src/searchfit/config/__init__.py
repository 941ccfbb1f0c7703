"""Settings: one frozen class a stage, read from TOML and from `--set section.key=value`.

An unknown key is an error that names the keys there are. The resolved settings are written to the
workspace as searchfit.toml, and each stage is keyed by the sections that it reads.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from searchfit.config.base import Section, checked
from searchfit.config.effort import effort_values
from searchfit.config.reading import (
    CleanSettings,
    DatasetSettings,
    FeedbackSettings,
    FilesSettings,
    PairsSettings,
    QueriesSettings,
    SourceSettings,
    SqlSettings,
)
from searchfit.config.reference import Group, groups, only, reference_markdown, reference_toml
from searchfit.config.sections import (
    ChatSettings,
    ChooseSettings,
    EngineSettings,
    EvaluateSettings,
    ExecutorSettings,
    GenerateSettings,
    HoldoutSettings,
    IndexSettings,
    KeywordSettings,
    MineSettings,
    ModelSettings,
    OpenAISettings,
    PretrainSettings,
    PromptSettings,
    ReencodeSettings,
    RerankSettings,
    RerankTrainingSettings,
    ScreenSettings,
    SplitSettings,
    T5Settings,
    TrainSettings,
)
from searchfit.config.serving import ServeSettings, serve_settings
from searchfit.errors import SettingsError
from searchfit.toml import read_toml, toml_or_text, toml_value

__all__ = [
    "ChatSettings",
    "ChooseSettings",
    "CleanSettings",
    "DatasetSettings",
    "EngineSettings",
    "EvaluateSettings",
    "ExecutorSettings",
    "FeedbackSettings",
    "FilesSettings",
    "GenerateSettings",
    "HoldoutSettings",
    "IndexSettings",
    "KeywordSettings",
    "MineSettings",
    "ModelSettings",
    "OpenAISettings",
    "PairsSettings",
    "PretrainSettings",
    "PromptSettings",
    "QueriesSettings",
    "ReencodeSettings",
    "RerankSettings",
    "RerankTrainingSettings",
    "ScreenSettings",
    "ServeSettings",
    "Settings",
    "SourceSettings",
    "SplitSettings",
    "SqlSettings",
    "T5Settings",
    "TrainSettings",
    "effort_values",
    "known_keys",
    "load_settings",
    "reference",
    "reference_markdown",
    "reference_toml",
    "serve_settings",
    "to_toml",
]


class Settings(Section):
    """All settings of a fit."""

    seed: int = Field(13, description="of all that is drawn by chance")
    source: SourceSettings = SourceSettings()
    sql: SqlSettings = SqlSettings()
    dataset: DatasetSettings = DatasetSettings()
    files: FilesSettings = FilesSettings()
    clean: CleanSettings = CleanSettings()
    queries: QueriesSettings = QueriesSettings()
    pairs: PairsSettings = PairsSettings()
    feedback: FeedbackSettings = FeedbackSettings()
    split: SplitSettings = SplitSettings()
    model: ModelSettings = ModelSettings()
    keyword: KeywordSettings = KeywordSettings()
    generate: GenerateSettings = GenerateSettings()
    t5: T5Settings = T5Settings()
    prompt: PromptSettings = PromptSettings()
    chat: ChatSettings = ChatSettings()
    openai: OpenAISettings = OpenAISettings()
    screen: ScreenSettings = ScreenSettings()
    holdout: HoldoutSettings = HoldoutSettings()
    pretrain: PretrainSettings = PretrainSettings()
    mine: MineSettings = MineSettings()
    train: TrainSettings = TrainSettings()
    reencode: ReencodeSettings = ReencodeSettings()
    engine: EngineSettings = EngineSettings()
    rerank: RerankSettings = RerankSettings()
    rerank_training: RerankTrainingSettings = RerankTrainingSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    choose: ChooseSettings = ChooseSettings()
    index: IndexSettings = IndexSettings()
    executor: ExecutorSettings = ExecutorSettings()

    def only(self, *sections: str) -> Settings:
        """A copy that holds just these sections; reading another one raises AttributeError."""
        view = Settings.model_construct()
        kept = {name: getattr(self, name) for name in sections}
        view.__dict__.clear()
        view.__dict__.update(kept)
        return view


def load_settings(
    file: Path | None = None,
    overrides: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
    base: Settings | None = None,
) -> Settings:
    """Settings from, in rising precedence: `base`, a TOML file, `section.key=value` strings, and `values`
    (a mapping of "section.key" to value).

    Raises SettingsError for a file that is absent or is not TOML, an unknown key or a wrong value.
    """
    tree: dict[str, Any] = (base or Settings()).model_dump()
    if file is not None:
        _merge(tree, read_toml(file), "")
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"--set {text!r} has no '='.", "Write it as --set section.key=value.")
        _assign(tree, key.strip(), toml_or_text(value.strip()))
    for key, value in (values or {}).items():
        _assign(tree, key, value)
    return checked(Settings, tree)


def _merge(tree: dict[str, Any], new: Mapping[str, Any], prefix: str) -> None:
    for key, value in new.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            if not isinstance(tree.get(key), dict):
                raise _unknown(".".join([path, *list(value)[:1]]))
            _merge(tree[key], value, f"{path}.")
        elif key not in tree or isinstance(tree[key], dict):
            raise _unknown(path)
        else:
            tree[key] = value


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    section, dot, name = key.partition(".")
    nested: dict[str, Any] = {section: {name: value}} if dot else {section: value}
    _merge(tree, nested, "")


def _unknown(path: str) -> SettingsError:
    known = known_keys()
    near = difflib.get_close_matches(path, known, n=3, cutoff=0.5)
    section = path.partition(".")[0]
    there = near or [key for key in known if key.startswith(f"{section}.")] or known
    return SettingsError(f"unknown setting {path!r}.", f"Did you mean: {', '.join(there)}?")


def known_keys() -> list[str]:
    """Every setting as section.key."""
    keys = []
    for name, value in Settings().model_dump().items():
        keys += [f"{name}.{key}" for key in value] if isinstance(value, dict) else [name]
    return keys


def reference(section: str = "") -> list[Group]:
    """Every setting with its type, default and meaning, by section. Raises SettingsError for a section that
    is none."""
    return only(groups(Settings()), section)


def to_toml(settings: Settings) -> str:
    """The settings as TOML text that `load_settings` reads back equal."""
    lines = []
    sections = []
    for name, value in settings.model_dump().items():
        if isinstance(value, dict):
            rows = "".join(f"{key} = {toml_value(item)}\n" for key, item in value.items())
            sections.append(f"[{name}]\n{rows}")
        else:
            lines.append(f"{name} = {toml_value(value)}\n")
    return "".join(lines) + "\n" + "\n".join(sections)
