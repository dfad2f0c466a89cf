"""Advantages and returns against a plain loop over steps."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safemeta.core import discounted_returns, generalized_advantage


def advantage_of(signal, value, next_value, terminated, truncated, discount, smoothing):
    arrays = (jnp.asarray(x) for x in (signal, value, next_value, terminated, truncated))
    return np.asarray(generalized_advantage(*arrays, discount, smoothing))


def returns_of(signal, end, discount):
    return np.asarray(discounted_returns(jnp.asarray(signal), jnp.asarray(end), discount))


def advantage_loop(signal, value, next_value, terminated, truncated, discount, smoothing):
    """The definition: sum over the rest of the *same episode* of (discount smoothing)^k delta."""
    steps = len(signal)
    advantage = np.zeros_like(signal)
    for start in range(steps):
        weight = 1.0
        for t in range(start, steps):
            bootstrap = 0.0 if terminated[t] else next_value[t]
            advantage[start] += weight * (signal[t] + discount * bootstrap - value[t])
            if terminated[t] or truncated[t]:
                break
            weight *= discount * smoothing
    return advantage


def returns_loop(signal, end, discount):
    total = np.zeros_like(signal)
    for start in range(len(signal)):
        for t in range(start, len(signal)):
            total[start] += discount ** (t - start) * signal[t]
            if end[t]:
                break
    return total


def random_row(seed, steps=40, signals=3, ends=0.1):
    rng = np.random.default_rng(seed)
    shape = (steps, signals)
    terminated = rng.random(steps) < ends
    truncated = (rng.random(steps) < ends) & ~terminated
    return rng.normal(size=shape), rng.normal(size=shape), rng.normal(size=shape), terminated, truncated


@pytest.mark.parametrize("ends", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("discount", "smoothing"), [(0.99, 0.95), (0.9, 1.0), (1.0, 0.0)])
def test_advantage_of_several_signals_equals_the_loop(x64, ends, discount, smoothing):
    row = random_row(0, ends=ends)
    ours = advantage_of(*row, discount, smoothing)
    np.testing.assert_allclose(ours, advantage_loop(*row, discount, smoothing), rtol=1e-12, atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_advantage_equals_the_loop_on_any_pattern_of_ends(seed, steps, discount, smoothing):
    row = [x.astype(np.float32) if x.dtype == float else x for x in random_row(seed, steps, 2, ends=0.4)]
    ours = advantage_of(*row, discount, smoothing)
    np.testing.assert_allclose(ours, advantage_loop(*row, discount, smoothing), rtol=2e-4, atol=2e-4)


def test_signals_do_not_mix():
    signal, value, next_value, terminated, truncated = random_row(1)
    together = advantage_of(signal, value, next_value, terminated, truncated, 0.99, 0.95)
    for i in range(signal.shape[1]):
        alone = advantage_of(signal[:, i], value[:, i], next_value[:, i], terminated, truncated, 0.99, 0.95)
        np.testing.assert_allclose(together[:, i], alone, rtol=1e-6)


def test_hand_computed_termination_and_truncation():
    # Three steps of reward 1 at value 0.5, discount 0.5, smoothing 1; next values 2.
    one, half, two = np.ones(3), np.full(3, 0.5), np.full(3, 2.0)
    no = np.zeros(3, bool)
    last = np.array([False, False, True])
    # Truncated at the end: the last delta is 1 + 0.5 * 2 - 0.5 = 1.5, as are the others; sums 1.5 (1 + 1/2 + 1/4).
    np.testing.assert_allclose(advantage_of(one, half, two, no, last, 0.5, 1.0), [2.625, 2.25, 1.5])
    # Terminated at the end: nothing follows, the last delta is 1 - 0.5.
    np.testing.assert_allclose(advantage_of(one, half, two, last, no, 0.5, 1.0), [2.375, 1.75, 0.5])


@pytest.mark.parametrize("kind", ["terminated", "truncated"])
def test_nothing_crosses_the_end_of_an_episode(kind):
    signal, value, next_value, *_ = random_row(2)
    end = np.zeros(len(signal), bool)
    end[17] = True
    ends = {"terminated": np.zeros_like(end), "truncated": np.zeros_like(end), kind: end}
    before = advantage_of(signal, value, next_value, **ends, discount=0.99, smoothing=0.95)
    # Everything after step 17 belongs to another episode: changing it must leave steps 0..17 alone.
    for array in (signal, value, next_value):
        array[18:] += 100.0
    after = advantage_of(signal, value, next_value, **ends, discount=0.99, smoothing=0.95)
    np.testing.assert_array_equal(before[:18], after[:18])
    assert not np.allclose(before[18:], after[18:])


def test_only_termination_drops_the_bootstrap():
    signal, value, next_value, *_ = random_row(3)
    end = np.zeros(len(signal), bool)
    end[-1] = True
    no = np.zeros_like(end)
    truncated = advantage_of(signal, value, next_value, no, end, 0.99, 0.95)
    terminated = advantage_of(signal, value, next_value, end, no, 0.99, 0.95)
    np.testing.assert_allclose(truncated[-1] - terminated[-1], 0.99 * next_value[-1], rtol=1e-5)


@pytest.mark.parametrize("ends", [0.0, 0.2])
@pytest.mark.parametrize("signals", [None, 2])
def test_returns_equal_the_loop(x64, ends, signals):
    signal, _, _, terminated, truncated = random_row(4, signals=signals or 1, ends=ends)
    signal = signal if signals else signal[:, 0]
    end = terminated | truncated
    np.testing.assert_allclose(returns_of(signal, end, 0.97), returns_loop(signal, end, 0.97), rtol=1e-12)


def test_full_smoothing_without_values_is_the_return():
    signal, _, _, terminated, truncated = random_row(5)
    nothing = np.zeros_like(signal)
    advantage = advantage_of(signal, nothing, nothing, terminated, truncated, 0.99, 1.0)
    np.testing.assert_allclose(advantage, returns_of(signal, terminated | truncated, 0.99), rtol=1e-5)
