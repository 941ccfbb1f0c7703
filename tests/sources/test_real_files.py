"""A folder of real files that happen to be on this machine, from fit to answers."""

from __future__ import annotations

import sysconfig
from collections import Counter
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import pytest

DOC = Path("/usr/share/doc")
ENDS = (".txt", ".html", ".rst", ".gz", ".md", ".pdf", ".docx")


def real_files(count: int) -> list[Path]:
    """Files of all kinds in turn, none twice; those of one kind from as many places as there are."""
    paths = sysconfig.get_paths()
    places = [DOC, Path(paths["stdlib"]), Path(paths["purelib"])]
    files = sorted({file for place in places if place.is_dir() for file in place.rglob("*")})
    kinds: list[list[Path]] = [[] for _ in ENDS]
    sizes: set[int] = set()
    for file in files:
        if (
            file.suffix not in ENDS
            or not file.is_file()
            or (file.suffix == ".gz" and DOC not in file.parents)
        ):
            continue  # what else is packed is data
        size = file.stat().st_size * (3 if file.suffix == ".gz" else 1)  # about that of the text
        if 500 < size < 20_000 and size not in sizes:
            sizes.add(size)
            kinds[ENDS.index(file.suffix)].append(file)
    spread = (kind[:: max(1, len(kind) // count)] for kind in kinds)
    return list(islice(filter(None, chain.from_iterable(zip_longest(*spread))), count))


@pytest.mark.slow
def test_a_folder_of_real_files_fits_and_answers(
    tmp_path: Path, small_settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow.parquet as pq

    from searchfit.growth import add
    from searchfit.pipeline import Fit
    from searchfit.search import open_searcher
    from searchfit.workspace import Workspace

    files = real_files(200)
    if len(files) < 200:
        pytest.skip(f"this machine has {len(files)} small documents, 200 are wanted")
    folder = tmp_path / "files"
    folder.mkdir()
    for number, file in enumerate(files):
        (folder / f"{number:03}-{file.name}").symlink_to(file)
    source = small_settings.source.model_copy(
        update={"source": str(folder), "text": (), "id": "", "title": "", "max_bad_share": 0.2}
    )
    generate = small_settings.generate.model_copy(update={"max_queries": 1000})
    settings = small_settings.model_copy(update={"source": source, "generate": generate})
    assert list(Fit(Workspace(tmp_path / "ws"), settings).run())
    documents = pq.read_table(tmp_path / "ws" / "documents.parquet").to_pylist()
    assert len(documents) > 190
    searcher = open_searcher(tmp_path / "ws")
    times = Counter(row["title"] for row in documents)
    asked = [row for row in documents if row["title"].count(" ") > 2 and times[row["title"]] == 1]
    asked = asked[:: max(1, len(asked) // 12)]
    found = [row["id"] in {hit.document_id for hit in searcher.search(row["title"], 10)} for row in asked]
    with capsys.disabled():
        print(f"\n{len(documents)} of {len(files)} files; {sum(found)} of {len(found)} found by their titles")
    assert sum(found) > 0.5 * len(found)
    texts = {row["id"]: row["text"] for row in documents}
    hits = [hit for query in ("license", "how to install", "error") for hit in searcher.search(query, 10)]
    assert hits
    assert all(texts[hit.document_id][hit.start : hit.end] == hit.text for hit in hits)
    assert any(hit.metadata["heading"] for hit in hits)
    more = tmp_path / "more"
    more.mkdir()
    (more / "zebra.md").write_text("# Stripes\n\nThe zebra quagga has stripes.\n\n# Food\n\nGrass it eats.")
    more_settings = settings.model_copy(update={"source": source.model_copy(update={"source": str(more)})})
    assert add(tmp_path / "ws", more_settings).added == 1
    hit = open_searcher(tmp_path / "ws").search("zebra quagga stripes", 1)[0]
    assert (hit.document_id, hit.metadata["heading"]) == ("zebra.md", "Stripes")
