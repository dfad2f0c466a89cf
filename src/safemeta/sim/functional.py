"""Environments written in pure JAX: a whole batch of episodes is one `lax.scan`, on any device, inside any jit."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from safemeta.core import CMDP, Performance, Tasks, Trajectory
from safemeta.sim.interaction import FunctionalRows
from safemeta.sim.step import Family, Parameters, Simulator, Step
from safemeta.sim.world import SimulatedWorld


class FunctionalEnvironment(Protocol):
    """The dynamics of ONE row, without batch axes. Must be hashable: it is a static argument of compiled functions.

    `step` receives the policy's action as it was sampled and clips it itself. It is also called, and its result
    thrown away, on rows that have ended: it must not produce anything but numbers there. An environment with `signals`
    (`CMDP.signals`) also has `signals(parameters, state)`.
    """

    def reset(self, parameters: Parameters, key: PRNGKeyArray) -> tuple[PyTree[Array], Float[Array, " observation"]]:
        """The first state of an episode, and its observation."""
        ...

    def step(
        self, parameters: Parameters, state: PyTree[Array], action: Float[Array, " action"]
    ) -> tuple[PyTree[Array], Step]: ...


@dataclass(frozen=True)
class FunctionalWorld(SimulatedWorld):
    """A family of tasks and the dynamics of one row. Hashable, and callable inside jit.

    A row's whole episode is one loop, batched afterwards, though `batched.py` could step such rows too: of the same
    program XLA makes code for a CPU that is up to six times faster when it is written so.
    """

    cmdp: CMDP
    environment: FunctionalEnvironment
    family: Family

    @property
    def on_host(self) -> bool:
        """Always false: see `safemeta.core.World`."""
        return False

    def _collect(self, policy: Any, tasks: Tasks, key: PRNGKeyArray, episodes: int, per_task: bool) -> Trajectory:
        return _collect(self, policy, tasks, key, episodes, per_task)

    def _measure(self, policy: Any, tasks: Tasks, key: PRNGKeyArray, episodes: int, per_task: bool) -> Performance:
        return _measure(self, policy, tasks, key, episodes, per_task)

    def _rows(self) -> Simulator:
        return FunctionalRows(self.environment)


Row = Callable[[Any, Parameters, PRNGKeyArray], Any]  # policy, parameters of the task, key of the row


@eqx.filter_jit
def _collect(
    world: FunctionalWorld, policy: Any, tasks: Tasks, key: PRNGKeyArray, episodes: int, per_task: bool
) -> Trajectory:
    horizon = world.cmdp.horizon

    def row(policy: Any, parameters: Parameters, key: PRNGKeyArray) -> Trajectory:
        def advance(carry, t):
            state, observation, alive = carry
            action, log_prob = policy.act(observation, jax.random.fold_in(key, t))
            following, step = _guarded_step(world.environment, parameters, state, observation, action, alive)
            record = (
                observation,
                action,
                log_prob,
                step.reward,
                step.costs,
                step.terminated,
                alive & step.cut_off(t == horizon - 1),
                alive,
            )
            return (following, step.observation, alive & ~step.ended), record

        state, observation = world.environment.reset(parameters, jax.random.fold_in(key, horizon))
        initial = (state, observation, jnp.asarray(True))
        (_, last_observation, _), record = jax.lax.scan(advance, initial, jnp.arange(horizon))
        return Trajectory(*record, last_observation)

    return _over_rows(row, policy, tasks, key, episodes, per_task)


@eqx.filter_jit
def _measure(
    world: FunctionalWorld, policy: Any, tasks: Tasks, key: PRNGKeyArray, episodes: int, per_task: bool
) -> Performance:
    horizon = world.cmdp.horizon

    def row(policy: Any, parameters: Parameters, key: PRNGKeyArray) -> tuple[Array, Array]:
        def advance(carry, inputs):
            state, observation, alive, total, costs = carry
            t, weight = inputs
            action, _ = policy.act(observation, jax.random.fold_in(key, t))
            following, step = _guarded_step(world.environment, parameters, state, observation, action, alive)
            alive = alive & ~step.ended
            return (following, step.observation, alive, total + step.reward, costs + weight * step.costs), None

        state, observation = world.environment.reset(parameters, jax.random.fold_in(key, horizon))
        dtype = observation.dtype
        totals = (jnp.zeros((), dtype), jnp.zeros(len(world.cmdp.cost_names), dtype))
        initial = (state, observation, jnp.asarray(True), *totals)
        inputs = (jnp.arange(horizon), world.cmdp.cost_weights(dtype))
        (*_, total, costs), _ = jax.lax.scan(advance, initial, inputs)
        return total, costs

    return Performance(*_over_rows(row, policy, tasks, key, episodes, per_task))


def _guarded_step(
    environment: FunctionalEnvironment,
    parameters: Parameters,
    state: PyTree[Array],
    observation: Float[Array, " observation"],
    action: Float[Array, " action"],
    alive: Bool[Array, ""],
) -> tuple[PyTree[Array], Step]:
    """One step, or nothing at all on a row that has ended."""
    following, step = environment.step(parameters, state, action)
    nothing = step.idle(observation)
    return jax.tree.map(lambda new, old: jnp.where(alive, new, old), (following, step), (state, nothing))


def _over_rows(row: Row, policy: Any, tasks: Tasks, key: PRNGKeyArray, episodes: int, per_task: bool) -> Any:
    """`row` on every (task, episode): leaves `[tasks, episodes, ...]`."""
    count = tasks.count
    arrays, static = eqx.partition(policy, eqx.is_array)
    keys = jax.random.split(key, count * episodes)

    def one(arrays, parameters, key):
        return row(eqx.combine(arrays, static), parameters, key)

    if per_task:
        over_episodes = jax.vmap(one, in_axes=(None, None, 0))
        return jax.vmap(over_episodes)(arrays, tasks.parameters, keys.reshape(count, episodes, *keys.shape[1:]))
    # One flat row axis makes the shared policy a plain matrix product, which two nested axes would not.
    parameters = jax.tree.map(lambda leaf: jnp.repeat(leaf, episodes, axis=0), tasks.parameters)
    flat = jax.vmap(one, in_axes=(None, 0, 0))(arrays, parameters, keys)
    return jax.tree.map(lambda leaf: leaf.reshape(count, episodes, *leaf.shape[1:]), flat)
