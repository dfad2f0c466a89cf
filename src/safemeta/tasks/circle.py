"""Circle tasks: run counter-clockwise along a circle that reaches beyond two walls which must not be crossed."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.core import CMDP, LimitOn, Tasks, check_split
from safemeta.sim import FunctionalWorld, Parameters, Step
from safemeta.tasks import point
from safemeta.tasks.lidar import pseudo_lidar

LIDAR_REACH = 6.0  # m; Safety-Gymnasium widens its default of 3 in circle tasks
OBSERVATION_SIZE = 28  # 12 sensors, 16 lidar bins
ACTION_SIZE = 2
HORIZON = 500
COST_NAMES = ("out_of_bounds",)


@dataclass(frozen=True)
class PointCircle:
    """The Point robot on a circle of radius `radius` (m) with walls at `x = -wall` and `x = +wall` (m).

    Observation: 12 sensor readings and 16 lidar bins that show the centre. Neither the radius nor the walls are seen.
    Reward: `0.1 ((x v - y u) / rho) / (1 + |rho - radius|)` with position (x, y), velocity (u, v), `rho = |(x, y)|`.
    Cost `out_of_bounds`: 1 where `|x| > wall`. Never terminates. The robot starts at rest, uniform in a square of
    half width `start` (m) around the centre and in yaw. (Safety-Gymnasium 1.0 `Circle1`; Meta-CPO `Stcircle`.)
    """

    start: float = 0.2

    def reset(self, parameters: Parameters, key: PRNGKeyArray) -> tuple[point.PointState, Float[Array, " observation"]]:
        dtype = parameters["radius"].dtype
        uniform = jax.random.uniform(key, (3,), dtype)
        place = self.start * (2 * uniform[:2] - 1)
        state = point.at_rest(place[0], place[1], 2 * jnp.pi * uniform[2])
        return state, observe(state, jnp.zeros(ACTION_SIZE, dtype))

    def step(
        self, parameters: Parameters, state: point.PointState, action: Float[Array, " action"]
    ) -> tuple[point.PointState, Step]:
        state = point.advance(state, action)
        radius, wall = parameters["radius"], parameters["wall"]
        costs = jnp.stack([jnp.abs(state.x) > wall]).astype(radius.dtype)
        cos, sin = jnp.cos(state.yaw), jnp.sin(state.yaw)
        u, v = cos * state.forward - sin * state.left, sin * state.forward + cos * state.left
        reward = circle_reward(state.x, state.y, u, v, radius)
        return state, Step(observe(state, action), reward, costs, jnp.asarray(False))


def observe(state: point.PointState, action: Float[Array, " action"]) -> Float[Array, " observation"]:
    """Sensor readings under the action that was just applied, and the lidar of the circle's centre."""
    sensors = point.sense(state, action)
    forward = -(sensors.cos * state.x + sensors.sin * state.y)
    left = sensors.sin * state.x - sensors.cos * state.y
    return jnp.concatenate([sensors.readings, pseudo_lidar(forward[None], left[None], LIDAR_REACH)])


def circle_reward(
    x: Float[Array, ""], y: Float[Array, ""], u: Float[Array, ""], v: Float[Array, ""], radius: Float[Array, ""]
) -> Float[Array, ""]:
    """Speed around the centre at (x, y) with velocity (u, v), less the farther from the circle; zero at the centre."""
    rho = jnp.sqrt(x**2 + y**2)
    around = (x * v - y * u) / jnp.where(rho > 0, rho, 1.0)
    return 0.1 * around / (1 + jnp.abs(rho - radius))


@dataclass(frozen=True)
class CircleRange:
    """Uniform distributions of the circle's radius (m) and of the walls' distance as a share of it."""

    radius: tuple[float, float]
    scale: tuple[float, float]

    def walls(self) -> tuple[float, float]:
        """The nearest and the farthest wall (m)."""
        return self.scale[0] * self.radius[0], self.scale[1] * self.radius[1]


