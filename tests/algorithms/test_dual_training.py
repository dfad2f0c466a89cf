"""Meta-training by the dual method: one iteration as a pure function, and which meta-policy is kept."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_worlds import HORIZON, Padded, reach, with_config, with_mean_action

from safemeta.algorithms import dual
from safemeta.algorithms.base import MetaAlgorithm
from safemeta.algorithms.dual import PRESETS, Algorithm, Config, _draw
from safemeta.nets import parameters

LIMIT = 8.0  # of effort, `10 (mean^2 + e^-2)`: a mean of 0.8 costs 7.8
WORLD = reach(LIMIT)
CONFIG = with_config(Config(cost_kl_weight=1.0), corner_tasks=1, cost_episodes=2)


@pytest.fixture(scope="module")
def iterate():
    return jax.jit(lambda state, key: Algorithm(CONFIG).iterate(state, WORLD, key))


def start(mean: float, **changes):
    """A fresh state whose current meta-policy has this mean action; `best` is another one, of mean -2."""
    state = Algorithm(CONFIG).init(jax.random.key(0), WORLD.cmdp)
    current = eqx.tree_at(lambda c: c.policy, state.current, with_mean_action(state.current.policy, mean))
    best = eqx.tree_at(lambda c: c.policy, state.current, with_mean_action(state.current.policy, -2.0))
    return replace(state, current=current, best=best, **changes)


def network_of(policy) -> np.ndarray:
    return np.asarray(parameters(policy))


def test_an_iteration_is_a_pure_function_of_state_and_key(iterate):
    state = start(0.4)
    first, second = iterate(state, jax.random.key(1)), iterate(state, jax.random.key(1))
    assert eqx.tree_equal(first, second)
    other, _ = iterate(state, jax.random.key(2))
    assert not np.array_equal(network_of(first[0].current.policy), network_of(other.current.policy))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(first))


def structure(state):
    """Shapes and types, weak ones included: with any change the next iteration compiles anew."""
    types = [jax.typeof(leaf) if isinstance(leaf, jax.Array) else leaf for leaf in jax.tree.leaves(state)]
    return jax.tree.structure(state), [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in types]


def test_iterations_share_one_program_and_keep_the_structure_of_the_state(iterate):
    state = Algorithm(CONFIG).init(jax.random.key(0), WORLD.cmdp)
    before = structure(state)
    for key in jax.random.split(jax.random.key(1), 2):
        state, _ = iterate(state, key)
        assert structure(state) == before
    assert iterate._cache_size() == 1  # whatever other tests called it with


@pytest.mark.parametrize(
    "config",
    [
        PRESETS["paper"],
        Config(form="gaussian", critic="linear", meta_gradient="full", meta_cross_fit=True, cross_fit=True),
    ],
    ids=["paper", "everything else"],
)
def test_the_state_keeps_its_structure(config):
    algorithm, world = Algorithm(with_config(config, corner_tasks=0)), reach(costs=2)
    state = algorithm.init(jax.random.key(0), world.cmdp)
    after, metrics = eqx.filter_eval_shape(algorithm.iterate, state, world, jax.random.key(1))
    assert structure(after) == structure(state)
    assert all(value.shape == () for value in metrics.values())


def test_metrics_are_those_of_the_meta_policy_and_its_trust_region_is_kept(iterate):
    for key in jax.random.split(jax.random.key(3), 4):
        state = start(0.4)
        _, metrics = iterate(state, key)
        # 2 tasks, 4 episodes: the return is 10 (1 - (0.4 - goal)^2 - e^-2), 5.0 for a goal of 1, give or take.
        assert 1 < metrics["return_before"] < 9
        assert 1 < metrics["cost_before"] < 6  # 3.0 on average
        assert metrics["largest_cost_before"] >= metrics["cost_before"]
        assert metrics["largest_cost_after"] >= metrics["cost_after"]
        assert metrics["adaptation_kl"] <= 1.5 * CONFIG.kl_limit * 1.01
        assert metrics["meta_kl"] <= 1.5 * CONFIG.meta_kl * 1.01
        np.testing.assert_allclose(metrics["limit"], LIMIT)


def test_the_normaliser_has_seen_the_episodes_before_and_after_adaptation(iterate):
    after, _ = iterate(start(0.4), jax.random.key(1))
    assert after.current.policy.normalizer.count == 2 * 2 * 4 * HORIZON


def test_before_any_was_validated_the_current_meta_policy_is_used():
    state = start(0.4)
    assert not np.isfinite(state.best_return)
    chosen = Algorithm(CONFIG).policy(state)
    np.testing.assert_array_equal(network_of(chosen), network_of(state.current.policy))
    assert "limits may be broken" in str(Algorithm(CONFIG).doubt(state))


def test_once_one_was_validated_it_is_used_and_not_the_current_one():
    state = start(0.4, best_return=jnp.zeros(()))
    chosen = Algorithm(CONFIG).policy(state)
    np.testing.assert_array_equal(network_of(chosen), network_of(state.best.policy))
    assert Algorithm(CONFIG).doubt(state) is None


def test_a_safe_meta_policy_is_kept_with_its_critics(iterate):
    after, metrics = iterate(start(0.4), jax.random.key(1))
    assert eqx.tree_equal(after.best, after.current)
    np.testing.assert_array_equal(after.best_return, metrics["validation_return"])
    assert metrics["validated"] == 1
    # What was measured is the new meta-policy: a return of about 5, a cost of 3 and two standard errors.
    assert 3.5 < after.best_return < 6.5
    assert 3 < metrics["validation_largest_cost"] < 6


@pytest.mark.parametrize("mean", [1.2, 0.72])  # far above the limit; below it (6.5), but not by the margin of a fifth
def test_an_unsafe_meta_policy_is_not_kept_however_good(iterate, mean):
    for best_return in (-jnp.inf, -100.0):
        state = start(mean, best_return=jnp.zeros(()) + best_return)
        after, metrics = iterate(state, jax.random.key(1))
        assert metrics["validation_return"] > 0
        assert eqx.tree_equal(after.best, state.best)
        np.testing.assert_array_equal(after.best_return, best_return)
        assert metrics["validated"] == np.isfinite(best_return)


def test_a_safe_meta_policy_that_is_worse_is_not_kept(iterate):
    state = start(0.4, best_return=jnp.zeros(()) + 9.0)
    after, metrics = iterate(state, jax.random.key(1))
    assert metrics["validation_return"] < 9
    assert eqx.tree_equal(after.best, state.best)
    assert after.best_return == 9


@pytest.mark.parametrize("corner_tasks", [0, 1, 3])
def test_the_hardest_corner_is_part_of_every_batch(corner_tasks):
    config = with_config(Config(), tasks=3, corner_tasks=corner_tasks)
    goals = np.asarray(_draw(config, WORLD, jax.random.key(0)).parameters["goal"])
    drawn = np.asarray(WORLD.sample(jax.random.key(0), 3).parameters["goal"])
    np.testing.assert_allclose(goals[:corner_tasks], 1.2, rtol=1e-6)
    np.testing.assert_array_equal(goals[corner_tasks:], drawn[corner_tasks:])


def test_a_world_need_not_know_its_corners():
    world = Padded(WORLD, 0.0)
    assert not hasattr(world, "corners")
    goals = _draw(CONFIG, world, jax.random.key(0)).parameters["goal"]
    np.testing.assert_array_equal(goals, WORLD.sample(jax.random.key(0), 2).parameters["goal"])


def test_meta_training_reaches_for_the_goal_and_keeps_the_limit(iterate):
    """A fresh policy stands still, for a return of about -1.3; what the limit allows is a mean of about 0.6."""
    state = start(0.0)
    for key in jax.random.split(jax.random.key(5), 25):
        state, metrics = iterate(state, key)
    assert metrics["validated"] == 1
    policy = Algorithm(CONFIG).policy(state)
    fresh = WORLD.measure(policy, WORLD.sample(jax.random.key(6), 50), jax.random.key(7), 20)
    assert fresh.episode_return.mean() > 3.0
    assert fresh.costs.mean(1).max() < LIMIT


def test_it_is_a_meta_algorithm_that_counts_its_steps():
    algorithm = Algorithm(with_config(Config(), tasks=3, episodes=5))
    assert isinstance(algorithm, MetaAlgorithm)
    # The meta-policy acts, and so do the adapted ones.
    assert algorithm.steps_per_iteration(WORLD.cmdp) == 2 * 3 * 5 * HORIZON
    assert set(dual.PRESETS) == {"safe", "paper", "locomotion"}
