"""A unicycle that drives to a goal around a round hazard: the collision avoidance of FAC-SIS (Ma et al., L4DC 2022).

Paper and released code differ in several numbers, and both have slips. Defaults are the paper's with the slips mended;
`CollisionAvoidance.released()` is the code as it was released.
"""

import math
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.core import CMDP, LimitOn, Signals, Tasks, check_split
from safemeta.sim import FunctionalWorld, Parameters, Step

TIMESTEP = 0.1  # s
ACCELERATION = 4.0  # m / s^2 at action 1
TURN_RATE = math.pi  # rad / s at action 1
HAZARD_RADIUS = 0.5  # m
HAZARD_X = 0.0  # m
GOAL = (0.0, 5.0)  # m
OBSERVATION_SIZE = 5
ACTION_SIZE = 2
HORIZON = 120  # the paper's; the released code runs 200 steps
COST_NAMES = ("collision",)


class UnicycleState(eqx.Module):
    """Position (m), speed (m / s), heading (rad, in [-pi, pi]), and the hazard's y (m), which stays as drawn."""

    x: Float[Array, "*batch"]
    y: Float[Array, "*batch"]
    speed: Float[Array, "*batch"]
    heading: Float[Array, "*batch"]
    hazard_y: Float[Array, "*batch"]


def advance(state: UnicycleState, action: Float[Array, "*batch 2"]) -> UnicycleState:
    """One step of the Runge-Kutta method of order 4 on `x' = v cos h`, `y' = v sin h`, `v' = a`, `h' = w`.

    Speed and heading are linear within a step, so that the method's four stages are Simpson's rule for x and y.
    """
    change = jnp.clip(action, -1, 1)
    speed_up, turn = ACCELERATION * TIMESTEP * change[..., 0], TURN_RATE * TIMESTEP * change[..., 1]
    x, y = state.x, state.y
    for part, weight in ((0.0, 1 / 6), (0.5, 4 / 6), (1.0, 1 / 6)):
        way = weight * TIMESTEP * (state.speed + part * speed_up)
        heading = state.heading + part * turn
        x, y = x + way * jnp.cos(heading), y + way * jnp.sin(heading)
    return UnicycleState(x, y, state.speed + speed_up, wrapped(state.heading + turn), state.hazard_y)


