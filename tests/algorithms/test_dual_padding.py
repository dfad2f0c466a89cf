"""Steps after the end of an episode must not be learned from, whatever a simulator leaves there."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_worlds import Padded, reach, with_config, with_mean_action

from safemeta.algorithms.dual import Algorithm, Config

INNER = reach(ends_above=0.6)  # about one step in twenty ends the episode
ALGORITHM = Algorithm(with_config(Config(), cost_episodes=2, cost_kl_weight=1.0, fisher_states=100))


@pytest.fixture(scope="module")
def outcomes():
    """Metrics and candidate after one iteration, with one and with other garbage in the padding."""
    state = ALGORITHM.init(jax.random.key(0), INNER.cmdp)
    policy = with_mean_action(state.current.policy, 0.1)

    def start(candidate):
        return candidate.__class__(policy, candidate.critics)

    state = eqx.tree_at(lambda s: (s.current, s.best), state, (start(state.current), start(state.best)))
    run = jax.jit(lambda garbage: ALGORITHM.iterate(state, Padded(INNER, garbage), jax.random.key(1)))
    found = [run(jnp.asarray(garbage)) for garbage in (0.5, -1.5)]
    return [(after.current, metrics) for after, metrics in found]


def test_the_toy_has_padding():
    policy = with_mean_action(ALGORITHM.init(jax.random.key(0), INNER.cmdp).current.policy, 0.1)
    valid = INNER.collect(policy, INNER.sample(jax.random.key(0), 2), jax.random.key(1), 4).valid
    assert 0.05 < np.mean(~valid) < 0.6


def test_padding_reaches_neither_policy_nor_normaliser_nor_critics_nor_metrics(outcomes):
    first, second = outcomes
    assert first[1]["meta_accepted"] == 1
    for ours, expected in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
        assert np.all(np.isfinite(ours))
