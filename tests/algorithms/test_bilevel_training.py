"""The bilevel loop: training iterations, settings, and its named systems in the registry."""

import equinox as eqx
import jax
import numpy as np
import pytest
from toy_worlds import reach

from safemeta.algorithms import bilevel, maml, meta_cpo, meta_crpo
from safemeta.algorithms.bilevel_config import CHOICES, BilevelConfig
from safemeta.algorithms.registry import load
from safemeta.nets import parameters


def test_offline_meta_crpo_keeps_its_tasks_and_their_policies():
    world = reach(limit=5.0)
    config = meta_crpo.Config(
        hidden=(3,), tasks=2, episodes=3, inner_steps=1, cg_iterations=4, fisher_states=30, keep_tasks=True
    )
    algorithm = meta_crpo.Algorithm(config)
    state = algorithm.init(jax.random.key(0), world.cmdp)
    np.testing.assert_array_equal(state.kept.adapted[0], parameters(state.policy))
    first, metrics = algorithm.iterate(state, world, jax.random.key(1))
    second, after = algorithm.iterate(first, world, jax.random.key(2))
    np.testing.assert_array_equal(state.kept.key, second.kept.key)
    assert np.abs(np.asarray(second.kept.adapted - first.kept.adapted)).max() > 0
    assert jax.tree.structure(state) == jax.tree.structure(second)
    # They go on from where they were, which is no longer where the meta-policy is.
    assert np.abs(np.asarray(first.kept.adapted - parameters(first.policy))).max() > 0
    assert np.isfinite(float(after["distance"]))
    assert float(metrics["distance"]) > 0
    with pytest.raises(ValueError, match="keep_tasks needs outer = nearest"):
        meta_cpo.Config(keep_tasks=True).validate()


@pytest.mark.parametrize("module", [meta_cpo, maml, meta_crpo])
def test_iterations_are_repeatable_and_states_keep_their_structure(module):
    world = reach(limit=5.0)
    config = module.Config(hidden=(3,), tasks=2, episodes=3, inner_steps=2, cg_iterations=4, fisher_states=30)
    algorithm = module.Algorithm(config)
    state = algorithm.init(jax.random.key(0), world.cmdp)
    following, metrics = algorithm.iterate(state, world, jax.random.key(1))
    again, _ = algorithm.iterate(state, world, jax.random.key(1))
    assert eqx.tree_equal(following, again)
    assert jax.tree.structure(state) == jax.tree.structure(following)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(following), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
        assert np.isfinite(new).all()
    assert all(np.isfinite(value).all() for value in metrics.values())
    assert algorithm.steps_per_iteration(world.cmdp) == 3 * 2 * 3 * world.cmdp.horizon
    adaptation = algorithm.adapt(following, world, world.sample(jax.random.key(2), 3, "test"), jax.random.key(3), 2)
    assert adaptation.kl.shape == (2, 3)
    assert adaptation.estimated_costs.shape == (3, 3, 1)
    start = parameters(following.policy)
    first = jax.tree.map(lambda leaf: leaf[0, 1] if eqx.is_array(leaf) else leaf, adaptation.policies)
    np.testing.assert_array_equal(parameters(first), start)
    assert np.all(np.asarray(adaptation.outcome) < len(adaptation.outcome_names))


def test_meta_training_makes_adaptation_better_on_a_toy_world():
    """Goals near 1 are to be reached, effort is limited: after training, two steps come nearer than from the start."""
    world = reach(limit=8.0)
    config = meta_cpo.Config(
        hidden=(4,), tasks=4, episodes=6, inner_steps=1, cg_iterations=6, inner_radius=0.02, outer_radius=0.03
    )
    algorithm = meta_cpo.Algorithm(config)
    state = algorithm.init(jax.random.key(0), world.cmdp)
    history = []
    for iteration in range(25):
        state, metrics = algorithm.iterate(state, world, jax.random.key(iteration))
        history.append((float(metrics["return_after"]), float(metrics["cost_after"])))
    returns, costs = np.array(history).T
    assert returns[-5:].mean() > returns[:3].mean() + 3
    assert costs[-5:].mean() < 1.15 * 8.0


@pytest.mark.parametrize(
    ("change", "message"),
    [({name: "nonsense"}, f"{name} must be one of") for name in CHOICES]
    + [
        ({name: 0}, f"{name} must be at least 1")
        for name in ("inner_steps", "tasks", "episodes", "critic_steps", "minibatch", "cg_iterations")
    ]
    + [({"fisher_states": 9}, "fisher_states must be at least 10, not 9")]
    + [
        ({name: value}, f"{name} must be a positive number")
        for name in ("inner_radius", "outer_radius", "inner_learning_rate", "critic_learning_rate", "kl_weight")
        for value in (0.0, float("nan"), float("inf"))
    ]
    + [
        ({name: -1.0}, f"{name} must be a number that is zero or more")
        for name in ("damping", "penalty", "cost_kl_weight")
    ]
    + [
        ({"initial_log_std": float("nan")}, "initial_log_std must be"),
        ({"margin": 1.0}, "margin is a share"),
        ({"outer_rate": 0.0}, "outer_rate is a share"),
        ({"gae_smoothing": 1.1}, "gae_smoothing must"),
        ({"hidden": ()}, "hidden must"),
        ({"hidden": (0,)}, "hidden must"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    config = BilevelConfig()
    for name, value in change.items():
        object.__setattr__(config, name, value)  # past the run-time checks of types, which users do not have
    with pytest.raises(ValueError, match=message):
        bilevel.Algorithm(config)


@pytest.mark.parametrize("name", ["meta-cpo", "meta-trpo", "maml", "meta-crpo", "bilevel"])
def test_named_systems_are_in_the_registry(name):
    module = load(name)
    assert module.meta
    module.algorithm(module.config())
    for preset in module.presets.values():
        module.algorithm(preset)
    assert isinstance(module.config(), BilevelConfig)
