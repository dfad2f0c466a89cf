"""Aggregates against plain loops, SciPy and cases that can be counted by hand."""

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap, mannwhitneyu, trim_mean

from safemeta.experiment.aggregates import (
    aggregate,
    anytime,
    exceedance,
    performance_profile,
    probability_of_improvement,
)

SCORES = np.random.default_rng(0).gamma(2.0, size=(5, 7))
OTHERS = np.random.default_rng(1).gamma(1.5, size=(4, 7))


def test_values_are_those_of_scipy():
    assert aggregate(SCORES, "iqm").value == pytest.approx(trim_mean(SCORES, 0.25, axis=None))
    assert aggregate(SCORES, "mean").value == pytest.approx(SCORES.mean())
    assert aggregate(SCORES, "median").value == pytest.approx(np.median(SCORES.mean(0)))
    pairs = [mannwhitneyu(SCORES[:, i], OTHERS[:, i]).statistic / (5 * 4) for i in range(7)]
    assert probability_of_improvement(SCORES, OTHERS).value == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 21])
def test_the_middle_half_of_any_number_of_scores(size):
    values = np.random.default_rng(size).normal(size=(1, size))
    assert aggregate(values, "iqm").value == pytest.approx(trim_mean(values[0], 0.25))


def test_the_interval_of_the_middle_half_is_scipys():
    """With one task, stratification changes nothing."""
    values = np.random.default_rng(1).exponential(size=25)
    middle = bootstrap((values,), lambda x, axis: trim_mean(x, 0.25, axis=axis), method="percentile", rng=2)
    found = aggregate(values[:, None], "iqm", resamples=10_000)
    width = found.high - found.low
    assert (found.low, found.high) == pytest.approx(middle.confidence_interval, abs=0.04 * width)


def test_ties_count_half():
    assert probability_of_improvement([[1.0], [2.0]], [[1.0], [3.0]]).value == (0.5 + 0 + 1 + 0) / 4


@pytest.mark.parametrize("statistic", ["mean", "median", "iqm"])
def test_intervals_are_those_of_all_resamples(statistic):
    """With two runs of two tasks there are only 16 resamples, all equally likely."""
    scores = np.array([[0.0, 10.0], [1.0, 13.0]])
    find = {
        "mean": np.mean,
        "median": lambda drawn: np.median(drawn.mean(0)),
        "iqm": lambda drawn: trim_mean(drawn, 0.25, axis=None),
    }[statistic]
    every = [
        find(np.stack([scores[list(first), 0], scores[list(second), 1]], axis=1))
        for first, second in itertools.product(itertools.product(range(2), repeat=2), repeat=2)
    ]
    found = aggregate(scores, statistic, confidence=0.8, resamples=20_000)  # no value's edge is near 10 or 90 %
    assert (found.low, found.high) == pytest.approx(np.quantile(every, [0.1, 0.9], method="inverted_cdf"), abs=0.3)
    assert min(every) <= found.low <= found.value <= found.high <= max(every)


def test_runs_are_resampled_on_each_task_for_itself():
    """Were whole runs drawn, the mean would be 0 or 10 in half of the resamples, and never 5 with such odds."""
    scores = np.array([[0.0] * 400, [10.0] * 400])
    found = aggregate(scores, "mean")
    assert 4.5 < found.low < 5 < found.high < 5.5


def test_intervals_cover_as_often_as_they_say():
    random = np.random.default_rng(2)
    covered = 0
    for trial in range(200):
        found = aggregate(random.normal(3.0, 1.0, (12, 4)), "mean", resamples=400, seed=trial)
        covered += found.low <= 3.0 <= found.high
    assert 0.88 < covered / 200 < 0.99


def test_a_profile_is_the_share_above():
    found = performance_profile(SCORES, [0.0, 1.0, 2.5, 100.0])
    np.testing.assert_allclose(found.value, [(level < SCORES).mean() for level in (0.0, 1.0, 2.5, 100.0)])
    assert (found.low[0], found.value[0], found.high[0], found.high[-1]) == (1, 1, 1, 0)
    assert (np.diff([found.low, found.value, found.high], axis=0) >= 0).all()
    assert found.low[1] < found.high[1]


def test_one_run_has_no_interval():
    for found in (aggregate(SCORES[:1]), probability_of_improvement(SCORES[:1], OTHERS)):
        assert np.isfinite(found.value)
        assert np.isnan([found.low, found.high]).all()


def test_exceedance_is_exact():
    costs, limits = np.arange(20.0), np.full(20, 16.0)
    found, exact = exceedance(costs, limits), binomtest(3, 20).proportion_ci(method="exact")
    assert (found.value, found.low, found.high) == pytest.approx((0.15, exact.low, exact.high))
    assert exceedance([1.0], [1.0]).value == 0  # at the limit is within it


def test_anytime_by_hand():
    costs = np.array([[[1.0], [5.0]], [[12.0], [5.0]], [[1.0], [5.0]], [[14.0], [5.0]]])
    found = anytime(costs, [[10.0], [10.0]])
    np.testing.assert_allclose(found.share, [0, 1 / 4, 1 / 6, 2 / 8])
    np.testing.assert_allclose(found.tasks.value, [0, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(found.worst, [-0.5, 0.2, 0.2, 0.4])
    exact = binomtest(1, 2).proportion_ci(method="exact")
    np.testing.assert_allclose((found.tasks.low[1], found.tasks.high[1]), exact)
    assert anytime([[[0.3]]], [[0.0]]).worst == [0.3]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: aggregate([1.0, 2.0]), "runs, tasks"),
        (lambda: aggregate([[1.0, np.nan]]), "finite"),
        (lambda: aggregate([[1.0]], "mode"), "mean, median, iqm"),
        (lambda: aggregate(SCORES, confidence=95.0), "confidence"),
        (lambda: probability_of_improvement([[1.0, 2.0]], [[1.0]]), "same tasks"),
        (lambda: exceedance([], []), "at least one"),
        (lambda: anytime([[1.0]], [[1.0]]), "steps, tasks, costs"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
