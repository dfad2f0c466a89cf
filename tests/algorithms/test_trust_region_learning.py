"""TRPO and CPO on a world where the right answer is known: does the one learn, and does the other keep the limit?"""

import equinox as eqx
import jax
import numpy as np
import pytest
from toy_worlds import HORIZON, reach, with_config, with_mean_action

from safemeta.algorithms import cpo, trpo

LIMIT = 4.0  # of an episode; the goal (0.8 to 1.2 away) costs about 10, standing still about 1.4
ITERATIONS = 15


@pytest.fixture(scope="module")
def learned():
    """Mean return and cost over 15 iterations of either algorithm, from the same start."""
    world, found = reach(LIMIT), {}
    for name, module in (("trpo", trpo), ("cpo", cpo)):
        config = with_config(module.Config(kl_radius=0.05), tasks=4, episodes=10, critic_steps=20)
        algorithm = module.Algorithm(config)
        state = algorithm.init(jax.random.key(0), world.cmdp)
        state = eqx.tree_at(lambda s: s.policy, state, with_mean_action(state.policy, 0.0))
        history = []
        for key in jax.random.split(jax.random.key(1), ITERATIONS):
            state, metrics = algorithm.iterate(state, world, key)
            history.append({key: float(value) for key, value in metrics.items()})
        fresh = world.measure(algorithm.policy(state), world.sample(jax.random.key(2), 50), jax.random.key(3), 20)
        found[name] = history, float(fresh.episode_return.mean()), float(fresh.costs.mean())
    return found


def test_trpo_improves_the_return_and_breaks_the_limit(learned):
    history, final_return, final_cost = learned["trpo"]
    # At the start 10 (1 - 1 - 0.14) = -1.5; at the goal at best 10 (1 - 0.13 / 10), goals being unknown.
    assert history[0]["return"] < 0
    assert final_return > 6
    assert final_cost > 1.5 * LIMIT
    returns = [row["return"] for row in history]
    assert np.mean(returns[-3:]) > np.mean(returns[5:8]) > np.mean(returns[:3]) + 3


def test_cpo_improves_the_return_as_far_as_the_limit_lets_it(learned):
    history, final_return, final_cost = learned["cpo"]
    assert final_cost < 1.1 * LIMIT
    assert final_cost > 0.7 * LIMIT  # the limit binds
    # With effort m^2 + s^2 = 0.4 a mean of about 0.6 is in reach: a return of 10 (1 - 0.4^2 - s^2).
    assert final_return > 5
    assert max(row["cost"] for row in history) < 1.25 * LIMIT  # also on the way, up to the noise of 40 episodes
    assert final_return < learned["trpo"][1]


def test_every_step_kept_the_trust_region(learned):
    for history, *_ in learned.values():
        assert all(row["kl"] <= 1.5 * 0.05 * 1.001 for row in history)
        assert np.mean([row["accepted"] for row in history]) > 0.9
    assert HORIZON == 10  # the numbers above are for ten steps
