"""The scan over time, against a plain Python loop over rows and steps of a small environment that terminates."""

import typing
from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_policies import Noisy

from safemeta.core import CMDP, Tasks, World
from safemeta.sim import FunctionalWorld, Step

HORIZON, TASKS, EPISODES = 7, 3, 4


@dataclass(frozen=True)
class Walk:
    """A walk on the line that ends beyond `edge`. Actions count up to 1 in size."""

    def reset(self, parameters, key):
        place = 0.1 * jax.random.normal(key, (), parameters["edge"].dtype)
        return place, jnp.stack([place, 1.0 + 0 * place])

    def step(self, parameters, state, action):
        place = state + jnp.clip(action[0], -1.0, 1.0)
        costs = jnp.stack([jnp.abs(place), 1.0 * (action[0] > 1)])
        return place, Step(jnp.stack([place, -state]), 10 * place, costs, jnp.abs(place) > parameters["edge"])


@dataclass(frozen=True)
class WalkFamily:
    def sample(self, key, count, split="train"):
        edge = jax.random.uniform(key, (count,), minval=0.5, maxval=4.0)
        return Tasks({"edge": edge}, jnp.ones((count, 2)), edge[:, None])

    def corners(self):
        return Tasks({"edge": jnp.array([0.5])}, jnp.ones((1, 2)), jnp.zeros((1, 1)))


@pytest.fixture
def world():
    return FunctionalWorld(CMDP(2, 1, HORIZON, ("far", "fast"), (1.0, 1.0), 0.9), Walk(), WalkFamily())


@pytest.fixture
def tasks():
    return Tasks({"edge": jnp.array([0.6, 1.5, 1e6])}, jnp.ones((TASKS, 2)), jnp.zeros((TASKS, 1)))


def by_hand(policies, tasks, key):
    """What `collect` must return, row by row and step by step, as nested dictionaries of numpy arrays."""
    environment = Walk()
    keys = jax.random.split(key, TASKS * EPISODES)
    rows = []
    for i in range(TASKS):
        parameters = {"edge": tasks.parameters["edge"][i]}
        for j in range(EPISODES):
            own = keys[i * EPISODES + j]
            state, observation = environment.reset(parameters, jax.random.fold_in(own, HORIZON))
            record = {name: [] for name in ("observation", "action", "reward", "costs", "terminated", "valid")}
            over = False
            for t in range(HORIZON):
                record["observation"].append(observation)
                record["valid"].append(not over)
                if over:
                    record["reward"].append(0.0)
                    record["costs"].append(np.zeros(2))
                    record["terminated"].append(False)
                    record["action"].append([np.nan])  # any
                    continue
                action, _ = policies[i].act(observation, jax.random.fold_in(own, t))
                state, step = environment.step(parameters, state, action)
                observation, over = step.observation, bool(step.terminated)
                record["action"].append(action)
                record["reward"].append(step.reward)
                record["costs"].append(step.costs)
                record["terminated"].append(over)
            rows.append(
                {name: np.asarray(values) for name, values in record.items()} | {"last": np.asarray(observation)}
            )
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return {name: values.reshape(TASKS, EPISODES, *values.shape[1:]) for name, values in stacked.items()}


def test_it_is_a_world(world):
    assert isinstance(world, typing.runtime_checkable(World))
    assert world.functional
    assert hash(world) == hash(replace(world))
    assert world.corners().count == 1


