"""What every kind of simulation shares: the parameters of a task, the result of a step, the family of tasks."""

from typing import Protocol

import equinox as eqx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from safemeta.core import Tasks

Parameters = dict[str, Array]  # of one task: the leaves of `Tasks.parameters` without their task axis


class Step(eqx.Module):
    """What one control step of one row returns."""

    observation: Float[Array, "*rows observation"]
    reward: Float[Array, "*rows"]
    costs: Float[Array, "*rows costs"]
    terminated: Bool[Array, "*rows"]


class Family(Protocol):
    """A distribution over the parameters of one environment. Must be hashable.

    `sample` raises `ValueError` on an unknown split. `corners` is described at `safemeta.core.World`.
    """

    def sample(self, key: PRNGKeyArray, count: int, split: str = "train") -> Tasks: ...

    def corners(self) -> Tasks: ...
