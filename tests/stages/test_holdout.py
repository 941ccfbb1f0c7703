from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from searchfit.config import HoldoutSettings, Settings
from searchfit.records import DOCUMENTS, HOLDOUT, PASSAGES, StageResult
from searchfit.stages import Tools, holdout

WORDS = [f"word{n}" for n in range(3000)]


def prose(seed: int, words: int = 120) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def changed(text: str, places: tuple[int, ...] = (10, 60, 110)) -> str:
    words = text.split()
    return " ".join(f"other{n}" if n in places else word for n, word in enumerate(words))


def split(
    folder: Path, documents: list[list[str]], seed: int = 13, **options: float
) -> tuple[list[str], list[int], StageResult]:
    """Splits and clusters of documents, given as lists of their passages."""
    ids = [f"d{n}" for n in range(len(documents))]
    rows = [
        (f"d{n}#{place}", f"d{n}", n, "", text, 0, len(text), [0, len(text)])
        for n, passages in enumerate(documents)
        for place, text in enumerate(passages)
    ]
    columns = [list(column) for column in zip(*rows, strict=True)]
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns, schema=PASSAGES), folder / "passages.parquet", row_group_size=7)
    pq.write_table(
        pa.table([ids, ids, [" ".join(d) for d in documents]], schema=DOCUMENTS), folder / "documents.parquet"
    )
    inputs = {name: folder / name for name in ("documents.parquet", "passages.parquet")}
    settings = Settings(seed=seed, holdout=HoldoutSettings(**options)).only("holdout", "generate", "seed")
    result = holdout.run(settings, inputs, Tools(folder / "out"))
    table = pq.read_table(folder / "out" / "holdout.parquet")
    assert table.schema.equals(HOLDOUT)
    assert table["document_id"].to_pylist() == ids
    assert table["document"].to_pylist() == list(range(len(ids)))
    return table["split"].to_pylist(), table["cluster"].to_pylist(), result


def test_shares_are_as_set(tmp_path: Path) -> None:
    splits, clusters, result = split(tmp_path, [[prose(n, 30)] for n in range(400)], dev=0.2, test=0.1)
    assert clusters == list(range(400))
    assert result.counts == {"train": 280, "dev": 80, "test": 40, "near-duplicate documents": 0}
    assert {name: splits.count(name) for name in ("train", "dev", "test")} == {
        "train": 280,
        "dev": 80,
        "test": 40,
    }


def test_the_seed_alone_decides(tmp_path: Path) -> None:
    documents = [[prose(n, 30)] for n in range(60)]
    one = split(tmp_path / "1", documents)
    assert split(tmp_path / "2", documents) == one
    assert split(tmp_path / "3", documents, seed=14)[0] != one[0]


def test_near_copies_share_their_split(tmp_path: Path) -> None:
    documents = [[prose(n % 40)] for n in range(120)]
    for n in range(40, 120):
        documents[n] = [changed(documents[n][0]) if n < 80 else documents[n][0].upper() + "!"]
    splits, clusters, result = split(tmp_path, documents, dev=0.25, test=0.25)
    assert clusters == list(range(40)) * 3
    assert splits[:40] == splits[40:80] == splits[80:]
    assert result.counts["near-duplicate documents"] == 80
    assert set(splits) == {"train", "dev", "test"}


def test_a_shared_passage_joins_documents_through_others(tmp_path: Path) -> None:
    """0 shares a passage with 1, 1 another one with 2: all three stay together, the rest do not."""
    documents = [[prose(n), prose(100 + n)] for n in range(12)]
    documents[1] += [documents[0][1]]
    documents[2] += [changed(documents[1][0])]
    _, clusters, _ = split(tmp_path, documents)
    assert clusters == [0, 0, 0, *range(3, 12)]


def test_texts_that_share_a_topic_only_are_no_copies(tmp_path: Path) -> None:
    common = prose(1, 40)
    documents = [[f"{common} {prose(n, 80)}"] for n in range(2, 40)]
    _, clusters, _ = split(tmp_path, documents)
    assert clusters == list(range(38))


def test_text_without_spaces_is_compared_too(tmp_path: Path) -> None:
    signs = [chr(code) for code in range(0x4E00, 0x5200)]
    texts = ["".join(random.Random(n).choices(signs, k=150)) for n in range(10)]
    texts.append(texts[3][:70] + "亜亜" + texts[3][72:])
    _, clusters, _ = split(tmp_path, [[text] for text in texts])
    assert clusters == [*range(10), 3]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("text", ["The same few words in each.", "x", "?"])
def test_identical_documents_are_one_cluster_of_training(tmp_path: Path, count: int, text: str) -> None:
    splits, clusters, _ = split(tmp_path, [[text]] * count, dev=0.4, test=0.4)
    assert clusters == [0] * count
    assert splits == ["train"] * count


@pytest.mark.parametrize("seed", range(6))
def test_one_large_cluster_leaves_room_for_dev_and_test(tmp_path: Path, seed: int) -> None:
    """Half of the documents are copies of one page: the others still give the sets their shares."""
    documents = [[prose(0)]] * 50 + [[prose(n)] for n in range(1, 51)]
    splits, _, _ = split(tmp_path, documents, seed=seed)
    assert set(splits[:50]) == {"train"}
    assert splits.count("dev") == splits.count("test") == 10


def test_documents_without_passages_have_a_split_too(tmp_path: Path) -> None:
    splits, clusters, _ = split(tmp_path, [[prose(0)], [], [prose(2)]])
    assert clusters == [0, 1, 2]
    assert len(splits) == 3
