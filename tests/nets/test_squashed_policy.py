"""The squashed Gaussian: its density against the normal distribution's, through the change of variables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from safemeta.nets import ModePolicy, SquashedPolicy


def policy(scale):
    return SquashedPolicy.create(3, 2, jax.random.key(0), hidden=(8,), scale=scale)


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_the_density_is_the_derivative_of_the_distribution_function(scale):
    own, observation = policy(scale), jnp.array([0.3, -1.0, 0.5])
    action, log_prob = own.act(observation, jax.random.key(1))
    normal = own.distribution(observation)
    step, total = 1e-5 * scale, 0.0
    for j in range(2):
        ends = np.arctanh((float(action[j]) + np.array([-step, step])) / scale)
        cumulative = norm.cdf(ends, float(normal.mean[j]), float(jnp.exp(normal.log_std[j])))
        total += np.log(np.diff(cumulative)[0] / (2 * step))
    assert float(log_prob) == pytest.approx(total, abs=1e-3)
    assert float(jnp.max(jnp.abs(action))) < scale


def test_densities_are_finite_where_actions_saturate():
    own = policy(1.0)
    _, log_prob = own.sample(jnp.full((5, 3), 1e3), jax.random.key(2))
    assert bool(jnp.all(jnp.isfinite(log_prob)))


def test_the_mode_has_no_noise():
    own, observation = policy(2.0), jnp.ones(3)
    expected = 2.0 * jnp.tanh(own.distribution(observation).mean)
    for seed in range(3):
        np.testing.assert_array_equal(ModePolicy(own).act(observation, jax.random.key(seed))[0], expected)
