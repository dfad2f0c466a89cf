"""What every kind of simulation shares: a task's parameters, a step's result, a family, a simulator."""

from typing import Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PRNGKeyArray, PyTree

from safemeta.core import Signals, Tasks

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


class Simulator(Protocol):
    """Steps all rows together. Must be hashable: it is a static argument of compiled functions.

    `step` receives the actions as they were sampled and clips them itself. Rows that are not `alive` have ended:
    what is returned for them is thrown away, and a simulator may leave them as they are. `finish` is called once
    after the last step. `episodes` is the number of rows of each task.
    """

    def reset(
        self, parameters: Parameters, keys: Key[Array, " rows"], episodes: int
    ) -> tuple[PyTree[Array], Float[Array, "rows observation"]]:
        """First states and observations of all rows, each from a key of its own."""
        ...

    def step(
        self,
        parameters: Parameters,
        state: PyTree[Array],
        action: Float[Array, "rows action"],
        alive: Bool[Array, " rows"],
    ) -> tuple[PyTree[Array], Step]: ...

    def signals(self, parameters: Parameters, state: PyTree[Array]) -> Signals:
        """What `CMDP.signals` names, of the state that was reached."""
        ...

    def look(
        self, parameters: Parameters, state: PyTree[Array], actions: Float[Array, "rows choices action"]
    ) -> tuple[PyTree[Array], Signals]:
        """The signals that each action would lead to.

        The state comes back as it was, to be gone on with: so what happens outside of compiled code happens in order.
        """
        ...

    def finish(self, state: PyTree[Array]) -> None: ...


def where_alive(alive: Bool[Array, " rows"], new: PyTree[Array], old: PyTree[Array]) -> PyTree[Array]:
    """Per row: the leaves of `new` where it is alive, else those of `old`."""
    return jax.tree.map(lambda n, o: jnp.where(alive.reshape(-1, *[1] * (n.ndim - 1)), n, o), new, old)
