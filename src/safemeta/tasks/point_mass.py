"""Point-mass navigation past a round obstacle, inside a square arena (FISAR: Sun, Kim, How).

The paper names the reward and the two indicator costs, and no number: dynamics, geometry, horizon and limits are
safemeta's, chosen so that the straight way to the goal crosses the obstacle.
"""

import math
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.core import CMDP, LimitOn, Tasks
from safemeta.sim import FunctionalWorld, Parameters, Step
from safemeta.tasks.uniform import Ranges, RangesFamily

TIMESTEP = 0.1  # s
SPEED_CAP = 1.0  # m / s
START = (-1.5, -1.5)  # m, the centre of a square of half width START_SPREAD
START_SPREAD = 0.1
OBSERVATION_SIZE = 4
ACTION_SIZE = 2
HORIZON = 100
COST_NAMES = ("outside", "obstacle")
LIMITS = (1.0, 2.0)  # discounted steps; the straight way costs about 8 steps in the obstacle


class PointMassState(eqx.Module):
    """Position (m) and velocity (m / s) in the plane."""

    position: Float[Array, "*batch 2"]
    velocity: Float[Array, "*batch 2"]


@dataclass(frozen=True)
class PointMass:
    """A double integrator: `v' = cap(v + h a)`, `p' = p + h v'`, with `|v'|` capped at 1 m / s and h = 0.1 s.

    The action is the acceleration, clipped to [-1, 1] m / s^2 along each axis. Observation: position and velocity.
    Parameters: `half_width` of the arena, `radius` of the obstacle, `obstacle_x`, `obstacle_y`, `goal_x`, `goal_y`
    (m), none of which is seen. All of the following hold at the new position. Reward: minus the distance to the goal.
    Cost `outside`: 1 where `|x|` or `|y|` exceeds the half width. Cost `obstacle`: 1 where the distance to the
    obstacle's centre is at most its radius. Neither stops the mass, and nothing terminates.
    """

    def reset(self, parameters: Parameters, key: PRNGKeyArray) -> tuple[PointMassState, Float[Array, " observation"]]:
        dtype = parameters["radius"].dtype
        offset = START_SPREAD * (2 * jax.random.uniform(key, (2,), dtype) - 1)
        state = PointMassState(jnp.asarray(START, dtype) + offset, jnp.zeros(2, dtype))
        return state, observe(state)

    def step(
        self, parameters: Parameters, state: PointMassState, action: Float[Array, " action"]
    ) -> tuple[PointMassState, Step]:
        state = advance(state, action)
        x, y = state.position
        goal = jnp.sqrt((x - parameters["goal_x"]) ** 2 + (y - parameters["goal_y"]) ** 2)
        apart = (x - parameters["obstacle_x"]) ** 2 + (y - parameters["obstacle_y"]) ** 2
        outside = jnp.maximum(jnp.abs(x), jnp.abs(y)) > parameters["half_width"]
        costs = jnp.stack([outside, apart <= parameters["radius"] ** 2]).astype(goal.dtype)
        return state, Step(observe(state), -goal, costs, jnp.asarray(False))


def advance(state: PointMassState, action: Float[Array, "*batch 2"]) -> PointMassState:
    """One step of semi-implicit Euler with the speed cap."""
    velocity = state.velocity + TIMESTEP * jnp.clip(action, -1, 1)
    square = jnp.sum(velocity**2, axis=-1, keepdims=True)
    velocity = velocity * (SPEED_CAP / jnp.sqrt(jnp.maximum(square, SPEED_CAP**2)))  # has a derivative at rest, too
    return PointMassState(state.position + TIMESTEP * velocity, velocity)


def observe(state: PointMassState) -> Float[Array, "*batch 4"]:
    """Position and velocity."""
    return jnp.concatenate([state.position, state.velocity], axis=-1)


@dataclass(frozen=True)
class PointMassRange(Ranges):
    """Uniform distributions of a task's parameters (m); as they stand, the one task of the paper's experiment."""

    half_width: tuple[float, float] = (2.0, 2.0)
    radius: tuple[float, float] = (0.5, 0.5)
    obstacle_x: tuple[float, float] = (0.0, 0.0)
    obstacle_y: tuple[float, float] = (0.0, 0.0)
    goal_x: tuple[float, float] = (1.5, 1.5)
    goal_y: tuple[float, float] = (1.5, 1.5)

    def __post_init__(self):
        for name, (low, high) in self.spans().items():
            if not -math.inf < low <= high < math.inf:
                raise ValueError(f"{name} must be a range of numbers, not {low} to {high}")
        if self.radius[0] < 0 or self.half_width[0] <= 0:
            raise ValueError("the radius must not be negative, and the half width must be positive")


@dataclass(frozen=True)
class PointMassFamily(RangesFamily):
    """Worlds of other sizes, obstacles and goals; limits on both costs."""

    train: PointMassRange
    test: PointMassRange
    limits: tuple[float, float] = LIMITS

    def corners(self) -> Tasks:
        """The largest obstacle in the smallest arena, and the smallest in the largest: one task if they are one."""
        train = self.train
        hard, easy = (train.radius[1], train.half_width[0]), (train.radius[0], train.half_width[1])
        pairs = [hard] if hard == easy else [hard, easy]
        middle = {name: jnp.full(len(pairs), (low + high) / 2) for name, (low, high) in train.spans().items()}
        radius, half_width = jnp.asarray(pairs).T
        return self.tasks(middle | {"radius": radius, "half_width": half_width})


def world(limit: float | None = None, limit_on: LimitOn = "discounted", horizon: int | None = None) -> FunctionalWorld:
    """The paper's one task; a `limit` holds for both costs."""
    limits = LIMITS if limit is None else (limit, limit)
    span = PointMassRange()
    cmdp = CMDP(OBSERVATION_SIZE, ACTION_SIZE, horizon or HORIZON, COST_NAMES, limits, limit_on=limit_on)
    return FunctionalWorld(cmdp, PointMass(), PointMassFamily(span, span, limits))
