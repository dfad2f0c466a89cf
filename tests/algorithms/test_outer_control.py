"""The controller of the outer step: how much of a meta-gradient is signal, and what is asked back for it."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_bilevel import CASES, DISCOUNT, SMALL, TASKS, batch, data_of  # noqa: F401 (a fixture)

from safemeta.algorithms.inner import InnerData, metric_at, replayed
from safemeta.algorithms.outer import MEMORY, Control, MetaData, meta_gradients, meta_objective, outer_update
from safemeta.solvers import values_and_gradients


def meta_data(policy, theta, samples, violations):
    data = data_of(samples, CASES["inactive"])
    adapted = jax.vmap(lambda each: replayed(SMALL, policy, theta, each), in_axes=1)(data)
    return MetaData(data, samples, jnp.broadcast_to(jnp.asarray(violations), (TASKS, 2)), adapted)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("meta_gradient", ["exact", "first"])
def test_gradients_are_the_mean_over_tasks_and_noise_their_difference(batch, meta_gradient):  # noqa: F811
    policy, theta, samples = batch
    config = replace(SMALL, meta_gradient=meta_gradient)
    meta = meta_data(policy, theta, samples, [-0.3, -0.2])

    def stacked(y, meta):
        reward, costs = meta_objective(config, policy, y, meta)
        return jnp.concatenate([reward[None], costs])

    def alone(task):
        own = jax.tree.map(lambda leaf: leaf[:, task : task + 1], meta.inner)
        rest = jax.tree.map(lambda leaf: leaf[task : task + 1], (meta.samples, meta.violations, meta.adapted))
        return values_and_gradients(lambda y: stacked(y, MetaData(own, *rest)), theta)[1]

    found, noise = jax.jit(meta_gradients, static_argnums=0)(config, policy, theta, meta)
    np.testing.assert_allclose(found, jax.jit(jax.jacobian(stacked))(theta, meta), rtol=1e-8, atol=1e-12)
    first, second = alone(0), alone(1)
    np.testing.assert_allclose(found, (first + second) / 2, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(noise, ((first - second) / 2)[1:], rtol=1e-8, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("metric", ["fisher", "euclidean"])
def test_a_step_is_asked_for_as_much_more_as_its_gradient_is_noise(batch, metric):  # noqa: F811
    policy, theta, samples = batch
    config = replace(SMALL, metric=metric, meta_gradient="first", least_share=0.5, outer_radius=1e-6)
    meta = meta_data(policy, theta, samples, [-0.3, 1e-4])
    # Where the samples are from, so that what is predicted at `theta` is what was measured.
    meta = eqx.tree_at(lambda m: m.adapted, meta, jnp.broadcast_to(theta, (TASKS, *theta.shape)))
    rows = samples.observation, samples.valid
    update = jax.jit(outer_update, static_argnums=0)
    control = Control.create(2)
    np.testing.assert_array_equal(control.share(0.1), 1)  # nothing is measured as yet
    moved, control, _ = update(config, policy, theta, meta, *rows, control)

    gradients, noise = meta_gradients(config, policy, theta, meta)
    product = metric_at(config, policy, theta, *rows, config.fisher_states) or (lambda v: v)
    unit = jnp.eye(theta.shape[0])
    dense = jax.vmap(product)(unit) + config.damping * unit
    within = np.array([g @ np.linalg.solve(dense, g) for g in np.asarray(gradients[1:])])
    of_noise = np.array([e @ np.linalg.solve(dense, e) for e in np.asarray(noise)])
    np.testing.assert_allclose(control.within, MEMORY * within, rtol=1e-6)
    np.testing.assert_allclose(control.across, MEMORY * (within - of_noise), rtol=1e-6)
    share = np.clip(1 - of_noise / within, 0.5, 1)
    np.testing.assert_allclose(control.share(0.5), share, rtol=1e-6)

    # What is asked is the excess over the share: as if that much more had been measured.
    more = eqx.tree_at(lambda m: m.violations, meta, meta.violations / share)
    same, none, _ = update(config, policy, theta, more, *rows)
    assert none is None
    assert np.linalg.norm(moved - theta) > 0
    np.testing.assert_allclose(moved, same, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_tasks_that_agree_have_no_noise_and_tasks_that_do_not_nothing_else(batch):  # noqa: F811
    policy, theta, samples = batch
    update = jax.jit(outer_update, static_argnums=0)
    config = replace(SMALL, meta_gradient="first")
    same = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), samples)
    meta = meta_data(policy, theta, same, [0.3, 0.2])
    _, control, _ = update(config, policy, theta, meta, same.observation, same.valid, Control.create(2))
    np.testing.assert_allclose(control.share(0.05), 1, rtol=1e-6)

    opposed = eqx.tree_at(
        lambda s: s.cost_advantages, same, same.cost_advantages * jnp.array([1.0, -0.9])[:, None, None, None]
    )
    meta = eqx.tree_at(lambda m: m.samples, meta, opposed)
    _, control, _ = update(config, policy, theta, meta, same.observation, same.valid, Control.create(2))
    np.testing.assert_array_equal(control.share(0.05), np.float64(0.05))


def test_a_correction_is_accumulated_up_to_the_limit_and_rests_where_no_step_can_keep_it():
    limits, can, cannot = jnp.array([10.0, 2.0]), jnp.array(True), jnp.array(False)
    control = Control.create(2).accumulated(jnp.array([5.0, -1.0]), limits, can, 0.1)
    np.testing.assert_allclose(control.correction, [0.5, 0.0])
    np.testing.assert_allclose(control.accumulated(jnp.array([5.0, 50.0]), limits, can, 0.1).correction, [1.0, 2.0])
    np.testing.assert_allclose(control.accumulated(jnp.array([5.0, -1.0]), limits, cannot, 0.1).correction, [0.5, 0.0])


def test_the_running_mean_forgets():
    control = Control.create(1)
    for _ in range(200):
        control = control.measured(jnp.array([1.0]), jnp.array([2.0]))
    np.testing.assert_allclose(control.share(0.05), 0.5, rtol=1e-5)
    for _ in range(200):
        control = control.measured(jnp.array([2.0]), jnp.array([2.0]))
    np.testing.assert_allclose(control.share(0.05), 1.0, rtol=1e-3)


@pytest.mark.usefixtures("x64")
def test_one_task_shows_no_noise(batch):  # noqa: F811
    policy, theta, samples = batch
    one = jax.tree.map(lambda leaf: leaf[:1], samples)
    data = InnerData(
        jax.tree.map(lambda leaf: leaf[None], one), jnp.zeros((1, 1, 2)), jnp.ones((1, 1)), jnp.full((1, 1), DISCOUNT)
    )
    meta = MetaData(data, one, jnp.zeros((1, 2)), theta[None])
    gradients, noise = meta_gradients(replace(SMALL, meta_gradient="first"), policy, theta, meta)
    assert gradients.shape == (3, theta.shape[0])
    assert noise is None


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="least_share is a share of a gradient"):
        replace(SMALL, least_share=0.0).validate()
