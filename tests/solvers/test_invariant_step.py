"""Steps that keep the constraints themselves: invariance inside, decrease outside, and no stall at the boundary."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from solver_oracles import finite_differences

from safemeta.solvers import invariant_step, project_update, safe_projection

RATE = 0.3


def two_discs(x):
    """The lens of two discs of radius 1.5, centres (-0.8, 0, ..) and (0.8, 0, ..)."""
    centres = jnp.zeros((2, x.size)).at[:, 0].set(jnp.array([-0.8, 0.8]))
    return jnp.sum((x - centres) ** 2, axis=1) - 1.5**2


def step(x, raw, **settings):
    return invariant_step(two_discs, x, raw, RATE * two_discs(x), **settings)


many = jax.jit(jax.vmap(step))


def test_every_accepted_step_keeps_the_discrete_condition(rng):
    x, raw = rng.normal(size=(300, 4)), 2 * rng.normal(size=(300, 4))
    found = many(jnp.asarray(x), jnp.asarray(raw))
    before = np.asarray(jax.vmap(two_discs)(x))
    after = np.asarray(jax.vmap(two_discs)(x + found.update))
    allowed = before - np.asarray(found.fraction)[:, None] * RATE * before
    assert np.all(after <= allowed + 1e-14)
    inside = before.max(1) <= 0
    assert 10 < inside.sum() < 290
    assert after[inside].max() <= 0
    outside = before > 0
    assert np.all(after[outside] < before[outside])
    assert np.asarray(found.accepted).all()
    assert np.asarray(found.fraction).min() > 1e-3
    # The plain projection breaks it: otherwise nothing was tested.
    plain = jax.vmap(lambda a, b: project_update(b, jax.jacobian(two_discs)(a), -RATE * two_discs(a)).update)(x, raw)
    assert np.mean(np.asarray(jax.vmap(two_discs)(x + plain)) > (1 - RATE) * before + 1e-9) > 0.1


def test_it_slides_along_a_curved_boundary_where_shrinking_alone_would_stall():
    """Minimise the distance to a far point from a point on the boundary: the optimum is reached from inside."""
    goal = jnp.array([0.0, 3.0])
    x = jnp.array([0.7, 0.0])  # on the boundary of the first disc

    def advance(x, _):
        found = step(x, 0.05 * (goal - x))
        x = x + found.update
        return x, (two_discs(x), found.fraction)

    x, (values, fraction) = jax.jit(lambda x: jax.lax.scan(advance, x, length=300))(x)
    assert values.max() <= 0
    np.testing.assert_allclose(x, [0, (1.5**2 - 0.8**2) ** 0.5], atol=1e-3)
    assert np.median(fraction) == 1  # moved bounds were enough, as a rule


def test_nothing_is_accepted_where_nothing_can_be():
    """The minimum of a violated constraint: no direction lowers it."""
    found = jax.jit(
        lambda raw: invariant_step(lambda x: jnp.array([1 + x @ x]), jnp.zeros(2), raw, jnp.array([0.1]), trials=8)
    )(jnp.ones(2))
    assert not found.accepted
    assert found.fraction == 0
    assert found.tried == 8
    np.testing.assert_array_equal(found.update, [0, 0])


def test_derivatives_with_the_fraction_held(rng):
    """Against differences, for linear constraints, where the first trial is accepted; in raw, x and the decrease."""
    weight, linear = jnp.asarray(rng.normal(size=2)), jnp.array([[1.0, 0.2], [-0.3, 1.0]])

    def constraints(x):
        return linear @ x - 0.6

    def taken(point):
        raw, x, decrease = point.reshape(3, 2)
        return invariant_step(constraints, x, raw, decrease)

    point = jnp.array([0.6, -0.2, 0.5, 0.3, -0.01, -0.05])
    value = jax.jit(lambda p: (taken(p).update @ weight, taken(p).tried))
    assert value(point)[1] == 1
    expected = finite_differences(lambda p: value(jnp.asarray(p))[0], np.asarray(point))
    assert np.abs(expected[4]) > 0.1  # a constraint is active
    np.testing.assert_allclose(jax.jit(jax.grad(lambda p: taken(p).update @ weight))(point), expected, atol=1e-8)


def test_as_an_optax_transformation_on_a_pytree():
    """Gradient descent within the lens, from inside: never a violation; with a decrease that is not linear."""

    def constraints(p):
        return two_discs(jnp.concatenate([p["a"], p["b"]]))

    def loss(p):
        return jnp.sum((p["a"] - 2) ** 2) + jnp.sum((p["b"] - 1) ** 2)

    rule = optax.chain(optax.sgd(0.05), safe_projection(constraints, decrease=lambda c: 0.5 * jnp.tanh(c), trials=30))
    parameters = {"a": jnp.zeros(1), "b": jnp.zeros(2)}

    def advance(carry, _):
        p, state = carry
        updates, state = rule.update(jax.grad(loss)(p), state, p)
        p = optax.apply_updates(p, updates)
        return (p, state), (constraints(p), loss(p))

    _, (values, losses) = jax.jit(lambda c: jax.lax.scan(advance, c, length=200))((parameters, rule.init(parameters)))
    assert values.max() <= 0
    assert values[-1].max() > -1e-3  # it uses the room that it has
    assert losses[-1] == pytest.approx(2.67937, rel=1e-3)  # by SLSQP


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="shrink"):
        step(jnp.zeros(2), jnp.ones(2), shrink=1.0)
    with pytest.raises(ValueError, match="trials"):
        safe_projection(trials=3)
