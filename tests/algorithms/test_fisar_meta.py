"""FISAR on deterministic problems: the meta-gradient against differences, learning, and what finite steps keep."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from safemeta.algorithms.class_k import ClassK
from safemeta.algorithms.fisar import optimizer
from safemeta.algorithms.fisar_meta import Lane, MetaConfig, create, meta_loss, meta_train, unroll
from safemeta.solvers import project_update
from safemeta.tasks.qcqp import QCQPFamily

FAMILY = QCQPFamily(3, 2)
METRICS = pytest.mark.parametrize("metric", ["euclidean", pytest.param("closed_form", marks=pytest.mark.slow)])
SMALL = MetaConfig(units=4, batch=16, span=20, window=5, step=0.2, iterations=60, learning_rate=1e-2)


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation():
    """Small programs that run a few times: how long they compile is what counts."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def start(config, family=FAMILY, seed=0):
    """A network, a problem, and the lane at its start."""
    network = create(config, jax.random.key(seed)).network
    network = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), network)
    problem, x = family.sample(jax.random.key(seed + 1))
    return network, problem, Lane(x, network.fresh(x))


def differences(function, flat, directions, h=1e-5):
    """Central differences of fourth order along random directions."""
    found = []
    for v in directions:
        near, far = (
            function(flat + h * v) - function(flat - h * v),
            function(flat + 2 * h * v) - function(flat - 2 * h * v),
        )
        found.append((8 * near - far) / (12 * h))
    return np.asarray(found)


@METRICS
def test_the_meta_gradient_with_second_derivatives_is_that_of_the_loss(x64, metric):
    """Through five projected steps, both constraints active, in float64."""
    config = replace(SMALL, metric=metric, second_derivatives=True, weighting="uniform", class_k=ClassK(rate=2.0))
    network, problem, lane = start(config)
    flat, rebuild = ravel_pytree(network)

    def loss(flat):
        value, (_, path) = meta_loss(config, FAMILY, rebuild(flat), problem, lane, 5)
        return value, path

    gradient = jax.jit(jax.grad(loss, has_aux=True))(flat)[0]
    value = jax.jit(loss)
    directions = np.random.default_rng(0).normal(size=(6, flat.size)) / flat.size**0.5
    expected = differences(lambda f: value(f)[0], flat, directions)
    assert np.max(np.abs(directions @ gradient - expected)) < 1e-5 * np.max(np.abs(expected))
    # A violated constraint is active: untrained directions are too small to lower it as fast as they must.
    assert np.sum(np.asarray(value(flat)[1].constraints[:-1]) > 0.1) >= 5


def walk(config, network, problem, lane, steps):
    """Gradients, rows and points that an unroll meets."""

    def advance(lane, _):
        met = jax.grad(FAMILY.objective, 1)(problem, lane.x), jax.jacobian(FAMILY.constraints, 1)(problem, lane.x)
        return unroll(config, FAMILY, network, problem, lane, 1)[0], (*met, lane.x)

    return jax.jit(lambda lane: jax.lax.scan(advance, lane, length=steps)[1])(lane)


@METRICS
def test_the_meta_gradient_without_second_derivatives_holds_gradients_and_rows(x64, metric):
    """The loss on the recorded gradients and rows, by differences. Its bounds still answer to theta."""
    config = replace(SMALL, metric=metric, weighting="uniform", class_k=ClassK("saturating", 2.0, 3.0))
    network, problem, lane = start(config, seed=2)
    flat, rebuild = ravel_pytree(network)
    gradients, rows, _ = walk(config, network, problem, lane, 3)

    @jax.jit
    def loss(flat):
        def advance(carry, met):
            x, memory = carry
            raw, memory = rebuild(flat)(met[0], memory)
            bounds = -config.class_k(FAMILY.constraints(problem, x))
            x = x + config.step * project_update(raw, met[1], bounds, metric=config.metric).update
            return (x, memory), FAMILY.objective(problem, x)

        return jax.lax.scan(advance, (lane.x, lane.memory), (gradients, rows))[1].mean()

    gradient = jax.jit(jax.grad(lambda f: meta_loss(config, FAMILY, rebuild(f), problem, lane, 3)[0]))(flat)
    directions = np.random.default_rng(1).normal(size=(4, flat.size)) / flat.size**0.5
    expected = differences(loss, flat, directions)
    assert np.max(np.abs(directions @ gradient - expected)) < 1e-5 * np.max(np.abs(expected))


def test_relative_weights_are_those_of_the_start(x64):
    """w_k = 1 / f(start), whatever happens after."""
    config = replace(SMALL, weighting="relative", window=1)
    network, problem, lane = start(config)
    value, (_, path) = jax.jit(lambda lane: meta_loss(config, FAMILY, network, problem, lane, 2))(lane)
    assert value == pytest.approx(float(path.objective.mean() / FAMILY.objective(problem, lane.x)), rel=1e-12)


