"""Gymnasium environments of a user's own, reached from within compiled code.

Each row has an environment instance to itself for the length of its episode. One control step of all rows is one
call that steps those that have not ended, one after the other. An environment that raises, or returns what cannot
be learned from, or does not answer in time (`watched.py`), is reported (`failures.py`) with its task, episode and step,
and all rows show NaN from there on.
"""

import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Bool, Float, Int, Key

from safemeta.core import Signals
from safemeta.sim.cost_reader import CostError, CostReader, number, unpack
from safemeta.sim.failures import SimulationError, is_pending, report
from safemeta.sim.host_call import HostFunction
from safemeta.sim.step import Parameters, Step
from safemeta.sim.watched import Overdue, watched

IDLE = 500  # environment instances that are kept for later episodes
TIMEOUT = 60.0  # seconds that an environment may take to be made, to be reset, or for a step

# A Gymnasium id, or a function of the task's parameters (of nothing, where there is one task only)
EnvMaker = str | Callable[..., Any]
Result = TypeVar("Result")


class GymnasiumState(eqx.Module):
    """The number under which the host keeps the environments, and how many steps they have made.

    The count goes from call to call, which keeps them in their order.
    """

    session: Int[Array, ""]
    clock: Int[Array, ""]


@dataclass(frozen=True, eq=False)
class GymnasiumSimulator:
    """Gymnasium environments on all rows: a `safemeta.sim.step.Simulator`.

    Actions are clipped to the action space. Rows are reset with a seed from their key. Where an environment truncates
    itself (a `TimeLimit`), the row is truncated, not terminated. A worked use is `own_world.py`.
    """

    host: "Host"

    def reset(
        self, parameters: Parameters, keys: Key[Array, " rows"], episodes: int
    ) -> tuple[GymnasiumState, Float[Array, "rows observation"]]:
        seeds = jax.vmap(partial(jax.random.bits, dtype=jnp.uint32))(keys) >> 1  # Gymnasium wants no negative ones
        shapes = jax.ShapeDtypeStruct((), jnp.int32), self._floats(keys.shape[0], self.host.observation_size)
        session, observation = self.host.calls.start(shapes, parameters, seeds, np.int32(episodes))
        return GymnasiumState(session, jnp.zeros((), jnp.int32)), observation

    def step(
        self,
        parameters: Parameters,
        state: GymnasiumState,
        action: Float[Array, "rows action"],
        alive: Bool[Array, " rows"],
    ) -> tuple[GymnasiumState, Step]:
        rows = alive.shape[0]
        shapes = (
            jax.ShapeDtypeStruct((), jnp.int32),
            self._floats(rows, self.host.observation_size),
            self._floats(rows),
            self._floats(rows, len(self.host.costs.names)),
            jax.ShapeDtypeStruct((rows,), bool),
            jax.ShapeDtypeStruct((rows,), bool),
        )
        clock, *step = self.host.calls.advance(shapes, state.session, state.clock, action, alive)
        return GymnasiumState(state.session, clock), Step(*step)

    def signals(self, parameters: Parameters, state: GymnasiumState) -> Signals:
        """None: an environment of the user's own tells its observation only."""
        return {}

    def look(
        self, parameters: Parameters, state: GymnasiumState, actions: Float[Array, "rows choices action"]
    ) -> tuple[GymnasiumState, Signals]:
        raise ValueError("An environment of your own cannot be asked what an action would lead to.")

    def finish(self, state: GymnasiumState) -> None:
        # The clock is handed over only so that this happens after the last step.
        self.host.calls.finish((), state.session, state.clock)

    def _floats(self, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(float))


@dataclass
class Row:
    """One episode: its environment (None once it has failed to be made), and what it showed last."""

    name: str
    pool: tuple[Any, ...]
    env: Any = None
    observation: Any = None


@dataclass
class Session:
    """The rows of one batch of episodes."""

    rows: list[Row]
    steps: int = 0
    at: int = 0  # the row that is being reset or stepped
    failed: bool = False


@dataclass
class StepOfRows:
    """What a control step of all rows returns, in the order of `Step`."""

    observation: np.ndarray
    reward: np.ndarray
    costs: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


