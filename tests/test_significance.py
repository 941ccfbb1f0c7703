from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from searchfit import significance
from searchfit.significance import bootstrap_interval, compare, holm, paired_randomization


def exact_p(a: np.ndarray, b: np.ndarray) -> float:
    """scipy's own exact sign-flip test."""
    result = stats.permutation_test(
        (b, a),
        lambda x, y, axis: (x - y).mean(axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    return float(result.pvalue)


@pytest.mark.parametrize("seed", range(12))
def test_exact_p_equals_scipy(seed: int) -> None:
    random = np.random.default_rng(seed)
    n = 2 + seed % 8
    a = random.integers(0, 4, n) / 3  # coarse values, so that many sums tie
    b = random.integers(0, 4, n) / 3
    b[0] += 0.1
    assert paired_randomization(a, b, 100, seed) == pytest.approx(exact_p(a, b), abs=1e-12)


def test_sampled_p_is_near_the_exact_one() -> None:
    random = np.random.default_rng(3)
    a, b = random.random(14), random.random(14) + 0.2
    assert paired_randomization(a, b, 20_000, 1) == pytest.approx(exact_p(a, b), abs=0.01)


def test_p_is_never_zero_and_repeats_by_seed() -> None:
    a, b = np.zeros(50), np.linspace(0.1, 0.2, 50)
    assert paired_randomization(a, b, 999, 5) == 1 / 1000
    noise = np.random.default_rng(0).normal(0.02, 0.1, 50)
    p = paired_randomization(a, noise, 999, 5)
    assert p == paired_randomization(a, noise, 999, 5) == paired_randomization(noise, a, 999, 5)
    assert p != paired_randomization(a, noise, 999, 6)


def test_equal_queries_change_nothing() -> None:
    a, b = np.array([0.1, 0.5, 0.2]), np.array([0.4, 0.9, 0.1])
    same = np.full(1000, 0.7)
    padded = paired_randomization(np.r_[a, same], np.r_[b, same], 100, 0)
    assert padded == paired_randomization(a, b, 100, 0) == exact_p(a, b)


def test_false_alarms_come_at_their_rate() -> None:
    random = np.random.default_rng(11)
    draws = random.normal(0, 1, (300, 30))
    alarms = np.mean(
        [paired_randomization(np.zeros(30), row, 400, seed) <= 0.1 for seed, row in enumerate(draws)]
    )
    assert stats.binomtest(int(alarms * 300), 300, 0.1).pvalue > 0.001


def test_interval_covers_the_mean_at_its_rate() -> None:
    random = np.random.default_rng(7)
    draws = random.exponential(0.1, (300, 80))
    bounds = [bootstrap_interval(row, samples=400, seed=seed) for seed, row in enumerate(draws)]
    covered = sum(low <= 0.1 <= high for low, high in bounds)
    assert 0.89 <= covered / 300 <= 0.98


def test_interval_equals_scipy() -> None:
    values = np.random.default_rng(2).normal(0.05, 0.2, 200)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert bootstrap_interval(values, samples=20_000, seed=1) == pytest.approx(tuple(theirs), abs=0.002)


def test_interval_widens_with_the_level() -> None:
    values = np.random.default_rng(2).normal(0.05, 0.2, 100)
    low, high = bootstrap_interval(values, level=0.5)
    wide_low, wide_high = bootstrap_interval(values, level=0.99)
    assert wide_low < low < values.mean() < high < wide_high


def test_blocks_cover_every_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "_BLOCK", 64)
    assert list(significance._blocks(10, 20)) == [3, 3, 3, 1]
    assert list(significance._blocks(2, 1000)) == [1, 1]
    a, b = np.zeros(20), np.ones(20)
    assert paired_randomization(a, b, 99, 0) == 0.01
    assert bootstrap_interval(b, samples=7) == (1.0, 1.0)


def test_compare_counts_and_means() -> None:
    result = compare([0.0, 0.5, 1.0, 0.3], [1.0, 0.5, 0.8, 0.1 + 0.2], permutations=100, samples=100, seed=0)
    assert (result.wins, result.ties, result.losses, result.n) == (1, 2, 1, 4)
    assert (result.mean_a, result.mean_b, result.gain) == pytest.approx((0.45, 0.65, 0.2))
    assert result.low <= result.gain <= result.high
    assert result.p == exact_p(np.array([0.0, 1.0]), np.array([1.0, 0.8]))
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["gain"] == result.gain


def test_nothing_to_compare() -> None:
    result = compare([], [], 100, 100, 0)
    assert (result.n, result.p, result.wins) == (0, 1.0, 0)
    assert math.isnan(result.gain)
    assert not result.low > 0
    assert result.to_dict()["gain"] is None
    assert result.to_dict()["high"] is None


def test_one_query_proves_nothing() -> None:
    result = compare([0.0], [1.0], 100, 100, 0)
    assert (result.gain, result.p, result.wins) == (1.0, 1.0, 1)
    assert math.isnan(result.low)


def test_equal_systems() -> None:
    result = compare([0.3] * 40, [0.3] * 40, 100, 100, 0)
    assert (result.gain, result.p, result.low, result.high, result.ties) == (0.0, 1.0, 0.0, 0.0, 40)


@pytest.mark.parametrize(("a", "b"), [([0.1], [0.1, 0.2]), ([math.nan], [0.1]), ([0.1], [math.inf])])
def test_misuse_is_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match=r"same queries|finite"):
        compare(a, b, 100, 100, 0)


