"""Folders of real files: what is read of each kind, what is left out, and what hostile files cost."""

from __future__ import annotations

import gzip
import mailbox
import os
import resource
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.message import EmailMessage
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from made_files import pdf

from searchfit.config import FilesSettings, Settings, SourceSettings
from searchfit.errors import MissingExtraError, SettingsError, SourceError
from searchfit.sources import BadRow, Row, open_source

pypdf = pytest.importorskip("pypdf")
docx = pytest.importorskip("docx")


def settings(source: Path | str, max_text_chars: int = 5_000_000, **files: Any) -> Settings:
    named = SourceSettings(source=str(source), max_text_chars=max_text_chars, max_bad_share=1.0)
    return Settings(source=named, files=FilesSettings(**files))


def read(source: Path | str, **options: Any) -> tuple[dict[str, Row], dict[str, str]]:
    """The rows by id, and the reasons of the bad ones by where they are."""
    rows = list(open_source(settings(source, **options)).rows())
    good = {str(row.values["id"]): row for row in rows if isinstance(row, Row)}
    return good, {row.where: row.reason for row in rows if isinstance(row, BadRow)}


PAGES = (
    "The gearbox has seven speeds and needs no oil\nfor ten thou-\nsand kilometres.",
    "The brakes are discs.",
)


def test_a_pdf_has_pages_headings_and_whole_words(tmp_path: Path) -> None:
    writer = pypdf.PdfWriter(clone_from=BytesIO(pdf(*PAGES)))
    writer.add_metadata({"/Title": "The  car\x00", "/Author": "Workshop"})
    chapter = writer.add_outline_item(title="Gears", page_number=0)
    writer.add_outline_item(title="Brakes", page_number=1, parent=chapter)
    writer.write(tmp_path / "car.pdf")
    (row,) = read(tmp_path)[0].values()
    assert row.values == {
        "id": "car.pdf",
        "title": "The car",
        "text": "The gearbox has seven speeds and needs no oil\nfor ten thousand kilometres.\n\n"
        "The brakes are discs.",
        "folder": "",
        "author": "Workshop",
    }
    text = row.values["text"]
    assert row.marks == ((0, 1, "Gears"), (text.index("The brakes"), 2, "Brakes"))


def test_pdfs_that_give_no_text_say_why(tmp_path: Path) -> None:
    (tmp_path / "scan.pdf").write_bytes(pdf("", ""))
    (tmp_path / "no.pdf").write_bytes(b"%PDF-1.7 and nothing more")
    for name, password in (("secret", "open"), ("restricted", "")):
        writer = pypdf.PdfWriter(clone_from=BytesIO(pdf("Text")))
        writer.encrypt(password, "owner", algorithm="RC4-128")
        writer.write(tmp_path / f"{name}.pdf")
    good, bad = read(tmp_path)
    assert good["restricted.pdf"].values["text"] == "Text"
    assert bad.pop("no.pdf").startswith("a damaged PDF")
    assert bad == {
        "scan.pdf": "no text (a scan? OCR it first)",
        "secret.pdf": "encrypted: a password is needed",
    }


PAGE = """<!DOCTYPE html><html><head><title>Pumps &amp; valves</title><meta name=author content="A. N.">
<style>p {}</style><script>var no = "<p>no</p>"</script></head><body><nav><p>Home<ul><li>Away</nav>
<div role="main"><h1>Pumps<a class="headerlink" href="#">¶</a></h1><p>A pump moves
   water.<br>Caf&eacute; &#x2014; 5&nbsp;bar<p>Second <b>bold</b>face
<ul><li>one<li>two</ul><h2>Sizes</h2><table><tr><th>name<th>bar<tr><td>A<td>5</table>
<pre>keep
  this</pre><p hidden>unseen</p></div><footer>imprint</footer></body></html>"""