@pytest.fixture(scope="module")
def trained():
    """A small network, a minute's worth of problems."""
    return meta_train(SMALL, FAMILY, jax.random.key(0))


def test_meta_training_learns(trained):
    """On fresh problems the learned optimizer ends far below the untrained one, and near the limits."""
    network, history = trained
    assert history.shape == (SMALL.iterations, SMALL.span // SMALL.window)
    problems, starts = jax.vmap(FAMILY.sample)(jax.random.split(jax.random.key(99), 32))

    def ends(network):
        def one(problem, x):
            return unroll(SMALL, FAMILY, network, problem, Lane(x, network.fresh(x)), 30)[1]

        return jax.jit(jax.vmap(one))(problems, starts)

    before, after = ends(create(SMALL, jax.random.key(0)).network), ends(network)
    assert after.objective[:, -1].mean() < 0.6 * before.objective[:, -1].mean()
    assert after.constraints[:, -1].max() < 0.1


def test_outside_the_violation_follows_the_bound(trained):
    """C(theta + beta theta') <= (1 - alpha beta) C(theta) + O(beta^2), the remainder falling like beta^2 (float64)."""
    network, _ = trained
    with jax.enable_x64(True):
        problems, x = jax.vmap(FAMILY.sample)(jax.random.split(jax.random.key(5), 40))

        def move(problem, x):
            """The projected direction theta' itself."""
            rule = optimizer(network, lambda y: FAMILY.constraints(problem, y), step=1.0)
            return rule.update(jax.grad(FAMILY.objective, 1)(problem, x), rule.init(x), x)[0]

        directions = jax.jit(jax.vmap(move))(problems, x)
        values = jax.vmap(FAMILY.constraints)(problems, x)
        largest = []
        for beta in (0.1, 0.05, 0.025):
            after = jax.vmap(FAMILY.constraints)(problems, x + beta * directions)
            largest.append(float((after - (1 - beta) * values).max()))
    assert largest[2] > 1e-4  # there is something to bound
    np.testing.assert_allclose(np.divide(largest[:-1], largest[1:]), 4, rtol=0.1)


@pytest.mark.slow  # tests/solvers/test_invariant_step.py has a small version
@METRICS
def test_with_trials_a_feasible_start_stays_feasible_and_a_violation_only_falls(trained, metric):
    network, _ = trained
    with jax.enable_x64(True):
        problems, starts = jax.vmap(FAMILY.sample)(jax.random.split(jax.random.key(7), 24))
        inside = jax.vmap(lambda p, x: FAMILY.feasible_start(p, x, 0.9))(problems, starts)

        def run(problem, x, trials):
            rule = optimizer(
                network, lambda y: FAMILY.constraints(problem, y), step=0.2, class_k=ClassK(rate=2.0),
                metric=metric, trials=trials,
            )  # fmt: skip

            def advance(carry, _):
                x, state = carry
                updates, state = rule.update(jax.grad(FAMILY.objective, 1)(problem, x), state, x)
                x = optax.apply_updates(x, updates)
                return (x, state), FAMILY.constraints(problem, x)

            return jax.lax.scan(advance, (x, rule.init(x)), length=60)[1]

        def paths(x, trials):
            return np.asarray(jax.jit(jax.vmap(lambda p, x: run(p, x, trials)))(problems, x))

        assert paths(inside, 0).max() > 1e-4  # what there is to prevent
        assert paths(inside, 40).max() <= 0
        outside = paths(starts, 40)
        first = np.asarray(jax.vmap(FAMILY.constraints)(problems, starts))[:, None]
        steps = np.diff(np.maximum(np.concatenate([first, outside], axis=1), 0), axis=1)
        assert steps.max() <= 0
        assert outside[:, -1].max() < 1e-4


def test_what_makes_no_sense_is_refused():
    for change, word in (({"window": 3}, "window"), ({"step": 0.0}, "step"), ({"batch": 0}, "batch")):
        with pytest.raises(ValueError, match=word):
            replace(SMALL, **change).validate()


def test_float64_inputs_work_with_a_float32_network(trained):
    """A network trained in single precision drives problems in double precision."""
    network, _ = trained
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(eqx.filter(network, eqx.is_array)))
    with jax.enable_x64(True):
        rule = optimizer(network, count=1)
        x = jnp.ones(3)
        updates, _ = jax.jit(
            lambda x, c, a: rule.update(x, rule.init(x), x, constraint_values=c, constraint_gradients=a)
        )(x, jnp.array([1.0]), jnp.ones((1, 3)))
        assert updates.dtype == jnp.float64
        assert updates.sum() <= -0.1 + 1e-12
