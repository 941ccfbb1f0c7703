from __future__ import annotations

from pathlib import Path
from typing import Any

import typer.main
from typer.testing import CliRunner

from searchfit.cli import app
from searchfit.cli.options import Computing, Reading, given
from searchfit.errors import SettingsError


def test_what_does_not_go_with_a_file_of_questions_is_refused(tmp_path: Path) -> None:
    for more in ("--no-rerank", "--json", "--passages", "--explain", "--offset=3"):
        done = CliRunner().invoke(app, ["search", str(tmp_path), "--queries", "q.txt", "--run", "r", more])
        assert isinstance(done.exception, SettingsError), more
        assert "only -k and --where" in str(done.exception.hint)


def test_options_of_a_group_stand_where_its_parameter_does() -> None:
    """And each command hands them over as one value."""
    commands: Any = typer.main.get_command(app)
    shared = ["text", "id_", "title", "sql", "table", "where", "updated_column"]
    for name in ("fit", "check", "ingest", "generate", "add", "update"):
        names = [parameter.name for parameter in commands.commands[name].params]
        assert names[names.index("source") + 1 :][: len(shared)] == shared
    found = Reading(text=["a", "b"], table="t").values("x.csv")
    assert given(found) == {"source.source": "x.csv", "source.text": ("a", "b"), "sql.table": "t"}


def test_an_address_is_that_of_a_ray_cluster() -> None:
    assert given(Computing().values()) == {}
    assert Computing(address="h:1").values() == {"executor.name": "ray", "executor.address": "h:1"}
    assert given(Computing("local").values()) == {"executor.name": "local"}
