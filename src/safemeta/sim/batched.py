"""Episodes on simulators that step all rows together: one `lax.scan`, rows being (task, episode), side by side.

A simulator may live on the host (`mujoco.py`, `gymnasium.py`): it is reached by callbacks from within the compiled
scan, so that algorithms can be compiled whole, whatever steps their tasks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Key, PRNGKeyArray, PyTree

from safemeta.core import CMDP, Performance, Tasks, Trajectory
from safemeta.sim.failures import raise_pending
from safemeta.sim.step import Family, Parameters, Simulator, Step, where_alive
from safemeta.sim.world import SimulatedWorld


@dataclass(frozen=True)
class BatchedWorld(SimulatedWorld):
    """A family of tasks and what steps all their rows together. Hashable, and callable inside jit."""

    cmdp: CMDP
    simulator: Simulator
    family: Family

    @property
    def on_host(self) -> bool:
        """Always true: see `safemeta.core.World`."""
        return True

    def _collect(self, policy: Any, tasks: Tasks, key: PRNGKeyArray, episodes: int, per_task: bool) -> Trajectory:
        return _collect(self.cmdp, self.simulator, policy, tasks, key, episodes, per_task)

    def _measure(self, policy: Any, tasks: Tasks, key: PRNGKeyArray, episodes: int, per_task: bool) -> Performance:
        return _measure(self.cmdp, self.simulator, policy, tasks, key, episodes, per_task)

    def _rows(self) -> Simulator:
        return self.simulator

    def _settled(self, result: Any) -> Any:
        """The result; outside of compiled code, not before it is there, and raising what went wrong on the host."""
        if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(result)):
            jax.block_until_ready(result)
            raise_pending()
        return result


Act = Callable[[Array, Array], tuple[Array, Array]]  # observations and keys of all rows: actions and log-densities


@eqx.filter_jit
def _collect(
    cmdp: CMDP, simulator: Simulator, policy: Any, tasks: Tasks, key: PRNGKeyArray, episodes: int, per_task: bool
) -> Trajectory:
    act, parameters, keys = _rows(policy, tasks, key, episodes, per_task)

    def advance(carry, t):
        state, observation, alive = carry
        now = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
        state, action, log_prob, step = _masked_step(simulator, act, parameters, state, observation, now, alive)
        going = alive & ~step.ended
        truncated = alive & step.cut_off(t == cmdp.horizon - 1)
        record = (observation, action, log_prob, step.reward, step.costs, step.terminated, truncated, alive)
        return (state, step.observation, going), record

    initial = _start(simulator, parameters, keys, episodes, cmdp.horizon)
    (state, last_observation, _), record = jax.lax.scan(advance, initial, jnp.arange(cmdp.horizon))
    simulator.finish(state)
    observation, action, log_prob, reward, costs, terminated, truncated, valid = (
        jnp.moveaxis(leaf, 0, 1) for leaf in record
    )
    rows = Trajectory(observation, action, log_prob, reward, costs, terminated, truncated, valid, last_observation)
    return jax.tree.map(lambda leaf: leaf.reshape(tasks.count, episodes, *leaf.shape[1:]), rows)


@eqx.filter_jit
def _measure(
    cmdp: CMDP, simulator: Simulator, policy: Any, tasks: Tasks, key: PRNGKeyArray, episodes: int, per_task: bool
) -> Performance:
    act, parameters, keys = _rows(policy, tasks, key, episodes, per_task)

    def advance(carry, inputs):
        state, observation, alive, total, costs = carry
        t, weight = inputs
        now = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
        state, _, _, step = _masked_step(simulator, act, parameters, state, observation, now, alive)
        going = alive & ~step.ended
        return (state, step.observation, going, total + step.reward, costs + weight * step.costs), None

    state, observation, alive = _start(simulator, parameters, keys, episodes, cmdp.horizon)
    dtype = observation.dtype
    totals = (jnp.zeros(alive.shape, dtype), jnp.zeros((*alive.shape, len(cmdp.cost_names)), dtype))
    inputs = (jnp.arange(cmdp.horizon), cmdp.cost_weights(dtype))
    (state, *_, total, costs), _ = jax.lax.scan(advance, (state, observation, alive, *totals), inputs)
    simulator.finish(state)
    return Performance(total.reshape(tasks.count, episodes), costs.reshape(tasks.count, episodes, -1))


def _start(
    simulator: Simulator, parameters: Parameters, keys: Key[Array, " rows"], episodes: int, horizon: int
) -> tuple[Any, Array, Array]:
    folded = jax.vmap(jax.random.fold_in, (0, None))(keys, horizon)
    state, observation = simulator.reset(parameters, folded, episodes)
    return state, observation, jnp.ones(keys.shape[:1], bool)


def _masked_step(
    simulator: Simulator,
    act: Act,
    parameters: Parameters,
    state: PyTree[Array],
    observation: Float[Array, "rows observation"],
    keys: Key[Array, " rows"],
    alive: Bool[Array, " rows"],
) -> tuple[PyTree[Array], Array, Array, Step]:
    """The state after one step, the actions, their log-density, and what rows that have not ended show of it.

    Once all rows have ended nothing is computed any more: robots that fall early leave much of a long horizon.
    """

    def go(state: PyTree[Array]) -> tuple[PyTree[Array], Array, Array, Step]:
        action, log_prob = act(observation, keys)
        state, step = simulator.step(parameters, state, action, alive)
        return state, action, log_prob, where_alive(alive, step, step.idle(observation))

    def stand(state: PyTree[Array]) -> tuple[PyTree[Array], Array, Array, Step]:
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return state, *nothing[:2], nothing[2].idle(observation)

    shapes = jax.eval_shape(go, state)[1:]
    return jax.lax.cond(jnp.any(alive), go, stand, state)


def _rows(
    policy: Any, tasks: Tasks, key: PRNGKeyArray, episodes: int, per_task: bool
) -> tuple[Act, Parameters, Key[Array, " rows"]]:
    """The policy on all rows at once, and the parameters and the key of each row."""
    act = partial(act_on_rows, policy, tasks=tasks.count if per_task else None)
    parameters = jax.tree.map(lambda leaf: jnp.repeat(leaf, episodes, axis=0), tasks.parameters)
    return act, parameters, jax.random.split(key, tasks.count * episodes)


def act_on_rows(
    policy: Any, observation: Float[Array, "rows observation"], keys: Key[Array, " rows"], tasks: int | None = None
) -> tuple[Float[Array, "rows action"], Float[Array, " rows"]]:
    """Actions of all rows and their log-densities; with `tasks`, the policy's leaves have a leading axis of them."""
    arrays, static = eqx.partition(policy, eqx.is_array)

    def act_on_one(arrays, observation, key):
        return eqx.combine(arrays, static).act(observation, key)

    over_rows = jax.vmap(act_on_one, in_axes=(None, 0, 0))
    if tasks is None:  # one flat row axis makes the shared policy a plain matrix product
        return over_rows(arrays, observation, keys)
    grouped = (leaf.reshape(tasks, -1, *leaf.shape[1:]) for leaf in (observation, keys))
    action, log_prob = jax.vmap(over_rows)(arrays, *grouped)
    return action.reshape(observation.shape[0], -1), log_prob.reshape(-1)
