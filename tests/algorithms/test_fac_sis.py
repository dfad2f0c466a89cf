"""FAC-SIS: what critic, multiplier and index are trained on, by hand and by finite differences; and that it learns."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sac import some_batch

from safemeta.algorithms import fac_sis, registry
from safemeta.certificates import SafetyIndex
from safemeta.nets import MultiplierNetwork
from safemeta.tasks import registry as tasks

CLEARANCE = np.array([[[0.6, -1.0], [2.0, 0.5]], [[3.0, 1.0], [0.7, 0.2]], [[0.9, -0.5], [5.0, 0.0]]] * 2)
FOLLOWING = np.array([[[0.5, -1.1], [2.0, 0.5]], [[3.0, 1.0], [0.8, 0.9]], [[0.95, 0.4], [5.0, 0.0]]] * 2)


def batch_and_index():
    signals = {"clearance": jnp.asarray(CLEARANCE)}, {"clearance": jnp.asarray(FOLLOWING)}
    batch = replace(some_batch(), signals=signals[0], next_signals=signals[1])
    return batch, SafetyIndex(jnp.asarray(0.3), jnp.asarray([0.9]), jnp.asarray(1.3), 0.5)


def delta_by_hand(sigma, k, n):
    def phi(clearance):
        return max(sigma + 0.5**n - d**n - k * rate for d, rate in clearance)

    return np.array([phi(s) - max(phi(c), 0) for c, s in zip(CLEARANCE, FOLLOWING, strict=True)])


@pytest.mark.parametrize("floor", [None, -0.001])
def test_the_constraint_critics_target_by_hand(x64, floor):
    batch, index = batch_and_index()
    found = fac_sis.constraint_of(index, batch, fac_sis.Config(decrease_floor=floor))
    expected = delta_by_hand(0.3, 0.9, 1.3)
    np.testing.assert_allclose(found, expected if floor is None else np.maximum(expected, floor), atol=1e-12)
    assert (expected > 0).any()
    assert (expected < -0.001).any()


def test_the_multipliers_gradient_is_constraint_times_its_own(x64):
    batch, _ = batch_and_index()
    multiplier = MultiplierNetwork.create(3, jax.random.key(0), hidden=(5,), initial_bias=-1.0)
    constraint = jnp.asarray(np.random.default_rng(1).normal(size=6))
    found = eqx.filter_grad(fac_sis.multiplier_loss)(multiplier, batch, constraint, 100.0)
    by_row = [
        eqx.filter_grad(lambda m, o=o: m(o))(
            multiplier,
        )
        for o in batch.observation
    ]
    total = float(batch.valid.sum())
    for index, leaf in enumerate(jax.tree.leaves(eqx.filter(found, eqx.is_array))):
        rows = [jax.tree.leaves(eqx.filter(g, eqx.is_array))[index] for g in by_row]
        expected = (
            -sum(float(w) * float(c) * np.asarray(g) for w, c, g in zip(batch.valid, constraint, rows, strict=True))
            / total
        )
        np.testing.assert_allclose(leaf, expected, atol=1e-12)


def test_a_multiplier_above_its_bound_is_left_alone(x64):
    batch, _ = batch_and_index()
    multiplier = MultiplierNetwork.create(3, jax.random.key(0), hidden=(5,), initial_bias=200.0)
    found = eqx.filter_grad(fac_sis.multiplier_loss)(multiplier, batch, jnp.ones(6), 100.0)
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(eqx.filter(found, eqx.is_array)))


@pytest.mark.parametrize("kind", ["weighted", "hinge"])
def test_the_indexs_gradient_is_that_of_finite_differences(x64, kind):
    batch, index = batch_and_index()
    multiplier = MultiplierNetwork.create(3, jax.random.key(0), hidden=(5,), initial_bias=0.0)
    config = fac_sis.Config(index_loss=kind)
    gradient = eqx.filter_grad(fac_sis.index_loss)(index, multiplier, batch, config)

    def by_hand(sigma, k, n):
        constraint = np.maximum(delta_by_hand(sigma, k, n), -0.001)
        weight = np.asarray(multiplier(batch.observation)) if kind == "weighted" else np.ones(6)
        value = weight * constraint if kind == "weighted" else np.maximum(constraint, 0)
        return np.sum(np.asarray(batch.valid) * value) / np.asarray(batch.valid).sum()

    at, step = np.array([0.3, 0.9, 1.3]), 1e-6
    for position, found in enumerate((gradient.sigma, gradient.k[0], gradient.n)):
        ends = [by_hand(*(at + sign * step * np.eye(3)[position])) for sign in (1, -1)]
        assert float(found) == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-7)
    assert float(gradient.n) != 0


def quick(**changes):
    settings = {"tasks": 4, "hidden": (16,), "batch": 32, "warm_up": 16, "capacity": 1000, "index_interval": 4}
    return replace(fac_sis.PRESETS["fast"], **{**settings, **changes})


def test_each_part_moves_at_its_own_pace():
    world = tasks.make("collision-avoidance", horizon=13)
    algorithm = fac_sis.Algorithm(
        quick(policy_interval=2, multiplier_interval=4, index_interval=100, steps_per_update=4, index_after=0)
    )
    state = algorithm.init(jax.random.key(0), world.cmdp)
    moved, metrics = algorithm.iterate(state, world, jax.random.key(1))
    updates = int(metrics["updates"])
    assert updates == 13 - 3  # one per control step of four rows, after 16 steps
    learner = moved.learner
    counts = {
        "critic": learner.actor.critic_optimizer[0],
        "policy": learner.actor.policy_optimizer,
        "multiplier": learner.multiplier_optimizer,
        "index": learner.index_optimizer,
    }
    steps = {
        name: max(int(leaf) for leaf in jax.tree.leaves(s) if leaf.dtype == jnp.int32) for name, s in counts.items()
    }
    assert steps == {"critic": 10, "policy": 5, "multiplier": 3, "index": 1}
    assert int(moved.steps) == 13 * 4


def test_iterations_are_repeatable_and_fac_keeps_its_index():
    world = tasks.make("collision-avoidance", horizon=12)
    for name, moves in (("fac-sis", True), ("fac", False)):
        module = registry.load(name)
        algorithm = module.algorithm(quick(index_interval=1, index="initial", index_rate=(1e-2, 1e-2, 10)))
        state = algorithm.init(jax.random.key(0), world.cmdp)
        once, again = (algorithm.iterate(state, world, jax.random.key(1))[0] for _ in range(2))
        assert jax.tree.structure(state) == jax.tree.structure(once)
        for one, other in zip(jax.tree.leaves(once), jax.tree.leaves(again), strict=True):
            np.testing.assert_array_equal(one, other)
        assert (float(once.learner.index.sigma) != float(state.learner.index.sigma)) is moves


def test_it_learns_to_keep_out_of_the_hazard():
    """Collision avoidance: after a few thousand gradient steps no policy without a constraint is safe, and FAC is."""
    world = tasks.make("collision-avoidance", horizon=60)
    settings = {"tasks": 8, "hidden": (32, 32), "batch": 64, "multiplier_rate": (1e-3, 1e-3, 10**6), "warm_up": 400}
    settings |= {"policy_rate": (1e-3, 3e-4, 10**4), "critic_rate": (1e-3, 3e-4, 10**4), "learn_index": False}
    shown = {}
    for name, changes in (("fac", {}), ("free", {"largest_multiplier": 1e-9, "initial_bias": -30.0})):
        algorithm = fac_sis.Algorithm(quick(**{**settings, **changes}))
        state = algorithm.init(jax.random.key(0), world.cmdp)
        for index in range(60):
            state, _ = algorithm.iterate(state, world, jax.random.key(index))
        drawn = world.sample(jax.random.key(7), 1)
        shown[name] = world.measure(algorithm.policy(state), drawn, jax.random.key(8), 50)
    assert float(shown["free"].costs.mean()) > 1
    assert float(shown["fac"].costs.mean()) < 0.2 * float(shown["free"].costs.mean())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"largest_multiplier": 0.0}, "largest_multiplier"),
        ({"decrease_floor": 0.1}, "decrease_floor"),
        ({"multiplier_interval": 0}, "multiplier_interval"),
        ({"safe_distance": -1.0}, "safe_distance"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        fac_sis.Algorithm(quick(**change))


def test_a_task_without_obstacles_is_refused():
    with pytest.raises(ValueError, match="distance to obstacles"):
        fac_sis.Algorithm(quick()).init(jax.random.key(0), tasks.make("point-mass").cmdp)