def test_html_is_read_as_people_see_it(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(PAGE, "utf-8")
    (tmp_path / "declared.htm").write_bytes('<meta charset="iso-8859-2"><p>łódź'.encode("iso-8859-2"))
    with gzip.open(tmp_path / "packed.html.gz", "wb") as file:
        file.write(b"<h1>Packed</h1><p>inside")
    good, bad = read(tmp_path)
    assert not bad
    row = good["a.html"]
    assert row.values["text"] == (
        "Pumps\n\nA pump moves water.\nCafé — 5 bar\n\nSecond boldface\n- one\n- two\n\n"
        "Sizes\nname | bar\nA | 5\n\nkeep\n  this"
    )
    assert row.marks == ((0, 0, "Pumps"), (row.values["text"].index("Sizes"), 0, "Sizes"))
    assert (row.values["title"], row.values["author"]) == ("Pumps & valves", "A. N.")
    assert good["declared.htm"].values["text"] == "łódź"
    assert good["packed.html.gz"].values["title"] == "Packed"


def test_docx_gives_headings_lists_tables_and_pages(tmp_path: Path) -> None:
    made = docx.Document()
    made.core_properties.title, made.core_properties.author = "Lease", "Office"
    made.add_heading("Rent", level=1)
    made.add_paragraph("The rent is due monthly.").add_run("\tIn advance.")
    made.add_paragraph("by transfer", style="List Bullet")._p.get_or_add_pPr().get_or_add_numPr()
    table = made.add_table(2, 2)
    for cell, text in zip(table._cells, ("flat", "rent", "A", "900"), strict=True):
        cell.text = text
    made.add_heading("Notice", level=2)
    run = made.add_paragraph().add_run()
    run._r.append(run._r.makeelement(docx.oxml.ns.qn("w:lastRenderedPageBreak"), {}))
    run.add_text("Three months.")
    made.save(tmp_path / "lease.docx")
    (row,) = read(tmp_path)[0].values()
    text = row.values["text"]
    assert text == (
        "Rent\n\nThe rent is due monthly.\tIn advance.\n- by transfer\nflat | rent\nA | 900\n\nNotice\n\n"
        "Three months."
    )
    assert row.marks == (
        (0, 0, "Rent"),
        (text.index("Notice"), 0, "Notice"),
        (text.index("Three"), 2, "Notice"),
    )
    assert (row.values["title"], row.values["author"]) == ("Lease", "Office")


def letter(subject: str, text: str, html: str = "") -> EmailMessage:
    message = EmailMessage()
    message["Subject"], message["From"] = subject, "Zoë <z@example.org>"
    message["Date"] = "Tue, 03 Mar 2026 10:00:00 +0200"
    if text:
        message.set_content(text, charset="iso-8859-1")
    if html:
        (message.add_alternative if text else message.set_content)(html, subtype="html")
    message.add_attachment(b"secret,cells", maintype="text", subtype="csv", filename="a.csv")
    return message


def test_mail_gives_subject_sender_date_and_the_plain_text(tmp_path: Path) -> None:
    both = letter("Offer für dich", "plain é", "<p>not this")
    (tmp_path / "both.eml").write_bytes(both.as_bytes())
    box = mailbox.mbox(tmp_path / "all.mbox")
    box.add(letter("First", "From here on\n\nFrom there on"))
    box.add(letter("Second", "", "<h1>Only</h1><p>page"))
    box.flush()
    box.close()
    good, bad = read(tmp_path)
    assert not bad
    assert good["both.eml"].values == {
        "id": "both.eml",
        "title": "Offer für dich",
        "text": "plain é",
        "folder": "",
        "from": "Zoë <z@example.org>",
        "date": good["both.eml"].values["date"],
    }
    assert good["both.eml"].values["date"].isoformat() == "2026-03-03T08:00:00+00:00"
    assert good["all.mbox#1"].values["text"] == "From here on\n\nFrom there on"
    assert (good["all.mbox#2"].values["title"], good["all.mbox#2"].values["text"]) == (
        "Second",
        "Only\n\npage",
    )


def test_text_in_any_encoding_is_read_and_that_is_noted(tmp_path: Path) -> None:
    for name, encoding in (("a", "utf-8-sig"), ("b", "utf-16"), ("c", "cp1252"), ("d", "utf-32")):
        (tmp_path / f"{name}.txt").write_bytes("naïve “quotes”".encode(encoding))
    (tmp_path / "README").write_text("no extension")
    (tmp_path / "program").write_bytes(b"\x7fELF\0\0\0")
    (tmp_path / "half.txt").write_bytes("\ufeffab".encode("utf-16-le") + b"\0")
    (tmp_path / "noise.txt").write_bytes(bytes(range(1, 32)) * 9)
    (tmp_path / "title.rst").write_text("=====\nTitle\n=====\n\nText.\n\nPart\n----\n\nmore\n")
    (tmp_path / "setext.md").write_text("Title\n=====\ntext\n\n## Part\nmore")
    for packed in ("e.txt.gz", "changes.Debian.gz", "notes.gz", "data.json.gz", "rows.jsonl.gz"):
        with gzip.open(tmp_path / packed, "wb") as file:
            file.write(b"packed")
    with gzip.open(tmp_path / "binary.gz", "wb") as file:
        file.write(bytes(99))
    (tmp_path / "damaged.gz").write_bytes(b"no gz")
    source = open_source(settings(tmp_path))
    rows = {row.where: row for row in source.rows()}
    good = {where: row.values["text"] for where, row in rows.items() if isinstance(row, Row)}
    assert {good[f"{name}.txt"] for name in "abcd"} == {"naïve “quotes”"}
    assert good["README"] == "no extension"
    assert {good[name] for name in ("e.txt.gz", "changes.Debian.gz", "notes.gz")} == {"packed"}
    assert len(good) == 10
    bad = {row.where: row.reason for row in rows.values() if isinstance(row, BadRow)}
    assert bad == {
        "half.txt": "bad UTF-16-LE at byte 6",
        "noise.txt": "not text: too many control characters",
    }
    assert [rows["title.rst"].marks, rows["setext.md"].marks] == [  # type: ignore[union-attr]
        ((6, 0, "Title"), (26, 0, "Part")),
        ((0, 0, "Title"), (18, 0, "Part")),
    ]
    assert source.notes == (
        f"{tmp_path.name}: files of other kinds are left out: no extension (1), .gz (4)",
        "1 files are no UTF-8 and were read as cp1252",
        "1 files are no UTF-8 and were read as utf-16-le",
        "1 files are no UTF-8 and were read as utf-32-le",
    )


def test_globs_choose_and_a_single_file_is_read(tmp_path: Path) -> None:
    for name in ("a.txt", "sub/b.TXT", "sub/deep/c.txt", "sub/d.md", "e.log", "f.html"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")

    def ids(source: Path | str, **files: Any) -> list[str]:
        return list(read(source, **files)[0])

    assert ids(tmp_path, include=("**/*.txt",)) == ["a.txt", "sub/b.TXT", "sub/deep/c.txt"]
    assert ids(tmp_path, include=("*.txt", "*.log")) == ["a.txt", "e.log"]
    assert ids(tmp_path, exclude=("sub/**", "*.html")) == ["a.txt"]
    assert ids(f"{tmp_path}/**/*.txt", exclude=("**/deep/*",)) == ["a.txt", "sub/b.TXT"]
    assert ids(f"{tmp_path}/s?b/*.md") == ["sub/d.md"]
    assert ids(tmp_path / "sub" / "d.md") == ["d.md"]
    (tmp_path / "README").write_text("text")
    assert ids(tmp_path / "README") == ["README"]
    with pytest.raises(SettingsError, match="leads out of the folder"):
        ids(tmp_path, include=("../*",))
    with pytest.raises(SourceError, match="no file matches"):
        ids(f"{tmp_path}/*.pdf")


# ---- what others may send us


def bomb(kind: str) -> bytes:
    """A DOCX that is not what it says."""
    word = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    made = BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("word/document.xml", "w", force_zip64=True) as member:
            if kind == "zip":
                member.write(f"<w:document {word}><w:body><w:p><w:r><w:t>".encode())
                for _ in range(70):
                    member.write(b" " * (1 << 20))
            else:
                entities = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
                member.write(f'<!DOCTYPE z [<!ENTITY l0 "lol">{entities}]><z>&l9;</z>'.encode())
        archive.writestr("../../outside.txt", "outside")
    return made.getvalue()


def hostile(folder: Path) -> Iterator[tuple[str, str]]:
    """Files that want to do harm, and what has to be said of each; "" for those that are read."""
    made: dict[str, tuple[bytes, str]] = {
        "bomb.docx": (bomb("zip"), "a zip bomb"),
        "laughs.docx": (bomb("entities"), "a document type declaration"),
        "laughs.xhtml": (
            b'<!DOCTYPE z [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;">]><html><p>&b;&b;</p></html>',
            "",
        ),
        "no.docx": (b"PK\x03\x04 no zip", "a damaged DOCX"),
        "kids.pdf": (pdf("Text", kids="2 0 R"), ""),
        "parent.pdf": (pdf("Text").replace(b"/Parent 2 0 R", b"/Parent 4 0 R"), ""),
        "xref.pdf": (b"%PDF-1.7\ntrailer << /Size 1 /Prev 9 >>\nstartxref\n9\n%%EOF\n", "a damaged PDF"),
        "deep.html": (b"<div>" * 100_000 + b"deep inside", ""),
        "tags.html": (b"<" * 100_000, ""),
        "line.txt": (b"x" * 50_000_000, "longer than source.max_text_chars"),
        "..name...txt": (b"hidden", None),  # type: ignore[dict-item]
        "a..b.txt": (b"two dots", ""),
    }
    nested = b"Subject: deep\n"
    for n in range(1000):
        nested += b'Content-Type: multipart/mixed; boundary="%d"\n\n--%d\n' % (n, n)
    made["nested.eml"] = (nested + b"Content-Type: text/plain\n\ndeep\n", "parts within parts")
    for name, (data, reason) in made.items():
        (folder / name).write_bytes(data)
        yield name, reason
    for name in ("zeros.txt", "zeros.pdf"):
        with (folder / name).open("wb") as file:
            file.truncate(1 << 30)
        yield name, "larger than files.max_file_mb"
    with gzip.open(folder / "zeros.txt.gz", "wb", 1) as packed:
        for _ in range(1 << 5):
            packed.write(bytes(1 << 20))
    yield "zeros.txt.gz", "longer than source.max_text_chars"
    with gzip.open(folder / "zeros.html.gz", "wb", 1) as packed:
        for _ in range(1 << 6):
            packed.write(bytes(1 << 20))
    yield "zeros.html.gz", "decompresses to more than files.max_file_mb"
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.txt")


def test_hostile_files_cost_one_line_each(tmp_path: Path) -> None:
    expected = dict(hostile(tmp_path))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    good, bad = read(tmp_path, timeout=20.0, memory_mb=512, max_file_mb=60)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert "..name...txt" not in {*good, *bad}
    for name, reason in expected.items():
        if reason:
            assert reason in bad[name], (name, bad.get(name))
    assert {"a..b.txt", "deep.html"} <= {*good}
    assert {*good, *bad} >= {name for name, reason in expected.items() if reason is not None}
    assert grown < 300 << 10  # KiB
    assert not (tmp_path.parent / "outside.txt").exists()


FAKE = """
import ctypes, os, time
class MarkItDown:
    def __init__(self, **options):
        assert options == {"enable_plugins": False}
    def convert_local(self, path):
        name = os.path.basename(path)
        if name.startswith("hang"):
            while True: pass
        if name.startswith("sleep"):
            time.sleep(1000)
        if name.startswith("segv"):
            ctypes.string_at(0)
        if name.startswith("kill"):
            os.kill(os.getpid(), 9)
        if name.startswith("exit"):
            os._exit(3)
        if name.startswith("eat"):
            return "x" * (4 << 30)
        if name.startswith("raise"):
            raise KeyError("no such thing")
        print("noise")
        self.markdown = "Intro\\n\\n# Head\\n\\nfrom " + name
        return self
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of documents, with a markitdown on the path that does as they are called."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "markitdown.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path / "path")
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


def test_a_parser_that_fails_in_any_way_costs_one_file(fake: Path) -> None:
    for name in ("a", "eat", "exit", "hang", "kill", "raise", "segv", "sleep", "z"):
        (fake / f"{name}.pptx").write_bytes(b"x")
    good, bad = read(fake, parser="markitdown", timeout=2.0)  # of which a busy machine needs part for "a"
    assert list(good) == ["a.pptx", "z.pptx"]
    row = good["a.pptx"]
    assert (row.values["title"], row.values["text"]) == ("Head", "Intro\n\n# Head\n\nfrom a.pptx")
    assert row.marks == ((7, 0, "Head"),)
    assert bad == {
        "eat.pptx": "needs more memory than files.memory_mb",
        "exit.pptx": "the parser ended with status 3",
        "hang.pptx": "takes longer than files.timeout (2 s)",
        "kill.pptx": "the parser was ended by SIGKILL",
        "raise.pptx": "cannot be parsed: KeyError: 'no such thing'",
        "segv.pptx": "the parser was ended by SIGSEGV",
        "sleep.pptx": "takes longer than files.timeout (2 s)",
    }


def test_a_parser_that_is_not_installed_says_how_to_install_it(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf("Text"))
    with pytest.raises(MissingExtraError, match="pip install docling"):
        open_source(settings(tmp_path, parser="docling"))


def test_a_file_that_changes_while_it_is_read_is_left_out(fake: Path) -> None:
    code = (fake.parent / "path" / "markitdown.py").read_text()
    touch = code.replace('print("noise")', 'open(path, "a").write("more")')
    (fake.parent / "path" / "markitdown.py").write_text(touch)
    (fake / "a.docx").write_bytes(b"x")
    assert read(fake, parser="markitdown") == ({}, {"a.docx": "changed while it was read"})


def test_the_parsing_process_is_light() -> None:
    heavy = ("numpy", "pyarrow", "pydantic", "torch", "lxml", "searchfit.config", "searchfit.sources")
    code = f"import sys, searchfit.parsers.child; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
