"""Bad queries never make the result worse: the screen drops most of them, and the untuned model is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from generators.test_t5 import save_model
from pipeline_tools import Corpus, fit

from searchfit.judged import evaluate_judged

SQUAD = Path(__file__).parents[2] / "shared" / "data" / "squad_dev"
SMALL, WHOLE = 40, 10**6


def lines(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def part(folder: Path, documents: int) -> Path:
    """The first documents of a BEIR folder, with the questions that they answer."""
    folder.mkdir(parents=True)
    kept = set()
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for record in list(lines(SQUAD / "corpus.jsonl"))[:documents]:
            kept.add(record["_id"])
            file.write(json.dumps(record) + "\n")
    (folder / "qrels").mkdir()
    judged = (SQUAD / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line for line in judged[1:] if line.split("\t")[1] in kept]
    (folder / "qrels" / "test.tsv").write_text("\n".join([judged[0], *rows]) + "\n", encoding="utf-8")
    asked = {line.split("\t")[0] for line in rows}
    with (folder / "queries.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(q) + "\n" for q in lines(SQUAD / "queries.jsonl") if q["_id"] in asked)
    return folder


@pytest.mark.skipif(not SQUAD.is_dir(), reason="shared/data/squad_dev is not there")
@pytest.mark.parametrize("documents", [SMALL, pytest.param(WHOLE, marks=pytest.mark.slow)])
def test_a_model_that_writes_nonsense_changes_nothing(tmp_path: Path, documents: int) -> None:
    source = part(tmp_path / "squad", documents)
    t5 = save_model(tmp_path / "t5", 1)
    steps = fit(
        tmp_path / "ws",
        Corpus(source),
        generate__generator=f"t5:{t5}",
        generate__max_queries=3 * documents,
        t5__engine="transformers",
        t5__max_new_tokens=12,
        train__min_queries=4,  # even what little is left is trained on, as if it were good
    )
    results = {step.stage: step.result for step in steps}
    screened, chosen = results["screen"], results["choose"]
    assert screened is not None
    assert chosen is not None
    assert screened.counts["queries"] > 2 * min(documents, 2000)
    assert screened.counts["kept"] < 0.25 * screened.counts["queries"]
    assert sum(drop.count for drop in screened.drops) == screened.counts["queries"] - screened.counts["kept"]
    assert chosen.counts["chosen"] == "untuned engine"
    scores = evaluate_judged(tmp_path / "ws", source).systems
    assert scores["chosen engine (untuned engine)"] == scores["untuned engine"]
    assert scores["untuned engine"]["ndcg@10"] > 0.8
