"""searchfit fits a search engine to your own documents, without labels.

>>> import searchfit
>>> ws = searchfit.fit("listings.csv", "my-search", text="description", id="id")  # doctest: +SKIP
>>> for hit in ws.search("quiet house with a pool", k=5):  # doctest: +SKIP
...     print(hit.score, hit.title)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchfit.errors import SearchfitError

if TYPE_CHECKING:
    from searchfit.search import Searcher

__all__ = ["SearchfitError", "__version__", "fit", "open"]


def fit(
    source: str | Path,
    workspace: str | Path,
    *,
    text: str | list[str] = "",
    id: str = "",
    title: str = "",
    queries: str | Path = "",
    model: str = "minilm",
    effort: str = "normal",
    settings: dict[str, Any] | None = None,
) -> Searcher:
    """Fit a search engine to the documents of `source` and open it.

    `text`, `id` and `title` name columns; `queries` a file of real questions; `effort` is "quick", "normal"
    or "thorough"; `settings` any other setting by "section.key", for example {"train.epochs": 3}. What is
    already done in `workspace` is not done again.
    Raises SearchfitError with a message for people.
    """
    from searchfit.config import effort_values, load_settings
    from searchfit.pipeline import Fit
    from searchfit.workspace import Workspace, located

    columns = [text] if isinstance(text, str) and text else list(text)
    values = {
        **effort_values(effort),
        "source.source": str(source),
        "source.text": tuple(columns),
        "source.id": id,
        "source.title": title,
        "queries.file": str(queries),
        "model.name": model,
        **(settings or {}),
    }
    for _ in Fit(
        Workspace(located(workspace)), load_settings(values=values), command="searchfit.fit(...)"
    ).run():
        pass
    return open(workspace)


def open(workspace: str | Path) -> Searcher:
    """Open the search engine of a workspace for reading. Raises WorkspaceError when there is none."""
    from searchfit.search import open_searcher
    from searchfit.workspace import located

    return open_searcher(located(workspace))


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("searchfit")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
