"""Families of finite CMDPs: random ones, and gridworlds with hazards."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from safemeta.core import CMDP, LimitOn, Tasks, check_split
from safemeta.sim import FunctionalWorld
from safemeta.tasks.tabular import TabularCMDP, TabularEnvironment

DISCOUNT = 0.95
HORIZON = 200  # after which 0.95^200 = 3.5e-5 of the discounted sums is left


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def random_cmdp(key: PRNGKeyArray, states: int, actions: int, branching: int, costs: int) -> TabularCMDP:
    """A random CMDP in the manner of Garnet: from each (s, a), `branching` different states can follow.

    Their probabilities are uniform on the simplex; rewards and costs are U(0, 1); the first state is uniform.
    """
    order, mass, reward, cost = jax.random.split(key, 4)
    place = jax.random.uniform(order, (states, actions, states))
    least = jax.lax.top_k(place, branching)[0][..., -1:]
    weight = jnp.where(place >= least, jax.random.exponential(mass, (states, actions, states)), 0.0)
    return TabularCMDP(
        weight / weight.sum(-1, keepdims=True),
        jax.random.uniform(reward, (states, actions)),
        jax.random.uniform(cost, (states, actions, costs)),
        jnp.full(states, 1 / states),
    )


def gridworld_cmdp(
    hazards: Float[Array, "height width"], start: tuple[int, int], goal: tuple[int, int], slip: float
) -> TabularCMDP:
    """A grid of cells with actions up, right, down, left; cells are numbered row by row, from the top.

    A move goes astray to either side with probability `slip / 2` each; a move off the grid stays. The goal is never
    left and pays reward 1 per step. The cost is 1 per step that begins in a cell with a hazard (where `hazards` is 1).
    """
    height, width = hazards.shape
    cells = height * width
    row, column = jnp.divmod(jnp.arange(cells), width)
    targets = [
        jnp.clip(row + down, 0, height - 1) * width + jnp.clip(column + right, 0, width - 1)
        for down, right in ((-1, 0), (0, 1), (1, 0), (0, -1))
    ]
    moved = jax.nn.one_hot(jnp.stack(targets, axis=1), cells, dtype=hazards.dtype)
    transition = (1 - slip) * moved + slip / 2 * (jnp.roll(moved, 1, axis=1) + jnp.roll(moved, -1, axis=1))
    at_goal = jnp.arange(cells) == goal[0] * width + goal[1]
    stays = jnp.eye(cells, dtype=hazards.dtype)[:, None]
    return TabularCMDP(
        jnp.where(at_goal[:, None, None], stays, transition),
        jnp.broadcast_to(at_goal[:, None], (cells, 4)).astype(hazards.dtype),
        jnp.broadcast_to(hazards.reshape(cells, 1, 1), (cells, 4, 1)),
        jax.nn.one_hot(start[0] * width + start[1], cells, dtype=hazards.dtype),
    )


@dataclass(frozen=True)
class RandomFamily:
    """Random CMDPs that share their transitions (drawn from `seed`) and differ in reward and costs.

    The descriptor holds the tables of reward and costs, scaled to [-1, 1]. All splits have one distribution.
    """

    states: int = 10
    actions: int = 3
    branching: int = 3
    limits: tuple[float, ...] = (8.0, 8.0)
    seed: int = 0

    def __post_init__(self):
        if not (self.states >= 1 and self.actions >= 1 and 1 <= self.branching <= self.states):
            raise ValueError("a random CMDP needs states, actions, and a branching between 1 and its states")

    def sample(self, key: PRNGKeyArray, count: int, split: str = "train") -> Tasks:
        check_split(split)
        return self._drawn(key, count)

    def corners(self) -> Tasks:
        """Four fixed draws: no task of this family is extreme."""
        return self._drawn(jax.random.key(self.seed), 4)

    @partial(jax.jit, static_argnums=(0, 2))
    def _drawn(self, key: PRNGKeyArray, count: int) -> Tasks:
        shape = (self.states, self.actions, self.branching, len(self.limits))
        shared = random_cmdp(jax.random.key(self.seed), *shape).transition
        drawn = jax.vmap(lambda one: random_cmdp(one, *shape))(jax.random.split(key, count))
        transition = jnp.broadcast_to(shared, drawn.transition.shape)
        tables = drawn.signals().reshape(count, -1)
        return _tasks(TabularCMDP(transition, drawn.reward, drawn.costs, drawn.initial), self.limits, 2 * tables - 1)


@dataclass(frozen=True)
class GridworldFamily:
    """Gridworlds from the upper left to the upper right corner, with hazards in between by chance.

    A cell has a hazard with probability `density`, except in the first and the last column and in the bottom row: the
    way around is free. The descriptor is 1 at cells with a hazard and -1 elsewhere. All splits have one distribution.
    """

    height: int = 4
    width: int = 5
    density: float = 0.4
    slip: float = 0.1
    limits: tuple[float, ...] = (0.5,)

    def __post_init__(self):
        if self.height < 2 or self.width < 2:
            raise ValueError("a gridworld needs at least 2 x 2 cells")
        if not (0 <= self.density <= 1 and 0 <= self.slip <= 1):
            raise ValueError("density and slip are probabilities")

    def sample(self, key: PRNGKeyArray, count: int, split: str = "train") -> Tasks:
        check_split(split)
        return self._of(jax.random.bernoulli(key, self.density, (count, self.height, self.width)))

    def corners(self) -> Tasks:
        """The fullest grid."""
        return self._of(jnp.ones((1, self.height, self.width), bool))

    @partial(jax.jit, static_argnums=0)
    def _of(self, hazards: Bool[Array, "tasks height width"]) -> Tasks:
        hazards = jnp.pad(hazards[:, :-1, 1:-1], ((0, 0), (0, 1), (1, 1))).astype(float)
        start, goal = (0, 0), (0, self.width - 1)
        cmdps = jax.vmap(lambda one: gridworld_cmdp(one, start, goal, self.slip))(hazards)
        return _tasks(cmdps, self.limits, 2 * hazards.reshape(hazards.shape[0], -1) - 1)


def _tasks(cmdps: TabularCMDP, limits: tuple[float, ...], descriptor: Float[Array, "tasks descriptors"]) -> Tasks:
    return Tasks(dict(vars(cmdps)), jnp.tile(jnp.asarray(limits), (descriptor.shape[0], 1)), descriptor)


def cmdp_of(tasks: Tasks) -> TabularCMDP:
    """The exact model of one task (`tasks[i]`), or of all with a leading task axis."""
    return TabularCMDP(**tasks.parameters)


def random_world(
    limit: float | None = None, limit_on: LimitOn = "discounted", horizon: int | None = None
) -> FunctionalWorld:
    """Random CMDPs of 10 states, 3 actions and 2 costs; a `limit` holds for both costs."""
    family = RandomFamily() if limit is None else RandomFamily(limits=(limit, limit))
    names = tuple(f"cost_{index}" for index in range(len(family.limits)))
    return _world(family, family.states, family.actions, names, limit_on, horizon)


def gridworld_world(
    limit: float | None = None, limit_on: LimitOn = "discounted", horizon: int | None = None
) -> FunctionalWorld:
    """Gridworlds of 4 x 5 cells."""
    family = GridworldFamily() if limit is None else GridworldFamily(limits=(limit,))
    return _world(family, family.height * family.width, 4, ("hazard",), limit_on, horizon)


def _world(
    family: RandomFamily | GridworldFamily,
    states: int,
    actions: int,
    names: tuple[str, ...],
    limit_on: LimitOn,
    horizon: int | None,
) -> FunctionalWorld:
    cmdp = CMDP(states, actions, horizon or HORIZON, names, family.limits, DISCOUNT, limit_on)
    return FunctionalWorld(cmdp, TabularEnvironment(), family)
