from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reporting.made_up import check_alone, check_figures

from searchfit.encoders import load_encoder, load_tokenizer
from searchfit.encoders.trained import Trained
from searchfit.errors import WorkspaceError
from searchfit.recipe import STAGES
from searchfit.reporting.asked import EACH, asked
from searchfit.reporting.evidence import Evidence
from searchfit.reporting.examples import examples, traits
from searchfit.reporting.library import Library
from searchfit.reporting.portrait import draw
from searchfit.stages import Tools, report

MANIFEST = {
    "searchfit": "0.1.0",
    "command": "searchfit fit corpus.jsonl -o found",
    "versions": {"python": "3.11"},
    "stages": {"ingest": {"seconds": 0.5, "peak_memory_mb": 120, "counts": {"documents": 72}, "key": "k1"}},
}


@pytest.fixture(scope="module")
def inputs(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The artefacts that the stage reads, of a real fit."""
    manifest = tmp_path_factory.mktemp("manifest") / "manifest.json"
    manifest.write_text(json.dumps(MANIFEST), encoding="utf-8")
    return {**bench.inputs("report"), "manifest.json": manifest}


def settings(bench: Any) -> Any:
    stage = next(stage for stage in STAGES if stage.name == "report")
    return bench.settings.only(*stage.sections)


@pytest.fixture(scope="module")
def made(bench: Any, inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    result = report.run(settings(bench), inputs, Tools(folder))
    assert result.counts == {"bytes": (folder / "report.html").stat().st_size}
    return folder


def test_page_json_and_markdown_say_the_same(made: Path, inputs: dict[str, Path]) -> None:
    value = json.loads((made / "report.json").read_text(encoding="utf-8"))
    outline = check_alone((made / "report.html").read_text(encoding="utf-8"))
    assert check_figures(outline, value) > 100
    assert value["verdict"] in outline.text
    markdown = (made / "report.md").read_text(encoding="utf-8")
    systems = json.loads(inputs["evaluation/systems.json"].read_text(encoding="utf-8"))["systems"]
    for system, told in zip(systems, value["systems"], strict=True):
        assert told["test"] == system["test"]
        assert f"{system['test']['ndcg@10']:.3f}" in markdown
    # Recall at k comes from the ranks of right documents, the metrics from another way: they agree.
    by_depth = {row["k"]: row for row in value["recall"]}
    for side, name in zip(("before", "after"), value["pair"], strict=True):
        own = next(system for system in systems if system["name"] == name)["test"]
        assert by_depth[10][side] == pytest.approx(own["recall@10"])
        assert by_depth[100][side] == pytest.approx(own["recall@100"])
        assert value["metrics"][0][side]["mean"] == pytest.approx(own["ndcg@10"])


def test_the_same_fit_makes_the_same_files(
    bench: Any, made: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    report.run(settings(bench), inputs, Tools(tmp_path))
    for name in ("report.html", "report.json", "report.md"):
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()


def test_the_portrait_is_that_of_the_vectors(bench: Any, inputs: dict[str, Path]) -> None:
    """Against plain similarities of every question to every passage."""
    evidence, library = Evidence.read(inputs), Library(inputs)
    encoder = load_encoder(bench.settings.model)
    found = draw(evidence, library, encoder, inputs, 13)
    test = [row for row in evidence.queries.to_pylist() if row["split"] == "test"]
    assert found["questions"] == len(test)  # fewer than the sample
    ids = pq.read_table(inputs["documents.parquet"])["id"].to_pylist()
    passages, documents = np.load(inputs["encoded"] / "passages.npy"), library.corpus.documents
    trained = Trained.load(inputs["models/trained"])
    for side, name in zip(("before", "after"), evidence.pair or (), strict=True):
        share = evidence.engine(name)["query_tower"]
        vectors = trained.encoder(encoder, share).encode_queries([row["text"] for row in test])
        scores = vectors @ passages.T
        right = [
            max(
                score
                for score, document in zip(line, documents, strict=True)
                if ids[document] in row["relevant"]
            )
            for line, row in zip(scores.tolist(), test, strict=True)
        ]
        assert found["scores"][side]["right"] == pytest.approx(np.mean(right), abs=1e-5)
        assert sum(found["scores"][f"right_{side}"]) == pytest.approx(1, abs=1e-3)
        assert sum(found["scores"][f"other_{side}"]) == pytest.approx(1, abs=1e-3)
        assert 0.5 < found["scores"][side]["auc"] <= 1
    places = found["map"]
    assert len(places["queries_before"]) == len(places["passages_after"]) == places["shown"]
    assert 0 < places["variance"] <= 1
    assert places["cosine_before"] == pytest.approx(found["scores"]["before"]["right"], abs=1e-3)


def test_examples_are_the_largest_gains_and_losses_on_test(bench: Any, inputs: dict[str, Path]) -> None:
    """With scores of our own: two questions won, one lost, one hopeless."""
    real = Evidence.read(inputs)
    first, second = real.pair or ("", "")
    rows = real.test.tolist()
    columns = {name: np.full(len(real.queries), 0.7) for name in (first, second)}
    for row, before, after in zip(rows, (0.2, 0.4, 0.9, 0.1), (0.6, 0.7, 0.3, 0.1), strict=False):
        columns[first][row], columns[second][row] = before, after
    queries = real.queries
    for name, scores in columns.items():
        place = queries.column_names.index(name)
        queries = queries.set_column(place, name, pa.array(scores))
    evidence = Evidence(
        real.manifest, real.systems, real.choice, queries, real.metrics, real.top, real.places
    )
    library = Library(inputs)
    cards = examples(evidence, library, load_tokenizer(bench.settings.model))
    texts = queries["text"].to_pylist()
    assert [card["query"] for card in cards["gains"]] == [texts[rows[0]], texts[rows[1]]]
    assert [card["query"] for card in cards["losses"]] == [texts[rows[2]]]
    assert [card["query"] for card in cards["hardest"]] == [texts[rows[3]]]
    assert [card["query"] for card in cards["easiest"]] == [texts[row] for row in rows[4:12]]
    ids = pq.read_table(inputs["documents.parquet"])["id"].to_pylist()
    (lost,) = cards["losses"]
    assert [hit["id"] for hit in lost["top_after"]] == [ids[i] for i in real.top[second][rows[2]].as_py()[:5]]
    ranks = [
        place
        for place, i in enumerate(real.top[second][rows[2]].as_py(), 1)
        if ids[i] in queries["relevant"][rows[2]].as_py()
    ]
    if ranks:
        assert lost["rank_after"] == ranks[0]
    assert lost["why"]
    assert not [name for card in cards["losses"] for name in card if name.startswith("_")]
    told = traits(evidence, library)
    assert len(told["gain"]) == len(rows)
    assert told["gain"][0] == pytest.approx(0.4)


def test_words_of_a_question_in_its_passage(inputs: dict[str, Path]) -> None:
    library = Library(inputs)
    text = library.texts([3])[3]
    table = pq.read_table(inputs["passages.parquet"])
    assert text == f"{table['title'][3].as_py()}. {table['text'][3].as_py()}"
    terms = library.terms(text)
    assert library.words(text, np.array([3])).shared == 1.0
    assert library.words("the zyxw of " + text.split()[0], np.array([3])).shared == 0.5
    assert "the" not in terms
    holders = sum(
        set(terms) <= set(library.terms(library.texts([row])[row])) for row in range(library.corpus.count)
    )
    assert library.holders(text) == holders >= 1


def test_queries_are_counted_and_sampled(tmp_path: Path) -> None:
    rows = [
        {"text": f"kept {n}", "style": "crop", "reason": ""}
        if n % 3
        else {"text": f"bad {n}", "style": "crop", "reason": "copy"}
        for n in range(3000)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "screened.parquet", row_group_size=100)
    found = asked(tmp_path / "screened.parquet", 1)
    assert (found["kept"], found["dropped"]) == (2000, 1000)
    (group,) = found["styles"]
    assert group["count"] == 2000
    assert len(group["samples"]) == EACH
    numbers = [int(text.split()[1]) for text in group["samples"]]
    assert max(numbers) > 1000  # not the first ones
    assert found["reasons"][0]["name"] == "copy"
    assert found == asked(tmp_path / "screened.parquet", 1)


@pytest.mark.parametrize("name", ["manifest.json", "evaluation/systems.json", "evaluation/places.parquet"])
@pytest.mark.parametrize("content", [None, b"{", b"[]"])
def test_a_damaged_input_is_named(
    bench: Any, inputs: dict[str, Path], tmp_path: Path, name: str, content: bytes | None
) -> None:
    broken = tmp_path / Path(name).name
    if content is not None:
        broken.write_bytes(content)
    with pytest.raises(WorkspaceError, match=re.escape(broken.name)):
        report.run(settings(bench), {**inputs, name: broken}, Tools(tmp_path))


def test_hostile_documents_leave_the_page_whole(bench: Any, inputs: dict[str, Path], tmp_path: Path) -> None:
    """A fit whose titles and questions are attacks, one of them 10 MB long."""
    attack = "</svg></data><script>window.hit = 1</script>\x00\u202e<img src=x onerror=alert(1)> | `x` "
    documents = pq.read_table(inputs["documents.parquet"])
    titles = pa.array([attack + "x" * 10_000_000, *[attack] * (documents.num_rows - 1)])
    pq.write_table(documents.set_column(1, "title", titles), tmp_path / "documents.parquet")
    shutil.copytree(inputs["evaluation/queries.parquet"].parent, tmp_path / "evaluation")
    queries = pq.read_table(inputs["evaluation/queries.parquet"])
    texts = pa.array([f"{text} {attack}" for text in queries["text"].to_pylist()])
    queries = queries.set_column(queries.column_names.index("text"), "text", texts)
    pq.write_table(queries, tmp_path / "evaluation" / "queries.parquet")
    changed = {
        "documents.parquet": tmp_path / "documents.parquet",
        "evaluation/queries.parquet": tmp_path / "evaluation" / "queries.parquet",
    }
    report.run(settings(bench), {**inputs, **changed}, Tools(tmp_path))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    check_figures(check_alone(page), json.loads((tmp_path / "report.json").read_text(encoding="utf-8")))
    assert "&lt;script&gt;" in page
    assert "<script" not in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert (tmp_path / "report.json").stat().st_size < 2_000_000
