"""Files of a gigabyte that are read in earnest, and PDFs whose objects lead in circles: what they cost."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pypdf")

MEMORY_MB = 512
READ = """
import json, re, resource, sys
from searchfit.config import FilesSettings, Settings, SourceSettings
from searchfit.sources import BadRow, open_source
def peak():  # getrusage would count what was large before exec
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
files = FilesSettings(max_file_mb=4096, timeout=float(sys.argv[2]), memory_mb=int(sys.argv[3]))
source = open_source(Settings(source=SourceSettings(source=sys.argv[1], max_bad_share=1.0), files=files))
before = peak()
found = {row.where: row.reason if isinstance(row, BadRow) else "" for row in source.rows()}
parser = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([found, (peak() - before) / 1024, parser / 1024]))
"""


def read(folder: Path, timeout: float) -> tuple[dict[str, str], float, float]:
    """The reason for each file, "" for one that is read, and by how many MiB the process that reads grew and
    how large the one that parses became."""
    command = [sys.executable, "-c", READ, str(folder), str(timeout), str(MEMORY_MB)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found, grown, parser = json.loads(done.stdout)
    return found, grown, parser


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and measured on Linux")
def test_a_gigabyte_of_zeros_of_every_kind_is_named_in_bounded_memory(tmp_path: Path) -> None:
    for name in ("a.txt", "a.md", "a.pdf", "a.html", "a.docx", "a.eml", "a.mbox", "README"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(1 << 30)
    with gzip.open(tmp_path / "b.txt.gz", "wb", 1) as packed:
        for _ in range(1 << 10):
            packed.write(bytes(1 << 20))
    for name in ("b.pdf.gz", "b.html.gz", "b.mbox.gz", "b.eml.gz", "b.gz"):
        (tmp_path / name).symlink_to("b.txt.gz")
    found, grown, parser = read(tmp_path, 20.0)
    print(found, f"reads: {grown:.0f} MiB more, parses: {parser:.0f} MiB")
    assert len(found) == 12  # README and b.gz are no text, as their first bytes tell
    assert all(found.values())
    for name in ("a.txt", "a.md", "b.txt.gz"):
        assert found[name] == "longer than source.max_text_chars"
    assert grown < 200
    assert parser < MEMORY_MB


def circles() -> dict[str, bytes]:
    """PDFs by name: objects that lie in streams that lie in each other, a length that is its own stream, a
    stream that extends itself, pictures that draw themselves, once and twice."""

    def lay(parts: list[bytes]) -> tuple[bytes, list[int]]:
        out, places = b"%PDF-1.7\n", []
        for number, part in enumerate(parts, 1):
            places.append(len(out))
            out += b"%d 0 obj\n%s\nendobj\n" % (number, part)
        return out, places

    def stream(head: bytes, data: bytes) -> bytes:
        return b"<< %s /Length %d >>\nstream\n%s\nendstream" % (head, len(data), data)

    def with_table(entries: list[bytes], body: bytes) -> bytes:
        """`entries` are those of the objects, five bytes each; the table is the object after them."""
        head = b"/Type /XRef /Size %d /W [1 3 1] /Root 1 0 R" % (len(entries) + 2)
        own = b"\1" + len(body).to_bytes(3, "big") + b"\0"
        table = stream(head, b"\0\0\0\0\xff" + b"".join(entries) + own)
        return body + b"%d 0 obj\n%s\nendobj\nstartxref\n%d\n%%%%EOF\n" % (len(entries) + 1, table, len(body))

    def inside(number: int) -> bytes:
        return b"\2" + number.to_bytes(3, "big") + b"\0"

    def at(place: int) -> bytes:
        return b"\1" + place.to_bytes(3, "big") + b"\0"

    made = {"each.pdf": with_table([inside(n) for n in (3, 4, 4, 3)], b"%PDF-1.7\n")}
    made["itself.pdf"] = with_table([inside(2), inside(2)], b"%PDF-1.7\n")
    body, places = lay(
        [b"null", stream(b"/Type /ObjStm /N 1 /First 4 /Extends 2 0 R", b"1 0 << /Pages 1 0 R >>")]
    )
    made["extends.pdf"] = with_table([inside(2), at(places[1])], body)
    pages = [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>"]
    for name, content, draws in (
        ("length.pdf", b"<< /Length 4 0 R >>\nstream\nBT (x) Tj ET\nendstream", b""),
        ("draws.pdf", stream(b"", b"/F Do"), b"/F Do"),
        ("doubles.pdf", stream(b"", b"/F Do"), b"/F Do /F Do"),
    ):
        page = b"<< /Type /Page /Parent 2 0 R /Contents 4 0 R /Resources << /XObject << /F 5 0 R >> >> >>"
        form = b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /F 5 0 R >> >>"
        body, places = lay([*pages, page, content, stream(form, draws)])
        made[name] = with_table([at(place) for place in places], body)
    return made


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and measured on Linux")
def test_pdfs_that_lead_in_circles_are_named(tmp_path: Path) -> None:
    for name, data in circles().items():
        (tmp_path / name).write_bytes(data)
    found, grown, parser = read(tmp_path, 5.0)
    print(found, grown, parser)
    assert len(found) == 6
    assert all(found.values())
    assert grown < 100
    assert parser < MEMORY_MB
