"""Means and intervals, in NumPy.

All intervals are two-sided. Aggregates over tasks or seeds use the percentile bootstrap (Efron 1979) with a fixed
seed; the mean of one policy's episodes uses Student's t; shares of trajectories use the exact binomial interval.
Aggregates over runs and tasks are in `aggregates.py`.
"""

import functools
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000


def bootstrap(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of independent `values[...]`.

    One value alone gives no interval: both ends are NaN then.
    """
    sample = np.asarray(values, float).ravel()
    if sample.size < 2:
        return math.nan, math.nan
    chosen = np.random.default_rng(seed).integers(0, sample.size, (resamples, sample.size))
    tail = 50 * (1 - confidence)
    low, high = np.percentile(sample[chosen].mean(axis=1), [tail, 100 - tail])
    return float(low), float(high)


def bootstrap_columns(values: ArrayLike, *, confidence: float = 0.95, seed: int = 0) -> tuple[NDArray, NDArray]:
    """Bootstrap intervals of the means over the last axis of `[rows, sample]`: ends `[rows]`.

    All rows share their resamples, as the rows of one table should: the same tasks are drawn for each.
    """
    table = np.asarray(values, float)
    size = table.shape[-1]
    if size < 2:
        return np.full(table.shape[:-1], np.nan), np.full(table.shape[:-1], np.nan)
    chosen = np.random.default_rng(seed).integers(0, size, (RESAMPLES, size))
    # A resample's mean is a weighted mean: how often each value was drawn, over the size.
    weights = np.stack([np.bincount(row, minlength=size) for row in chosen]) / size
    tail = 50 * (1 - confidence)
    low, high = np.percentile(table @ weights.T, [tail, 100 - tail], axis=-1)
    return low, high


def bootstrap_nested(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> tuple[NDArray, NDArray]:
    """Bootstrap intervals of the means of `[rows, groups, members]`: ends `[rows]`.

    Groups (training seeds) are resampled, and members (test tasks) within each drawn group, as tasks of one trained
    policy are not independent of one another. With a single group only its members are resampled.
    """
    table = np.asarray(values, float)
    groups, members = table.shape[-2:]
    if groups * members < 2:
        return np.full(table.shape[:-2], np.nan), np.full(table.shape[:-2], np.nan)
    random = np.random.default_rng(seed)
    chosen = random.integers(0, groups, (resamples, groups, 1)) * members
    chosen = (chosen + random.integers(0, members, (resamples, groups, members))).reshape(resamples, -1)
    weights = np.stack([np.bincount(row, minlength=groups * members) for row in chosen]) / (groups * members)
    tail = 50 * (1 - confidence)
    flat = table.reshape(*table.shape[:-2], groups * members)
    low, high = np.percentile(flat @ weights.T, [tail, 100 - tail], axis=-1)
    return low, high


def mean_interval(values: ArrayLike, axis: int = -1, confidence: float = 0.95) -> tuple[NDArray, NDArray, NDArray]:
    """Mean of `values[...]` along `axis`, and Student's t interval `mean -+ t s / sqrt(n)`; NaN for a single value."""
    sample = np.asarray(values, float)
    size = sample.shape[axis]
    mean = sample.mean(axis)
    if size < 2:
        unknown = np.full_like(mean, np.nan)
        return mean, unknown, unknown
    half = student_quantile(0.5 + confidence / 2, size - 1) * sample.std(axis, ddof=1) / math.sqrt(size)
    return mean, mean - half, mean + half


def binomial_interval(count: int, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of a probability after `count` successes in `of` independent trials (Clopper and Pearson 1934).

    Its ends are the probabilities under which as many successes or more, and as many or fewer, have a chance of
    `(1 - confidence) / 2` each: quantiles of Beta(count, of - count + 1) and Beta(count + 1, of - count).
    """
    from scipy.special import betaincinv

    if not 0 <= count <= of or of < 1:
        raise ValueError(f"successes must be between 0 and the number of trials, at least 1, not {count} of {of}")
    tail = (1 - confidence) / 2
    low = 0.0 if count == 0 else float(betaincinv(count, of - count + 1, tail))
    high = 1.0 if count == of else float(betaincinv(count + 1, of - count, 1 - tail))
    return low, high


@functools.lru_cache(maxsize=256)
def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution for a whole number of degrees of freedom, by bisection."""
    if not 0.5 <= probability < 1 or freedom < 1:
        raise ValueError("the probability must lie in [0.5, 1) and the degrees of freedom be at least 1")
    low, high = 0.0, 1.0
    while _student_distribution(high, freedom) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_distribution(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _student_distribution(t: float, freedom: int) -> float:
    """P(T <= t) for t >= 0: the finite series of Abramowitz and Stegun, 26.7.3 (odd) and 26.7.4 (even)."""
    angle = math.atan2(t, math.sqrt(freedom))
    cos = math.cos(angle)
    odd = freedom % 2 == 1
    term = total = (cos if freedom > 1 else 0.0) if odd else 1.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= (k - 1) / k * cos * cos
        total += term
    both_sides = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return 0.5 + both_sides / 2
