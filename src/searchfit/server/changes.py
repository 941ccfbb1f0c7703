"""Changes to an index that come over the API: documents as JSON, through the same door as a file's."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from searchfit import growth
from searchfit.errors import SourceError
from searchfit.growth import Growth
from searchfit.server.errors import InvalidError
from searchfit.server.shapes import DocumentShape

_COLUMNS = ("id", "title", "text")


def add_documents(workspace: Path, documents: Sequence[DocumentShape]) -> Growth:
    """Add or replace documents. Raises InvalidError for ids that are given twice, texts of blanks only and
    metadata with a name of ours, SourceError for values that do not fit the index's columns, and
    WorkspaceError while another process changes the index."""
    _check(documents)
    with tempfile.TemporaryDirectory(prefix="searchfit-") as folder:
        file = Path(folder) / "documents.jsonl"
        with file.open("w", encoding="utf-8") as lines:
            for one in documents:
                row = {"id": one.id, "title": one.title, "text": one.text, **one.metadata}
                lines.write(json.dumps(row) + "\n")
        values = {
            "source.source": str(file),
            "source.text": ("text",),
            "source.id": "id",
            "source.title": "title",
            "source.max_bad_share": 0.0,
        }
        try:
            return growth.add(workspace, growth.source_settings(workspace, values))
        except SourceError as error:
            message, hint = (part.replace(str(file), "the request") for part in (error.message, error.hint))
            raise SourceError(message, hint) from error


def remove_document(workspace: Path, document_id: str) -> Growth:
    """Remove a document; `missing` names it where it is not there."""
    return growth.remove(workspace, [document_id])


def _check(documents: Sequence[DocumentShape]) -> None:
    counts = Counter(one.id for one in documents)
    if twice := [id_ for id_, count in counts.items() if count > 1]:
        raise InvalidError(f"the id {twice[0][:100]!r} is given twice.", "Send each document once.")
    for one in documents:
        if not one.text.strip() or not one.id.strip():
            raise InvalidError(f"the document {one.id[:100]!r} has an empty text or id.")
        if ours := [name for name in one.metadata if name in _COLUMNS]:
            raise InvalidError(f"metadata of {one.id[:100]!r} has the name {ours[0]!r}, which is ours.")