@dataclass
class Host:
    """Makes environments, keeps them between episodes, and steps them. All of it happens outside of JAX.

    An instance is used again for the same task; one with a method `set_task(parameters)` for every task. `timeout` is
    in seconds, for each call of an instance; None is no limit.
    """

    make_env: EnvMaker
    costs: CostReader
    observation_space: spaces.Space
    action_space: spaces.Box
    timeout: float | int | None = TIMEOUT
    _idle: "OrderedDict[tuple[Any, ...], list[Any]]" = field(default_factory=OrderedDict)
    _sessions: dict[int, Session] = field(default_factory=dict)
    _opened: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.calls = Calls(self)

    @property
    def observation_size(self) -> int:
        """Of the flattened observation."""
        return spaces.flatdim(self.observation_space)

    def start(self, parameters: Mapping[str, Any], seeds: Any, episodes: int) -> tuple[int, np.ndarray]:
        """Begin an episode in each row: the session's number, the first observations `[rows, size]`."""
        columns = {name: np.asarray(values) for name, values in parameters.items()}
        own = [{name: values[row].tolist() for name, values in columns.items()} for row in range(len(seeds))]
        session = Session(
            [Row(_row_name(index, episodes, each), _pool_name(each)) for index, each in enumerate(own)],
            failed=is_pending(),  # the run has come to its end already: nothing more is asked of what may hang again
        )

        def reset_all() -> np.ndarray:
            first = np.full((len(own), self.observation_size), np.nan)
            for index, seed in enumerate(np.asarray(seeds).tolist()):
                if session.failed:
                    break
                session.at, row = index, session.rows[index]
                try:
                    row.env = self._taken(row, own[index])
                    row.observation, _ = row.env.reset(seed=seed)
                    first[index] = self.flat(row.observation)
                except (Exception, SystemExit) as problem:
                    self._fail(session, problem)
            return first

        first = self._watched(session, reset_all)
        with self._lock:
            self._opened += 1
            number = self._opened
            self._sessions[number] = session
        return number, np.full((len(own), self.observation_size), np.nan) if first is None else first

    def advance(self, number: int, action: np.ndarray, alive: np.ndarray) -> StepOfRows:
        """One control step of the rows that are alive, `action[rows, size]`; NaN everywhere once any has failed."""
        session = self._sessions[number]
        session.steps += 1

        def step_all() -> StepOfRows:
            found = self._nothing(session)
            for index in np.flatnonzero(alive).tolist():
                if session.failed:
                    break
                session.at = index
                try:
                    self._step(session.rows[index], action[index], found, index)
                except (Exception, SystemExit) as problem:
                    self._fail(session, problem)
            return found

        found = self._watched(session, step_all) or self._nothing(session)
        if session.failed:
            for leaf in (found.observation, found.reward, found.costs):
                leaf[:] = np.nan
        return found

    def _nothing(self, session: Session) -> StepOfRows:
        """A control step in which nothing has happened."""
        rows, costs = len(session.rows), len(self.costs.names)
        return StepOfRows(
            np.zeros((rows, self.observation_size)),
            np.zeros(rows),
            np.zeros((rows, costs)),
            np.zeros(rows, bool),
            np.zeros(rows, bool),
        )

    def _watched(self, session: Session, work: Callable[[], Result]) -> Result | None:
        """What `work` returns; None if a row did not answer in time, or nothing is to be done any more."""
        if session.failed:
            return None
        try:
            return watched(work, self.timeout, lambda: session.at)
        except Overdue as problem:
            self._fail(session, problem)
            return None

    def finish(self, number: int) -> None:
        """End a session: its environments may be used by the next, the oldest of too many are closed."""
        session = self._sessions.pop(number)
        surplus = []
        with self._lock:
            for row in session.rows:
                if row.env is not None:
                    self._idle.setdefault(row.pool, []).append(row.env)
                    self._idle.move_to_end(row.pool)
            for _ in range(sum(map(len, self._idle.values())) - IDLE):
                pool = next(iter(self._idle))
                surplus.append(self._idle[pool].pop())
                if not self._idle[pool]:
                    del self._idle[pool]
        for env in surplus:
            try:
                watched(env.close, self.timeout)
            except (Exception, SystemExit) as problem:
                report(SimulationError(f"an environment failed when it was closed: {reason(problem)}"))

    def _step(self, row: Row, action: np.ndarray, found: StepOfRows, index: int) -> None:
        """One step of one row, written into `found`."""
        if not np.isfinite(action).all():
            raise CostError("the policy's action is not a finite number")
        given = np.clip(action.reshape(self.action_space.shape), self.action_space.low, self.action_space.high)
        given = given.astype(self.action_space.dtype)
        outcome = unpack(row.env.step(given))
        found.costs[index] = self.costs.read(row.observation, given, outcome)
        found.reward[index] = number(outcome.reward, "the reward")
        found.observation[index] = self.flat(outcome.observation)
        found.terminated[index] = outcome.terminated
        found.truncated[index] = outcome.truncated and not outcome.terminated
        row.observation = outcome.observation

    def flat(self, observation: Any) -> np.ndarray:
        """The observation as finite numbers `[observation]`."""
        if isinstance(self.observation_space, spaces.Box):
            flat = np.array(observation, float).ravel()
        else:
            flat = np.asarray(spaces.flatten(self.observation_space, observation), float).ravel()
        if flat.size != self.observation_size:
            raise CostError(f"the observation has {flat.size} numbers instead of {self.observation_size}")
        if not np.isfinite(flat).all():
            raise CostError(f"number {int(np.argmin(np.isfinite(flat)))} of the observation is NaN or infinite")
        return flat

    def _taken(self, row: Row, parameters: dict[str, Any]) -> Any:
        """An idle environment or a new one, set to the task."""
        pools = ((), row.pool)
        with self._lock:
            env = next((self._idle[pool].pop() for pool in pools if self._idle.get(pool)), None)
        env = make(self.make_env, parameters) if env is None else env
        if hasattr(env.unwrapped, "set_task"):
            env.unwrapped.set_task(parameters)
            row.pool = ()
        return env

    def _fail(self, session: Session, problem: BaseException) -> None:
        """Report the first failure of a session; the environment is not used again."""
        if session.failed:  # what was overdue has answered after all
            return
        row = session.rows[session.at]
        session.failed, row.env = True, None
        when = f"at step {session.steps}" if session.steps else "at reset"
        error = SimulationError(f"the environment of {row.name} failed {when}: {reason(problem)}")
        error.__cause__ = problem
        report(error)


