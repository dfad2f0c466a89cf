"""Score-function gradients against the exact ones of a world where those are known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_worlds import HORIZON, padded, reach, with_mean_action

from safemeta.algorithms.score_function import score_estimate
from safemeta.nets import GaussianPolicy, parameters

MEAN, LOG_STD = 0.4, -1.0


def policy_for(world):
    policy = GaussianPolicy.create(world.cmdp.observation_size, 1, jax.random.key(0), hidden=(4,))
    policy = with_mean_action(policy, MEAN, LOG_STD)
    last = policy.network.mlp.layers[-1]  # the mean action is the last bias, exactly
    return eqx.tree_at(lambda p: p.network.mlp.layers[-1].weight, policy, jnp.zeros_like(last.weight))


@pytest.mark.parametrize("limit_on", ["discounted", "undiscounted", "per_step"])
def test_gradients_of_return_and_costs_are_the_exact_ones(limit_on):
    """Reward `1 - (a - goal)^2` and cost `a^2` per step, `a ~ N(m, s^2)`: derivatives in m and log s by hand."""
    world = reach(limit_on=limit_on)
    policy = policy_for(world)
    tasks = world.sample(jax.random.key(1), 4)
    rows = world.collect(policy, tasks, jax.random.key(2), 4000)
    found = jax.jit(lambda r: score_estimate(policy, r, world.cmdp))(rows)

    marked = eqx.tree_at(
        lambda p: (p.network.mlp.layers[-1].bias, p.network.log_std),
        jax.tree.map(jnp.zeros_like, policy),
        (jnp.array([1.0]), jnp.array([2.0])),
    )
    place = np.asarray(parameters(marked))
    mean_at, std_at = np.flatnonzero(place == 1)[0], np.flatnonzero(place == 2)[0]
    variance, goal = np.exp(2 * LOG_STD), np.asarray(tasks.parameters["goal"])
    discounted = np.sum(0.9 ** np.arange(HORIZON))
    weight = {"discounted": discounted, "undiscounted": HORIZON, "per_step": 1.0}[limit_on]
    expected_mean = discounted * np.mean(-2 * (MEAN - goal))
    assert found.return_gradient[mean_at] == pytest.approx(expected_mean, rel=0.05)
    assert found.return_gradient[std_at] == pytest.approx(-2 * variance * discounted, rel=0.05)
    assert found.cost_gradients[0, mean_at] == pytest.approx(2 * MEAN * weight, rel=0.05)
    assert found.cost_gradients[0, std_at] == pytest.approx(2 * variance * weight, rel=0.05)
    assert found.costs[0] == pytest.approx(weight * (MEAN**2 + variance), rel=0.02)


def test_what_follows_the_end_of_an_episode_is_not_learned_from():
    world = reach(ends_above=0.9, costs=2)
    policy = policy_for(world)
    rows = world.collect(policy, world.sample(jax.random.key(1), 2), jax.random.key(2), 6)
    assert not np.asarray(rows.valid).all()
    estimate = jax.jit(lambda r: score_estimate(policy, r, world.cmdp))
    clean, dirty = estimate(padded(rows, 0.0)), estimate(padded(rows, jnp.nan))
    for ours, theirs in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert np.isfinite(np.asarray(clean.cost_gradients)).all()
