"""A `World` from a user's own Gymnasium environment: any algorithm trains on it."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from gymnasium import spaces
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.core import CMDP, Tasks
from safemeta.core.cmdp import LimitOn
from safemeta.sim.batched import BatchedWorld
from safemeta.sim.cost_reader import CostError, CostFunction, CostReader, default_names, named_costs, unpack
from safemeta.sim.gymnasium import TIMEOUT, EnvMaker, GymnasiumSimulator, Host, make, reason
from safemeta.sim.step import Family
from safemeta.sim.watched import check_timeout, watched

SPLITS = ("train", "validation", "test")
LIMIT_UNITS = ("discounted", "undiscounted", "per_step")
Number = float | int
Ranges = Mapping[str, tuple[Number, Number]]  # parameter -> its easy and its hard end
Limits = Number | Sequence[Number] | Mapping[str, Number]
Span = tuple[str, float, float]


@dataclass(frozen=True)
class OwnFamily:
    """Tasks whose parameters are uniform, each between its easy and its hard end.

    The descriptor holds the parameters scaled so that the training range becomes [-1, 1], hard ends at 1 (0 where
    nothing varies). "validation" is distributed as "train".
    """

    train: tuple[Span, ...]
    test: tuple[Span, ...]
    limits: tuple[float, ...]

    def sample(self, key: PRNGKeyArray, count: int, split: str = "train") -> Tasks:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
        spans = self.test if split == "test" else self.train
        uniform = jax.random.uniform(key, (len(spans), count))
        return self._tasks([easy + (hard - easy) * u for (_, easy, hard), u in zip(spans, uniform, strict=True)], count)

    def corners(self) -> Tasks:
        """All combinations of hard and easy ends, the one of all hard ends first."""
        ends = [(hard, easy) if hard != easy else (hard,) for _, easy, hard in self.train]
        pairs = sorted(itertools.product(*[list(enumerate(each)) for each in ends]), key=lambda p: sum(i for i, _ in p))
        columns = zip(*[[value for _, value in corner] for corner in pairs], strict=True)
        return self._tasks([jnp.array(column, float) for column in columns], len(pairs))

    def _tasks(self, values: Sequence[Float[Array, " tasks"]], count: int) -> Tasks:
        parameters = {name: column for (name, _, _), column in zip(self.train, values, strict=True)}
        scaled = [
            (2 * column - easy - hard) / (hard - easy) if hard != easy else jnp.zeros(count)
            for (_, easy, hard), column in zip(self.train, values, strict=True)
        ] or [jnp.zeros(count)]
        return Tasks(parameters, jnp.tile(jnp.array(self.limits, float), (count, 1)), jnp.stack(scaled, axis=-1))


@dataclass(frozen=True)
class OwnWorld(BatchedWorld):
    """A user's own environment; `name` is what run folders are called after."""

    name: str = "own-environment"


def gymnasium_world(
    make_env: EnvMaker,
    *,
    horizon: int,
    limits: Limits,
    cost: CostFunction | None = None,
    cost_names: Sequence[str] | None = None,
    tasks: Ranges | Family | None = None,
    test_tasks: Ranges | None = None,
    discount: Number = 0.99,
    limit_on: LimitOn = "discounted",
    timeout: Number | None = TIMEOUT,
    name: str | None = None,
) -> OwnWorld:
    """The world of a Gymnasium environment with costs.

    `make_env` is a Gymnasium id or a function of the task's parameters, a dictionary; rows have an instance each.
    `tasks` names the parameters that vary and their ranges, each from its easy to its hard end (`test_tasks` in the
    split "test", where it differs), or is a `Family`; without it there is one task.

    Costs come from `info["cost"]`, from `info["costs"]` by name, from a step of six values, or from
    `cost(observation, action, next_observation, info)`, which returns one number or several; `cost_names` chooses and
    orders them. `limits` holds for all costs, or is given for each, in their order or by name. `limit_on` says what a
    limit bounds, see `safemeta.core.CMDP`. Episodes have at most `horizon` steps; an environment that truncates itself
    ends earlier. An environment that takes longer than `timeout` seconds to be made, to be reset or for a step is taken
    to hang, which ends what is being computed with a sentence; None waits for ever.

    One environment is made and stepped once to see what it is like. Raises `ValueError` where it has no usable cost or
    no box of actions, and where a number makes no sense.
    """
    if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
        raise ValueError(f"horizon must be a whole number of at least 1 step, not {horizon}")
    if limit_on not in LIMIT_UNITS:
        raise ValueError(f"limit_on must be one of {', '.join(LIMIT_UNITS)}, not {limit_on!r}")
    if not 0 < discount <= 1:
        raise ValueError(f"discount must be above 0 and at most 1, not {discount}")
    check_timeout(timeout)
    ready = tasks if tasks is not None and not isinstance(tasks, Mapping) else None
    train = _spans(tasks if isinstance(tasks, Mapping) else {})
    test = train if test_tasks is None else _spans(test_tasks)
    if [span[0] for span in test] != [span[0] for span in train]:
        raise ValueError("test_tasks must name the same parameters as tasks, in the same order")
    first = _first_parameters(ready, train)
    host, called = _seen(make_env, first, cost, None if cost_names is None else tuple(cost_names), timeout)
    bounds = _limits(limits, host.costs.names)
    cmdp = CMDP(
        observation_size=host.observation_size,
        action_size=spaces.flatdim(host.action_space),
        horizon=horizon,
        cost_names=host.costs.names,
        limits=bounds,
        discount=float(discount),
        limit_on=limit_on,
    )
    family = OwnFamily(train, test, bounds) if ready is None else ready
    return OwnWorld(cmdp, GymnasiumSimulator(host), family, name or called)


