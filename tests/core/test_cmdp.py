"""Units of limits, tasks as batches, and what counts as a violation."""

import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.core import CMDP, Tasks, violated


def cmdp(limit_on, horizon=7, discount=0.9):
    return CMDP(3, 2, horizon, ("wall",), (10.0,), discount, limit_on)


@pytest.mark.parametrize(
    ("limit_on", "quantity"),
    [
        ("discounted", lambda costs: sum(0.9**t * c for t, c in enumerate(costs))),
        ("undiscounted", sum),
        ("per_step", np.mean),
    ],
)
def test_weights_give_the_limited_quantity(limit_on, quantity):
    costs = np.random.default_rng(0).random(7)
    weights = cmdp(limit_on).cost_weights()
    assert weights.shape == (7,)
    np.testing.assert_allclose(weights @ costs, quantity(costs), rtol=1e-5)


def test_weights_have_the_precision_asked_for(x64):
    weights = cmdp("discounted", horizon=500, discount=0.99).cost_weights(jnp.float64)
    assert weights.dtype == jnp.float64
    np.testing.assert_allclose(weights.sum(), (1 - 0.99**500) / 0.01, rtol=1e-12)


def test_discounted_weights_of_a_long_episode_in_single_precision():
    np.testing.assert_allclose(
        cmdp("discounted", horizon=500, discount=0.99).cost_weights(), 0.99 ** np.arange(500), rtol=1e-4
    )


def test_tasks_are_indexed_whole():
    tasks = Tasks(
        {"radius": jnp.arange(5.0), "place": jnp.arange(10.0).reshape(5, 2)}, jnp.full((5, 1), 10.0), jnp.zeros((5, 2))
    )
    assert tasks.count == 5
    some = tasks[1:3]
    assert some.count == 2
    np.testing.assert_array_equal(some.parameters["radius"], [1.0, 2.0])
    np.testing.assert_array_equal(some.parameters["place"], [[2.0, 3.0], [4.0, 5.0]])


def test_a_cost_at_its_limit_is_no_violation():
    costs = jnp.array([[10.0, 0.0], [9.0, 1.1], [0.0, 0.0]])
    limits = jnp.array([[10.0, 1.0]] * 3)
    np.testing.assert_array_equal(violated(costs, limits), [False, True, False])
