"""Worlds of ten steps and one action, in which everything is known: a goal to reach, and effort that is bounded."""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from safemeta.core import CMDP, Tasks, Trajectory
from safemeta.sim import FunctionalWorld, Step

HORIZON = 10


@dataclass(frozen=True)
class Reach:
    """Reward `1 - (a - goal)^2`, costs `a^2` (effort) and, if `costs` is 2, `max(-a, 0)` (backwards).

    So with `a ~ N(m, s^2)` the expected effort of a step is `m^2 + s^2`, and the best mean is the goal. Observed are a
    clock and the last action. An episode terminates after an action above `ends_above`.
    """

    costs: int = 1
    ends_above: float = float("inf")

    def reset(self, parameters, key):
        state = jnp.zeros(2, parameters["goal"].dtype) + 0.1 * jax.random.normal(key, (2,), parameters["goal"].dtype)
        return state.at[0].set(0), self._observe(state.at[0].set(0))

    def step(self, parameters, state, action):
        a = jnp.clip(action[0], -3.0, 3.0)
        state = jnp.stack([state[0] + 1, a])
        reward = 1 - (a - parameters["goal"]) ** 2
        costs = jnp.stack([a**2, jnp.maximum(-a, 0)])[: self.costs]
        return state, Step(self._observe(state), reward, costs, action[0] > self.ends_above)

    def _observe(self, state):
        return jnp.stack([jnp.sin(state[0]), jnp.cos(state[0]), state[1]])


@dataclass(frozen=True)
class Goals:
    """Goals uniform in a range; the hardest corner is the farthest goal."""

    limit: float
    costs: int = 1
    low: float = 0.8
    high: float = 1.2

    def sample(self, key, count, split="train"):
        return self._tasks(jax.random.uniform(key, (count,), minval=self.low, maxval=self.high))

    def corners(self):
        return self._tasks(jnp.array([self.high, self.low]))

    def _tasks(self, goal):
        limits = jnp.full((goal.shape[0], self.costs), self.limit, goal.dtype)
        return Tasks({"goal": goal}, limits, (goal[:, None] - 1) / 0.2)


def reach(limit=1e3, limit_on="undiscounted", costs=1, ends_above=float("inf")) -> FunctionalWorld:
    """A world of the above: an observation of 3, one action, 10 steps, discount 0.9."""
    names = ("effort", "backwards")[:costs]
    cmdp = CMDP(3, 1, HORIZON, names, (limit,) * costs, discount=0.9, limit_on=limit_on)
    return FunctionalWorld(cmdp, Reach(costs, ends_above), Goals(limit, costs))


def with_mean_action(policy, mean: float, log_std: float = -1.0):
    """`policy` with a mean action that hardly depends on the state (the last bias), and a given deviation."""
    last = policy.network.mlp.layers[-1]
    bias = jnp.zeros_like(last.bias).at[:1].set(mean)
    return eqx.tree_at(
        lambda p: (p.network.mlp.layers[-1].bias, p.network.log_std),
        policy,
        (bias, jnp.full_like(policy.network.log_std, log_std)),
    )


@dataclass(frozen=True, eq=False)
class Padded:
    """A world whose steps after the end of an episode are filled with `garbage`, as a simulator may leave them.

    It does not know its corners. Compared by identity, so that `garbage` may be an input of a compiled function.
    """

    inner: FunctionalWorld
    garbage: Any

    @property
    def cmdp(self):
        return self.inner.cmdp

    functional = True

    def sample(self, key, count, split="train"):
        return self.inner.sample(key, count, split)

    def measure(self, policy, tasks, key, episodes, *, per_task=False):
        return self.inner.measure(policy, tasks, key, episodes, per_task=per_task)

    def collect(self, policy, tasks, key, episodes, *, per_task=False):
        return padded(self.inner.collect(policy, tasks, key, episodes, per_task=per_task), self.garbage)


def padded(rows: Trajectory, garbage: Any) -> Trajectory:
    """`rows` with `garbage` in all that was seen and done after the end of each episode."""

    def fill(leaf):
        valid = rows.valid.reshape(rows.valid.shape + (1,) * (leaf.ndim - rows.valid.ndim))
        return jnp.where(valid, leaf, garbage)

    return eqx.tree_at(lambda r: (r.observation, r.action), rows, (fill(rows.observation), fill(rows.action)))


@dataclass(frozen=True)
class Sealed:
    """A world that alone knows the truth about its tasks: whatever `tasks.parameters` says, goals are `goals`."""

    inner: FunctionalWorld
    goals: tuple[float, ...]

    @property
    def cmdp(self):
        return self.inner.cmdp

    functional = True

    def sample(self, key, count, split="train"):
        raise AssertionError("adapting draws no tasks")

    def _opened(self, tasks):
        return Tasks({"goal": jnp.asarray(self.goals)}, tasks.limits, tasks.descriptor)

    def collect(self, policy, tasks, key, episodes, *, per_task=False):
        return self.inner.collect(policy, self._opened(tasks), key, episodes, per_task=per_task)

    def measure(self, policy, tasks, key, episodes, *, per_task=False):
        return self.inner.measure(policy, self._opened(tasks), key, episodes, per_task=per_task)


def with_config(config: Any, **changes: Any) -> Any:
    """A small configuration: two tasks, a tiny network, few fitting steps."""
    small = {"tasks": 2, "episodes": 4, "hidden": (8,), "critic_steps": 5, "minibatch": 32}
    return replace(config, **(small | changes))
