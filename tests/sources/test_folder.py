from __future__ import annotations

import os
from pathlib import Path

import pytest

from searchfit.config import Settings, SourceSettings
from searchfit.errors import SourceError
from searchfit.sources import BadRow, Row, open_source


def rows(root: Path, **options: int) -> list[Row | BadRow]:
    return list(open_source(Settings(source=SourceSettings(source=str(root), **options))).rows())  # type: ignore[arg-type]


def test_files_become_documents_in_order_of_their_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "b" / "deep.md").write_text("Intro\n```sh\n# no heading\n```\n## The heading ##\ntext")
    (tmp_path / "plain.MD").write_text("no heading at all")
    (tmp_path / "a.txt").write_bytes("\ufeff# not Markdown".encode())
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / ".git" / "x.txt").write_text("hidden")
    (tmp_path / "photo.png").write_bytes(b"PNG")
    source = open_source(Settings(source=SourceSettings(source=str(tmp_path))))
    assert [row.values for row in source.rows() if isinstance(row, Row)] == [
        {"id": "a.txt", "title": "a", "text": "# not Markdown", "folder": ""},
        {
            "id": "b/deep.md",
            "title": "The heading",
            "text": "Intro\n```sh\n# no heading\n```\n## The heading ##\ntext",
            "folder": "b",
        },
        {"id": "plain.MD", "title": "plain", "text": "no heading at all", "folder": ""},
    ]
    assert source.notes == (f"{tmp_path.name}: files of other kinds are left out: .png (1)",)
    before = source.fingerprint()
    assert len(before["files"]) == 3
    (tmp_path / "a.txt").write_text("changed")
    assert source.fingerprint() != before


def test_loops_of_links_pipes_and_dead_links_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.txt").write_text("one")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "dead.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    assert [row.values["id"] for row in rows(tmp_path) if isinstance(row, Row)] == ["a/one.txt"]


def test_unreadable_files_are_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("é" * 1000)
    (tmp_path / os.fsdecode(b"n\xe9.txt")).write_text("text")
    found = {row.where: row.reason for row in rows(tmp_path, max_text_chars=100) if isinstance(row, BadRow)}
    # What is far too long is not even read to its end; ingest tells all others by their length.
    assert found == {
        "long.txt": "longer than source.max_text_chars",
        "n?.txt": "a file name that is not UTF-8",
    }


def test_a_folder_without_documents_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"PNG")
    with pytest.raises(SourceError, match=r"holds no document.*\.png \(1\)"):
        open_source(Settings(source=SourceSettings(source=str(tmp_path))))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "no source is named"),
        ("nowhere.csv", "does not exist"),
        ("gopher://host/file", "unknown kind"),
        ("a\0b", "no name of a file"),
        ("x" * 5000, "cannot be read"),
        ("/dev/null", "neither a file nor a folder"),
    ],
)
def test_sources_that_are_not_there(source: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(Settings(source=SourceSettings(source=source)))
