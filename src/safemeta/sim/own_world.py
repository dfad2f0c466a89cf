"""A `World` from a user's own Gymnasium environment: any algorithm trains on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from gymnasium import spaces

from safemeta.core import CMDP
from safemeta.core.cmdp import LimitOn
from safemeta.sim.batched import BatchedWorld
from safemeta.sim.cost_reader import CostError, CostFunction, CostReader, default_names, named_costs, unpack
from safemeta.sim.gymnasium import TIMEOUT, EnvMaker, GymnasiumSimulator, Host, make, reason
from safemeta.sim.own_family import Limits, Number, OwnFamily, Ranges, Span, check_episodes, chosen_tasks, limits_of
from safemeta.sim.step import Family
from safemeta.sim.watched import check_timeout, watched


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
    check_episodes(horizon, discount, limit_on)
    check_timeout(timeout)
    ready, train, test = chosen_tasks(tasks, test_tasks)
    first = _first_parameters(ready, train)
    host, called = _seen(make_env, first, cost, None if cost_names is None else tuple(cost_names), timeout)
    bounds = limits_of(limits, host.costs.names)
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