def test_holm_by_hand() -> None:
    # Sorted: .005 x 4, .01 x 3, .03 x 2, .04 x 1 which may not fall below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.4]) == pytest.approx([0.9, 0.8])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@pytest.mark.parametrize("seed", range(20))
def test_holm_lies_between_the_raw_values_and_bonferroni(seed: int) -> None:
    random = np.random.default_rng(seed)
    raw = random.random(1 + seed % 7) ** 3
    found = np.array(holm(raw.tolist()))
    assert (found >= raw).all()
    assert (found <= np.minimum(1, raw * len(raw))).all()
    order = np.argsort(raw)
    assert (np.diff(found[order]) >= 0).all()
    assert found[order[0]] == pytest.approx(min(1, raw.min() * len(raw)))
    shuffled = random.permutation(len(raw))
    assert holm(raw[shuffled].tolist()) == found[shuffled].tolist()


def test_holm_rejects_what_the_steps_reject() -> None:
    random = np.random.default_rng(1)
    for raw in random.random((50, 5)) * 0.06:
        rejected = set()
        for step, row in enumerate(np.argsort(raw)):  # the procedure as it is published
            if raw[row] > 0.05 / (5 - step):
                break
            rejected.add(int(row))
        assert {row for row, p in enumerate(holm(raw.tolist())) if p <= 0.05} == rejected


def test_detectable_gain_equals_scipy_s_power() -> None:
    """A z test at 5% finds a gain of that size four times of five."""
    differences = np.random.default_rng(1).normal(0.01, 0.3, 400)
    gain = significance.detectable_gain(differences)
    error = differences.std(ddof=1) / 20
    border = stats.norm.ppf(0.975) * error
    assert stats.norm.sf(border, gain, error) == pytest.approx(0.8)
    assert compare(np.zeros(400), differences, 100, 100, 0).detectable == pytest.approx(gain)
    assert math.isnan(significance.detectable_gain([0.1]))
    assert significance.detectable_gain([0.1, 0.1, 0.1]) == pytest.approx(0)


def test_gains_of_that_size_are_found_four_times_of_five() -> None:
    """By simulation, with the randomization test itself: 400 comparisons of 60 queries."""
    random = np.random.default_rng(5)
    gain = (1.959964 + 0.841621) * 0.2 / math.sqrt(60)
    draws = random.normal(gain, 0.2, (400, 60))
    found = np.mean([
        paired_randomization(np.zeros(60), row, 300, seed) <= 0.05 for seed, row in enumerate(draws)
    ])  # fmt: skip
    assert 0.74 <= found <= 0.86


def equal_systems(comparisons: int) -> np.ndarray:
    """nDCG-like scores of two equal systems on 50 queries: many ties, zeros and ones."""
    random = np.random.default_rng(21)
    shape = (comparisons, 50)
    hardness = random.beta(0.6, 0.6, (comparisons, 50))
    one, other = (np.round(np.clip(hardness + random.normal(0, 0.2, shape), 0, 1), 1) for _ in range(2))
    return np.stack([one, other])


@pytest.mark.parametrize(
    ("comparisons", "permutations"),
    [(1000, 199), pytest.param(1000, 10_000, marks=pytest.mark.slow)],
)
def test_one_comparison_of_twenty_is_a_false_alarm(comparisons: int, permutations: int) -> None:
    one, other = equal_systems(comparisons)
    ps = [
        paired_randomization(a, b, permutations, seed)
        for seed, (a, b) in enumerate(zip(one, other, strict=True))
    ]
    assert np.mean(np.array(ps) <= 0.05) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize(
    ("comparisons", "samples"), [(1000, 400), pytest.param(2000, 2000, marks=pytest.mark.slow)]
)
def test_intervals_cover_the_true_gain(comparisons: int, samples: int) -> None:
    one, other = equal_systems(comparisons)
    bounds = [
        bootstrap_interval(b - a, samples=samples, seed=seed)
        for seed, (a, b) in enumerate(zip(one, other, strict=True))
    ]
    covered = np.mean([low <= 0 <= high for low, high in bounds])
    assert covered == pytest.approx(0.95, abs=0.02)
