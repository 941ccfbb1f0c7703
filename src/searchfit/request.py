"""What is asked of a Searcher, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from searchfit.errors import SettingsError
from searchfit.records import Engine, Hit


@dataclass(frozen=True, slots=True)
class Switches:
    """Which steps of a search are taken. A leg that is switched off counts for nothing; without `snippets`
    hits have none; with `explain` they hold the place that each leg gave them."""

    dense: bool = True
    keyword: bool = True
    rerank: bool = True
    snippets: bool = True
    explain: bool = False

    def applied(self, engine: Engine) -> Engine:
        """The engine with its legs as they are switched. Raises SettingsError when none is left."""
        switched = replace(
            engine,
            dense_weight=engine.dense_weight if self.dense else 0.0,
            keyword_weight=engine.keyword_weight if self.keyword else 0.0,
            token_weight=engine.token_weight if self.dense else 0.0,
            token_depth=engine.token_depth if self.dense else 0,
            reranker=engine.reranker if self.rerank else "",
            rerank_depth=engine.rerank_depth if self.rerank else 0,
        )
        if not switched.dense_weight and not switched.keyword_weight:
            raise SettingsError(
                f"the engine {engine.name!r} has no leg left to search by.", "Leave one of its legs on."
            )
        return switched


EVERY_STEP = Switches()


@dataclass(frozen=True, slots=True)
class Request:
    """The k best documents (or passages) for a query after the first `offset`; `where` is a filter in the
    filter language. Equal requests over one version of an index have equal answers."""

    query: str
    k: int = 10
    where: str | None = None
    passages: bool = False
    offset: int = 0
    switches: Switches = EVERY_STEP

    def check(self) -> None:
        """Raises SettingsError for an empty query, k < 1 or offset < 0."""
        if not self.query.strip():
            raise SettingsError("the query is empty.", "Write a few words or a question.")
        check_page(self.k, self.offset)


@dataclass(frozen=True, slots=True)
class Answer:
    """Hits, best first, all from one version of an index: the name of its folder and its generation."""

    hits: list[Hit]
    version: str


def check_page(k: int, offset: int) -> None:
    """Raises SettingsError for k < 1 or offset < 0."""
    if k < 1:
        raise SettingsError(f"k must be at least 1, got {k}.")
    if offset < 0:
        raise SettingsError(f"offset must be at least 0, got {offset}.")
