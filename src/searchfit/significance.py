"""Is one system better than another on the same queries? Paired tests on per-query differences.

The test is Fisher's randomization test, recommended for retrieval by Smucker, Allan and Carterette, "A
comparison of statistical significance tests for information retrieval evaluation", CIKM 2007. The interval
is the percentile bootstrap of the mean (Efron and Tibshirani, 1993, "An introduction to the bootstrap").
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from searchfit.config import Settings

Floats = NDArray[np.float64]

EXACT = 12
"""Up to this many differing queries, all 2**n sign patterns are counted instead of sampled."""

_BLOCK = 1 << 20  # random values held at once, so that memory does not grow with queries or samples
_EQUAL = 1e-12  # differences below this are rounding, far under what any ranking can make


@dataclass(frozen=True, slots=True)
class Comparison:
    """System b against system a over the same n queries: `gain` is mean_b - mean_a.

    `p` is two-sided, of the paired randomization test; `low` and `high` bound the 95% interval of the gain.
    `wins` counts the queries on which b is better. What n queries cannot tell is NaN: the means when n is 0,
    the interval when n is below 2. `detectable` is the smallest gain that so many queries would show in four
    cases of five, see `detectable_gain`: a smaller true one is easily missed.
    """

    mean_a: float
    mean_b: float
    gain: float
    p: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    n: int
    detectable: float = math.nan

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain values, for JSON: NaN, which JSON has not, becomes None."""
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}


def compare(
    a: Sequence[float] | Floats, b: Sequence[float] | Floats, permutations: int, samples: int, seed: int
) -> Comparison:
    """Compare per-query scores of two systems, in the same query order.

    Equal inputs and seeds give equal figures. Raises ValueError when they differ in length or hold a value
    that is not finite.
    """
    differences = _differences(a, b)
    low, high = bootstrap_interval(differences, samples=samples, seed=seed)
    mean_a, mean_b = _mean(a), _mean(b)
    return Comparison(
        mean_a=mean_a,
        mean_b=mean_b,
        gain=mean_b - mean_a,
        p=_sign_flip(differences, permutations, seed),
        low=low,
        high=high,
        wins=int((differences > 0).sum()),
        ties=int((differences == 0).sum()),
        losses=int((differences < 0).sum()),
        n=differences.size,
        detectable=detectable_gain(differences),
    )


def compare_by(settings: Settings, a: Sequence[float] | Floats, b: Sequence[float] | Floats) -> Comparison:
    """`compare` with the permutations, the samples and the seed of the settings."""
    return compare(a, b, settings.choose.permutations, settings.choose.bootstrap, settings.seed)


def detectable_gain(differences: Sequence[float] | Floats, power: float = 0.8, alpha: float = 0.05) -> float:
    """The mean difference that a two-sided test at `alpha` finds with probability `power`, given the spread
    of these per-query differences: (z[1 - alpha/2] + z[power]) * s / sqrt(n), by the normal approximation
    (Cohen 1988, "Statistical power analysis for the behavioral sciences"). NaN below two queries.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size < 2:
        return math.nan
    normal = NormalDist()
    reach = normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)
    return reach * float(values.std(ddof=1)) / math.sqrt(values.size)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for testing all of them, in the same order (Holm 1979, "A simple sequentially
    rejective multiple test procedure")."""
    corrected = [0.0] * len(p_values)
    most = 0.0
    for place, row in enumerate(sorted(range(len(p_values)), key=lambda row: p_values[row])):
        most = max(most, min(1.0, (len(p_values) - place) * p_values[row]))
        corrected[row] = most
    return corrected


def paired_randomization(
    a: Sequence[float] | Floats, b: Sequence[float] | Floats, permutations: int, seed: int
) -> float:
    """The two-sided p-value of the mean difference, under random exchange of the two systems by query.

    Up to `EXACT` differing queries every exchange is counted; above, p = (count + 1) / (permutations + 1), so
    it is never 0. Queries that are equal change nothing and are left aside; p is 1.0 when all are.
    Raises ValueError when a and b differ in length or hold a value that is not finite.
    """
    return _sign_flip(_differences(a, b), permutations, seed)


def bootstrap_interval(
    differences: Sequence[float] | Floats, level: float = 0.95, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of the per-query differences.

    (nan, nan) below two queries, from which no spread can be told. With few queries (under about 20) the
    interval is somewhat too narrow.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size < 2:
        return math.nan, math.nan
    random = np.random.default_rng(seed)
    draws = np.concatenate(
        [
            values[random.integers(0, values.size, (rows, values.size))].mean(axis=1)
            for rows in _blocks(samples, values.size)
        ]
    )
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _differences(a: Sequence[float] | Floats, b: Sequence[float] | Floats) -> Floats:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"the systems need scores of the same queries, got {first.shape} and {second.shape}")
    difference: Floats = second - first
    if not np.isfinite(difference).all():
        raise ValueError("a score is not finite")
    difference[np.abs(difference) < _EQUAL] = 0.0
    return difference


def _sign_flip(differences: Floats, permutations: int, seed: int) -> float:
    moved = differences[differences != 0]
    if not moved.size:
        return 1.0
    observed = moved.sum()
    # Sums that are equal in exact arithmetic must count as equal here too.
    threshold = abs(observed) - _EQUAL * np.abs(moved).sum()
    exact = moved.size <= EXACT
    masks = _all_masks(moved.size) if exact else _random_masks(moved.size, permutations, seed)
    extreme = sum(int((np.abs(observed - 2 * (mask @ moved)) >= threshold).sum()) for mask in masks)
    return extreme / 2**moved.size if exact else (extreme + 1) / (permutations + 1)


def _all_masks(n: int) -> Iterator[Floats]:
    yield (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(np.float64)


def _random_masks(n: int, permutations: int, seed: int) -> Iterator[Floats]:
    random = np.random.default_rng(seed)
    for rows in _blocks(permutations, n):
        bits = random.integers(0, 256, (rows, -(-n // 8)), dtype=np.uint8)
        yield np.unpackbits(bits, axis=1, count=n).astype(np.float64)


def _blocks(samples: int, width: int) -> Iterator[int]:
    rows = max(1, _BLOCK // width)
    for start in range(0, samples, rows):
        yield min(rows, samples - start)


def _mean(values: Sequence[float] | Floats) -> float:
    return float(np.mean(values)) if len(values) else math.nan
