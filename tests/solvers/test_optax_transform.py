"""The projection as an optax transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from safemeta.solvers import Outcome, safe_projection


def inside_disc(parameters):
    """One constraint: x within the unit disc; one more: bias at most 0.5."""
    return jnp.stack([jnp.sum(parameters["x"] ** 2) - 1, parameters["bias"] - 0.5])


OPTIMIZERS = {"sgd": optax.sgd(0.05), "momentum": optax.sgd(0.02, momentum=0.7), "adam": optax.adam(0.05)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_is_kept_to_the_constraints(name):
    """And those that follow the gradient rest at the constrained optimum. Adam rests elsewhere."""
    chained = optax.chain(OPTIMIZERS[name], safe_projection(inside_disc, rate=0.5))
    parameters = {"x": jnp.array([0.0, 1.5]), "bias": jnp.array(0.0)}
    start_violation = inside_disc(parameters)[0]

    def loss(p):
        return jnp.sum((p["x"] - jnp.array([3.0, 4.0])) ** 2) + (p["bias"] - 2) ** 2

    @jax.jit
    def step(carry, _):
        p, state = carry
        updates, state = chained.update(jax.grad(loss)(p), state, p)
        p = optax.apply_updates(p, updates)
        return (p, state), inside_disc(p)

    (parameters, state), path = jax.lax.scan(step, (parameters, chained.init(parameters)), length=400)
    assert path[0, 0] < 0.7 * start_violation
    assert np.max(path[60:, 0]) < 5e-3
    assert np.max(path[:, 1]) < 1e-9  # a linear constraint is kept exactly
    assert state[-1].outcome == Outcome.SOLVED
    assert np.all(state[-1].multipliers > 0)
    assert parameters["bias"] == pytest.approx(0.5, abs=1e-6)
    if name == "adam":
        assert loss(parameters) < 18.7  # optimum: 16 + 2.25
    else:
        np.testing.assert_allclose(parameters["x"], [0.6, 0.8], atol=2e-3)


def test_values_and_gradients_may_come_from_outside():
    transform = safe_projection(rate=1.0, count=2)
    parameters = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    state = transform.init(parameters)
    gradients = {"a": jnp.array([[1.0, 0.0], [0.0, 0.0]]), "b": jnp.array([[0.0], [2.0]])}
    updates = {"a": jnp.array([1.0, 1.0]), "b": jnp.array([1.0])}
    projected, state = transform.update(
        updates, state, constraint_values=jnp.array([-0.25, 1.0]), constraint_gradients=gradients
    )
    np.testing.assert_allclose(projected["a"], [0.25, 1.0])
    np.testing.assert_allclose(projected["b"], [-0.5])
    assert state.feasible
    with pytest.raises(ValueError, match="constraint_values"):
        transform.update(updates, state)


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="rate"):
        safe_projection(inside_disc, rate=0.0)
    transform = safe_projection(inside_disc)
    parameters = {"x": jnp.zeros(2), "bias": jnp.zeros(())}
    with pytest.raises(ValueError, match="parameters"):
        transform.update(parameters, transform.init(parameters))
