"""What an algorithm may know of a family of constrained tasks."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from safemeta.core.interaction import Agent
from safemeta.core.trajectory import Performance, Trajectory

LimitOn = Literal["discounted", "undiscounted", "per_step"]


@dataclass(frozen=True)
class CMDP:
    """Sizes, signals and limits of a constrained Markov decision process.

    `limit_on` is the unit of every limit: `"discounted"` bounds `E[sum_t discount^t c_t]`,
    `"undiscounted"` bounds `E[sum_t c_t]` over one episode, `"per_step"` bounds the mean cost of a step.

    `signals` names what a world tells an `Agent` beside the observation, and its shape. `clearance` `[obstacles, 2]`:
    distance (m) to each obstacle and its rate (m / s); a row is safe while no distance is below `safe_distance` (m).
    """

    observation_size: int
    action_size: int
    horizon: int
    cost_names: tuple[str, ...]
    limits: tuple[float, ...]
    discount: float = 0.99
    limit_on: LimitOn = "discounted"
    signals: tuple[tuple[str, tuple[int, ...]], ...] = ()
    safe_distance: float | None = None

    def cost_weights(self, dtype: Any = jnp.float32) -> Float[Array, " time"]:
        """Weights `w_t` such that the limited quantity of an episode is `sum_t w_t c_t`."""
        steps = jnp.arange(self.horizon, dtype=dtype)
        if self.limit_on == "discounted":
            return jnp.asarray(self.discount, dtype) ** steps
        if self.limit_on == "per_step":
            return jnp.full_like(steps, 1.0 / self.horizon)
        return jnp.ones_like(steps)


class Tasks(eqx.Module):
    """A batch of tasks: every leaf has a leading task axis.

    `parameters` is what the simulator needs. `limits` travels with the task, since it may differ from task to
    task. `descriptor` is the task's varying numbers, each scaled to about [-1, 1]: meta-*training* in simulation
    may read it, adaptation to a new task must not.
    """

    parameters: dict[str, Float[Array, " tasks *rest"]]
    limits: Float[Array, "tasks costs"]
    descriptor: Float[Array, "tasks descriptors"]

    @property
    def count(self) -> int:
        """How many tasks there are."""
        return self.limits.shape[0]

    def __getitem__(self, index: Any) -> "Tasks":
        return jax.tree.map(lambda leaf: leaf[index], self)


class Policy(Protocol):
    """A policy acts on one observation; rollouts `vmap` it. It is a pytree (an `equinox.Module`)."""

    def act(
        self, observation: Float[Array, " observation"], key: PRNGKeyArray
    ) -> tuple[Float[Array, " action"], Float[Array, ""]]:
        """A sampled action and its log-density."""
        ...


class World(Protocol):
    """A task family together with the simulator that steps it: all that an algorithm sees of its environment.

    With `per_task=True` the array leaves of `policy` carry a leading task axis, one policy per task.
    Rows are (task, episode): leaves of a trajectory are `[tasks, episodes, time, ...]`.

    A world whose `on_host` is true steps outside of compiled code (a physics engine, a user's environment): orders of
    magnitude slower, so that fewer episodes are the default where there is a choice. Absent, it is false.

    A world may also offer `corners() -> Tasks`: the extreme tasks of its training distribution, the hardest to be
    safe on first. They are rare in random batches, and a meta-policy that never sees them is unsafe there.
    """

    @property
    def cmdp(self) -> CMDP:
        """Sizes, signals and limits."""
        ...

    @property
    def functional(self) -> bool:
        """Whether every method may be called inside jit, the world itself being a static argument."""
        ...

    def sample(self, key: PRNGKeyArray, count: int, split: str = "train") -> Tasks:
        """So many independent tasks of a split: "train", "validation" or "test"."""
        ...

    def collect(
        self, policy: Any, tasks: Tasks, key: PRNGKeyArray, episodes: int, *, per_task: bool = False
    ) -> Trajectory:
        """So many whole episodes of each task, with all that was seen and done."""
        ...

    def measure(
        self, policy: Any, tasks: Tasks, key: PRNGKeyArray, episodes: int, *, per_task: bool = False
    ) -> Performance:
        """Totals of the episodes that `collect` would give with the same key."""
        ...


class InteractiveWorld(World, Protocol):
    """A world that can also be met step by step, as off-policy learners do."""

    def interact(self, agent: Agent, state: Any, tasks: Tasks, key: PRNGKeyArray, episodes: int) -> tuple[Any, Any]:
        """One episode in each row, step by step with an agent: its last state, and its records `[time, ...]`."""
        ...


def violated(costs: Float[Array, "*batch costs"], limits: Float[Array, "*batch costs"]) -> Bool[Array, "*batch"]:
    """Whether any cost is above its limit."""
    return jnp.any(costs > limits, axis=-1)
