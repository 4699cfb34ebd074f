"""Statistics of scores: intervals over prompts, pass@k, and paired comparisons of two models.

Everything is resampled by prompt, never by answer: answers to one prompt share its difficulty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

#: Share of repetitions in which an interval contains the true mean.
LEVEL = 0.95
#: Resamples of an interval, and sign flips of a test.
DRAWS = 4000
#: Up to this number of prompts with a difference, all sign flips are enumerated instead of drawn.
_COUNTED = 12


@dataclass(frozen=True)
class Interval:
    """A mean over prompts and its confidence interval."""

    mean: float
    low: float
    high: float

    def as_data(self) -> dict[str, float | None]:
        """Return mean, low and high by name; None for a bound that one value alone does not give."""
        found = {"mean": self.mean, "low": self.low, "high": self.high}
        return {name: value if math.isfinite(value) else None for name, value in found.items()}


def mean_interval(values: list[float], seed: int = 0) -> Interval:
    """Return the mean of one value a prompt, with its interval.

    Values that are all 0 or 1 get Wilson's score interval (Wilson 1927), which stays valid when all are right; any
    others the bootstrap-t (Efron and Tibshirani 1993, chapter 12.5), which follows the skew of rewards.
    """
    found = np.asarray(values, dtype=np.float64)  # (P,)
    if np.isin(found, (0.0, 1.0)).all():
        return Interval(float(found.mean()), *_wilson(float(found.mean()), len(found)))
    return _bootstrap(found, seed)


def _bootstrap(values: np.ndarray, seed: int) -> Interval:
    """Return the bootstrap-t interval of the mean of ``values`` ``(P,)``; from minus to plus infinity for one value."""
    mean, count = float(values.mean()), len(values)
    if count == 1:
        return Interval(mean, -math.inf, math.inf)
    error = float(values.std(ddof=1)) / math.sqrt(count)
    if error == 0:
        return Interval(mean, mean, mean)
    random = np.random.default_rng(seed)
    step, ratios = max(1, 2_000_000 // count), []
    for start in range(0, DRAWS, step):  # some million numbers at a time
        drawn = values[random.integers(0, count, (min(step, DRAWS - start), count))]  # (d, P)
        errors = drawn.std(axis=1, ddof=1) / math.sqrt(count)
        # a resample of equal values has no spread; a tenth of the sample's standard error keeps it finite
        ratios.append((drawn.mean(axis=1) - mean) / np.maximum(errors, error / 10))
    low, high = np.quantile(np.concatenate(ratios), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, mean - float(high) * error, mean - float(low) * error)


def _wilson(share: float, count: int) -> tuple[float, float]:
    z = 1.959963984540054  # of the normal distribution at 0.975
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Return the unbiased estimate of the chance that one of ``k`` answers is right, from ``right`` of ``samples``.

    1 - C(n - c, k) / C(n, k): Chen et al. 2021, arXiv:2107.03374, equation 1. Raises ValueError for k above samples.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k is {k}, expected 1 to the number of samples, {samples}.")
    if samples - right < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(samples - right + 1, samples + 1))


@dataclass(frozen=True)
class Comparison:
    """Two models on the same prompts: the difference of their scores, first minus second."""

    difference: Interval
    p_value: float
    """Two-sided, of the sign-flip test: how often chance alone gives a difference as large."""
    wins: int
    ties: int
    losses: int

    def as_data(self) -> dict[str, float | None]:
        """Return all fields by name."""
        counts = {"wins": self.wins, "ties": self.ties, "losses": self.losses}
        return {**self.difference.as_data(), "p_value": self.p_value, **counts}


def compare_paired(first: list[float], second: list[float], seed: int = 0) -> Comparison:
    """Compare two models that answered the same prompts, one value a prompt of each. Raises ValueError."""
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} values and {len(second)}, expected one of each model for every prompt.")
    gaps = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)  # (P,)
    counts = [int((gaps > 0).sum()), int((gaps == 0).sum()), int((gaps < 0).sum())]
    return Comparison(_bootstrap(gaps, seed), _sign_flips(gaps, seed), *counts)


def _sign_flips(gaps: np.ndarray, seed: int) -> float:
    """Return the two-sided p-value of the paired permutation test, which flips the signs of prompts' differences."""
    gaps = gaps[gaps != 0]
    if not len(gaps):
        return 1.0
    seen = abs(gaps.sum()) * (1 - 1e-12)
    if len(gaps) <= _COUNTED:
        bits = (np.arange(2 ** len(gaps))[:, None] >> np.arange(len(gaps))) & 1  # (2^n, n)
        return float((np.abs((1 - 2 * bits) @ gaps) >= seen).mean())
    random = np.random.default_rng(seed)
    step = max(1, 2_000_000 // len(gaps))
    hits = sum(
        int((np.abs(random.choice((-1.0, 1.0), (min(step, DRAWS - at), len(gaps))) @ gaps) >= seen).sum())
        for at in range(0, DRAWS, step)
    )
    return (hits + 1) / (DRAWS + 1)
