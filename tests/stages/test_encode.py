from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from searchfit.config import load_settings
from searchfit.encoders import corpus as encodings
from searchfit.encoders import load_encoder
from searchfit.records import encoded_text
from searchfit.search import ArrayCorpus
from searchfit.stages import Tools, encode


class Killed(Exception):
    """Stands for a kill."""


def view(settings: Any, **values: Any) -> Any:
    return load_settings(base=settings, values=values).only("model")


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def inputs(bench: Any) -> dict[str, Path]:
    found: dict[str, Path] = bench.inputs("encode")
    return found


def test_passages_and_sentences_stand_in_their_rows(bench: Any) -> None:
    table = pq.read_table(bench.path("passages.parquet")).to_pylist()
    corpus = ArrayCorpus.load(bench.path("encoded"), bench.path("keyword"))
    encoder = load_encoder(bench.settings.model)
    texts = [encoded_text(row["title"], row["text"]) for row in table]
    np.testing.assert_allclose(corpus.passages, encoder.encode_documents(texts), atol=3e-6)
    np.testing.assert_array_equal(corpus.documents, [row["document"] for row in table])
    np.testing.assert_array_equal(np.diff(corpus.offsets), [len(row["sentences"]) // 2 for row in table])
    np.testing.assert_allclose(np.linalg.norm(corpus.sentences, axis=1), 1, atol=1e-5)
    for row in (0, 9, len(table) - 1):
        spans = table[row]["sentences"]
        shift = len(texts[row]) - len(table[row]["text"])
        pairs = [(a + shift, b + shift) for a, b in zip(spans[::2], spans[1::2], strict=True)]
        _, units, _ = encoder.encode_passages([texts[row]], [pairs])
        if len(pairs) > 1:
            own = corpus.sentences[corpus.offsets[row] : corpus.offsets[row + 1]]
            np.testing.assert_allclose(own, units, atol=3e-6)
    assert corpus.count == len(table) == bench.run("encode").counts["passages"]


def test_the_only_sentence_of_a_passage_is_the_passage(bench: Any) -> None:
    corpus = ArrayCorpus.load(bench.path("encoded"), bench.path("keyword"))
    alone = np.flatnonzero(np.diff(corpus.offsets) == 1)
    assert len(alone) > 3
    np.testing.assert_array_equal(corpus.sentences[corpus.offsets[alone]], corpus.passages[alone])


@pytest.mark.parametrize("chunks", [1, 3])
def test_a_killed_run_goes_on_to_identical_bytes(
    bench: Any, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks: int
) -> None:
    monkeypatch.setattr(encodings, "_CHUNK", 25)
    encode.run(view(bench.settings), inputs, Tools(tmp_path / "whole"))
    count = pq.ParquetFile(inputs["passages.parquet"]).metadata.num_rows
    seen: list[int] = []

    def kill(label: str, done: int, total: int) -> None:
        assert (label, total) == ("encode", count)
        seen.append(done)
        if len(seen) == chunks:
            raise Killed

    cut = tmp_path / "cut"
    with pytest.raises(Killed):
        encode.run(view(bench.settings), inputs, Tools(cut, progress=kill))
    assert not np.load(cut / "encoded" / "passages.npy")[25 * chunks :].any()
    encode.run(view(bench.settings), inputs, Tools(cut, progress=kill))
    assert seen == [*range(25, count, 25), count]
    assert content(cut) == content(tmp_path / "whole")
    assert "encoded/progress.json" not in content(cut)


def test_killed_before_the_first_mark_it_starts_again(
    bench: Any, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode.run(view(bench.settings), inputs, Tools(tmp_path / "whole"))
    with monkeypatch.context() as patch:

        def kill(*_: Any) -> None:
            raise Killed

        patch.setattr(encode, "load_encoder", kill)
        with pytest.raises(Killed):
            encode.run(view(bench.settings), inputs, Tools(tmp_path / "cut"))
    encode.run(view(bench.settings), inputs, Tools(tmp_path / "cut"))
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
