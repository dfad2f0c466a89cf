"""Where a Gymnasium environment says what a step has cost."""

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# cost(observation, action, next_observation, info): one number, or one for each cost
CostFunction = Callable[[Any, Any, Any, dict[str, Any]], Any]

WHERE = (
    'info["cost"], info["costs"] (a dictionary of named costs), a step of six values as in Safety-Gymnasium,'
    " or a function given as `cost`"
)


class CostError(ValueError):
    """A step without costs that can be used; the message is one sentence, without its full stop."""


@dataclass(frozen=True)
class Outcome:
    """A step of a Gymnasium environment, its cost apart."""

    observation: Any
    reward: Any
    cost: Any  # None unless the step had six values
    terminated: bool
    truncated: bool
    info: dict[str, Any]


def unpack(step: Any) -> Outcome:
    """The five values of Gymnasium's step, or the six of Safety-Gymnasium's: cost is the third."""
    if not isinstance(step, tuple) or len(step) not in (5, 6):
        what = f"{len(step)} values" if isinstance(step, tuple) else f"a {type(step).__name__}"
        raise CostError(f"step() returned {what}, not (observation, reward, terminated, truncated, info)")
    observation, reward, *cost, terminated, truncated, info = step
    return Outcome(observation, reward, cost[0] if cost else None, bool(terminated), bool(truncated), dict(info))


def number(value: Any, what: str) -> float:
    """`value` as a float, if it is one finite number; else a `CostError` about `what`."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, numbers.Real):
        shape = f" of shape {value.shape}" if isinstance(value, np.ndarray) else f" {value!r}"[:40]
        raise CostError(f"{what} is not a number but a {type(value).__name__}{shape}")
    if not math.isfinite(value):
        raise CostError(f"{what} is {float(value)}")
    return float(value)


def named_costs(
    function: CostFunction | None, before: Any, action: Any, outcome: Outcome
) -> dict[str, Any] | list[Any] | Any:
    """The costs of a step as they come: by name, in a row, or a single one; `CostError` where there are none."""
    if function is not None:
        return function(before, action, outcome.observation, outcome.info)
    if "costs" in outcome.info:
        return outcome.info["costs"]
    if outcome.cost is not None:
        return outcome.cost
    if "cost" in outcome.info:
        return outcome.info["cost"]
    raise CostError(f"the step has no cost: it is looked for in {WHERE}")


def default_names(costs: Any) -> tuple[str, ...]:
    """The names of costs that come without a word about them."""
    if isinstance(costs, Mapping):
        return tuple(map(str, costs))
    count = _length(costs)
    return ("cost",) if count is None or count == 1 else tuple(f"cost_{index + 1}" for index in range(count))


@dataclass(frozen=True)
class CostReader:
    """Finds the costs called `names` in each step, through `function` where there is one."""

    names: tuple[str, ...]
    function: CostFunction | None = None

    def read(self, before: Any, action: Any, outcome: Outcome) -> list[float]:
        """One finite number for each name, or a `CostError`."""
        costs = named_costs(self.function, before, action, outcome)
        if isinstance(costs, Mapping):
            missing = [name for name in self.names if name not in costs]
            if missing and len(self.names) == 1 and self.function is None and "cost" in outcome.info:
                return [number(outcome.info["cost"], 'info["cost"]')]
            if missing:
                there = ", ".join(map(str, costs)) or "none"
                raise CostError(f"the cost {missing[0]!r} is missing; there are: {there}")
            return [number(costs[name], f"the cost {name!r}") for name in self.names]
        count = _length(costs)
        if count is None:
            costs, count = [costs], 1
        if count != len(self.names):
            wanted = f"{len(self.names)} ({', '.join(self.names)})"
            raise CostError(f"the step has {count} {'cost' if count == 1 else 'costs'} where {wanted} were expected")
        return [number(value, f"the cost {name!r}") for name, value in zip(self.names, costs, strict=True)]


def _length(costs: Any) -> int | None:
    """How many costs there are in a row of them; None for a single one."""
    if isinstance(costs, (list, tuple)) or (isinstance(costs, np.ndarray) and costs.ndim == 1):
        return len(costs)
    return None
