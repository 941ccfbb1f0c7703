"""The settings of the server, which belong to it and not to a workspace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field, PositiveFloat

from searchfit.config.base import Section, checked
from searchfit.errors import SettingsError
from searchfit.toml import toml_or_text


class ServeSettings(Section):
    """What the server allows and takes."""

    writable: bool = Field(False, description="documents may be added and removed")
    cors: tuple[str, ...] = Field((), description="origins whose pages may call the API, or *")
    clicks: bool = Field(False, description="keep what readers click, without who they are")
    log_queries: bool = Field(False, description="write the text of queries into the access log")
    concurrency: int = Field(64, ge=1, description="requests at work at once; more get 429")
    threads: int = Field(0, ge=0, description="threads that search; 0: two a processor, 8 at most")
    batch_window: float = Field(2.0, ge=0, le=1000, description="milliseconds a query waits for others")
    batch_texts: int = Field(32, ge=1, description="texts that go through the model together at most")
    cache: int = Field(20_000, ge=0, description="hits of the latest answers that are kept; 0: none")
    timeout: PositiveFloat = Field(30.0, description="seconds that a request may take")
    body_timeout: PositiveFloat = Field(10.0, description="seconds that a client has to send a request")
    max_body: int = Field(8 << 20, ge=1024, description="bytes of a request's body at most")
    max_query: int = Field(2_000, ge=1, description="characters of a query at most")
    max_limit: int = Field(100, ge=1, description="results of a page at most")
    max_offset: int = Field(1_000, ge=0, description="results that may be passed over")
    max_texts: int = Field(2_048, ge=1, description="texts to embed, or documents to change, in a request")
    max_rerank: int = Field(1_000, ge=1, description="texts to re-rank in a request")


def serve_settings(overrides: Iterable[str], values: Mapping[str, Any]) -> ServeSettings:
    """Settings from `key=value` strings and, with precedence, from values. Raises SettingsError for an
    unknown key or a wrong value."""
    given: dict[str, Any] = {}
    for text in overrides:
        key, _, value = text.partition("=")
        if key.strip() not in ServeSettings.model_fields:
            raise SettingsError(
                f"unknown setting {key.strip()!r} of the server.",
                f"Write --set key=value; there are: {', '.join(ServeSettings.model_fields)}.",
            )
        given[key.strip()] = toml_or_text(value.strip())
    return checked(ServeSettings, given | dict(values))
