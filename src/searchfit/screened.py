"""The generated queries of a workspace, kept and dropped, as the screen left them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searchfit.errors import SettingsError, WorkspaceError
from searchfit.workspace import Workspace

BATCH = 4096


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which queries to list; what is empty asks nothing. `kept` None: both. `reason` and `contains` are found
    anywhere in the reason and the query, whatever the case; the others match as a whole."""

    kept: bool | None = None
    reason: str = ""
    style: str = ""
    generator: str = ""
    document: str = ""
    contains: str = ""


def artefact(workspace: Path, name: str, until: str) -> Path:
    """The path of an artefact of a workspace. Raises WorkspaceError, naming the stage `until` that makes it,
    where it is not there yet."""
    place = Workspace(workspace)
    place.require()
    path = place.artefact(name)
    if not path.exists():
        raise WorkspaceError(
            f"{workspace} has no {name} yet: the fit has not come to the stage {until}.",
            f"Run the same searchfit fit again, to its end or with --until {until}.",
        )
    return path


def screened_queries(workspace: Path, wanted: Wanted = Wanted()) -> Iterator[dict[str, Any]]:
    """The queries, in order of their ids, a few thousand in memory: id, text, passage_id, style, generator,
    document_id, rank (1-based, by the teacher; 0: not looked up, or not found) and reason ("": kept).

    Raises WorkspaceError for a workspace that has not come to the screen, SettingsError for a document that
    is not in it.
    """
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    path = artefact(workspace, "screened.parquet", "screen")
    documents = pq.read_table(artefact(workspace, "documents.parquet", "ingest"), columns=["id"])["id"]
    source = ds.dataset(path, format="parquet")
    columns = [name for name in source.schema.names if name != "seed"]
    scanner = source.scanner(
        columns, filter=_filter(wanted, documents), batch_size=BATCH, batch_readahead=2, fragment_readahead=1
    )
    for batch in scanner.to_batches():
        ids = documents.take(batch["document"]).to_pylist()
        for record, ident in zip(batch.to_pylist(), ids, strict=True):
            del record["document"]
            yield {**record, "document_id": ident}


def _filter(wanted: Wanted, documents: Any) -> Any:
    """The condition as an Arrow expression; None where all are wanted."""
    import pyarrow.compute as pc

    conditions = []
    if wanted.kept is not None:
        kept = pc.field("reason") == ""
        conditions.append(kept if wanted.kept else ~kept)
    for name, text in (("reason", wanted.reason), ("text", wanted.contains)):
        if text:
            conditions.append(pc.match_substring(pc.field(name), text, ignore_case=True))
    for name, text in (("style", wanted.style), ("generator", wanted.generator)):
        if text:
            conditions.append(pc.field(name) == text)
    if wanted.document:
        row = pc.index(documents, wanted.document).as_py()
        if row < 0:
            raise SettingsError(f"there is no document {wanted.document!r} in the workspace.")
        conditions.append(pc.field("document") == row)
    condition = None
    for one in conditions:
        condition = one if condition is None else condition & one
    return condition
