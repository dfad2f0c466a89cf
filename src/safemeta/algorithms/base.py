"""What every algorithm is: a pair of pure functions over one state pytree."""

from typing import Any, Protocol, runtime_checkable

import equinox as eqx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from safemeta.core import CMDP, Tasks, World

Metrics = dict[str, Array]  # name -> scalar


class Adaptation(eqx.Module):
    """A meta-learner's policies 0..K on new tasks, with the evidence that it had while it adapted.

    `policies` is a policy whose array leaves are `[policies, tasks, ...]`, steps + 1 of them; the first is the
    meta-policy. `estimated_return` and
    `estimated_costs` come from the data that adapted the policy: judge on fresh episodes instead.
    """

    policies: Any
    estimated_return: Float[Array, "policies tasks"]
    estimated_costs: Float[Array, "policies tasks costs"]
    multipliers: Float[Array, "steps tasks costs"]
    kl: Float[Array, "steps tasks"]
    outcome: Int[Array, "steps tasks"]  # index into `outcome_names`
    outcome_names: tuple[str, ...] = eqx.field(static=True, default=())
    cost_bounds: Float[Array, "steps tasks costs"] | None = None  # of policies 1..K, where a confidence was stated


@runtime_checkable
class Algorithm(Protocol):
    """`config` is a frozen dataclass; a state is one pytree of arrays, saved and restored whole.

    `iterate` is pure: the same state, world and key give the same result. `steps_per_iteration` counts
    environment steps.
    """

    config: Any

    def init(self, key: PRNGKeyArray, cmdp: CMDP) -> Any:
        """The first state: a pytree of arrays."""
        ...

    def iterate(self, state: Any, world: World, key: PRNGKeyArray) -> tuple[Any, Metrics]: ...

    def policy(self, state: Any) -> Any:
        """The policy to act with (for a meta-learner: the meta-policy)."""
        ...

    def steps_per_iteration(self, cmdp: CMDP) -> int: ...


@runtime_checkable
class MetaAlgorithm(Algorithm, Protocol):
    """An algorithm that can adapt to unseen tasks.

    One that can state a confidence takes `confidence: float | None = None` after `steps` (`confidence.py`). One that
    knows of a state that it should not be trusted has `doubt(state)`: a sentence, or None; it is shown before adapting.
    """

    def adapt(self, state: Any, world: World, tasks: Tasks, key: PRNGKeyArray, steps: int) -> Adaptation: ...


def named(cmdp: CMDP, values: Metrics) -> Metrics:
    """Scalars stay; a vector over costs becomes `name` for the first cost and `name/COST` for each other one."""
    found = {}
    for name, value in values.items():
        if value.ndim == 0:
            found[name] = value
            continue
        found[name] = value[0]
        found |= {f"{name}/{cost}": value[index] for index, cost in enumerate(cmdp.cost_names[1:], 1)}
    return found
