"""Projected gradient ascent and the primal-dual method, on a world where the constrained optimum is known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_worlds import HORIZON, reach, with_mean_action

from safemeta.algorithms import first_order
from safemeta.algorithms.first_order import PrimalDual, PrimalDualConfig, ProjectedConfig, ProjectedGradient, lagrangian

LIMIT = 4.0  # of an episode's effort; the goal (0.8 to 1.2 away) costs about 10
SMALL = {"tasks": 4, "episodes": 16, "hidden": (4,), "margin": 0.0}


def run(algorithm, world, iterations=60):
    state = algorithm.init(jax.random.key(0), world.cmdp)
    state = eqx.tree_at(lambda s: s.policy, state, with_mean_action(state.policy, 0.0))
    history = []
    for key in jax.random.split(jax.random.key(1), iterations):
        state, metrics = algorithm.iterate(state, world, key)
        history.append({name: float(value) for name, value in metrics.items()})
    return history


@pytest.mark.parametrize(
    "algorithm",
    [
        ProjectedGradient(ProjectedConfig(step=1e-3, rate=0.2, **SMALL)),
        PrimalDual(PrimalDualConfig(step=2e-3, multiplier_step=0.1, **SMALL)),
    ],
    ids=["projected", "primal-dual"],
)
def test_the_return_rises_to_where_the_limit_lets_it(algorithm):
    """With effort m^2 + s^2 = 0.4 per step a return of about 10 (1 - 0.4^2 - s^2) is the best."""
    history = run(algorithm, reach(LIMIT, "undiscounted"))
    first, last = history[:3], history[-10:]
    assert np.mean([row["return"] for row in first]) < 1
    assert np.mean([row["return"] for row in last]) > 4.5
    assert 0.75 * LIMIT < np.mean([row["cost"] for row in last]) < 1.1 * LIMIT
    assert HORIZON == 10  # the numbers above are for ten steps


def test_the_lagrangian_by_hand():
    rule = lagrangian(2, step=0.5, initial=1.0)
    state = rule.init(jnp.zeros(2))
    gradient, rows = jnp.array([1.0, -1.0]), jnp.array([[2.0, 0.0], [0.0, 4.0]])
    updates, state = rule.update(gradient, state, constraint_values=jnp.array([2.0, -4.0]), constraint_gradients=rows)
    np.testing.assert_allclose(state.multipliers, [2.0, 0.0])
    np.testing.assert_allclose(updates, [5 / 3, -1 / 3], rtol=1e-6)
    with pytest.raises(ValueError, match="constraint_values"):
        rule.update(gradient, state)


def test_what_makes_no_sense_is_refused():
    for config, word in (
        (ProjectedConfig(rate=0.0), "rate"),
        (PrimalDualConfig(multiplier_step=-1.0), "multiplier_step"),
        (PrimalDualConfig(episodes=1), "episodes"),
    ):
        with pytest.raises(ValueError, match=word):
            config.validate()
    assert first_order.ITERATIONS["smoke"] == 2