@dataclass(frozen=True)
class CircleFamily:
    """Tasks `radius ~ U`, `wall = scale * radius`, `scale ~ U`, with one limit for training and one for testing.

    `rounded` follows Meta-CPO's released code: radius and scale to 2 decimals, the wall to 3. The descriptor is
    (radius, wall), each scaled to [-1, 1] over the *training* range: reward and cost depend on radius and wall, and
    the wall alone orders the tasks by difficulty, which the scale does not. Test tasks may lie outside [-1, 1].
    "validation" has the distribution of "train".
    """

    train: CircleRange
    test: CircleRange
    limit: float
    test_limit: float
    rounded: bool = False

    def sample(self, key: PRNGKeyArray, count: int, split: str = "train") -> Tasks:
        check_split(split)
        span, limit = (self.test, self.test_limit) if split == "test" else (self.train, self.limit)
        uniform = jax.random.uniform(key, (count, 2))
        radius = span.radius[0] + (span.radius[1] - span.radius[0]) * uniform[:, 0]
        scale = span.scale[0] + (span.scale[1] - span.scale[0]) * uniform[:, 1]
        return self._tasks(radius, scale, limit)

    def corners(self) -> Tasks:
        """The four (one, where nothing varies) extreme training tasks by wall distance, the narrowest first."""
        pairs = {(radius, scale) for radius in self.train.radius for scale in self.train.scale}
        ordered = sorted(pairs, key=lambda pair: pair[0] * pair[1])
        radius, scale = jnp.asarray(ordered).T
        return self._tasks(radius, scale, self.limit)

    def _tasks(self, radius: Float[Array, " tasks"], scale: Float[Array, " tasks"], limit: float) -> Tasks:
        if self.rounded:
            radius, scale = jnp.round(radius, 2), jnp.round(scale, 2)
        wall = radius * scale
        if self.rounded:
            wall = jnp.round(wall, 3)
        descriptor = jnp.stack([_centred(radius, self.train.radius), _centred(wall, self.train.walls())], axis=-1)
        limits = jnp.full((radius.shape[0], 1), limit, radius.dtype)
        return Tasks({"radius": radius, "wall": wall}, limits, descriptor)


_DUAL, _ONE = CircleRange((1.0, 1.5), (0.55, 0.75)), CircleRange((1.5, 1.5), (0.75, 0.75))  # the one's wall: 1.125 m
_META_CPO = CircleRange((1.0, 1.5), (0.65, 0.75)), CircleRange((2.0, 2.5), (0.55, 0.65))
SETTINGS = {
    "point-circle": (PointCircle(), CircleFamily(_DUAL, _DUAL, 10.0, 10.0)),
    "point-circle-meta-cpo": (PointCircle(), CircleFamily(*_META_CPO, 10.0, 5.0, rounded=True)),
    "point-circle-1": (PointCircle(start=0.8), CircleFamily(_ONE, _ONE, 25.0, 25.0)),
}


def world(name: str, limit: float | None, limit_on: LimitOn, horizon: int | None) -> FunctionalWorld:
    """The world of a named setting; a `limit` holds for training and tests."""
    environment, family = SETTINGS[name]
    if limit is not None:
        family = replace(family, limit=limit, test_limit=limit)
    horizon = HORIZON if horizon is None else horizon
    cmdp = CMDP(OBSERVATION_SIZE, ACTION_SIZE, horizon, COST_NAMES, (family.limit,), limit_on=limit_on)
    return FunctionalWorld(cmdp, environment, family)


def _centred(value: Float[Array, " tasks"], span: tuple[float, float]) -> Float[Array, " tasks"]:
    """`value` scaled so that `span` becomes [-1, 1]; zero where nothing varies."""
    low, high = span
    if high == low:
        return jnp.zeros_like(value)
    return (2 * value - low - high) / (high - low)
