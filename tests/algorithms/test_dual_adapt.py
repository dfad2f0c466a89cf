"""Adapting to unseen tasks: shapes, evidence, what it may look at, and what it achieves on a toy world."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_worlds import Sealed, reach, with_config, with_mean_action

from safemeta.algorithms.dual import Algorithm, Config
from safemeta.algorithms.dual_adaptation import OUTCOME_NAMES
from safemeta.core import Tasks
from safemeta.nets import parameters

GOALS = (0.7, 1.0, 1.3)
# All that is handed to the algorithm of a task is its limits, the rest is NaN: only this world knows the truth.
WORLD = Sealed(reach(limit=6.0), GOALS)
CONFIG = with_config(Config(), kl_limit=0.02, cost_kl_weight=10.0, adapt_critic_steps=10, episodes=8)
ALGORITHM = Algorithm(CONFIG)


@pytest.fixture(scope="module")
def state():
    state = ALGORITHM.init(jax.random.key(0), WORLD.cmdp)
    return eqx.tree_at(lambda s: s.current.policy, state, with_mean_action(state.current.policy, 0.2))


def tasks(limits=(6.0, 6.0, 6.0)) -> Tasks:
    return Tasks({"goal": jnp.full(3, jnp.nan)}, jnp.array(limits)[:, None], jnp.full((3, 1), jnp.nan))


def adapt(state, given: Tasks, steps: int, key=1):
    return ALGORITHM.adapt(state, WORLD, given, jax.random.key(key), steps)


def at_step(found, step):
    return jax.tree.map(lambda leaf: leaf[step], found.policies)


def measured(found, step, given):
    """Fresh episodes of all tasks' policies after some steps: mean return and cost per task."""
    fresh = WORLD.measure(at_step(found, step), given, jax.random.key(100 + step), 400, per_task=True)
    return np.asarray(fresh.episode_return.mean(1)), np.asarray(fresh.costs.mean(1)[:, 0])


def test_shapes_names_and_the_first_policy(state):
    found = adapt(state, tasks(), 2)
    assert all(leaf.shape[:2] == (3, 3) for leaf in jax.tree.leaves(found.policies))
    assert found.estimated_return.shape == (3, 3)
    assert found.estimated_costs.shape == (3, 3, 1)
    assert found.multipliers.shape == (2, 3, 1)
    assert found.kl.shape == found.outcome.shape == (2, 3)
    assert found.outcome_names == OUTCOME_NAMES
    assert set(np.unique(found.outcome)) <= {0, 1, 2}
    assert np.all(np.asarray(found.kl) <= 1.5 * CONFIG.kl_limit * 1.01)
    meta = ALGORITHM.policy(state)
    for leaf, expected in zip(jax.tree.leaves(at_step(found, 0)), jax.tree.leaves(meta), strict=True):
        np.testing.assert_array_equal(leaf, np.broadcast_to(expected, leaf.shape))
    # The normaliser is frozen, since it is part of what the critics and the policy rely on.
    assert np.all(found.policies.normalizer.count == meta.normalizer.count)


def test_no_steps_is_the_meta_policy_with_its_evidence(state):
    found = adapt(state, tasks(), 0)
    assert all(leaf.shape[:2] == (1, 3) for leaf in jax.tree.leaves(found.policies))
    assert found.estimated_return.shape == (1, 3)
    assert found.estimated_costs.shape == (1, 3, 1)
    assert found.multipliers.shape == (0, 3, 1)
    assert found.kl.shape == found.outcome.shape == (0, 3)
    assert found.outcome.dtype == jnp.int32
    assert np.all(np.isfinite(found.estimated_return))


def test_evidence_is_about_the_policy_of_the_same_index(state):
    """Estimates of few episodes, so within a few standard errors of fresh ones: return 1.5, cost 0.6 of 8 episodes."""
    found = adapt(state, tasks(), 6)
    for step in (0, 6):
        returns, costs = measured(found, step, tasks())
        np.testing.assert_allclose(found.estimated_return[step], returns, atol=3.0)
        np.testing.assert_allclose(found.estimated_costs[step, :, 0], costs, atol=2.0)


def test_fewer_steps_are_the_beginning_of_more(state):
    short, long = adapt(state, tasks(), 1), adapt(state, tasks(), 3)
    for step in (0, 1):
        np.testing.assert_array_equal(parameters_of(short, step), parameters_of(long, step))
    np.testing.assert_array_equal(short.kl[0], long.kl[0])


def parameters_of(found, step) -> np.ndarray:
    return np.asarray(jax.vmap(parameters)(at_step(found, step)))


def test_adapting_is_deterministic_and_depends_on_the_key(state):
    assert eqx.tree_equal(adapt(state, tasks(), 1), adapt(state, tasks(), 1))
    one, other = (parameters_of(adapt(state, tasks(), 1, key=key), 1) for key in (1, 2))
    assert not np.array_equal(one, other)


def test_policies_improve_on_every_task_and_none_exceeds_the_limit(state):
    found = adapt(state, tasks(), 12)
    returns, costs = (np.stack(x) for x in zip(*(measured(found, step, tasks()) for step in range(13)), strict=True))
    assert np.all(returns[-1] > returns[0] + 1.0)
    assert np.max(costs) < 6.0
    assert np.max(costs) > costs[0].max() + 0.5  # the budget was used


def test_each_task_has_its_own_limit(state):
    """The meta-policy costs 1.8: one task has room, one has none, one is above its limit from the start."""
    given = tasks(limits=(50.0, 2.2, 0.5))
    found = adapt(state, given, 4)
    outcomes = np.asarray(found.outcome)
    improved = OUTCOME_NAMES.index("improved")
    assert np.mean(outcomes[:, 0] == improved) >= 0.75
    assert not np.any(outcomes[:, 2] == improved)
    _, costs = measured(found, 4, given)
    _, before = measured(found, 0, given)
    assert costs[0] > before[0] + 0.3
    assert costs[1] < 2.2
    assert costs[2] < before[2] + 0.05


def test_a_validated_meta_policy_is_what_is_adapted(state):
    best = with_mean_action(state.current.policy, -0.5)
    other = eqx.tree_at(lambda s: (s.best.policy, s.best_return), state, (best, jnp.zeros(())))
    found = adapt(other, tasks(), 0)
    np.testing.assert_array_equal(parameters_of(found, 0)[0], parameters(other.best.policy))
