from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from searchfit.config import load_settings
from searchfit.encoders import load_encoder
from searchfit.metrics import score_ranking
from searchfit.questions import Questions
from searchfit.recipe import STAGES
from searchfit.records import Engine
from searchfit.search import ArrayCorpus
from searchfit.stages import Tools, evaluate
from searchfit.weighing import preferred, weigh, weightings

PRIOR = Engine("untuned engine", keyword_weight=0.5, token_weight=2.0, token_depth=40)


def scores(count: int, gains: dict[int, float]) -> Any:
    """(engines, count) nDCG@10 that differs from the prior's by so much in the mean."""
    base = np.random.default_rng(0).uniform(0.2, 0.7, count).astype(np.float32)
    return np.stack([base + gains.get(place, 0.0) for place in range(len(weightings(PRIOR)))])


def test_what_competes_differs_from_the_prior_in_one_weight() -> None:
    found = weightings(PRIOR)
    assert found[0] is PRIOR
    assert [(one.keyword_weight, one.token_weight) for one in found[1:]] == [
        *((0.25, 2.0), (1.0, 2.0), (2.0, 2.0)),
        *((0.5, 0.0), (0.5, 1.0), (0.5, 3.0)),
    ]
    assert len({one.name for one in found}) == len(found)
    assert [one.token_depth for one in found] == [40, 40, 40, 40, 0, 40, 40]
    assert weightings(Engine("plain", keyword_weight=0.0)) == [Engine("plain", keyword_weight=0.0)]
    assert len(weightings(Engine("fused", fusion="rrf"))) == 1


@pytest.mark.parametrize("place", range(1, 7))
def test_the_same_gain_convinces_when_many_questions_show_it(place: int) -> None:
    engines = weightings(PRIOR)
    few, many = (preferred(engines, scores(count, {place: 0.01})) for count in (20, 2000))
    assert few is engines[0]
    assert many is engines[place]


def test_the_gain_that_is_asked_for_grows_with_the_way_and_falls_with_the_questions() -> None:
    engines = weightings(PRIOR)
    for count in (20, 50, 200):
        for place, lost in ((2, 0.004 * math.log(2) ** 2), (3, 0.004 * math.log(4) ** 2), (5, 0.008 / 4)):
            enough = lost * (count + 100) / count
            assert preferred(engines, scores(count, {place: enough * 0.98})) is engines[0]
            assert preferred(engines, scores(count, {place: enough * 1.02})) is engines[place]


def asked(corpus: ArrayCorpus, texts: list[str], own: list[int], ids: list[str]) -> Questions:
    relevant = [{ids[corpus.documents[row]]: 1} for row in own]
    count = len(texts)
    names = [f"q{n}" for n in range(count)]
    return Questions("judged", names, texts, ["yours"] * count, ["dev"] * count, list(relevant), [], False)


def test_judged_questions_that_keywords_answer_raise_their_weight(bench: Any) -> None:
    """A model of random weights finds nothing; crops of the passages are found by their words."""
    corpus = ArrayCorpus.load(bench.path("encoded"), bench.path("keyword"))
    ids = pq.read_table(bench.path("documents.parquet"))["id"].to_pylist()
    passages = pq.read_table(bench.path("passages.parquet"))["text"].to_pylist()
    own = list(range(0, corpus.count, 2))
    texts = [" ".join(passages[row].split()[:6]) for row in own]
    questions = asked(corpus, texts, own, ids)
    encoder = load_encoder(bench.settings.model)
    prior = Engine("untuned engine", keyword_weight=0.02)
    taken, (note,) = weigh(prior, corpus, encoder, questions, ids)
    assert taken == Engine("untuned engine", keyword_weight=0.08)
    assert note.startswith(f"{len(own)} judged dev questions prefer to weigh keywords by 0.08")

    def mean(engine: Engine) -> float:
        """By plain products over all passages."""
        dense = encoder.encode_queries(texts) @ corpus.passages.T
        sentences = encoder.encode_queries(texts) @ np.asarray(corpus.sentences).T
        best = np.maximum.reduceat(sentences, corpus.offsets[:-1], axis=1)
        found = (dense + best) / 2 + engine.keyword_weight * corpus.keyword.scores(texts).toarray()
        rows = np.argsort(-np.rint(found * 1e6), axis=1, kind="stable")
        ranked = [list(dict.fromkeys(ids[corpus.documents[row]] for row in line)) for line in rows]
        every = [
            score_ranking(line, judged, ("ndcg@10",))["ndcg@10"]
            for line, judged in zip(ranked, questions.relevant, strict=True)
        ]
        return float(np.mean(every))

    assert f"(nDCG@10 {mean(prior):.4f} -> {mean(taken):.4f})" in note
    assert mean(taken) > mean(prior)

    few = questions.without(range(19, len(own)))
    assert weigh(prior, corpus, encoder, few, ids) == (prior, ())
    # Whole passages are found by either leg: no weight does better.
    texts, high = [passages[row] for row in own], Engine("untuned engine", keyword_weight=1.0)
    same, (note,) = weigh(high, corpus, encoder, asked(corpus, texts, own, ids), ids)
    assert same is high
    assert note.endswith("nothing against the prior: weigh keywords by 1 and words by 0.")


def test_generated_questions_do_not_weigh(bench: Any) -> None:
    corpus = ArrayCorpus.load(bench.path("encoded"), bench.path("keyword"))
    questions = Questions("generated", ["q"], ["roses"], ["crop"], ["dev"], [{"garden-0": 1}], [])
    prior = Engine("untuned engine", keyword_weight=0.02)
    assert weigh(prior, corpus, load_encoder(bench.settings.model), questions, []) == (prior, ())


def test_the_fit_begins_from_what_the_users_questions_prefer(bench: Any, tmp_path: Path) -> None:
    documents = pq.read_table(bench.path("documents.parquet")).to_pylist()
    rows = [
        {
            "query_id": f"u{n}",
            "query": " ".join(one["text"].split()[:6]),
            "document_id": one["id"],
            "score": 1,
        }
        for n, one in enumerate(documents)
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sections = next(stage.sections for stage in STAGES if stage.name == "evaluate")
    kept = {}
    for adapt in (True, False):
        values = {"queries.file": str(file), "engine.adapt": adapt, "engine.keyword_weight": 0.02}
        values |= {"engine.blend_weight": 0.02, "engine.token_weight": 0.0}
        settings = load_settings(base=bench.settings, values=values).only(*sections)
        result = evaluate.run(settings, bench.inputs("evaluate"), Tools(tmp_path / str(adapt)))
        systems = json.loads((tmp_path / str(adapt) / "evaluation" / "systems.json").read_text())["systems"]
        weights = {row["engine"]["keyword_weight"] for row in systems if row["kind"] == "candidate"}
        assert len(weights) == 1  # tuned engines weigh as the untuned one
        kept[adapt] = weights.pop()
        assert any("judged dev questions prefer" in note for note in result.notes) == adapt
    assert kept[False] == 0.02
    assert kept[True] > 0.02
