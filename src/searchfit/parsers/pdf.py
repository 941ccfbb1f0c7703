"""PDF as text, by pypdf."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, BinaryIO

from searchfit.parsers import Draft, Parsed, UnparsableError

if TYPE_CHECKING:
    from pypdf import PdfReader

_BROKEN_WORD = re.compile(r"(?<=[^\W\d_])[-\u00ad\u2010][ \t]*\r?\n[ \t]*(?=[^\W\d_A-Z])|\u00ad")
_ENDS = re.compile(r"[.!?:…。！？][\"'”’»)\]]*\s*$")
_MOST_OUTLINE = 10_000


def parse(file: BinaryIO, max_chars: int) -> Parsed:
    """The text of the pages, which are marks, as are the headings of its outline; words that are broken at
    the end of a line are joined. Raises UnparsableError for one without text or with a password."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, PyPdfError

    try:
        reader = PdfReader(file)
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnparsableError("encrypted: a password is needed")
        draft = _pages(reader, max_chars)
        information = reader.metadata
        title = str((information and information.title) or "")
        author = str((information and information.author) or "")
    except DependencyError as error:
        raise UnparsableError("encrypted by AES: pip install cryptography to read it") from error
    except PyPdfError as error:
        raise UnparsableError(f"a damaged PDF: {error}") from error
    return draft.parsed(title, {"author": author})


def _pages(reader: PdfReader, max_chars: int) -> Draft:
    draft = Draft(max_chars)
    headings = _headings(reader)
    ends, said = True, False
    for number, page in enumerate(reader.pages, 1):
        text = _BROKEN_WORD.sub("", page.extract_text()).strip()
        draft.mark(number, headings.get(number))
        draft.add(text, "\n\n" if ends else "\n")
        ends, said = bool(_ENDS.search(text[-20:])), said or bool(text)
    if not said:
        raise UnparsableError("no text (a scan? OCR it first)")
    return draft


def _headings(reader: PdfReader) -> dict[int, str]:
    """The first entry of the outline on each page that has one; an outline that is damaged has none."""
    from pypdf.errors import PyPdfError

    found: dict[int, str] = {}
    try:
        left: list[Any] = [*reader.outline][::-1]
        for _ in range(_MOST_OUTLINE):
            if not left:
                break
            entry = left.pop()
            if isinstance(entry, list):
                left += entry[::-1]
                continue
            number = reader.get_destination_page_number(entry)
            if number is not None and number >= 0:
                found.setdefault(number + 1, str(entry.title or ""))
    except (PyPdfError, KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return found
