"""Hooks of mkdocs: pages that lie outside of docs/ take part in the site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: Any) -> Files:
    """The worked examples, with the files that their pages link to."""
    for path in sorted(ROOT.glob("examples/**/*")):
        if path.suffix in {".md", ".py", ".toml"}:
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:  # noqa: ARG001
    """Links between docs/ and examples/ as they stand in the repository: in the site docs/ is the root."""
    if page.file.src_uri.startswith("examples/"):
        return markdown.replace("](../../docs/", "](../../")
    return markdown.replace("](../examples/", "](examples/")
