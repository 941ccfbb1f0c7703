from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from searchfit.config import load_settings
from searchfit.encoders import load_encoder
from searchfit.encoders.corpus import Encoding
from searchfit.encoders.trained import Trained
from searchfit.prior import systems as engines
from searchfit.prior import untuned_engine
from searchfit.records import Engine
from searchfit.stages import Tools, choose
from searchfit.trust import Trust
from searchfit.writing import write_json, write_table

DENSE = "tuned dense, engine's units"
TEXTS = ["the rose and the soil", "anchor", "a violin sonata"]


class Contest:
    """What the evaluate stage leaves, with scores of our own."""

    def __init__(
        self,
        bench: Any,
        folder: Path,
        dev: int = 40,
        test: int = 40,
        trained: bool = True,
        questions: str = "judged",
        reranker: str = "",
        towers: str = "query",
        words: bool = True,
    ) -> None:
        self.folder, self.bench, self.questions = folder, bench, questions
        self.settings = load_settings(
            base=bench.settings, values={"evaluate.merges": (0.5,), "rerank.model": reranker}
        )
        if not words:
            self.settings = load_settings(base=self.settings, values={"engine.token_weight": 0.0})
        self.splits = ["dev"] * dev + ["test"] * test
        rng = random.Random(1)
        noise = [rng.uniform(0.2, 0.7) for _ in self.splits]
        untuned = Encoding.load(bench.path("encoded"))
        self.engines = engines(
            self.settings,
            Trained(folder, towers if trained else ""),
            lambda _: untuned,
            Trust(),
            untuned_engine(self.settings.engine, untuned, Trust()),
        )
        self.scores = {engine.name: list(noise) for engine, _ in self.engines}
        self.unjudged = ["an open question"]
        self.towers: dict[str, float] = {"0.5": 2.0, "1": 2.0}

    def add(self, name: str, dev: float, test: float) -> None:
        """Raise a system by so much on each question, give or take."""
        rng = random.Random(name)
        for place, split in enumerate(self.splits):
            self.scores[name][place] += (dev if split == "dev" else test) * rng.uniform(0.5, 1.5)

    def _write(self) -> None:
        rows = []
        for engine, kind in self.engines:
            means = {}
            for split in ("dev", "test"):
                own = [
                    s
                    for s, there in zip(self.scores[engine.name], self.splits, strict=True)
                    if there == split
                ]
                means[split] = {"ndcg@10": float(np.mean(own))} if own else {}
            rows.append({"name": engine.name, "kind": kind, "engine": engine.to_dict(), **means})
        counts = {split: self.splits.count(split) for split in ("dev", "test")}
        kind = {
            "questions": self.questions,
            "counts": counts,
            "systems": rows,
            "unjudged": self.unjudged,
            "towers": self.towers,
        }
        write_json(self.folder / "evaluation" / "systems.json", kind)
        count = len(self.splits)
        table = {
            "query_id": [f"q{n}" for n in range(count)],
            "split": pa.array(self.splits, pa.string()),
            "text": [f"question {n}" for n in range(count)],
            "style": ["crop"] * count,
            "relevant": pa.array([["garden-0"]] * count, pa.list_(pa.string())),
            **self.scores,
        }
        write_table(self.folder / "evaluation" / "queries.parquet", pa.table(table))
        top = {
            engine.name: pa.array([[0, 1, -1]] * (count + 1), pa.list_(pa.int32()))
            for engine, _ in self.engines
        }
        write_table(self.folder / "evaluation" / "top.parquet", pa.table(top))

    def run(self) -> dict[str, Any]:
        self._write()
        inputs = {
            name: self.folder / name if name.startswith("evaluation/") else self.bench.folder / name
            for name in self.bench.inputs("choose")
        }
        settings = self.settings.only("choose", "rerank", "model", "seed")
        self.result = choose.run(settings, inputs, Tools(self.folder / "out"))
        found: dict[str, Any] = json.loads((self.folder / "out/evaluation/choice.json").read_text())
        return found


