"""Statistics against scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from safemeta.experiment import statistics


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 49, 200, 999])
@pytest.mark.parametrize("probability", [0.5, 0.9, 0.975, 0.999])
def test_student_quantile(freedom, probability):
    expected = stats.t.ppf(probability, freedom)
    assert statistics.student_quantile(probability, freedom) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_student_quantile_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="probability"):
        statistics.student_quantile(0.2, 3)


def test_mean_interval():
    values = np.random.default_rng(0).normal(3, 2, (4, 12))
    mean, low, high = statistics.mean_interval(values)
    for row in range(4):
        expected = stats.ttest_1samp(values[row], 0).confidence_interval(0.95)
        assert mean[row] == pytest.approx(values[row].mean())
        assert (low[row], high[row]) == pytest.approx((expected.low, expected.high))


def test_bootstrap():
    values = np.random.default_rng(1).exponential(size=25)
    expected = stats.bootstrap((values,), np.mean, method="percentile", rng=2, n_resamples=20_000).confidence_interval
    low, high = statistics.bootstrap(values)
    width = high - low
    assert low == pytest.approx(expected.low, abs=0.03 * width)
    assert high == pytest.approx(expected.high, abs=0.03 * width)


def test_bootstrap_is_a_function_of_its_seed():
    values = np.random.default_rng(0).normal(size=20)
    assert statistics.bootstrap(values, seed=3) == statistics.bootstrap(values, seed=3)
    assert statistics.bootstrap(values, seed=3) != statistics.bootstrap(values, seed=4)


def test_bootstrap_covers_the_truth():
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(300):
        low, high = statistics.bootstrap(rng.normal(1, 1, 30), resamples=1000)
        hits += low <= 1 <= high
    assert 0.89 < hits / 300 < 0.985  # the percentile bootstrap of 30 values is a little narrow


def test_bootstrap_columns_is_bootstrap_of_each_row():
    table = np.random.default_rng(0).normal(size=(3, 11))
    low, high = statistics.bootstrap_columns(table, seed=5)
    for row in range(3):
        assert (low[row], high[row]) == pytest.approx(statistics.bootstrap(table[row], seed=5))


def test_one_value_has_no_interval():
    assert all(map(math.isnan, statistics.bootstrap([2.0])))
    assert np.isnan(statistics.bootstrap_columns([[1.0], [2.0]])).all()
    mean, low, high = statistics.mean_interval([[4.0]])
    assert mean[0] == 4.0
    assert np.isnan([low, high]).all()


def test_nested_bootstrap_has_the_spread_of_the_two_level_resampling():
    """Var = (between seeds) / n + (within seeds) / (n m), with the sample's own variances."""
    random = np.random.default_rng(5)
    values = random.normal(0, 2, (6, 1)) + random.normal(0, 1, (6, 40))
    low, high = statistics.bootstrap_nested(values[None], resamples=20_000)
    within = values.var(axis=1).mean() / values.size
    deviation = math.sqrt(values.mean(1).var() / 6 + within)
    assert (high - low)[0] == pytest.approx(2 * 1.96 * deviation, rel=0.05)
    # Taken for independent, the same values would seem far more certain.
    flat = statistics.bootstrap(values)
    assert flat[1] - flat[0] < 0.5 * (high - low)[0]


def test_nested_bootstrap_with_one_seed_resamples_its_tasks():
    values = np.random.default_rng(0).normal(size=30)
    low, high = statistics.bootstrap_nested(values[None, None])
    assert (low[0], high[0]) == pytest.approx(statistics.bootstrap(values), abs=0.05)
    assert np.isnan(statistics.bootstrap_nested(np.ones((2, 1, 1)))).all()
