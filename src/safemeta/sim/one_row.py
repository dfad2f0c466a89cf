"""One episode, step by step, of any world that can be compiled: what a Gymnasium environment and a film need.

The key is used as `collect` uses it: an episode is the one that `world.collect(policy, task, key, 1)` goes through
under the same actions.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from safemeta.core import Tasks
from safemeta.sim.functional import FunctionalWorld
from safemeta.sim.step import Step


def key_of_step(key: PRNGKeyArray, step: int | Int[Array, ""]) -> PRNGKeyArray:
    """The key that the policy acts with at a step."""
    return jax.random.fold_in(jax.random.split(key, 1)[0], step)


@eqx.filter_jit
def begin(world: Any, task: Tasks, key: PRNGKeyArray) -> tuple[Any, Float[Array, " observation"]]:
    """The state of the row, and what is seen; `task` is a batch of one."""
    key = key_of_step(key, world.cmdp.horizon)
    if isinstance(world, FunctionalWorld):
        return world.environment.reset(task[0].parameters, key)
    state, observation = world.simulator.reset(task.parameters, key[None], 1)
    return state, observation[0]


@eqx.filter_jit
def advance(world: Any, task: Tasks, state: Any, action: Float[Array, " action"]) -> tuple[Any, Step]:
    """One control step."""
    if isinstance(world, FunctionalWorld):
        return world.environment.step(task[0].parameters, state, action)
    alive: Bool[Array, " rows"] = jnp.ones(1, bool)
    state, step = world.simulator.step(task.parameters, state, action[None], alive)
    return state, jax.tree.map(lambda leaf: leaf[0], step)


def finish(world: Any, state: Any) -> None:
    """Give back what the row holds on the host; to be called once."""
    if not isinstance(world, FunctionalWorld):
        _finish(world, state)


@eqx.filter_jit
def _finish(world: Any, state: Any) -> None:
    world.simulator.finish(state)