def _spans(ranges: Ranges) -> tuple[Span, ...]:
    """Checked ranges."""
    spans = []
    for name, ends in ranges.items():
        if not (isinstance(ends, (tuple, list)) and len(ends) == 2 and all(math.isfinite(end) for end in ends)):
            raise ValueError(f"the range of {name!r} must be two numbers, its easy and its hard end, not {ends!r}")
        spans.append((str(name), float(ends[0]), float(ends[1])))
    return tuple(spans)


def _first_parameters(family: Family | None, train: tuple[Span, ...]) -> dict[str, Any]:
    """The parameters of one task."""
    if family is None:
        return {name: easy for name, easy, _ in train}
    drawn = family.sample(jax.random.key(0), 1, "train")
    return {name: values[0].tolist() for name, values in drawn.parameters.items()}


def _seen(
    make_env: EnvMaker,
    parameters: dict[str, Any],
    cost: CostFunction | None,
    names: tuple[str, ...] | None,
    timeout: Number | None,
) -> tuple[Host, str]:
    """What makes and steps the environments, after a look at one of them, and its name."""
    try:
        env = watched(lambda: make(make_env, parameters), timeout)
        if hasattr(env.unwrapped, "set_task"):
            watched(lambda: env.unwrapped.set_task(parameters), timeout)
        before, _ = watched(lambda: env.reset(seed=0), timeout)
        action_space = _box(env.action_space)
        env.action_space.seed(0)
        action = env.action_space.sample()
        outcome = unpack(watched(lambda: env.step(action), timeout))
        reader = CostReader(names or default_names(named_costs(cost, before, action, outcome)), cost)
        reader.read(before, action, outcome)
        host = Host(make_env, reader, env.observation_space, action_space, timeout)
        for observation in (before, outcome.observation):
            host.flat(observation)
        called = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        watched(env.close, timeout)
    except CostError as problem:
        raise ValueError(f"the environment cannot be trained on: {problem}") from problem
    except (Exception, SystemExit) as problem:
        raise ValueError(f"the environment failed when it was tried: {reason(problem)}") from problem
    return host, called


def _box(space: Any) -> spaces.Box:
    if not isinstance(space, spaces.Box):
        raise CostError(
            f"its actions are a {type(space).__name__} space, and policies here are Gaussian, so that they need a Box"
        )
    return space


def _limits(limits: Limits, names: tuple[str, ...]) -> tuple[float, ...]:
    """One limit for each cost."""
    if isinstance(limits, Mapping):
        if set(limits) != set(names):
            raise ValueError(f"limits are needed for {', '.join(names)}, not for {', '.join(map(str, limits))}")
        values = [limits[name] for name in names]
    else:
        values = list(limits) if isinstance(limits, Sequence) else [limits] * len(names)
    if len(values) != len(names):
        raise ValueError(f"{len(values)} limits were given for {len(names)} costs ({', '.join(names)})")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ValueError(f"a limit must be a number that is zero or more, not {value!r}")
    return tuple(map(float, values))