def tuned_model(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder / "out" / "models" / "tuned"), device="cpu")


def test_the_tuned_engine_is_taken_when_it_wins_for_sure(bench: Any, tmp_path: Path) -> None:
    contest = Contest(bench, tmp_path)
    contest.add("tuned 50% engine", dev=0.05, test=0.03)
    contest.add("tuned engine", dev=0.02, test=0.2)  # better on test: that must not count
    choice = contest.run()
    assert choice["system"] == "tuned 50% engine"
    assert choice["tuned"]
    assert Engine(**choice["chosen"]).query_tower == 0.5
    assert choice["dev"]["p"] < 0.05
    assert choice["dev"]["gain"] == pytest.approx(0.05, rel=0.2)
    scores = {name: np.array(values[40:]) for name, values in contest.scores.items()}
    for name, comparison in choice["test"].items():
        gain = scores["tuned 50% engine"].mean() - scores[name].mean()
        assert comparison["gain"] == pytest.approx(gain)
        assert comparison["low"] < gain < comparison["high"]
        assert comparison["n"] == 40
    assert set(choice["test"]) == {"untuned dense", "untuned blend", "untuned engine"}
    assert "p = " in choice["reason"]
    assert contest.result.notes == (choice["reason"],)

    from safetensors.torch import load_file

    weights = load_file(bench.path("models/trained") / "query_tower.safetensors")
    untuned = load_encoder(bench.settings.model)
    expected = untuned.with_towers(weights, None, 0.5)
    model = tuned_model(tmp_path)
    np.testing.assert_allclose(model.encode_query(TEXTS), expected.encode_queries(TEXTS), atol=2e-6)
    np.testing.assert_allclose(model.encode_document(TEXTS), untuned.encode_documents(TEXTS), atol=2e-6)
    assert np.abs(model.encode_query(TEXTS) - untuned.encode_queries(TEXTS)).max() > 1e-4


@pytest.mark.parametrize(("half", "chosen"), [(0.045, "tuned 50% engine"), (0.01, "tuned engine")])
def test_a_smaller_move_that_keeps_most_of_the_gain_is_preferred(
    bench: Any, tmp_path: Path, half: float, chosen: str
) -> None:
    contest = Contest(bench, tmp_path)
    contest.add("tuned 50% engine", dev=half, test=0)
    contest.add("tuned engine", dev=0.05, test=0)
    assert contest.run()["system"] == chosen


def by_chance(contest: Contest, name: str) -> None:
    for place in range(0, 80, 2):
        contest.scores[name][place] += 0.1
        contest.scores[name][place + 1] -= 0.098


def test_few_judged_questions_tell_by_the_dense_leg_where_the_engine_gains_too(
    bench: Any, tmp_path: Path
) -> None:
    contest = Contest(bench, tmp_path, questions="judged")
    by_chance(contest, "tuned engine")
    contest.add(DENSE, dev=0.1, test=0.1)
    choice = contest.run()
    assert choice["system"] == "tuned engine"
    assert choice["dev"]["after"] == DENSE


JUDGED = {
    "equal": lambda contest: contest.add("tuned engine", dev=0.0, test=0.3),
    "worse": lambda contest: contest.add("tuned engine", dev=-0.05, test=0.3),
    "better by chance": lambda contest: by_chance(contest, "tuned engine"),
    "only its dense leg is better": lambda contest: contest.add(DENSE, dev=0.1, test=0.1),
}
GENERATED = {
    "equal": lambda contest: contest.add(DENSE, dev=0.0, test=0.3),
    "worse": lambda contest: contest.add(DENSE, dev=-0.05, test=0.3),
    "better by chance": lambda contest: by_chance(contest, DENSE),
    "only the blend is better": lambda contest: contest.add("tuned engine", dev=0.1, test=0.1),
    "the blend is worse for sure": lambda contest: (
        contest.add(DENSE, dev=0.1, test=0.1),
        contest.add("tuned engine", dev=-0.05, test=0.1),
    ),
}


