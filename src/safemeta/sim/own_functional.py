"""A `World` from a user's own environment in JAX: any algorithm trains on it, whole iterations compiled."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from safemeta.core import CMDP, SPLITS, LimitOn
from safemeta.sim.functional import FunctionalEnvironment, FunctionalWorld
from safemeta.sim.gymnasium import reason
from safemeta.sim.own_family import (
    Limits,
    Number,
    OwnFamily,
    Ranges,
    check_episodes,
    chosen_tasks,
    limits_of,
)
from safemeta.sim.step import Family, Parameters, Step


def functional_world(
    environment: FunctionalEnvironment,
    *,
    action_size: int,
    horizon: int,
    limits: Limits,
    cost_names: Sequence[str] | None = None,
    tasks: Ranges | Family | None = None,
    test_tasks: Ranges | None = None,
    discount: Number = 0.99,
    limit_on: LimitOn = "discounted",
) -> FunctionalWorld:
    """The world of an environment that is written in JAX for ONE row (see `safemeta.sim.FunctionalEnvironment`).

    `reset(parameters, key)` gives a state (any pytree of arrays) and the observation `[observation]`, and
    `step(parameters, state, action)` the next state and a `safemeta.sim.Step`: observation, reward `[]`, costs
    `[costs]`, terminated `[]`. `parameters` are the task's, a dictionary of arrays; `action` is `[action_size]`, as the
    policy drew it: the environment clips it.

    `tasks` names the parameters that vary and their ranges, each from its easy to its hard end (`test_tasks` in the
    split "test", where it differs), or is a `Family`; without it there is one task. `limits` holds for all costs, or
    is given for each, in their order or by name. `limit_on` says what a limit bounds, see `safemeta.core.CMDP`.

    The environment is traced once, and not run. Raises `ValueError` where that fails, where a shape or type is not
    what it must be, where the environment cannot be hashed, and where a number makes no sense.
    """
    check_episodes(horizon, discount, limit_on)
    if isinstance(action_size, bool) or not isinstance(action_size, int) or action_size < 1:
        raise ValueError(f"action_size must be a whole number of at least 1, not {action_size}")
    try:
        hash(environment)
    except TypeError as problem:
        raise ValueError("the environment cannot be hashed: make it a frozen dataclass without arrays") from problem
    ready, train, test = chosen_tasks(tasks, test_tasks)
    observation, costs = _traced(environment, ready or OwnFamily(train, test, ()), action_size)
    names = tuple(cost_names or (["cost"] if costs == 1 else [f"cost_{index + 1}" for index in range(costs)]))
    if len(names) != costs:
        raise ValueError(f"a step has {costs} costs, and cost_names names {len(names)}")
    bounds = limits_of(limits, names)
    cmdp = CMDP(observation, action_size, horizon, names, bounds, discount=float(discount), limit_on=limit_on)
    world = FunctionalWorld(cmdp, environment, ready or OwnFamily(train, test, bounds))
    for split in SPLITS if ready else ():
        shape = jax.eval_shape(lambda key, split=split: world.sample(key, 2, split), jax.random.key(0)).limits.shape
        if shape != (2, costs):
            raise ValueError(f"the limits of 2 tasks of the split {split!r} have the shape {shape}, not (2, {costs})")
    return world


def _traced(environment: FunctionalEnvironment, family: Family, action_size: int) -> tuple[int, int]:
    """The sizes of the observation and of the costs; `ValueError` where anything has another form than it must."""

    def reset(key: PRNGKeyArray) -> tuple[Parameters, Any]:
        parameters = {name: leaf[0] for name, leaf in family.sample(key, 1, "train").parameters.items()}
        return parameters, environment.reset(parameters, key)

    try:
        parameters, begun = jax.eval_shape(reset, jax.random.key(0))
        state, observation = begun
    except Exception as problem:
        raise ValueError(f"the environment's reset failed when it was traced: {reason(problem)}") from problem
    _expect("the observation that reset gives", observation, 1, jnp.floating)
    action = jax.ShapeDtypeStruct((action_size,), observation.dtype)
    try:
        following, step = jax.eval_shape(environment.step, parameters, state, action)
    except Exception as problem:
        raise ValueError(f"the environment's step failed when it was traced: {reason(problem)}") from problem
    if not isinstance(step, Step):
        raise ValueError(f"step must return the next state and a safemeta.sim.Step, not a {type(step).__name__}")
    _expect("the reward", step.reward, 0, jnp.floating)
    _expect("the row of costs", step.costs, 1, jnp.floating)
    _expect("terminated", step.terminated, 0, jnp.bool_)
    if step.truncated is not None:
        _expect("truncated", step.truncated, 0, jnp.bool_)
    before, after = _forms((state, observation)), _forms((following, step.observation))
    if before != after:
        part = next((name for name in (*before, *after) if before.get(name) != after.get(name)), "")
        raise ValueError(
            f"state and observation must keep their form, but {part} is {before.get(part, 'not there')} after reset"
            f" and {after.get(part, 'not there')} after step"
        )
    return observation.shape[0], step.costs.shape[0]


def _expect(what: str, array: Any, dimensions: int, kind: Any) -> None:
    """`ValueError` unless the array has so many dimensions and this kind of entries."""
    if not hasattr(array, "dtype") or array.ndim != dimensions or not jnp.issubdtype(array.dtype, kind):
        wanted = f"{'one row' if dimensions else 'one number'} of type {'bool' if kind is jnp.bool_ else 'float'}"
        raise ValueError(f"{what} must be {wanted}, not {_form(array)}")


def _forms(tree: PyTree) -> dict[str, str]:
    """What each leaf of (state, observation) is, by where it is."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = "observation" if path[0] == jax.tree_util.SequenceKey(1) else "state" + jax.tree_util.keystr(path[1:])
        found[name] = _form(leaf)
    return found


def _form(leaf: Any) -> str:
    return f"{leaf.dtype} {list(leaf.shape)}" if hasattr(leaf, "dtype") else f"a {type(leaf).__name__}"
