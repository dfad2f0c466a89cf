"""MuJoCo's C engine on threads, reached from within compiled code.

Each row owns an `MjData` for the length of its episode, so that the solver always starts from its last solution. One
control step of all rows is one callback: the rows are shared out to threads, which spend their time in C. What a task
wants to know of the physics (its `reads`: named sensors, or fields of `MjData`) comes back as one array.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's module is compiled and brings no stubs.)

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jax.experimental import io_callback
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree, UInt32

from safemeta.core import Signals
from safemeta.sim.failures import SimulationError, report
from safemeta.sim.interaction import signals_of
from safemeta.sim.step import Parameters, Step

mujoco.set_mju_user_warning(lambda message: None)  # it would write a log file into the current folder; see `report`

Numbers = Array | np.ndarray
Reading = dict[str, Any]  # arrays by the names of `reads`

# What is brought up to date after the last physics step of a control step:
# "all": everything, as Safety-Gymnasium does. "contact forces": `mj_rnePostConstraint`, as Gymnasium does; all else is
# that of the last physics step's beginning. "position and velocity": as dm_control does. "nothing": for tasks that read
# `qpos` and `qvel` alone.
Refresh = Literal["all", "contact forces", "position and velocity", "nothing"]


Settle = Callable[[Any, Any, np.random.Generator], None]  # changes a row's data; given the model


class Placement(eqx.Module):
    """Where everything is at the beginning of an episode; `seed` is for environments that `settle`."""

    qpos: Float[Numbers, "*rows nq"]
    qvel: Float[Numbers, "*rows nv"]
    mocap: Float[Numbers, "*rows solids 3"]  # positions of the bodies that a task moves
    seed: UInt32[Numbers, "*rows"] | None = None


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
    def refresh(self) -> Refresh: ...

    def model(self) -> Any:
        """The compiled `mujoco.MjModel`; called once."""
        ...

    def reset(self, parameters: Parameters, key: PRNGKeyArray) -> tuple[PyTree[Array], Placement]: ...

    def begin(
        self, parameters: Parameters, state: PyTree[Array], reading: Reading
    ) -> tuple[PyTree[Array], Float[Array, " observation"]]: ...

    def command(self, parameters: Parameters, state: PyTree[Array], action: Float[Array, " action"]) -> Command: ...

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
        engine, environment = engine_of(self.environment), self.environment
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


class Engine:
    """The physics of many rows of one model. Sessions are independent and may be used from different threads."""

    def __init__(
        self,
        model: Any,
        reads: Sequence[str],
        substeps: int = 1,
        refresh: Refresh = "all",
        threads: int | None = None,
        settle: Settle | None = None,
    ) -> None:
        self.model = model
        self.settle = settle
        self.substeps = substeps
        self.refresh: Refresh = refresh
        self.threads: int = threads or _available_cores()
        # A diverged row must show as NaN, which is reported, and not be put back to the start in silence.
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
        self._pool = ThreadPoolExecutor(max(1, self.threads - 1), thread_name_prefix="mujoco")
        self._lock = threading.Lock()
        self._idle: list[Any] = []
        self._sessions: dict[int, _Session] = {}
        self._opened = 0
        sensors = {model.sensor(index).name: model.sensor(index) for index in range(model.nsensor)}
        probe = mujoco.MjData(model)
        self._fields = tuple(dict.fromkeys("sensordata" if name in sensors else name for name in reads))
        start, offset = {}, 0
        for field in self._fields:
            start[field] = offset
            offset += np.size(getattr(probe, field))
        self.size = offset
        self._slices: dict[str, tuple[int, tuple[int, ...]]] = {}
        for name in reads:
            if name in sensors:
                sensor = sensors[name]
                self._slices[name] = (start["sensordata"] + int(sensor.adr[0]), (int(sensor.dim[0]),))
            else:
                self._slices[name] = (start[name], np.shape(getattr(probe, name)))

    def shape_of_readings(self, rows: int) -> jax.ShapeDtypeStruct:
        """What `start` and `advance` return for so many rows."""
        return jax.ShapeDtypeStruct((rows, self.size), jax.dtypes.canonicalize_dtype(float))

    def named(self, readings: Float[Numbers, "rows size"]) -> Reading:
        """Readings of all rows by name."""
        return {
            name: readings[:, start : start + int(np.prod(shape))].reshape(-1, *shape)
            for name, (start, shape) in self._slices.items()
        }

    def start(self, placement: Placement, episodes: int = 1, dtype: Any = np.float64) -> tuple[np.ndarray, np.ndarray]:
        """Begin an episode in each row of the placement: the session's number and the readings."""
        qpos, qvel, mocap = (np.asarray(leaf, np.float64) for leaf in (placement.qpos, placement.qvel, placement.mocap))
        seed = None if placement.seed is None else np.asarray(placement.seed)
        rows = qpos.shape[0]
        with self._lock:
            taken = [self._idle.pop() for _ in range(min(rows, len(self._idle)))]
            self._opened += 1
            number = self._opened
        taken += [mujoco.MjData(self.model) for _ in range(rows - len(taken))]
        readings = np.zeros((rows, self.size), dtype)
        session = _Session(
            [_Row(*pair, self._fields) for pair in zip(taken, readings, strict=True)], episodes, readings
        )
        self._sessions[number] = session

        def work(index: int) -> None:
            data = session.rows[index].data
            mujoco.mj_resetData(self.model, data)
            data.qpos[:], data.qvel[:] = qpos[index], qvel[index]
            data.mocap_pos[:] = mocap[index]
            if self.settle is not None and seed is not None:
                self.settle(self.model, data, np.random.default_rng(seed[index]))
            mujoco.mj_forward(self.model, data)

        return np.asarray(number, np.int32), self._on_all(session, work, range(rows))

    def advance(self, number: Any, ctrl: Any, kick: Any, alive: Any) -> np.ndarray:
        """One control step of the rows that are alive; the others keep their readings."""
        session = self._sessions[int(number)]
        session.steps += 1
        going = np.flatnonzero(np.asarray(alive)).tolist()
        if not going:
            return session.readings.copy()
        ctrl = np.asarray(ctrl)
        kick = None if kick is None else np.asarray(kick)
        step = self._stepper(kicked=kick is not None)

        def work(index: int) -> None:
            row = session.rows[index]
            np.copyto(row.ctrl, ctrl[index])
            if kick is not None:
                row.data.qvel += kick[index]
            step(row.data)

        return self._on_all(session, work, going)

    def look(self, number: Any, ctrl: Any, kick: Any) -> np.ndarray:
        """What one control step under each of `ctrl` `[rows, choices, nu]` would read: `[rows * choices, size]`."""
        session = self._sessions[int(number)]
        ctrl = np.asarray(ctrl)
        kick = None if kick is None else np.asarray(kick)
        rows, choices = ctrl.shape[:2]
        readings = np.zeros((rows * choices, self.size), session.readings.dtype)
        step, whole = self._stepper(kicked=True), mujoco.mjtState.mjSTATE_INTEGRATION
        state_size = mujoco.mj_stateSize(self.model, whole)

        def run(rows: range) -> None:
            state, scratch = np.zeros(state_size), mujoco.MjData(self.model)
            for row in rows:
                mujoco.mj_getState(self.model, session.rows[row].data, state, whole)
                for choice in range(choices):
                    mujoco.mj_setState(self.model, scratch, state, whole)
                    scratch.ctrl[:] = ctrl[row, choice]
                    if kick is not None:
                        scratch.qvel += kick[row, choice]
                    step(scratch)
                    reading = readings[row * choices + choice]
                    for here, there in _Row(scratch, reading, self._fields).copies:
                        np.copyto(here, there)

        parts = [range(start, rows, self.threads) for start in range(min(self.threads, rows))]
        others = [self._pool.submit(run, part) for part in parts[1:]]
        run(parts[0])
        for other in others:
            other.result()
        return readings

    def _stepper(self, kicked: bool) -> Callable[[Any], None]:
        """One control step of one row's data, which has its controls already."""
        model, substeps, refresh = self.model, self.substeps, self.refresh
        # Where position and velocity are up to date, the first physics step needs only its second half.
        stale = refresh in ("contact forces", "nothing")
        fresh = not stale and not kicked and model.opt.integrator != mujoco.mjtIntegrator.mjINT_RK4

        def step(data: Any) -> None:
            if fresh:
                mujoco.mj_step2(model, data)
                if substeps > 1:
                    mujoco.mj_step(model, data, substeps - 1)
            else:
                mujoco.mj_step(model, data, substeps)
            if refresh == "all":
                mujoco.mj_forward(model, data)
            elif refresh == "contact forces":
                mujoco.mj_rnePostConstraint(model, data)
            elif refresh == "position and velocity":
                mujoco.mj_step1(model, data)

        return step

    def data(self, number: Any) -> list[Any]:
        """The `MjData` of a session's rows."""
        return [row.data for row in self._sessions[int(number)].rows]

    def finish(self, number: Any) -> None:
        """End a session: its rows may be used by the next."""
        with self._lock:
            session = self._sessions.pop(int(number))
            self._idle += [row.data for row in session.rows]

    def _on_all(self, session: "_Session", work: Any, indices: Sequence[int]) -> np.ndarray:
        """`work` on each row, on this thread and the others, each taking the next row when it is done; all readings."""
        todo, rows = deque(indices), session.rows

        def run() -> None:
            while True:
                try:
                    index = todo.popleft()
                except IndexError:
                    return
                work(index)
                for here, there in rows[index].copies:
                    np.copyto(here, there)

        others = [self._pool.submit(run) for _ in range(min(self.threads, len(todo)) - 1)]
        run()
        for other in others:
            if not other.cancel():  # a thread that has not begun by now has nothing left to do
                other.result()
        readings = session.readings
        if not session.failed and not np.isfinite(readings).all():
            session.failed = True
            row = int(np.flatnonzero(~np.isfinite(readings).all(1))[0])
            report(
                SimulationError(
                    f"the physics of task {row // session.episodes}, episode {row % session.episodes}, left the finite "
                    f"numbers at step {session.steps}"
                )
            )
        return readings.copy()


def _available_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class _Row:
    """One row's data, and flat views of what is written and read at every step (making them takes time)."""

    def __init__(self, data: Any, reading: np.ndarray, fields: Sequence[str]) -> None:
        self.data = data
        self.ctrl = data.ctrl
        self.copies: list[tuple[np.ndarray, np.ndarray]] = []  # from the data into the reading
        offset = 0
        for field in fields:
            view = np.reshape(getattr(data, field), -1)
            self.copies.append((reading[offset : offset + view.size], view))
            offset += view.size


class _Session:
    """The rows of one batch of episodes."""

    def __init__(self, rows: list[_Row], episodes: int, readings: np.ndarray) -> None:
        self.rows = rows
        self.episodes = episodes
        self.readings = readings
        self.steps = 0
        self.failed = False
