"""What every kind of simulation shares: the parameters of a task, the result of a step, the family of tasks."""

from typing import Protocol

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from safemeta.core import Tasks

Parameters = dict[str, Array]  # of one task: the leaves of `Tasks.parameters` without their task axis


class Step(eqx.Module):
    """What one control step of one row returns.

    `truncated` marks an episode that was cut off, by something that is no part of the task, before the horizon of the
    world: it is over, but its last state is one like any other and bootstraps. None where that never happens.
    """

    observation: Float[Array, "*rows observation"]
    reward: Float[Array, "*rows"]
    costs: Float[Array, "*rows costs"]
    terminated: Bool[Array, "*rows"]
    truncated: Bool[Array, "*rows"] | None = None

    def idle(self, observation: Float[Array, "*rows observation"]) -> "Step":
        """What a row shows that does nothing any more: its last observation, and zeros."""
        reward, costs, nothing = (jnp.zeros_like(leaf) for leaf in (self.reward, self.costs, self.terminated))
        return Step(observation, reward, costs, nothing, None if self.truncated is None else nothing)

    @property
    def ended(self) -> Bool[Array, "*rows"]:
        """Whether the episode is over, for whichever reason."""
        return self.terminated if self.truncated is None else self.terminated | self.truncated

    def cut_off(self, last: Bool[Array, ""]) -> Bool[Array, "*rows"]:
        """Whether the episode was cut off here, or by the horizon, where this is its `last` step."""
        return ~self.terminated & (last if self.truncated is None else last | self.truncated)


class Family(Protocol):
    """A distribution over the parameters of one environment. Must be hashable.

    `sample` raises `ValueError` on an unknown split. `corners` is described at `safemeta.core.World`.
    """

    def sample(self, key: PRNGKeyArray, count: int, split: str = "train") -> Tasks: ...

    def corners(self) -> Tasks: ...