@pytest.mark.parametrize("per_task", [False, True])
def test_collect_equals_a_loop_over_rows_and_steps(world, tasks, per_task):
    gains = [0.5, -0.3, 0.2] if per_task else [0.5] * 3
    policies = [Noisy(jnp.asarray(gain)) for gain in gains]
    policy = Noisy(jnp.asarray(gains)) if per_task else policies[0]
    key = jax.random.key(3)
    expected = by_hand(policies, tasks, key)
    trajectory = world.collect(policy, tasks, key, EPISODES, per_task=per_task)

    # The test means something only if some rows end early, in the first step too, and some do not.
    lengths = expected["valid"].sum(-1)
    assert lengths.min() == 1
    assert lengths.max() == HORIZON

    for name in ("observation", "reward", "costs"):
        np.testing.assert_allclose(getattr(trajectory, name), expected[name], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(trajectory.valid, expected["valid"])
    np.testing.assert_array_equal(trajectory.terminated, expected["terminated"])
    np.testing.assert_allclose(trajectory.last_observation, expected["last"], rtol=1e-5, atol=1e-5)
    valid = expected["valid"]
    np.testing.assert_allclose(trajectory.action[valid], expected["action"][valid], rtol=1e-5, atol=1e-5)
    assert np.abs(trajectory.action).max() > 1, "actions must be stored as drawn, not as clipped"
    gain = np.repeat(np.asarray(gains), EPISODES).reshape(TASKS, EPISODES, 1)
    residual = trajectory.action[..., 0] - gain * trajectory.observation[..., 0]
    np.testing.assert_allclose(trajectory.log_prob, -0.5 * residual**2, atol=1e-5)


def test_truncated_is_the_last_step_of_a_row_that_did_not_terminate(world, tasks):
    trajectory = world.collect(Noisy(jnp.asarray(0.5)), tasks, jax.random.key(3), EPISODES)
    ended = np.asarray(trajectory.terminated).any(-1)
    assert ended.any()
    assert not ended.all()
    assert not trajectory.truncated[..., :-1].any()
    np.testing.assert_array_equal(trajectory.truncated[..., -1], ~ended)


def test_after_a_termination_the_row_stands_still(world, tasks):
    trajectory = world.collect(Noisy(jnp.asarray(0.5)), tasks, jax.random.key(3), EPISODES)
    i, j = np.argwhere(np.asarray(trajectory.terminated)[..., 0])[0]
    row = jax.tree.map(lambda leaf: np.asarray(leaf[i, j]), trajectory)
    np.testing.assert_array_equal(row.observation[1:], np.tile(row.last_observation, (HORIZON - 1, 1)))
    assert not row.reward[1:].any()
    assert not row.costs[1:].any()
    assert row.costs[0, 0] > tasks.parameters["edge"][i]


@pytest.mark.parametrize(
    ("limit_on", "per_task"),
    [("discounted", False), ("undiscounted", False), ("per_step", False), ("discounted", True)],
)
def test_measure_totals_the_episodes_that_collect_stores(world, tasks, limit_on, per_task):
    world = replace(world, cmdp=replace(world.cmdp, limit_on=limit_on))
    policy = Noisy(jnp.asarray([0.1, -0.2, 0.05]) if per_task else jnp.asarray(0.1))
    trajectory = world.collect(policy, tasks, jax.random.key(0), EPISODES, per_task=per_task)
    performance = world.measure(policy, tasks, jax.random.key(0), EPISODES, per_task=per_task)
    weights = {"discounted": 0.9 ** np.arange(HORIZON), "undiscounted": np.ones(HORIZON)}
    weight = weights.get(limit_on, np.full(HORIZON, 1 / HORIZON))
    np.testing.assert_allclose(performance.episode_return, trajectory.reward.sum(-1), rtol=1e-5)
    expected = (np.asarray(trajectory.costs) * weight[:, None]).sum(-2)
    np.testing.assert_allclose(performance.costs, expected, rtol=1e-5, atol=1e-6)
    assert performance.costs.shape == (TASKS, EPISODES, 2)


def test_a_key_fixes_everything_and_another_key_changes_it(world, tasks):
    policy = Noisy(jnp.asarray(0.1))
    first, again, other = (world.collect(policy, tasks, jax.random.key(seed), EPISODES) for seed in (5, 5, 6))
    assert eqx.tree_equal(first, again)
    assert not np.allclose(first.action, other.action)
    # Rows must not share their noise, and steps of a row neither.
    assert len(np.unique(first.action)) == first.action.size


def test_collect_and_measure_run_inside_jit_with_the_world_static(world, tasks):
    @eqx.filter_jit
    def inside(world, policy, key):
        drawn = world.sample(key, 2)
        collected = world.collect(policy, tasks, key, EPISODES)
        return drawn, collected.reward.sum(-1), world.measure(policy, tasks, key, EPISODES).episode_return

    drawn, totals, measured = inside(world, Noisy(jnp.asarray(0.1)), jax.random.key(0))
    assert drawn.count == 2
    np.testing.assert_allclose(totals, measured, rtol=1e-5)
    np.testing.assert_allclose(
        totals, world.collect(Noisy(jnp.asarray(0.1)), tasks, jax.random.key(0), EPISODES).reward.sum(-1), rtol=1e-5
    )


def test_a_rollout_can_be_differentiated_and_vmapped_over_policies(world, x64):
    tasks = Tasks({"edge": jnp.array([1e6])}, jnp.ones((1, 2)), jnp.zeros((1, 1)))

    def total(gain):
        return world.measure(Noisy(gain), tasks, jax.random.key(0), EPISODES).episode_return.mean()

    gain, h = jnp.asarray(0.1), 1e-6  # small: clipping makes the return piecewise linear in the gain
    slope = (total(gain + h) - total(gain - h)) / (2 * h)
    assert abs(slope) > 1
    np.testing.assert_allclose(jax.grad(total)(gain), slope, rtol=1e-6)
    both = jax.vmap(total)(jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(both, [total(jnp.asarray(0.1)), total(jnp.asarray(0.2))], rtol=1e-12)


def test_double_precision_is_kept_everywhere(world, x64):
    tasks = Tasks({"edge": jnp.array([1.0])}, jnp.ones((1, 2)), jnp.zeros((1, 1)))
    policy = Noisy(jnp.asarray(0.1))
    trajectory = world.collect(policy, tasks, jax.random.key(0), 2)
    performance = world.measure(policy, tasks, jax.random.key(0), 2)
    floating = [leaf.dtype for leaf in jax.tree.leaves((trajectory, performance)) if leaf.dtype != bool]
    assert set(floating) == {jnp.dtype("float64")}
