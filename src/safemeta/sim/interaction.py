"""Episodes in which an agent acts and learns step by step: one `lax.scan` over all rows."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PRNGKeyArray, PyTree

from safemeta.core import CMDP, Agent, Moment, Signals, Tasks, Transition
from safemeta.sim.step import Parameters, Simulator, Step, where_alive


@eqx.filter_jit
def interact(
    cmdp: CMDP, simulator: Simulator, agent: Agent, state: Any, tasks: Tasks, key: PRNGKeyArray, episodes: int
) -> tuple[Any, Any]:
    """One episode in each row (task, episode): the agent's last state, and its records `[time, ...]`.

    Rows begin as in `World.collect` with the same key.
    """
    parameters = jax.tree.map(lambda leaf: jnp.repeat(leaf, episodes, axis=0), tasks.parameters)
    keys = jax.random.split(key, tasks.count * episodes)
    begins = jax.vmap(jax.random.fold_in, (0, None))(keys, cmdp.horizon)
    physics, observation = simulator.reset(parameters, begins, episodes)
    agent_key = jax.random.fold_in(key, 1)

    def advance(carry: tuple, t: Array) -> tuple[tuple, Any]:
        physics, observation, signals, alive, state = carry
        act_key, learn_key = jax.random.split(jax.random.fold_in(agent_key, t))

        def look(actions: Array) -> Signals:
            nonlocal physics
            physics, seen = simulator.look(parameters, physics, actions)
            return seen

        action, note = agent.act(state, Moment(observation, signals, look), act_key)
        following, step = simulator.step(parameters, physics, action, alive)
        step = where_alive(alive, step, step.idle(observation))
        seen = simulator.signals(parameters, following)
        transition = Transition(
            observation,
            action,
            step.reward,
            step.costs,
            step.observation,
            step.terminated,
            alive,
            signals,
            where_alive(alive, seen, signals),
        )
        state, record = agent.learn(state, transition, note, learn_key)
        return (following, step.observation, transition.next_signals, alive & ~step.ended, state), record

    signals = simulator.signals(parameters, physics)
    initial = (physics, observation, signals, jnp.ones(keys.shape[:1], bool), state)
    (physics, *_, state), records = jax.lax.scan(advance, initial, jnp.arange(cmdp.horizon))
    simulator.finish(physics)
    return state, records


class FunctionalRows(eqx.Module):
    """A `FunctionalEnvironment` on all rows at once: a `Simulator`."""

    environment: Any = eqx.field(static=True)

    def reset(
        self, parameters: Parameters, keys: Key[Array, " rows"], episodes: int
    ) -> tuple[PyTree[Array], Float[Array, "rows observation"]]:
        return jax.vmap(self.environment.reset)(parameters, keys)

    def step(
        self,
        parameters: Parameters,
        state: PyTree[Array],
        action: Float[Array, "rows action"],
        alive: Bool[Array, " rows"],
    ) -> tuple[PyTree[Array], Step]:
        following, step = jax.vmap(self.environment.step)(parameters, state, action)
        return where_alive(alive, following, state), step

    def signals(self, parameters: Parameters, state: PyTree[Array]) -> Signals:
        return signals_of(self.environment, parameters, state)

    def look(
        self, parameters: Parameters, state: PyTree[Array], actions: Float[Array, "rows choices action"]
    ) -> tuple[PyTree[Array], Signals]:
        environment = self.environment

        def one(parameters: Parameters, state: PyTree[Array], action: Array) -> Signals:
            return environment.signals(parameters, environment.step(parameters, state, action)[0])

        return state, jax.vmap(jax.vmap(one, (None, None, 0)))(parameters, state, actions)

    def finish(self, state: PyTree[Array]) -> None:
        """Nothing is kept outside of the state."""


def signals_of(environment: Any, parameters: Parameters, state: PyTree[Array]) -> Signals:
    """The signals of all rows; none of an environment that offers none."""
    offered = getattr(environment, "signals", None)
    return {} if offered is None else jax.vmap(offered)(parameters, state)
