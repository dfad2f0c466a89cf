"""Runs that share a compiled program: each is what it would be alone, and no step is computed that is not due."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.algorithms import registry
from safemeta.algorithms.vmapped import VmappedRuns, tasks_of_runs
from safemeta.sim import FunctionalWorld
from safemeta.tasks import registry as tasks

TINY = {
    "tasks": 2, "hidden": (8, 8), "critic_hidden": (8, 8), "batch": 16, "warm_up": 16, "capacity": 400,
    "steps_per_update": 2, "n_step": 3, "target_period": 2, "initial_multiplier": 0.5,
}  # fmt: skip
WORLD = tasks.make("realworld-cartpole", horizon=12)


def runs_with(**settings):
    module = registry.load("rc-d4pg")
    return VmappedRuns(module.algorithm(module.config(**TINY, **settings)), WORLD)


@pytest.fixture(scope="module")
def runs():
    return runs_with()


def all_of(jaxpr):
    """Names of all primitives, at any depth."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from all_of(inner)


@pytest.mark.slow
@pytest.mark.parametrize("replay", ["uniform", "prioritised"])
def test_each_run_is_what_it_is_alone(replay):
    """Differing keys, safety coefficients and limits; two iterations."""
    runs = runs_with(replay=replay)
    drawn = WORLD.sample(jax.random.key(1), 2)
    spread = tasks_of_runs(
        drawn, 2, limits=jnp.asarray([0.1, 0.9]), parameters={"safety_coeff": jnp.asarray([0.0, 0.3])}
    )
    first = runs.init(jax.random.split(jax.random.key(0), 2))
    keys = jax.random.split(jax.random.key(2), 4).reshape(2, 2)
    states = first
    for both in keys:
        states, metrics = runs.iterate(states, spread, both)
    np.testing.assert_allclose(metrics["cost"], [1, 0], atol=1e-6)  # at 0 no place is allowed
    np.testing.assert_allclose(metrics["limit"], [0.1, 0.9])
    np.testing.assert_allclose(metrics["overshoot"], [0.9, 0], atol=1e-6)
    np.testing.assert_array_equal(metrics["updates"], [12, 12])
    for run in (0, 1):
        alone = runs.pick(first, run)
        assert jax.tree.structure(alone) == jax.tree.structure(runs.pick(states, run))
        for both in keys:
            alone, shown = runs.algorithm.iterate_on(alone, WORLD, spread[run], both[run])
        for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(runs.pick(states, run)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
        assert float(metrics["multiplier"][run]) == pytest.approx(float(shown["multiplier"]), abs=1e-6)


def test_runs_that_have_come_equally_far_can_be_joined(runs):
    states = runs.init(jax.random.split(jax.random.key(0), 3))
    picked = [runs.pick(states, run) for run in range(3)]
    joined = runs.join(picked)
    assert jax.tree.structure(joined) == jax.tree.structure(states)
    for one, other in zip(jax.tree.leaves(joined), jax.tree.leaves(states), strict=True):
        np.testing.assert_array_equal(one, other)
    ahead = eqx.tree_at(lambda state: state.steps, picked[1], picked[1].steps + 24)
    with pytest.raises(ValueError, match="equally far"):
        runs.join([picked[0], ahead])


def test_what_is_not_due_is_not_computed(runs):
    """As many conditionals as one run has: with a counter of each run's own they would be selects."""
    states = runs.init(jax.random.split(jax.random.key(0), 2))
    assert states.steps.ndim == states.learner.count.ndim == states.replay.current_index.ndim == 0
    drawn = WORLD.sample(jax.random.key(1), 2)
    keys = jax.random.split(jax.random.key(2), 2)

    def programs(function, *arguments):
        arrays, static = eqx.partition(arguments, eqx.is_array)
        traced = jax.make_jaxpr(lambda a: eqx.filter(function(*eqx.combine(a, static)), eqx.is_array))(arrays)
        return sum(name == "cond" for name in all_of(traced.jaxpr))

    alone = programs(lambda s, t, k: runs.algorithm.iterate_on(s, WORLD, t, k), runs.pick(states, 0), drawn, keys[0])
    assert programs(runs.iterate, states, tasks_of_runs(drawn, 2), keys) == alone >= 2


def test_parameters_must_be_those_of_the_tasks():
    with pytest.raises(ValueError, match=r"no parameter 'safety'; they have .*safety_coeff"):
        tasks_of_runs(WORLD.sample(jax.random.key(1), 2), 2, parameters={"safety": jnp.zeros(2)})


class OnHost(FunctionalWorld):
    functional = False


def test_the_world_must_be_functional(runs):
    with pytest.raises(ValueError, match="functional world"):
        VmappedRuns(runs.algorithm, OnHost(WORLD.cmdp, WORLD.environment, WORLD.family))