def wrapped(angle: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The same angle within [-pi, pi]."""
    return angle - 2 * jnp.pi * jnp.round(angle / (2 * jnp.pi))


@dataclass(frozen=True)
class CollisionAvoidance:
    """Drive to the goal (0, 5) m and keep out of the hazard of radius 0.5 m at (0, hazard_y).

    The action (acceleration, turn rate) is clipped to [-1, 1] and scaled by 4 m / s^2 and pi rad / s. Observation: x,
    y, speed, heading, hazard_y. A task is a start distribution: parameters `x`, `y`, `heading`, `speed` and `hazard_y`
    are ranges `[2]` from which each episode draws. At the new state, with the goal at distance D in direction b and
    `v_ref = min(D / seconds_to_goal, speed_cap)`, the reward is
    `-(0.1 v_ref (|cos b| + |sin b|) + |v - v_ref| + 0.1 |heading - b|)`, the angle taken around the circle. Cost
    `collision`: 1 where the distance to the hazard's centre is at most 0.5 m; the episode goes on.

    Switches, off unless said: `unwrapped_heading` takes b in [0, 2 pi) and the angle as a plain difference, so that
    the same pose is punished by up to `0.2 pi` more (released code). `flipped_rate` gives the rate of approach in
    `clearance` the wrong sign on the left of the hazard and above and below it, `x <= 0` (released code, which took an
    arctangent of one argument). `seconds_to_goal` and `speed_cap` are 10 s and 1 m / s in the released code.
    """

    seconds_to_goal: float = 5.0
    speed_cap: float = math.inf
    unwrapped_heading: bool = False
    flipped_rate: bool = False

    @staticmethod
    def released() -> "CollisionAvoidance":
        """The released code, with its slips."""
        return CollisionAvoidance(10.0, 1.0, unwrapped_heading=True, flipped_rate=True)

    def reset(self, parameters: Parameters, key: PRNGKeyArray) -> tuple[UnicycleState, Float[Array, " observation"]]:
        names = ("x", "y", "speed", "heading", "hazard_y")
        uniform = jax.random.uniform(key, (len(names),), parameters["y"].dtype)
        drawn = (low + (high - low) * u for u, (low, high) in zip(uniform, (parameters[n] for n in names), strict=True))
        state = UnicycleState(*drawn)
        return state, observe(state)

    def step(
        self, parameters: Parameters, state: UnicycleState, action: Float[Array, " action"]
    ) -> tuple[UnicycleState, Step]:
        state = advance(state, action)
        distance = jnp.sqrt((state.x - HAZARD_X) ** 2 + (state.y - state.hazard_y) ** 2)
        costs = (distance <= HAZARD_RADIUS)[None].astype(distance.dtype)
        return state, Step(observe(state), self.reward(state), costs, jnp.asarray(False))

    def reward(self, state: UnicycleState) -> Float[Array, "*batch"]:
        """Of having reached a state."""
        ahead, aside = GOAL[0] - state.x, GOAL[1] - state.y
        target = jnp.minimum(jnp.sqrt(ahead**2 + aside**2) / self.seconds_to_goal, self.speed_cap)
        bearing = jnp.arctan2(aside, ahead)
        if self.unwrapped_heading:
            error = state.heading - jnp.where(bearing < 0, bearing + 2 * jnp.pi, bearing)
        else:
            error = wrapped(state.heading - bearing)
        place = TIMESTEP * target * (jnp.abs(jnp.cos(bearing)) + jnp.abs(jnp.sin(bearing)))
        return -(place + jnp.abs(state.speed - target) + 0.1 * jnp.abs(error))

    def signals(self, parameters: Parameters, state: UnicycleState) -> Signals:
        """The `clearance`."""
        return {"clearance": self.clearance(parameters, state)}

    def clearance(self, parameters: Parameters, state: UnicycleState) -> Float[Array, "*batch obstacles 2"]:
        """Distance (m) to the centre of each obstacle (here one) and its rate (m / s), negative when approaching.

        `d = |p - o|` and `d_dot = (p - o) . v / d`; at the centre itself, where d has no derivative, d_dot is 0.
        """
        aside, ahead = state.x - HAZARD_X, state.y - state.hazard_y
        distance = jnp.sqrt(aside**2 + ahead**2)
        along = (aside * jnp.cos(state.heading) + ahead * jnp.sin(state.heading)) / jnp.where(distance > 0, distance, 1)
        rate = state.speed * along
        if self.flipped_rate:
            rate = jnp.where(aside > 0, rate, -rate)
        return jnp.stack([distance, rate], axis=-1)[..., None, :]


def observe(state: UnicycleState) -> Float[Array, "*batch 5"]:
    """x, y, speed, heading and the hazard's y."""
    return jnp.stack([state.x, state.y, state.speed, state.heading, state.hazard_y], axis=-1)


@dataclass(frozen=True)
class Start:
    """Uniform ranges that an episode's start is drawn from (m, m / s, rad); heading pi / 2 points at the goal."""

    y: tuple[float, float]
    hazard_y: tuple[float, float]
    x: tuple[float, float] = (0.0, 0.0)
    heading: tuple[float, float] = (math.pi / 4, 3 * math.pi / 4)
    speed: tuple[float, float] = (1.0, 2.0)  # the released code's; the paper gives none


STARTS = {
    # the paper's three; in the second it prints a hazard range of three numbers, read as 0.5 to 1.5
    "1": Start(y=(-1.5, -1.0), hazard_y=(0.5, 1.0)),
    "2": Start(y=(-1.5, -0.5), hazard_y=(0.5, 1.5)),
    "3": Start(y=(-1.5, -0.5), hazard_y=(0.5, 1.0), x=(-0.5, 0.5)),
    # those of the two released files
    "released": Start(y=(-1.5, -1.5), hazard_y=(-0.5, 2.5)),
    "released_new": Start(y=(-1.5, -1.5), hazard_y=(-0.5, 0.5)),
}


@dataclass(frozen=True)
class CollisionAvoidanceFamily:
    """One task, its start distribution; `test` may have another. The descriptor is one zero: nothing varies."""

    train: Start
    test: Start
    limit: float = 0.0

    def sample(self, key: PRNGKeyArray, count: int, split: str = "train") -> Tasks:
        check_split(split)
        return self._tasks(self.test if split == "test" else self.train, count)

    def corners(self) -> Tasks:
        """The one training task."""
        return self._tasks(self.train, 1)

    def _tasks(self, start: Start, count: int) -> Tasks:
        parameters = {name: jnp.tile(jnp.asarray(span), (count, 1)) for name, span in vars(start).items()}
        return Tasks(parameters, jnp.full((count, 1), self.limit), jnp.zeros((count, 1)))


def world(
    limit: float | None = None, limit_on: LimitOn = "undiscounted", horizon: int | None = None, *, start: str = "1"
) -> FunctionalWorld:
    """The task with one of the start distributions of `STARTS`, for training and testing alike."""
    bound = 0.0 if limit is None else limit
    cmdp = CMDP(
        OBSERVATION_SIZE,
        ACTION_SIZE,
        horizon or HORIZON,
        COST_NAMES,
        (bound,),
        limit_on=limit_on,
        signals=(("clearance", (1, 2)),),
        safe_distance=HAZARD_RADIUS,
    )
    family = CollisionAvoidanceFamily(STARTS[start], STARTS[start], bound)
    return FunctionalWorld(cmdp, CollisionAvoidance(), family)