class Calls:
    """What compiled code calls of a host. Arguments are copied: a step that is overdue may still hold them."""

    def __init__(self, host: Host) -> None:
        maker = host.make_env
        self._host = host
        name = f"gymnasium-{maker if isinstance(maker, str) else getattr(maker, '__qualname__', type(maker).__name__)}"
        self.start = HostFunction(f"{name}.start", self._start)
        self.advance = HostFunction(f"{name}.advance", self._advance)
        self.finish = HostFunction(f"{name}.finish", self._finish)

    def _start(self, parameters: Any, seeds: Any, episodes: Any) -> tuple[Any, np.ndarray]:
        number, observation = self._host.start(jax.tree.map(np.array, parameters), np.array(seeds), int(episodes))
        return np.int32(number), observation

    def _advance(self, session: Any, clock: Any, action: Any, alive: Any) -> tuple[Any, ...]:
        return clock + 1, *vars(self._host.advance(int(session), np.array(action), np.array(alive))).values()

    def _finish(self, session: Any, clock: Any) -> None:
        self._host.finish(int(session))


def make(make_env: EnvMaker, parameters: dict[str, Any]) -> Any:
    """An environment for a task."""
    if isinstance(make_env, str):
        return gymnasium.make(make_env, **parameters)
    if parameters or _needs_something(make_env):
        return make_env(parameters)
    return make_env()


def reason(problem: BaseException) -> str:
    """An exception in a few words, on one line."""
    text = " ".join(str(problem).split()).rstrip(".")
    text = text if len(text) <= 300 else text[:297] + "..."
    said = isinstance(problem, CostError | Overdue)  # in words of ours
    return text if said else f"{type(problem).__name__}{': ' if text else ''}{text}"


def _needs_something(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return True
    positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    return any(each.default is each.empty for each in positional)


def _pool_name(parameters: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(sorted((name, str(value)) for name, value in parameters.items()))


def _row_name(index: int, episodes: int, parameters: dict[str, Any]) -> str:
    shown = ", ".join(f"{name} {value:.4g}" for name, value in parameters.items() if isinstance(value, float))
    return f"task {index // episodes}{f' ({shown})' if shown else ''}, episode {index % episodes},"
