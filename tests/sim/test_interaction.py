"""Agents step by step: the same episodes as `collect`, and a look ahead that disturbs nothing."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.sim import FunctionalWorld
from safemeta.tasks import registry


@dataclass(frozen=True)
class Drift:
    """A policy and an agent at once: the action is a fixed function of the observation."""

    looks: int = 0

    def _action(self, observation):
        return jnp.tanh(observation[..., :2] - 0.3)

    def act(self, first, second, third=None):
        if third is None:  # as a policy: observation, key
            return self._action(first), jnp.zeros(())
        action = self._action(second.observation)
        if not self.looks:
            return action, ()
        other = jax.random.uniform(third, (action.shape[0], self.looks, 2), minval=-1, maxval=1)
        seen = second.look(jnp.concatenate([other, action[:, None]], axis=1))
        return action, seen["clearance"][:, -1]

    def learn(self, state, transition, note, key):
        return state + 1, (transition, note)


@pytest.mark.parametrize("name", ["collision-avoidance", "hazards-0.15-goal", "pillars-0.15-goal"])
def test_episodes_are_those_of_collect_and_looking_ahead_tells_the_truth(name, request):
    world = registry.make(name, horizon=6)
    if isinstance(world, FunctionalWorld):  # accelerations are differences, which single precision blurs
        request.getfixturevalue("x64")  # for this thread alone, not for those that call a simulator on the host
    tasks, key = world.sample(jax.random.key(0), 2, "train"), jax.random.key(1)
    collected = world.collect(Drift(), tasks, key, 2)
    count, (steps, foreseen) = world.interact(Drift(looks=3), jnp.zeros((), int), tasks, key, 2)
    assert int(count) == 6
    for kept in ("observation", "action", "reward", "costs", "valid"):
        expected = np.moveaxis(np.asarray(getattr(collected, kept)).reshape(4, 6, -1), 1, 0)
        np.testing.assert_allclose(np.asarray(getattr(steps, kept)).reshape(6, 4, -1), expected, atol=2e-5)
    np.testing.assert_array_equal(steps.next_observation[:-1], steps.observation[1:])
    np.testing.assert_allclose(foreseen, steps.next_signals["clearance"], atol=2e-5)
    np.testing.assert_array_equal(steps.next_signals["clearance"][:-1], steps.signals["clearance"][1:])
    assert steps.signals["clearance"].shape[1:] == (4, *dict(world.cmdp.signals)["clearance"])


def test_distances_change_at_their_rates():
    world = registry.make("pillars-0.15-goal", horizon=40)
    tasks = world.sample(jax.random.key(3), 1, "train")
    _, (steps, _) = world.interact(Drift(), jnp.zeros((), int), tasks, jax.random.key(4), 2)
    distance, rate = (np.asarray(steps.next_signals["clearance"][..., i], float) for i in (0, 1))
    moved = np.diff(distance, axis=0) / 0.02
    between = (rate[1:] + rate[:-1]) / 2
    assert np.median(np.abs(moved - between)) < 0.02
    assert np.abs(rate).max() > 0.05  # the robot did move


def test_tasks_without_obstacles_have_no_signals():
    world = registry.make("point-mass", horizon=3)
    assert world.cmdp.signals == ()
    _, (steps, _) = world.interact(
        Drift(), jnp.zeros((), int), world.sample(jax.random.key(0), 1), jax.random.key(1), 1
    )
    assert steps.signals == {}
