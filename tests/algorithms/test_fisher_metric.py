"""The Fisher metric as a dense matrix: the Hessian of KL, and the mean outer product of scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithm_oracles import OBSERVATION, dense_fisher, make_policy

from safemeta.algorithms.surrogate import fisher_metric
from safemeta.nets import GaussianPolicy, parameters, with_parameters

pytestmark = pytest.mark.usefixtures("x64")
CASES = [("free", "all"), ("state", "all"), ("free", "last"), ("state", "last")]


def dense(policy, states, weight, part) -> np.ndarray:
    metric = fisher_metric(lambda x: with_parameters(policy, x, part)(states), parameters(policy, part), weight)
    return np.asarray(jax.vmap(metric)(jnp.eye(parameters(policy, part).size)))


def problem(rng, deviation):
    """A policy, states in two batch axes, and weights that differ from state to state."""
    weight = rng.uniform(0.5, 2, size=(2, 4))
    states = jnp.asarray(rng.normal(loc=0.5, scale=2, size=(2, 4, OBSERVATION)))
    return make_policy(rng, deviation), states, jnp.asarray(weight / weight.sum())


@pytest.mark.parametrize(("deviation", "part"), CASES)
def test_it_is_the_hessian_of_the_mean_kl_at_the_old_policy(rng, deviation, part):
    policy, states, weight = problem(rng, deviation)
    old = policy(states)

    def mean_kl(vector):
        new = with_parameters(policy, vector, part)(states)
        variance = jnp.exp(2 * (new.log_std - old.log_std))
        shift = ((new.mean - old.mean) / jnp.exp(old.log_std)) ** 2
        return jnp.sum(weight[..., None] * (variance + shift - 1 - jnp.log(variance)) / 2)

    hessian = jax.jit(jax.hessian(mean_kl))(parameters(policy, part))
    np.testing.assert_allclose(dense(policy, states, weight, part), hessian, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("deviation", "part"), [("free", "all"), ("state", "last")])
def test_it_is_the_mean_outer_product_of_scores(rng, deviation, part):
    policy, states, weight = problem(rng, deviation)
    expected = dense_fisher(policy, states, weight, part)
    np.testing.assert_allclose(dense(policy, states, weight, part), expected, rtol=1e-8, atol=1e-10)


def test_half_its_quadratic_form_is_the_kl_of_a_short_step(rng):
    policy, states, weight = problem(rng, "state")
    start = parameters(policy)
    step = 1e-4 * jnp.asarray(rng.normal(size=start.shape))
    kl = jnp.sum(weight * with_parameters(policy, start + step)(states).kl(policy(states)))
    metric = fisher_metric(lambda x: with_parameters(policy, x)(states), start, weight)
    np.testing.assert_allclose(step @ metric(step) / 2, kl, rtol=1e-2)
    assert kl > 0


def test_one_free_action_by_hand():
    """`N(m, s^2)` with constant mean: the information is `1 / s^2` for the mean and 2 for the log deviation."""
    policy = GaussianPolicy.create(1, 1, jax.random.key(0), hidden=(1,), initial_log_std=np.log(0.5))
    policy = with_parameters(policy, jnp.zeros(5).at[-1].set(np.log(0.5)))
    found = dense(policy, jnp.zeros((3, 1)), jnp.full(3, 1 / 3), "all")
    expected = np.zeros((5, 5))
    expected[3, 3], expected[4, 4] = 4, 2
    np.testing.assert_allclose(found, expected, atol=1e-12)
