"""Tasks on MuJoCo: what one is, and how all of its rows are stepped from within compiled code.

One control step of all rows is one call of the engine (`mujoco_engine.py`).
"""

import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree

from safemeta.core import Signals
from safemeta.sim.host_call import HostFunction
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
        host = host_of(self.environment)
        task, placement = jax.vmap(self.environment.reset)(parameters, keys)
        session, readings = host.start(host.shapes(keys.shape[0]), placement, np.int32(episodes))
        task, observation = jax.vmap(self.environment.begin)(parameters, task, host.engine.named(readings))
        return MujocoState(task, session), observation

    def step(
        self,
        parameters: Parameters,
        state: MujocoState,
        action: Float[Array, "rows action"],
        alive: Bool[Array, " rows"],
    ) -> tuple[MujocoState, Step]:
        host = host_of(self.environment)
        command = jax.vmap(self.environment.command)(parameters, state.task, action)
        session, readings = host.advance(host.shapes(alive.shape[0]), state.session, command.ctrl, command.kick, alive)
        task, step = jax.vmap(self.environment.step)(parameters, state.task, host.engine.named(readings), action)
        return MujocoState(task, session), step

    def signals(self, parameters: Parameters, state: MujocoState) -> Signals:
        return signals_of(self.environment, parameters, state.task)

    def look(
        self, parameters: Parameters, state: MujocoState, actions: Float[Array, "rows choices action"]
    ) -> tuple[MujocoState, Signals]:
        """The signals that each action would lead to: every choice is a control step from a copy of the row."""
        host = host_of(self.environment)
        environment: Any = self.environment  # with `signals`, or nobody would ask
        command = jax.vmap(jax.vmap(environment.command, (None, None, 0)))(parameters, state.task, actions)
        session, readings = host.look(
            host.shapes(actions.shape[0] * actions.shape[1]), state.session, command.ctrl, command.kick
        )
        named = jax.tree.map(
            lambda leaf: leaf.reshape(*actions.shape[:2], *leaf.shape[1:]), host.engine.named(readings)
        )

        def one(parameters: Parameters, task: PyTree[Array], reading: Reading, action: Array) -> Signals:
            return environment.signals(parameters, environment.step(parameters, task, reading, action)[0])

        signals = jax.vmap(jax.vmap(one, (None, None, 0, 0)))(parameters, state.task, named, actions)
        return MujocoState(state.task, session), signals

    def finish(self, state: MujocoState) -> None:
        host_of(self.environment).finish((), state.session)


class Host:
    """An environment's engine, and what compiled code calls of it.

    The session's number passes through each call, so that nothing can happen to it before the last.
    """

    def __init__(self, environment: MujocoEnvironment) -> None:
        settle = getattr(environment, "settle", None)
        self.engine = Engine(
            environment.model(), environment.reads, environment.substeps, environment.refresh, settle=settle
        )
        name = f"{type(environment).__name__}-{zlib.crc32(repr(environment).encode()):08x}"
        self.start = HostFunction(f"{name}.start", self._start)
        self.advance = HostFunction(f"{name}.advance", self._advance)
        self.look = HostFunction(f"{name}.look", self._look)
        self.finish = HostFunction(f"{name}.finish", self.engine.finish)

    def shapes(self, rows: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """A session's number, and readings of so many rows."""
        return jax.ShapeDtypeStruct((), jnp.int32), self.engine.shape_of_readings(rows)

    def _start(self, placement: Any, episodes: Any) -> tuple[np.ndarray, np.ndarray]:
        return self.engine.start(placement, int(episodes), placement.qpos.dtype)

    def _advance(self, number: Any, ctrl: Any, kick: Any, alive: Any) -> tuple[np.ndarray, np.ndarray]:
        return number, self.engine.advance(number, ctrl, kick, alive)

    def _look(self, number: Any, ctrl: Any, kick: Any) -> tuple[np.ndarray, np.ndarray]:
        return number, self.engine.look(number, ctrl, kick)


@lru_cache(maxsize=64)
def host_of(environment: MujocoEnvironment) -> Host:
    """The host side of an environment: its model is compiled once in a process."""
    return Host(environment)


def engine_of(environment: MujocoEnvironment) -> Engine:
    """The engine of an environment."""
    return host_of(environment).engine
