"""Options that several commands have, each written once: as types of parameters, and as groups of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from typer import Argument, Option

Documents = Annotated[
    str,
    Argument(
        metavar="[SOURCE]",
        help="file, folder or glob of documents (PDF, DOCX, HTML, text, e-mail) or tables, URL, "
        "database, hf:NAME or pydoc:NAME,NAME; left out, the texts of --pairs",
    ),
]
Questions = Annotated[str, Option(help="your own questions: .txt, .csv, .jsonl or a BEIR folder")]
Pairs = Annotated[str, Option(help="labelled pairs to train on: a table, a folder of them or of BEIR")]
Effort = Annotated[
    str,
    Option(metavar="NAME", help="quick (nothing is tuned), normal, or thorough (more queries, more epochs)"),
]
Config = Annotated[Path | None, Option(help="settings as TOML")]
Sets = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help="any setting of `searchfit settings`, section.key=value"),
]


@dataclass(frozen=True, slots=True)
class Reading:
    """How a source is read."""

    text: Annotated[list[str] | None, Option(help="column of the text; may be repeated")] = None
    id_: Annotated[str, Option("--id", help="column of the document id")] = ""
    title: Annotated[str, Option(help="column of the title")] = ""
    sql: Annotated[str, Option("--sql", metavar="SELECT", help="of a database: the statement to read by")] = (
        ""
    )
    table: Annotated[str, Option(metavar="NAME", help="of a database: the table or view to read")] = ""
    where: Annotated[str, Option(metavar="CONDITION", help="which rows of --table, as SQL")] = ""
    updated_column: Annotated[
        str,
        Option("--updated-column", help="of a database: tells when a row changed; `add` reads only those"),
    ] = ""

    def values(self, source: str) -> dict[str, Any]:
        """These options, and the source, as settings."""
        return {
            "source.source": source,
            "source.text": tuple(self.text or ()),
            "source.id": self.id_,
            "source.title": self.title,
            "sql.query": self.sql,
            "sql.table": self.table,
            "sql.where": self.where,
            "sql.updated_column": self.updated_column,
        }


@dataclass(frozen=True, slots=True)
class Writing:
    """Who writes the queries, and how many."""

    generator: Annotated[
        str,
        Option(
            help="who writes the queries: phrases, t5[:MODEL], chat:MODEL, openai:MODEL; several with commas"
        ),
    ] = ""
    base_url: Annotated[str, Option(help="server of openai:MODEL, for example http://127.0.0.1:11434/v1")] = (
        ""
    )
    max_queries: Annotated[
        int, Option(min=0, help="write about this many queries at most; 0: as generate.max_queries says")
    ] = 0
    max_cost: Annotated[
        float, Option(min=0, help="stop writing queries before this much is spent; 0: no limit")
    ] = 0

    def values(self) -> dict[str, Any]:
        """These options as settings."""
        return {
            "generate.generator": self.generator,
            "openai.base_url": self.base_url,
            "generate.max_queries": self.max_queries,
            "generate.max_cost": self.max_cost,
        }


@dataclass(frozen=True, slots=True)
class Computing:
    """Where batches are generated, encoded and scored."""

    executor: Annotated[
        str, Option(metavar="NAME", help="who works on batches: local (this process) or ray (a cluster)")
    ] = ""
    address: Annotated[
        str, Option(metavar="HOST:PORT", help="of the Ray cluster; auto: the one of this machine")
    ] = ""

    def values(self) -> dict[str, Any]:
        """These options as settings. An address is that of a Ray cluster."""
        return {
            "executor.name": self.executor or ("ray" if self.address else ""),
            "executor.address": self.address,
        }


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The settings whose option was given: what is empty leaves the setting as it is."""
    return {name: value for name, value in values.items() if value}


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command with options in place of each parameter that is a dataclass: its fields, in their order. The
    command is called with the dataclass."""
    groups: dict[str, Any] = {}
    options: list[inspect.Parameter] = []
    hints = get_type_hints(command, include_extras=True)
    for param in inspect.signature(command).parameters.values():
        hint = hints[param.name]
        if not is_dataclass(hint):
            options.append(_option(param.name, hint, param.default))
            continue
        groups[param.name] = hint
        own = get_type_hints(hint, include_extras=True)
        options += [_option(field.name, own[field.name], field.default) for field in fields(hint)]

    @functools.wraps(command)
    def spread(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    # What typer asks for the options.
    spread.__annotations__ = {option.name: option.annotation for option in options}
    vars(spread)["__signature__"] = inspect.Signature(options)
    return spread


def _option(name: str, hint: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
