"""FISAR on a world of tasks: its two phases, the replay behind the meta-gradient, adaptation, and what is refused."""

import itertools
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_worlds import reach

from safemeta.algorithms import fisar, registry
from safemeta.algorithms.fisar_optimizer import direction, optimizer
from safemeta.nets import LearnedOptimizer, parameters
from safemeta.tasks import make

SMALL = fisar.Config(
    tasks=2, episodes=4, policies=2, window=3, span=6, meta_iterations=3, hidden=(4,), units=4, step=0.1, margin=0.0
)
WORLD = reach(3.0)


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation():
    """Small programs that run a few times: how long they compile is what counts."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def history():
    """Five iterations: the states (the first before any) and the metrics."""
    algorithm = fisar.Algorithm(SMALL)
    states, metrics = [algorithm.init(jax.random.key(0), WORLD.cmdp)], []
    for key in jax.random.split(jax.random.key(1), 5):
        state, found = algorithm.iterate(states[-1], WORLD, key)
        states.append(state)
        metrics.append({name: float(value) for name, value in found.items()})
    return states, metrics


def vectors(state):
    return np.asarray(jax.vmap(parameters)(state.lanes.policy))


def weights(state):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(eqx.filter(state.network, eqx.is_array))])


def test_the_optimizer_is_trained_first_and_then_left_as_it_is(history):
    states, metrics = history
    assert [row["learning"] for row in metrics] == [1, 1, 1, 0, 0]
    changes = [np.abs(weights(b) - weights(a)).max() for a, b in itertools.pairwise(states)]
    assert min(changes[:3]) > 0
    assert changes[3] == changes[4] == 0


def test_policies_start_anew_after_the_span_and_when_the_optimizer_is_done(history):
    """Three projected updates move a policy little; a restart draws other weights altogether."""
    states, _ = history
    moved = [np.linalg.norm(vectors(b) - vectors(a)) for a, b in itertools.pairwise(states)]
    assert max(moved[1], moved[4]) < 0.5 * min(moved[0], moved[2], moved[3])
    assert np.abs(vectors(states[1])[0] - vectors(states[1])[1]).max() > 0.1  # side by side, not the same


def test_metrics_are_numbers_and_steps_are_counted(history):
    _, metrics = history
    assert all(np.isfinite(list(row.values())).all() for row in metrics)
    assert {"return", "cost", "limit", "meta_loss", "feasible"} <= metrics[0].keys()
    for row in metrics:
        assert row["largest_cost"] >= row["cost"]
        assert row["limit"] == WORLD.cmdp.limits[0]
    assert fisar.Algorithm(SMALL).steps_per_iteration(WORLD.cmdp) == 2 * 3 * 2 * 4 * 10


def test_the_policy_is_one_of_those_in_training(history):
    states, metrics = history
    chosen = parameters(fisar.Algorithm(SMALL).policy(states[-1]))
    assert np.all(vectors(states[-1])[int(states[-1].chosen)] == np.asarray(chosen))
    assert metrics[-1]["chosen_excess"] <= 0 or metrics[-1]["share_above_limit"] > 0


def records(key, steps=3, size=6):
    parts = jax.random.split(key, 4)
    gradient = jax.random.normal(parts[0], (steps, size))
    rows = jax.random.normal(parts[1], (steps, 2, size))
    values = jax.random.normal(parts[2], (steps, 2))
    return gradient, rows, values, jax.random.normal(parts[3], (size,))


def test_the_meta_gradient_is_that_of_the_sum_of_g_times_theta(x64):
    """A path is made; then `sum_k g_k . theta_k(phi)` on the recorded gradients is differentiated by differences."""
    config = replace(SMALL, rate=3.0)
    network = LearnedOptimizer.create(jax.random.key(3), units=3)
    network = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), network)
    gradient, rows, values, start = records(jax.random.key(4))
    fractions = jnp.array([0.5, 1.0, 0.7])

    @jax.jit
    def path(network, points):
        """theta_0 .. theta_2, the bounds following to first order how theta parts from `points` (NaN: nowhere)."""

        def advance(carry, step):
            x, memory = carry
            g, a, c, point, fraction = step
            shift = jnp.where(jnp.isnan(point), 0, x - point)
            seen = g / jnp.sqrt(jnp.mean(g**2))
            found, memory = direction(network, config.alpha, config.metric, seen, a, c + a @ shift, memory)
            return (x + fraction * config.step * found.update, memory), x

        return jax.lax.scan(advance, (start, network.fresh(start)), (gradient, rows, values, points, fractions))[1]

    points = path(network, jnp.full_like(gradient, jnp.nan))
    flat, rebuild = jax.flatten_util.ravel_pytree(network)

    def by_hand(flat):
        total = jnp.sum(gradient * (path(rebuild(flat), points) - start)) / 3
        return total / jnp.sqrt(jnp.mean(jnp.sum(gradient**2, axis=1)))

    record = fisar.Record(points, gradient, rows, values, fractions)
    value, derivative = jax.jit(
        jax.value_and_grad(lambda f: fisar.meta_loss(config, rebuild(f), network.fresh(start), record))
    )(flat)
    assert value == pytest.approx(float(by_hand(flat)), rel=1e-10)
    v, h = np.random.default_rng(0).normal(size=flat.size), 1e-6
    expected = (by_hand(flat + h * v) - by_hand(flat - h * v)) / (2 * h)
    assert derivative @ v == pytest.approx(float(expected), rel=1e-5)
    assert abs(expected) > 1e-4


def test_the_optimizer_is_the_same_step_on_any_pytree():
    """As an optax transformation, on a tree, with estimated constraints."""
    network = LearnedOptimizer.create(jax.random.key(3), units=3)
    gradient, rows, values, x = records(jax.random.key(5))
    config = SMALL
    expected = jax.jit(
        lambda g, a, c: direction(network, config.alpha, config.metric, g, a, c, network.fresh(x))[0].update
    )(gradient[0], rows[0], values[0])

    def tree(flat):
        return {"a": flat[..., :4].reshape(*flat.shape[:-1], 2, 2), "b": flat[..., 4:]}

    rule = optimizer(network, step=config.step, class_k=config.alpha, count=2)
    updates, state = jax.jit(
        lambda g, c, a: rule.update(g, rule.init(tree(x)), constraint_values=c, constraint_gradients=a)
    )(tree(gradient[0]), values[0], tree(rows[0]))
    found = jnp.concatenate([updates["a"].ravel(), updates["b"]])
    np.testing.assert_allclose(found, config.step * expected, atol=1e-6)
    assert np.any(np.asarray(state[0].memory.hidden) != 0)
    assert isinstance(rule, optax.GradientTransformationExtraArgs)


def test_a_fresh_optimizer_goes_downhill():
    """Before any training its direction is about a running mean of the gradient, whatever the gradient's scale."""
    config = replace(SMALL, units=20, output_scale=1.0)
    network = fisar._network(config, jax.random.key(0))
    mean = jax.random.normal(jax.random.key(1), (100,))
    noise = jax.random.normal(jax.random.key(2), (20, 100))

    def advance(memory, g):
        nothing = jnp.zeros((1, 100)), -jnp.ones(1)
        record = fisar.Record(mean, g, nothing[0], nothing[1], jnp.ones(()))
        found, memory = fisar._directed(config, network, record, nothing[1], memory)
        return memory, found.update

    _, raw = jax.jit(lambda g: jax.lax.scan(advance, network.fresh(mean), g))(1e3 * (mean + noise))
    correlation = np.corrcoef(raw[-1], -mean)[0, 1]
    assert correlation > 0.85
    assert correlation > np.corrcoef(mean + noise[-1], mean)[0, 1] + 0.1  # better than the last gradient alone


