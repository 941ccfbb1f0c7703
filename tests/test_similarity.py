"""Figures of labelled pairs, against scipy and sentence-transformers' own evaluators."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sentence_transformers.sentence_transformer.evaluation import BinaryClassificationEvaluator

from searchfit.similarity import log_scores, score_pairs


@pytest.mark.parametrize("seed", range(20))
def test_correlations_equal_scipy_s(seed: int) -> None:
    random = np.random.default_rng(seed)
    grades = random.integers(0, 4, 40) / 3
    scores = np.round(random.random(40) + 0.3 * grades, 1)  # many ties
    found = score_pairs(scores, grades)
    assert found["pearson"] == pytest.approx(stats.pearsonr(scores, grades).statistic, abs=1e-12)
    assert found["spearman"] == pytest.approx(stats.spearmanr(scores, grades).statistic, abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_thresholds_equal_sentence_transformers(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, 60)
    scores = random.random(60) + 0.4 * labels
    found = score_pairs(scores, labels)
    theirs = BinaryClassificationEvaluator
    accuracy, _ = theirs.find_best_acc_and_threshold(scores, labels, True)
    f1, precision, recall, _ = theirs.find_best_f1_and_threshold(scores, labels, True)
    assert (found["f1"], found["precision"], found["recall"]) == pytest.approx((f1, precision, recall))
    assert found["accuracy"] >= accuracy - 1e-12  # theirs never tells that all, or no, pairs answer
    said = scores >= found["accuracy_threshold"]
    assert (said == labels).mean() == pytest.approx(found["accuracy"])
    said = scores >= found["f1_threshold"]
    assert 2 * (said & (labels == 1)).sum() / (said.sum() + labels.sum()) == pytest.approx(found["f1"])


def test_average_precision_equals_a_plain_count_with_ties() -> None:
    found = score_pairs([0.9, 0.5, 0.5, 0.1], [1, 0, 1, 1])
    # Steps: 1 of 1, then 2 of 3 (the tie as one), then 3 of 4.
    assert found["average_precision"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_a_useless_model_says_that_nothing_answers() -> None:
    found = score_pairs([0.9, 0.8, 0.1, 0.2, 0.3], [0, 0, 0, 0, 1])
    assert found["accuracy"] == 0.8
    assert found["accuracy_threshold"] > 0.9


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0, 0]])
def test_labels_all_alike_tell_nothing(labels: list[int]) -> None:
    found = score_pairs([0.1, 0.2, 0.3], labels)
    assert all(math.isnan(value) for value in found.values())
    assert all(math.isnan(value) for value in score_pairs([], []).values())


def test_equal_similarities_have_no_correlation() -> None:
    found = score_pairs([0.5, 0.5], [0, 1])
    assert math.isnan(found["spearman"])
    assert found["f1"] == pytest.approx(2 / 3)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="same pairs"):
        score_pairs([0.5], [0, 1])
    with pytest.raises(ValueError, match="not finite"):
        score_pairs([0.5, float("nan")], [0, 1])


def test_the_log_goes_on_where_training_does(tmp_path: Path) -> None:
    """A run killed after step 20 and carried on from step 10 leaves one row a step."""
    file = tmp_path / "log.csv"
    for step, score in ((0, 0.1), (10, 0.2), (20, 0.3), (10, 0.25), (20, float("nan"))):
        log_scores(file, {"epoch": step / 10, "step": step}, {"spearman": score})
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert rows == [
        {"epoch": "0", "step": "0", "spearman": "0.1"},
        {"epoch": "1", "step": "10", "spearman": "0.25"},
        {"epoch": "2", "step": "20", "spearman": ""},
    ]
