"""The released Meta-CPO code's diagonal formula, against closed forms, and beside the exact meta-gradient."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import meta_gradient as released
import numpy as np
import pytest
from toy_worlds import reach, with_mean_action

from safemeta.algorithms import bilevel, outer
from safemeta.algorithms.bilevel_config import BilevelConfig
from safemeta.algorithms.critics import init_critic
from safemeta.nets import GaussianPolicy, parameters, with_parameters

CONFIG = BilevelConfig(hidden=(3,), tasks=2, episodes=6, inner_steps=1, metric="euclidean")


@pytest.fixture(scope="module")
def gathered():
    """A policy, and the data of one meta-iteration from it, in float64."""
    with jax.enable_x64(True):
        world = reach(limit=8.0)
        policy = GaussianPolicy.create(3, 1, jax.random.key(0), hidden=(3,))
        noise = 0.3 * jax.random.normal(jax.random.key(5), parameters(policy).shape)
        policy = with_mean_action(with_parameters(policy, parameters(policy) + noise), 0.4, -0.5)
        state = bilevel.State(policy, init_critic(CONFIG, world.cmdp, jax.random.key(2)))
        return policy, *jax.jit(lambda key: released.gathered(CONFIG, world, state, key))(jax.random.key(3))


def of_one_task(meta, violation):
    data = jax.tree.map(lambda leaf: leaf[0, 0], meta.inner)
    return replace(data, violations=jnp.full_like(data.violations, violation))


def corrected(policy, theta, data, accumulate):
    order = released.released_order(policy)
    return jax.jit(lambda y, d: released.correction(CONFIG, policy, y, d, accumulate, order))(theta, data)


@pytest.mark.usefixtures("x64")
def test_an_inactive_constraint_gives_the_closed_form(gathered):
    """Then x = rho g / |g|, d x_j / d g_i = rho (delta_ij - g_i g_j), and h is a diagonal of finite differences."""
    policy, theta, meta = gathered
    data = of_one_task(meta, -1e3)
    order = released.released_order(policy)
    assert sorted(order.tolist()) == list(range(theta.shape[0]))
    assert order[0] == theta.shape[0] - 1  # the log deviation: first in the released code, last here
    rho = (2 * CONFIG.inner_radius) ** 0.5
    gradients = jax.jit(lambda y: released.unit_gradients(CONFIG, policy, y, data.samples)[0])
    unit = np.asarray(gradients(theta))
    width = 1e-5
    curvature = np.array(
        [
            (gradients(theta.at[i].add(width))[i] - gradients(theta.at[i].add(-width))[i]) / (2 * width)
            for i in range(theta.shape[0])
        ]
    )
    correct = rho * (1 - unit**2)
    summed = np.empty_like(unit)
    summed[order] = rho * (1 - unit[order] * np.cumsum(unit[order]))
    for accumulate, entries in ((False, correct), (True, summed)):
        found = corrected(policy, theta, data, accumulate)
        np.testing.assert_allclose(found, 1 + entries * curvature, rtol=1e-5)
    assert np.abs(correct - summed).max() > 0.01 * rho


@pytest.mark.usefixtures("x64")
def test_in_recovery_it_is_the_costs_gradient_that_counts(gathered):
    policy, theta, meta = gathered
    data = of_one_task(meta, 1e3)
    units = jax.jit(lambda y: released.unit_gradients(CONFIG, policy, y, data.samples))(theta)
    step, feasible = jax.jit(released.unit_step)(units[0], units[1], data.violations[0], CONFIG.inner_radius)
    assert not feasible
    np.testing.assert_allclose(step, -((2 * CONFIG.inner_radius) ** 0.5) * units[1], rtol=1e-8)
    found = corrected(policy, theta, data, accumulate=False)
    assert np.isfinite(found).all()
    assert np.abs(found - 1).max() > 1e-6


@pytest.mark.usefixtures("x64")
def test_the_released_direction_is_not_the_meta_gradient(gathered):
    policy, theta, meta = gathered
    found = jax.jit(lambda y, m: released.candidates.__wrapped__(CONFIG, policy, y, m))(theta, meta)
    cosines = released.cosines(found)
    assert set(cosines) == {"released code", "released code without its accumulation", "first order"}
    assert all(-1 <= value < 0.9999 for value in cosines.values())
    assert np.linalg.norm(found["released code"] - found["released code without its accumulation"]) > 0
    chain = jax.jit(lambda y, m: outer.meta_objective(CONFIG, policy, y, m)[0])
    along = found["exact"] / np.linalg.norm(found["exact"])
    slope = (chain(theta + 1e-6 * along, meta) - chain(theta - 1e-6 * along, meta)) / 2e-6
    assert slope == pytest.approx(np.linalg.norm(found["exact"]), rel=1e-5)
