"""MuJoCo's C engine on threads.

Each row owns an `MjData` for the length of its episode, so that the solver always starts from its last solution. The
rows are shared out to threads, which spend their time in C. What a task wants to know of the physics (its `reads`:
named sensors, or fields of `MjData`) comes back as one array.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's module is compiled and brings no stubs.)

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import equinox as eqx
import jax
import mujoco
import numpy as np
from jaxtyping import Array, Float, UInt32

from safemeta.sim.failures import SimulationError, report
from safemeta.sim.threads import available_cores

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
        self.threads: int = threads or available_cores()
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
        """Begin an episode in each row of the placement: the session's number and the readings `[rows, values]`."""
        qpos, qvel, mocap = (np.asarray(leaf, np.float64) for leaf in (placement.qpos, placement.qvel, placement.mocap))
        seed = None if placement.seed is None else np.asarray(placement.seed)
        rows = qpos.shape[0]
        taken = self._take(rows)
        with self._lock:
            self._opened += 1
            number = self._opened
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
        """One control step of the rows that are alive; the others keep their readings `[rows, values]`."""
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
        copies = self._take(min(self.threads, rows))

        def run(start: int) -> None:
            state = np.zeros(mujoco.mj_stateSize(self.model, whole))
            copy = _Row(copies[start], np.zeros(self.size, readings.dtype), self._fields)
            for row in range(start, rows, len(copies)):
                mujoco.mj_getState(self.model, session.rows[row].data, state, whole)
                for choice in range(choices):
                    mujoco.mj_setState(self.model, copy.data, state, whole)
                    copy.ctrl[:] = ctrl[row, choice]
                    if kick is not None:
                        copy.data.qvel += kick[row, choice]
                    step(copy.data)
                    readings[row * choices + choice] = copy.read()

        others = [self._pool.submit(run, start) for start in range(1, len(copies))]
        run(0)
        for other in others:
            other.result()
        with self._lock:
            self._idle += copies
        return readings

    def _take(self, count: int) -> list[Any]:
        """So many `MjData` that nobody uses, made where there are too few."""
        with self._lock:
            taken = [self._idle.pop() for _ in range(min(count, len(self._idle)))]
        return taken + [mujoco.MjData(self.model) for _ in range(count - len(taken))]

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
                rows[index].read()

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


class _Row:
    """One row's data, and flat views of what is written and read at every step (making them takes time)."""

    def __init__(self, data: Any, reading: np.ndarray, fields: Sequence[str]) -> None:
        self.data = data
        self.ctrl = data.ctrl
        self.reading = reading
        self.copies: list[tuple[np.ndarray, np.ndarray]] = []  # from the data into the reading
        offset = 0
        for field in fields:
            view = np.reshape(getattr(data, field), -1)
            self.copies.append((reading[offset : offset + view.size], view))
            offset += view.size

    def read(self) -> np.ndarray:
        """The reading, brought up to date."""
        for here, there in self.copies:
            np.copyto(here, there)
        return self.reading


class _Session:
    """The rows of one batch of episodes."""

    def __init__(self, rows: list[_Row], episodes: int, readings: np.ndarray) -> None:
        self.rows = rows
        self.episodes = episodes
        self.readings = readings
        self.steps = 0
        self.failed = False
