"""The texts of labelled pairs as documents, for a corpus that is known by its pairs alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from searchfit.config import PairsSettings
from searchfit.errors import SourceError
from searchfit.sources.pairs import fingerprint, read_pairs
from searchfit.sources.rows import BadRow, Columns, Row


class PairTextsReader:
    """Each different text of the pairs, negatives too, is one document: under its document id where the pairs
    have one, else under a hash of the text. Metadata are those of the pair that shows it first."""

    known = Columns(("text",), "id")

    def __init__(self, settings: PairsSettings) -> None:
        """Open the pairs. Raises SourceError like `read_pairs`."""
        self._settings = settings
        pairs = read_pairs(settings)
        self.name = pairs.name
        self.notes: tuple[str, ...] = pairs.notes
        self.untyped = pairs.untyped
        if taken := [name for name in settings.metadata if name in ("id", "text")]:
            raise SourceError(
                f"pairs.metadata names the column {taken[0]!r}, as the corpus of the pairs calls its own.",
                "Rename the column, or leave it out.",
            )

    def columns(self, everything: bool = False) -> tuple[str, ...]:  # noqa: ARG002 - there are no others
        """See `Reader.columns`."""
        return ("id", "text", *self._settings.metadata)

    def rows(self) -> Iterator[Row | BadRow]:
        """See `Reader.rows`; bad pairs are counted where the pairs themselves are read."""
        seen: set[bytes] = set()
        ids: set[str] = set()
        number = 0
        for pair in read_pairs(self._settings):
            own = (pair.text, pair.document_id, pair.metadata)
            for text, name, metadata in (own, *((other, "", {}) for other in pair.negatives)):
                key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
                if key in seen:
                    continue
                seen.add(key)
                number += 1
                # A document of which pairs show several pieces: each piece is found by its own text.
                ident = name if name and name not in ids else key.hex()[:16]
                ids.add(ident)
                yield Row(f"text {number}", number, {**metadata, "id": ident, "text": text})

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader.fingerprint`."""
        return {"pairs": fingerprint(self._settings)}