@pytest.mark.parametrize(
    ("kind", "case"),
    [("judged", case) for case in JUDGED] + [("generated", case) for case in GENERATED],
)
def test_the_untuned_engine_stays_when_nothing_beats_it_for_sure(
    bench: Any, tmp_path: Path, kind: str, case: str
) -> None:
    contest = Contest(bench, tmp_path, questions=kind)
    (JUDGED if kind == "judged" else GENERATED)[case](contest)
    choice = contest.run()
    assert choice["system"] == "untuned engine"
    assert not choice["tuned"]
    assert choice["chosen"]["query_tower"] == 0
    assert "was kept" in choice["reason"]
    assert "untuned engine" not in choice["test"]


def test_generated_questions_decide_by_the_dense_leg(bench: Any, tmp_path: Path) -> None:
    contest = Contest(bench, tmp_path, questions="generated")
    contest.add(DENSE, dev=0.1, test=0.06)
    by_chance(contest, "tuned engine")
    choice = contest.run()
    assert choice["system"] == "tuned engine"
    assert choice["dev"]["gain"] == pytest.approx(0.1, rel=0.2)
    assert choice["dense_leg"]["gain"] == pytest.approx(0.06, rel=0.2)


@pytest.mark.parametrize(
    ("kind", "towers", "wins"),
    [
        ("generated", {"0.5": 1.5, "1": 1.2}, "tuned 50% engine"),
        ("generated", {"0.5": 1.2, "1": 1.3}, "tuned engine"),
        ("generated", {"0.5": 1.15, "1": 1.2}, "untuned engine"),
        ("generated", {}, "untuned engine"),
        ("judged", {}, "tuned 50% engine"),
    ],
)
def test_generated_questions_alone_are_no_proof(
    bench: Any, tmp_path: Path, kind: str, towers: dict[str, float], wins: str
) -> None:
    for trained in ("shared", "query"):
        contest = Contest(bench, tmp_path / trained, questions=kind, towers=trained)
        contest.towers = towers
        for name in ("tuned 50%", "tuned"):
            contest.add(f"{name} dense, engine's units", dev=0.1, test=0.1)
            contest.add(f"{name} engine", dev=0.1, test=0.1)
        choice = contest.run()
        assert choice["system"] == wins
        if wins == "untuned engine":
            assert ("finds 1.20 times as well" if towers else "too few passages") in choice["reason"]
            assert "searchfit judge" in choice["reason"]


def test_generated_questions_are_enough_where_only_vectors_of_questions_change(
    bench: Any, tmp_path: Path
) -> None:
    contest = Contest(bench, tmp_path, questions="generated", words=False)
    contest.towers = {}
    contest.add(DENSE, dev=0.1, test=0.06)
    assert contest.run()["system"] == "tuned engine"


def test_an_untuned_choice_is_saved_as_the_untuned_model(bench: Any, tmp_path: Path) -> None:
    assert not Contest(bench, tmp_path).run()["tuned"]
    model, untuned = tuned_model(tmp_path), load_encoder(bench.settings.model)
    np.testing.assert_allclose(model.encode_query(TEXTS), untuned.encode_queries(TEXTS), atol=2e-6)
    np.testing.assert_allclose(model.encode_document(TEXTS), untuned.encode_documents(TEXTS), atol=2e-6)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"trained": False}, "Nothing was trained"),
        ({"dev": 0}, "no dev questions"),
        ({"dev": 0, "test": 0}, "no dev questions"),
    ],
)
def test_without_a_contest_the_untuned_engine_stays(
    bench: Any, tmp_path: Path, sizes: dict[str, Any], said: str
) -> None:
    contest = Contest(bench, tmp_path, **sizes)
    choice = contest.run()
    assert said in choice["reason"]
    assert choice["system"] == "untuned engine"
    assert choice["dev"] is None
    assert len(choice["test"]) == (0 if sizes.get("test") == 0 else 2)


