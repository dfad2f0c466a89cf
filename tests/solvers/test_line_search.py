"""Backtracking: the first acceptable fraction, what is done when there is none, batches, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.solvers import accept_cpo, accept_trpo, backtrack


def test_takes_the_first_accepted_fraction():
    found = backtrack(
        lambda x: {"value": jnp.sum(x**2)},
        jnp.zeros(2),
        jnp.array([3.0, 4.0]),
        lambda v, _: v["value"] <= 5,
        shrink=0.5,
    )
    # |x|^2 = 25, 6.25, 1.5625: the third candidate passes
    assert found.fraction == 0.25
    assert found.tried == 3
    assert found.accepted
    assert found.values["value"] == 1.5625
    np.testing.assert_array_equal(found.parameters, [0.75, 1.0])


def test_the_fraction_is_passed_to_the_rule():
    found = backtrack(lambda x: x, jnp.zeros(1), jnp.ones(1), lambda _, fraction: fraction < 0.6, shrink=0.8)
    assert found.fraction == pytest.approx(0.8**3)


@pytest.mark.parametrize("step", [[1.0, 1.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_nothing_accepted_leaves_the_parameters_alone(step):
    start = jnp.array([1.0, 2.0])
    found = backtrack(
        lambda x: jnp.sum(x), start, jnp.array(step), lambda v, _: jnp.isfinite(v) & (v < 0), shrink=0.5, steps=4
    )
    np.testing.assert_array_equal(found.parameters, start)
    assert not found.accepted
    assert found.fraction == 0
    assert found.tried == 4


def test_batches_stop_each_for_itself():
    limits = jnp.array([100.0, 5.0, -1.0])

    def search(limit):
        return backtrack(lambda x: jnp.sum(x**2), jnp.zeros(1), jnp.array([8.0]), lambda v, _: v <= limit, shrink=0.5)

    found = jax.jit(jax.vmap(search))(limits)
    np.testing.assert_allclose(found.fraction, [1.0, 0.25, 0.0])
    np.testing.assert_array_equal(found.tried, [1, 3, 10])


def test_gradients_take_the_fraction_as_given():
    """Also when what is evaluated depends on the differentiated parameters itself, as an old policy does."""

    def value(parameters):
        found = backtrack(
            lambda x: jnp.sum((x - parameters) ** 2), parameters, 4 * parameters, lambda v, _: v < 30, shrink=0.5
        )
        return jnp.sum(found.parameters**2), found.fraction

    start = jnp.array([1.0, 2.0])
    (_, fraction), gradient = jax.value_and_grad(value, has_aux=True)(start)
    assert fraction == 0.5
    np.testing.assert_allclose(gradient, 2 * start * 9)  # parameters -> 3 parameters
    tangent = jax.jvp(lambda p: value(p)[0], (start,), (jnp.ones(2),))[1]
    np.testing.assert_allclose(tangent, gradient.sum())


def test_trpo_rule():
    def accept(improvement, kl):
        return bool(accept_trpo(jnp.asarray(improvement), jnp.asarray(kl), 0.01))

    assert accept(0.1, 0.01)
    assert not accept(0.0, 0.005)
    assert not accept(0.1, 0.011)
    assert not accept(np.nan, 0.005)
    assert not accept(0.1, np.nan)
    assert not accept(np.inf, 0.005)


def test_cpo_rule():
    def accept(improvement, kl, new, old, feasible):
        rest = (jnp.asarray(new), jnp.asarray(old), 0.01)
        return bool(accept_cpo(jnp.asarray(improvement), jnp.asarray(kl), *rest, feasible=jnp.asarray(feasible)))

    assert accept(0.1, 0.01, [-1.0, 0.0], [-2.0, -1.0], True)  # may use up a margin
    assert not accept(0.1, 0.01, [0.1, -1.0], [-2.0, -1.0], True)  # but not exceed a limit
    assert accept(-0.1, 0.01, [0.4, -1.0], [0.5, -1.0], True)  # on the way back the objective may fall
    assert not accept(0.1, 0.01, [0.5, -1.0], [0.5, -1.0], True)  # but the violation has to
    assert not accept(0.1, 0.01, [0.1, 0.1], [0.5, -1.0], True)  # and not at the expense of another limit
    assert not accept(-0.1, 0.01, [-1.0, -1.0], [-1.0, -1.0], True)
    assert accept(-0.1, 0.01, [0.4, 0.1], [0.5, -1.0], False)  # recovery: less violation in all
    assert not accept(-0.1, 0.01, [0.5, 0.1], [0.5, -1.0], False)
    assert not accept(-0.1, 0.02, [0.4, -1.0], [0.5, -1.0], False)
    assert not accept(0.1, 0.01, [np.nan, -1.0], [0.5, -1.0], True)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="shrink"):
        backtrack(lambda x: x, jnp.zeros(1), jnp.ones(1), lambda *_: True, shrink=1.0)