@pytest.mark.slow
def test_an_update_keeps_within_the_kl_radius(history):
    """With a large step, every update is shortened to it; the divergence is only about quadratic."""
    algorithm = fisar.Algorithm(replace(SMALL, output_scale=30.0))
    _, metrics = algorithm.iterate(algorithm.init(jax.random.key(0), WORLD.cmdp), WORLD, jax.random.key(1))
    assert metrics["fraction"] < 0.9
    assert 0.2 * SMALL.kl_radius < metrics["kl"] < 3 * SMALL.kl_radius


def test_adaptation_moves_every_task_on_its_own_limits(history):
    states, _ = history
    tasks = WORLD.sample(jax.random.key(3), 3, "test")
    tight = eqx.tree_at(lambda t: t.limits, tasks, tasks.limits.at[0].set(0.01))
    found = fisar.Algorithm(SMALL).adapt(states[-1], WORLD, tight, jax.random.key(4), 2)
    assert found.estimated_costs.shape == (3, 3, 1)
    assert found.kl.shape == (2, 3)
    start = jax.vmap(parameters)(jax.tree.map(lambda leaf: leaf[0], found.policies))
    assert np.abs(start - parameters(fisar.Algorithm(SMALL).policy(states[-1]))).max() == 0
    assert np.all(np.asarray(found.kl) > 0)
    assert np.asarray(found.multipliers)[:, 0].max() > 0  # the tight limit binds
    assert found.outcome_names[0] == "solved"


def test_it_is_registered_and_refuses_what_makes_no_sense():
    assert registry.load("fisar").config is fisar.Config
    wrong = ({"window": 4}, {"step": 2.0, "rate": 1.0}, {"episodes": 1}, {"margin": 1.0})
    for change, word in zip(wrong, ("window", "rate", "episodes", "margin"), strict=True):
        with pytest.raises(ValueError, match=word):
            fisar.Algorithm(replace(SMALL, **change))


@pytest.mark.parametrize("name", ["fisar", "projected-gradient", "primal-dual", "cpo"])
def test_every_cost_and_its_limit_are_among_the_metrics(name):
    world, module = make("point-mass"), registry.load(name)
    algorithm = module.algorithm(module.config(tasks=2, episodes=2, hidden=(4,)))
    state = eqx.filter_eval_shape(algorithm.init, jax.random.key(0), world.cmdp)
    _, metrics = eqx.filter_eval_shape(algorithm.iterate, state, world, jax.random.key(1))
    assert {"cost", "limit", "largest_cost", "cost/obstacle", "limit/obstacle"} <= metrics.keys()
    assert {value.shape for value in metrics.values()} == {()}
