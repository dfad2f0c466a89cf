"""Few runs on several tasks, summed up with their uncertainty, after Agarwal et al. (NeurIPS 2021, "rliable").

Scores are `[runs, tasks]`: one number for each training seed and task, comparable over tasks (normalise them first).
Intervals are 95 % percentile intervals of the stratified bootstrap: the runs of each task are resampled with
replacement, each task for itself. With a single run there is no interval: its ends are NaN.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safemeta.experiment.statistics import binomial_interval

RESAMPLES = 2_000
AT_ONCE = 2**22  # numbers that are resampled in one go: bounds memory


@dataclass(frozen=True)
class Estimate:
    """A number with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Band:
    """A curve over `x` with a pointwise interval."""

    x: NDArray
    value: NDArray
    low: NDArray
    high: NDArray


def aggregate(
    scores: ArrayLike,
    statistic: str = "iqm",
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """The mean of all scores, the median over tasks of their means over runs, or the mean of all scores' middle half.

    The interquartile mean ("iqm") drops a quarter of the `runs * tasks` scores at each end, the number rounded down.
    Raises `ValueError` on scores that are not `[runs, tasks]` or not finite, and on another statistic.
    """
    if statistic not in STATISTICS:
        raise ValueError(f"statistic must be one of {', '.join(STATISTICS)}, not {statistic!r}")
    table, found = _checked(scores), STATISTICS[statistic]
    return _estimate(found(table[None])[0], _resampled(found, [table], resamples, seed), confidence)


def probability_of_improvement(
    scores: ArrayLike, others: ArrayLike, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """How likely a run is better than another one's on a task drawn at random: P(X > Y) + P(X = Y) / 2.

    The mean over tasks of the Mann-Whitney statistic over all pairs of runs. `scores[runs, tasks]` and `others` have
    the same tasks, but not necessarily as many runs.
    """
    table, against = _checked(scores), _checked(others)
    if table.shape[1] != against.shape[1]:
        raise ValueError(f"both need the same tasks, not {table.shape[1]} and {against.shape[1]}")

    def better(x: NDArray, y: NDArray) -> NDArray:
        difference = x[:, :, None] - y[:, None]
        return np.mean((difference > 0) + 0.5 * (difference == 0), axis=(1, 2, 3))

    return _estimate(
        better(table[None], against[None])[0], _resampled(better, [table, against], resamples, seed), confidence
    )


def performance_profile(
    scores: ArrayLike, thresholds: ArrayLike, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Band:
    """The share of all `scores[runs, tasks]` that are above each of `thresholds[levels]`."""
    table, levels = _checked(scores), np.asarray(thresholds, float)

    def above(x: NDArray) -> NDArray:
        return np.stack([(x > level).mean((1, 2)) for level in levels], axis=1)

    drawn = _resampled(above, [table], resamples, seed)
    return Band(levels, above(table[None])[0], *_ends(drawn, confidence))


def exceedance(costs: ArrayLike, limits: ArrayLike, *, confidence: float = 0.95) -> Estimate:
    """The probability that a limit is exceeded, with its exact (Clopper-Pearson) interval.

    `costs[...]` and `limits[...]` are broadcast against each other; each number counts as one independent trial, so
    that they should be costs of independently drawn tasks or of independent trainings, not of the policies along one
    adaptation.
    """
    above = np.asarray(costs, float) > np.asarray(limits, float)
    if above.size == 0 or not np.isfinite(np.asarray(costs, float)).all():
        raise ValueError("costs must be finite numbers, at least one of them")
    count = int(above.sum())
    return Estimate(count / above.size, *binomial_interval(count, above.size, confidence))


@dataclass(frozen=True)
class Anytime:
    """Safety of all policies that were used up to each step of adaptation.

    `share` is the share of policies used so far that broke a limit (mean over tasks); `tasks` the share of tasks on
    which any has, with its exact interval; `worst` the largest cost so far relative to its limit, minus 1 (with a limit
    of zero: the cost).
    """

    share: NDArray
    tasks: Band
    worst: NDArray


def anytime(costs: ArrayLike, limits: ArrayLike, *, confidence: float = 0.95) -> Anytime:
    """Of the mean costs `[steps, tasks, costs]` of each policy and the limits `[tasks, costs]`."""
    table, bounds = np.asarray(costs, float), np.asarray(limits, float)
    if table.ndim != 3 or bounds.shape != table.shape[1:] or table.size == 0:
        raise ValueError(
            f"costs must be [steps, tasks, costs] and limits [tasks, costs], not {table.shape}, {bounds.shape}"
        )
    steps, tasks, _ = table.shape
    broke = (table > bounds).any(2)
    used = np.arange(1, steps + 1)
    ever = np.logical_or.accumulate(broke, axis=0).sum(1)
    low, high = np.transpose([binomial_interval(int(count), tasks, confidence) for count in ever])
    scale = np.where(bounds > 0, bounds, 1.0)
    worst = np.maximum.accumulate(((table - bounds) / scale).max((1, 2)))
    return Anytime(
        np.cumsum(broke.mean(1)) / used, Band(np.arange(steps), ever / tasks, np.asarray(low), np.asarray(high)), worst
    )


def _checked(scores: ArrayLike) -> NDArray:
    table = np.asarray(scores, float)
    if table.ndim != 2 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError(f"scores must be finite numbers [runs, tasks], not of shape {table.shape}")
    return table


def _mean(x: NDArray) -> NDArray:
    return x.mean((1, 2))


def _median(x: NDArray) -> NDArray:
    return np.median(x.mean(1), axis=1)


def _interquartile(x: NDArray) -> NDArray:
    flat = np.sort(x.reshape(len(x), -1), axis=1)
    dropped = int(0.25 * flat.shape[1])
    return flat[:, dropped : flat.shape[1] - dropped].mean(1)


# Of tables `[resamples, runs, tasks]`.
STATISTICS: dict[str, Callable[[NDArray], NDArray]] = {"mean": _mean, "median": _median, "iqm": _interquartile}


def _resampled(statistic: Callable[..., NDArray], tables: list[NDArray], resamples: int, seed: int) -> NDArray:
    """`statistic` of tables `[resamples, runs, tasks]` whose runs were drawn anew on each task: `[resamples, ...]`."""
    if min(len(table) for table in tables) < 2:
        return np.full((1, *np.shape(statistic(*(table[None] for table in tables)))[1:]), np.nan)
    random = np.random.default_rng(seed)
    pairs = math.prod(len(table) for table in tables) * tables[0].shape[1]
    found, part = [], max(1, AT_ONCE // pairs)
    for start in range(0, resamples, part):
        count = min(part, resamples - start)
        drawn = [
            np.take_along_axis(table[None], random.integers(0, len(table), (count, *table.shape)), axis=1)
            for table in tables
        ]
        found.append(statistic(*drawn))
    return np.concatenate(found)


def _ends(drawn: NDArray, confidence: float) -> tuple[Any, Any]:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    tail = 50 * (1 - confidence)
    low, high = np.percentile(drawn, [tail, 100 - tail], axis=0)
    return low, high


def _estimate(value: float, drawn: NDArray, confidence: float) -> Estimate:
    low, high = _ends(drawn, confidence)
    return Estimate(float(value), float(low), float(high))
