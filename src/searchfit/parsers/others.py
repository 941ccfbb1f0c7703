"""Parsers of other projects that turn files into Markdown: docling and markitdown, installed apart."""

from __future__ import annotations

from searchfit.parsers import Draft, Parsed, UnparsableError
from searchfit.parsers.text import markdown_marks

SUFFIXES = (".pdf", ".docx", ".pptx", ".xlsx")
"""What they read in place of the parsers here."""


def parse(parser: str, path: str, max_chars: int) -> Parsed:
    """The Markdown that a parser makes of a file; its headings are marks. Raises UnparsableError."""
    text = (_docling if parser == "docling" else _markitdown)(path)
    draft = Draft(max_chars)
    if not text.strip():
        raise UnparsableError("no text (a scan? OCR it first)")
    marks = markdown_marks(text)
    edges = [*(start for start, _, _ in marks), len(text)]
    draft.add(text[: edges[0]].rstrip())
    for (start, _, heading), end in zip(marks, edges[1:], strict=True):
        draft.mark(heading=heading)
        draft.add(text[start:end].rstrip())
    return draft.parsed(marks[0][2] if marks else "")


def _docling(path: str) -> str:
    from docling.document_converter import DocumentConverter

    return str(DocumentConverter().convert(path).document.export_to_markdown())


def _markitdown(path: str) -> str:
    from markitdown import MarkItDown

    # Plugins and addresses are not for files of strangers.
    return str(MarkItDown(enable_plugins=False).convert_local(path).markdown)
