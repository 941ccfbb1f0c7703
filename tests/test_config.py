from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from searchfit.config import (
    Settings,
    known_keys,
    load_settings,
    reference,
    reference_markdown,
    reference_toml,
    to_toml,
)
from searchfit.errors import SettingsError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_the_defaults_come_back_from_toml(tmp_path: Path) -> None:
    file = tmp_path / "searchfit.toml"
    file.write_text(to_toml(Settings()), encoding="utf-8")
    assert load_settings(file) == Settings()
    sections = tomllib.loads(file.read_text(encoding="utf-8"))
    written = {
        f"{a}.{b}" if isinstance(value, dict) else a
        for a, value in sections.items()
        for b in (value if isinstance(value, dict) else [a])
    }
    assert written == set(known_keys())


@hypothesis_settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    prompt=st.text(),
    columns=st.lists(st.text(), max_size=4),
    seed=st.integers(-(2**31), 2**31),
    rate=st.floats(1e-12, 1e12),
    weights=st.lists(st.floats(0, 10), max_size=3),
    enabled=st.booleans(),
)
def test_any_values_come_back_from_toml(
    tmp_path: Path,
    prompt: str,
    columns: list[str],
    seed: int,
    rate: float,
    weights: list[float],
    enabled: bool,
) -> None:
    values = {
        "model.query_prompt": prompt,
        "source.text": tuple(columns),
        "seed": seed,
        "train.learning_rate": rate,
        "evaluate.keyword_weights": tuple(weights),
        "train.enabled": enabled,
    }
    made = load_settings(values=values)
    assert made.model.query_prompt == prompt
    file = tmp_path / "searchfit.toml"
    file.write_bytes(to_toml(made).encode())
    assert load_settings(file) == made


def test_text_that_utf8_cannot_hold_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"source\.source"):
        load_settings(values={"source.source": "bad\udcffname.csv"})


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train.epochs=3", "train.epochs", 3),
        (" train.epochs = 3 ", "train.epochs", 3),
        ("train.learning_rate=1e-3", "train.learning_rate", 1e-3),
        ("train.learning_rate=1", "train.learning_rate", 1.0),
        ("train.enabled=false", "train.enabled", False),
        ("model.name=models/my=odd name", "model.name", "models/my=odd name"),
        ('model.query_prompt="query: "', "model.query_prompt", "query: "),
        ("model.query_prompt=", "model.query_prompt", ""),
        ('source.text=["a", "b c"]', "source.text", ("a", "b c")),
        ("evaluate.merges=[0.5]", "evaluate.merges", (0.5,)),
        ("seed=7", "seed", 7),
        ("engine.units=sentence", "engine.units", "sentence"),
    ],
)
def test_set_reads_toml_values_and_bare_words(text: str, key: str, value: Any) -> None:
    found: Any = load_settings(overrides=[text])
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train.epochs", "no '='"),
        ("train.epochs=none", "train.epochs"),
        ("train.epochs=0", "train.epochs"),
        ("train.epochs=2.5", "train.epochs"),
        ("holdout.dev=0.9", "holdout.dev"),
        ("engine.units=words", "engine.units"),
        ("seed=many", "seed"),
        ("train=3", "unknown setting 'train'"),
        ("seed.low=3", "unknown setting 'seed.low'"),
        ("train.epochs.more=3", "unknown setting 'train.epochs.more'"),
    ],
)
def test_wrong_values_name_their_key(text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(overrides=[text])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("key", "neighbour"),
    [
        ("train.epoch", "train.epochs"),
        ("training.epochs", "train.epochs"),
        ("modle.name", "model.name"),
        ("sed", "seed"),
        ("split.zzzzzzzzzzzzzz", "split.max_chars"),
        ("epochs", "train.epochs"),
    ],
)
def test_an_unknown_key_names_its_neighbours(key: str, neighbour: str) -> None:
    with pytest.raises(SettingsError, match="unknown setting") as caught:
        load_settings(values={key: 1})
    assert key in caught.value.message
    assert neighbour in caught.value.hint


def test_later_origins_win(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text("seed = 2\n[train]\nepochs = 5\nbatch_size = 8\nwarmup = 0.5\n", encoding="utf-8")
    base = load_settings(values={"mine.candidates": 7, "train.epochs": 1})
    made = load_settings(file, ["train.batch_size=9", "train.warmup=0.4"], {"train.warmup": 0.3}, base)
    assert (made.seed, made.mine.candidates, made.train.epochs) == (2, 7, 5)
    assert (made.train.batch_size, made.train.warmup) == (9, 0.3)
    assert base.train.epochs == 1  # and nothing was changed in place


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"seed = ", "not valid TOML"),
        (b"seed = '\xff'", "not valid TOML"),
        (b"[trian]\nepochs = 1", "unknown setting 'trian.epochs'"),
        (b"[seed]\nlow = 1", "unknown setting 'seed.low'"),
        (b"[trian]", "unknown setting 'trian'"),
    ],
)
def test_a_bad_file_is_an_error(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "s.toml"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=said):
        load_settings(file)
    with pytest.raises(SettingsError, match="does not exist"):
        load_settings(tmp_path / "none.toml")


def test_only_shows_the_sections_asked_for() -> None:
    view = load_settings(values={"train.epochs": 4}).only("train", "seed")
    assert (view.train.epochs, view.seed) == (4, 13)
    for hidden in ("model", "source", "engine"):
        with pytest.raises(AttributeError):
            getattr(view, hidden)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().train.epochs = 3  # type: ignore[misc]


def test_the_reference_is_a_settings_file_that_names_everything(tmp_path: Path) -> None:
    found = reference()
    assert [one.key for group in found for one in group.settings] == known_keys()
    (tmp_path / "all.toml").write_text(reference_toml(found), encoding="utf-8")
    assert load_settings(tmp_path / "all.toml") == Settings()
    [share] = [one for one in reference("holdout")[0].settings if one.name == "dev"]
    assert (share.type, share.default) == ("number, > 0, < 0.5", 0.1)
    assert all(group.meaning for group in found)
    with pytest.raises(SettingsError, match="no section 'nothing'"):
        reference("nothing")


def test_the_page_of_settings_is_up_to_date() -> None:
    page = Path(__file__).parents[1] / "docs" / "settings.md"
    said = "Run: searchfit settings --markdown > docs/settings.md"
    assert page.read_text(encoding="utf-8") == reference_markdown(reference()), said


def test_an_effort_is_a_set_of_settings_that_others_go_before() -> None:
    from searchfit.config.effort import EFFORTS, effort_values

    assert set(EFFORTS) == {"quick", "normal", "thorough"}
    assert load_settings(values=effort_values("normal")) == Settings()
    for name in ("quick", "thorough"):
        assert set(effort_values(name)) <= set(known_keys())
    base = load_settings(values=effort_values("thorough"))
    assert base.train.epochs > Settings().train.epochs
    assert load_settings(None, ["train.epochs=1"], {}, base).train.epochs == 1
    assert load_settings(None, ["train.epochs=1"], {}, base).mine.max_queries == base.mine.max_queries
    with pytest.raises(SettingsError, match="quick, normal, thorough"):
        effort_values("lazy")
