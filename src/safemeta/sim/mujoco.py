"""Tasks on MuJoCo: what one is, and how all of its rows are stepped from within compiled code.

One control step of all rows is one callback into the engine (`mujoco_engine.py`).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree

from safemeta.core import Signals
from safemeta.sim.interaction import signals_of
from safemeta.sim.mujoco_engine import Engine, Placement, Reading, Refresh
from safemeta.sim.step import Parameters, Step


class Command(eqx.Module):
    """What is done to the physics for one control step: controls, and an optional change of the velocities."""

    ctrl: Float[Array, "*rows nu"]
    kick: Float[Array, "*rows nv"] | None = None


class MujocoEnvironment(Protocol):
    """A task of ONE row, without batch axes; pure functions, but for `model`. Must be hashable.

    Where an initial state can only be found with the physics at hand (a random pose in which nothing touches), an
    environment may also have `settle(model, data, rng)`. It changes a row's `MjData` on the host before its episode
    begins, and its randomness comes from the placement's `seed`. An environment with `signals` (`CMDP.signals`)
    also has `signals(parameters, state)`.
    """

    @property
    def reads(self) -> tuple[str, ...]:
        """Sensors by name, or fields of MjData."""
        ...

    @property
    def substeps(self) -> int:
        """Physics steps of a control step."""
        ...

    @property
    def refresh(self) -> Refresh:
        """What is brought up to date before readings are taken."""
        ...

    def model(self) -> Any:
        """The compiled `mujoco.MjModel`; called once."""
        ...

    def reset(self, parameters: Parameters, key: PRNGKeyArray) -> tuple[PyTree[Array], Placement]:
        """The task's first state, and where the physics is to be placed."""
        ...

    def begin(
        self, parameters: Parameters, state: PyTree[Array], reading: Reading
    ) -> tuple[PyTree[Array], Float[Array, " observation"]]:
        """The state and observation once the physics has been placed and read."""
        ...

    def command(self, parameters: Parameters, state: PyTree[Array], action: Float[Array, " action"]) -> Command:
        """What goes to the physics for this action."""
        ...

    def step(
        self, parameters: Parameters, state: PyTree[Array], reading: Reading, action: Float[Array, " action"]
    ) -> tuple[PyTree[Array], Step]: ...


class MujocoState(eqx.Module):
    """The task's own state of each row, and the number under which the engine keeps the physics."""

    task: PyTree[Array]
    session: Int[Array, ""]


@dataclass(frozen=True)
class MujocoSimulator:
    """A MuJoCo environment on all rows at once: a `safemeta.sim.Simulator`."""

    environment: MujocoEnvironment

    def reset(
        self, parameters: Parameters, keys: Key[Array, " rows"], episodes: int
    ) -> tuple[MujocoState, Float[Array, "rows observation"]]:
        engine = engine_of(self.environment)
        task, placement = jax.vmap(self.environment.reset)(parameters, keys)

        shape = engine.shape_of_readings(keys.shape[0])

        def start(placement: Placement) -> tuple[np.ndarray, np.ndarray]:
            return engine.start(placement, episodes, shape.dtype)

        session, readings = io_callback(start, (jax.ShapeDtypeStruct((), jnp.int32), shape), placement)
        task, observation = jax.vmap(self.environment.begin)(parameters, task, engine.named(readings))
        return MujocoState(task, session), observation

    def step(
        self,
        parameters: Parameters,
        state: MujocoState,
        action: Float[Array, "rows action"],
        alive: Bool[Array, " rows"],
    ) -> tuple[MujocoState, Step]:
        engine = engine_of(self.environment)
        command = jax.vmap(self.environment.command)(parameters, state.task, action)
        # The session's number passes through each step, so that nothing can happen to it before the last.
        shapes = (jax.ShapeDtypeStruct((), jnp.int32), engine.shape_of_readings(alive.shape[0]))

        def advance(number: Any, ctrl: Any, kick: Any, alive: Any) -> tuple[np.ndarray, np.ndarray]:
            return np.asarray(number, np.int32), engine.advance(number, ctrl, kick, alive)

        session, readings = io_callback(advance, shapes, state.session, command.ctrl, command.kick, alive)
        task, step = jax.vmap(self.environment.step)(parameters, state.task, engine.named(readings), action)
        return MujocoState(task, session), step

    def signals(self, parameters: Parameters, state: MujocoState) -> Signals:
        return signals_of(self.environment, parameters, state.task)

    def look(
        self, parameters: Parameters, state: MujocoState, actions: Float[Array, "rows choices action"]
    ) -> tuple[MujocoState, Signals]:
        """The signals that each action would lead to: every choice is a control step from a copy of the row."""
        engine = engine_of(self.environment)
        environment: Any = self.environment  # with `signals`, or nobody would ask
        command = jax.vmap(jax.vmap(environment.command, (None, None, 0)))(parameters, state.task, actions)
        shapes = (
            jax.ShapeDtypeStruct((), jnp.int32),
            engine.shape_of_readings(actions.shape[0] * actions.shape[1]),
        )

        def look(number: Any, ctrl: Any, kick: Any) -> tuple[np.ndarray, np.ndarray]:
            return np.asarray(number, np.int32), engine.look(number, ctrl, kick)

        session, readings = io_callback(look, shapes, state.session, command.ctrl, command.kick)
        named = jax.tree.map(lambda leaf: leaf.reshape(*actions.shape[:2], *leaf.shape[1:]), engine.named(readings))

        def one(parameters: Parameters, task: PyTree[Array], reading: Reading, action: Array) -> Signals:
            return environment.signals(parameters, environment.step(parameters, task, reading, action)[0])

        signals = jax.vmap(jax.vmap(one, (None, None, 0, 0)))(parameters, state.task, named, actions)
        return MujocoState(state.task, session), signals

    def finish(self, state: MujocoState) -> None:
        io_callback(engine_of(self.environment).finish, None, state.session)


@lru_cache(maxsize=64)
def engine_of(environment: MujocoEnvironment) -> "Engine":
    """The engine of an environment: its model is compiled once in a process."""
    settle = getattr(environment, "settle", None)
    return Engine(environment.model(), environment.reads, environment.substeps, environment.refresh, settle=settle)