def test_one_lucky_question_is_not_enough(bench: Any, tmp_path: Path) -> None:
    contest = Contest(bench, tmp_path, dev=1)
    contest.add("tuned engine", dev=0.5, test=0.5)
    assert contest.run()["system"] == "untuned engine"


@pytest.mark.parametrize("trained", [True, False])
def test_the_model_has_its_card(bench: Any, tmp_path: Path, trained: bool) -> None:
    """Read by the hub's own library; equal for equal models, and without a path of this machine."""
    from huggingface_hub import ModelCard

    contest = Contest(bench, tmp_path, trained=trained)
    if trained:
        contest.add("tuned engine", dev=0.2, test=0.2)
    choice = contest.run()
    assert choice["tuned"] is trained
    file = tmp_path / "out" / "models" / "tuned" / "README.md"
    first = file.read_text(encoding="utf-8")
    card = ModelCard.load(file)
    assert card.data.language == ["en"]
    assert card.data.library_name == "sentence-transformers"
    assert card.data.base_model is None  # a folder, not a model of the hub
    assert str(Path.home()) not in first
    assert str(bench.folder.parent) not in first
    (result,) = card.data.eval_results
    name = "tuned dense, engine's units" if trained else "untuned dense, engine's units"
    scores = np.array(contest.scores[name])[np.array(contest.splits) == "test"]
    assert (result.metric_type, result.metric_value) == ("ndcg@10", pytest.approx(scores.mean(), abs=1e-6))
    assert ("was chosen" if trained else "Not better") in card.content
    contest.run()
    assert file.read_text(encoding="utf-8") == first


def test_a_re_ranker_that_wins_for_sure_is_used_and_saved(
    bench: Any, tiny_reranker: Path, tmp_path: Path
) -> None:
    from sentence_transformers import CrossEncoder

    contest = Contest(bench, tmp_path, reranker=str(tiny_reranker))
    contest.add("tuned engine", dev=0.05, test=0.05)
    for name, gain in (
        ("untuned engine re-ranked, weight 2", 0.3),  # of an engine that is not chosen
        ("tuned engine re-ranked, weight 0.5", 0.06),
        ("tuned engine re-ranked, weight 2", 0.09),
    ):
        contest.add(name, dev=gain, test=gain)
    choice = contest.run()
    assert choice["system"] == "tuned engine re-ranked, weight 2"
    chosen = Engine(**choice["chosen"])
    assert (chosen.query_tower, chosen.reranker, chosen.rerank_depth, chosen.rerank_weight) == (
        1.0,
        "reranker",
        20,
        2.0,
    )
    assert choice["tuned"]
    assert choice["dense_leg"]["after"] == DENSE
    assert "is used" in choice["reranking"]
    assert contest.result.notes == (choice["reason"], choice["reranking"])
    saved = CrossEncoder(str(tmp_path / "out" / "models" / "reranker"), device="cpu")
    pairs = [("rose", text) for text in TEXTS]
    np.testing.assert_allclose(
        saved.predict(pairs), CrossEncoder(str(tiny_reranker), device="cpu").predict(pairs), atol=1e-6
    )


@pytest.mark.parametrize("dev", [-0.1, 0.0, 0.002])
def test_a_re_ranker_that_does_not_win_for_sure_is_not_used(
    bench: Any, tiny_reranker: Path, tmp_path: Path, dev: float
) -> None:
    contest = Contest(bench, tmp_path, trained=False, reranker=str(tiny_reranker))
    rng = random.Random(4)
    for weight in (0.5, 2):
        scores = contest.scores[f"untuned engine re-ranked, weight {weight:g}"]
        for place, split in enumerate(contest.splits):
            scores[place] += rng.uniform(-0.1, 0.1) + (dev if split == "dev" else 0.3)
    choice = contest.run()
    assert choice["system"] == "untuned engine"
    assert choice["chosen"]["reranker"] == ""
    assert "not used" in choice["reranking"]
    assert "untuned engine re-ranked" in choice["reranking"]
    assert list((tmp_path / "out" / "models" / "reranker").iterdir()) == []
