"""Families of navigation tasks: who drives where, what varies from task to task, and the limits."""

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.core import CMDP, InteractiveWorld, Tasks, check_split
from safemeta.core.cmdp import LimitOn
from safemeta.sim import FunctionalWorld
from safemeta.sim.batched import BatchedWorld
from safemeta.sim.mujoco import MujocoSimulator
from safemeta.tasks.button import Button
from safemeta.tasks.circle_scene import Circle
from safemeta.tasks.goal import Goal
from safemeta.tasks.layout import LAYOUTS
from safemeta.tasks.robots import Car, Point, Robot
from safemeta.tasks.scene import MujocoScene, PointScene, Scene

COUNTS = ("hazards", "buttons", "pillars")  # parameters that are whole numbers


@dataclass(frozen=True)
class Varying:
    """A task parameter: its range in training and in tests, and whether more of it is harder (1) or easier (-1)."""

    name: str
    train: tuple[float | int, float | int]
    test: tuple[float | int, float | int]
    harder: int = 1


@dataclass(frozen=True)
class NavigationFamily:
    """Independent uniform distributions of task parameters; whole numbers, both ends included, for counts.

    `scale` is no parameter of its own: the walls stand at `scale * radius`. The descriptor holds every varying number,
    scaled so that its training range becomes [-1, 1] (0 where it does not vary). "validation" is distributed as
    "train".
    """

    varying: tuple[Varying, ...]
    limit: float
    test_limit: float
    costs: int = 1

    def sample(self, key: PRNGKeyArray, count: int, split: str = "train") -> Tasks:
        check_split(split)
        ranges = jnp.array([v.test if split == "test" else v.train for v in self.varying], float)
        low, high = ranges[:, 0], ranges[:, 1]
        whole = np.array([v.name in COUNTS for v in self.varying])
        uniform = jax.random.uniform(key, (count, len(self.varying)), low.dtype)
        value = jnp.where(whole, jnp.floor(low + uniform * (high + 1 - low)), low + uniform * (high - low))
        return self._tasks(jnp.where(whole, jnp.minimum(value, high), value), split)

    def corners(self) -> Tasks:
        """Every combination of extreme training parameters, the hardest first."""
        spans = [sorted(set(v.train), key=lambda end, v=v: -v.harder * end) for v in self.varying]
        ranked = sorted(
            itertools.product(*[list(enumerate(span)) for span in spans]), key=lambda pairs: sum(p[0] for p in pairs)
        )
        return self._tasks(jnp.array([[end for _, end in pairs] for pairs in ranked], float), "train")

    def _tasks(self, values: Float[Array, "tasks varying"], split: str) -> Tasks:
        parameters = {v.name: values[:, index] for index, v in enumerate(self.varying)}
        if "scale" in parameters:
            parameters["wall"] = parameters["radius"] * parameters.pop("scale")
        low, high = (np.array([v.train[end] for v in self.varying]) for end in (0, 1))
        spread = np.where(high > low, high - low, np.inf)
        descriptor = (2 * values - low - high) / spread
        limit = self.test_limit if split == "test" else self.limit
        limits = jnp.full((values.shape[0], self.costs), limit, values.dtype)
        return Tasks(parameters, limits, descriptor.astype(values.dtype))


@dataclass(frozen=True)
class Setting:
    """A named family: its robot, scene, ranges and limits."""

    robot: Robot
    scene: Scene
    varying: tuple[Varying, ...]
    limit: float
    test_limit: float | None = None  # where it differs
    limit_on: LimitOn = "discounted"
    horizon: int = 500
    discount: float = field(default=0.99)


def _fixed(name: str, value: float | int) -> Varying:
    return Varying(name, (value, value), (value, value))


def _same(name: str, low: float | int, high: float | int, harder: int = 1) -> Varying:
    return Varying(name, (low, high), (low, high), harder)


# Meta-CPO leaves the hazards of Car-Circle-Hazard a keepout of 0.4 m, with which twelve never fit into the square and
# seven hardly ever do; half of it fits always.
_CAR_CIRCLE = Circle(most_hazards=12, hazard_keepout=0.2)
_FAC_SIS = {"hazard_keepout": 0.4, "pillar_keepout": 0.4, "goal_keepout": 0.4, "reach": None, "graded": True}


def _fac_sis(scene: Goal) -> Setting:
    counts = [_fixed(name, most) for name, most in (("hazards", scene.most_hazards), ("pillars", scene.most_pillars))]
    varying = (_fixed("extent", 2.0), *(v for v in counts if v.train[0]))
    return Setting(Point(), scene, varying, limit=0.0, limit_on="undiscounted", horizon=1000)


def _goal(**changes) -> Goal:
    return Goal(**{**_FAC_SIS, **changes})


_HAZARD_GOAL = Goal(most_hazards=8)
_SAFETY_GYMNASIUM = {"limit": 25.0, "limit_on": "undiscounted", "horizon": 1000}

SETTINGS: dict[str, Setting] = {
    "car-circle-hazard": Setting(
        Car(),
        replace(_CAR_CIRCLE, most_hazards=7),
        (_same("radius", 0.7, 1.0, -1), _same("scale", 0.55, 0.75, -1), _same("hazards", 3, 7), _fixed("extent", 1.4)),
        limit=10.0,
    ),
    "car-circle-hazard-meta-cpo": Setting(
        Car(),
        _CAR_CIRCLE,
        (
            Varying("radius", (0.7, 1.0), (1.2, 1.5), -1),
            Varying("scale", (0.65, 0.75), (0.55, 0.65), -1),
            Varying("hazards", (3, 7), (7, 12)),
            Varying("extent", (1.4, 1.4), (1.8, 1.8), -1),
        ),
        limit=10.0,
        test_limit=5.0,
    ),
    "point-button": Setting(
        Point(),
        Button(10, 10),
        (_same("buttons", 6, 10), _same("hazards", 6, 10), _same("extent", 2.5, 3.0, -1)),
        limit=10.0,
    ),
    "point-button-meta-cpo": Setting(
        Point(),
        Button(10, 10),
        (
            Varying("buttons", (3, 6), (6, 10)),
            Varying("hazards", (3, 6), (6, 10)),
            Varying("extent", (1.75, 2.0), (2.5, 3.0), -1),
        ),
        limit=10.0,
    ),
    "hazards-0.15-goal": _fac_sis(_goal(most_hazards=4, hazard_size=0.15)),
    "hazards-0.30-goal": _fac_sis(_goal(most_hazards=4, hazard_size=0.30)),
    "pillars-0.15-goal": _fac_sis(_goal(most_pillars=4, pillar_size=0.15)),
    "pillars-0.30-goal": _fac_sis(_goal(most_pillars=4, pillar_size=0.30)),
    "hazards-0.15-push": _fac_sis(_goal(most_hazards=1, hazard_size=0.15, push=True)),
    "hazards-0.30-push": _fac_sis(_goal(most_hazards=1, hazard_size=0.30, push=True)),
    "point-goal-1": Setting(Point(), _HAZARD_GOAL, (_fixed("extent", 1.5), _fixed("hazards", 8)), **_SAFETY_GYMNASIUM),
    "car-goal-1": Setting(Car(), _HAZARD_GOAL, (_fixed("extent", 1.5), _fixed("hazards", 8)), **_SAFETY_GYMNASIUM),
    "point-button-1": Setting(
        Point(),
        Button(4, 4, hazard_keepout=0.18),
        (_fixed("buttons", 4), _fixed("hazards", 4), _fixed("extent", 1.5)),
        **_SAFETY_GYMNASIUM,
    ),
    "car-circle-1": Setting(
        Car(),
        Circle(start=0.8),
        (_fixed("radius", 1.5), _fixed("scale", 0.75)),
        limit=25.0,
        limit_on="undiscounted",
    ),
    "point-push-1": Setting(
        Point(),
        Goal(
            most_hazards=2,
            most_pillars=1,
            push=True,
            hazard_size=0.3,
            hazard_keepout=0.4,
            pillars_cost=False,
            goal_keepout=0.4,
        ),
        (_fixed("extent", 1.5), _fixed("hazards", 2), _fixed("pillars", 1)),
        **_SAFETY_GYMNASIUM,
    ),
}


def world(name: str, limit: float | None, limit_on: LimitOn, horizon: int | None) -> InteractiveWorld:
    """The world of a named setting; the Point robot goes by its closed form where it can touch nothing."""
    setting = SETTINGS[name]
    bound = setting.limit if limit is None else limit
    test_bound = bound if limit is not None or setting.test_limit is None else setting.test_limit
    contacts = bool(setting.scene.reads)
    closed_form = isinstance(setting.robot, Point) and not contacts
    environment = PointScene(setting.scene) if closed_form else MujocoScene(setting.robot, setting.scene)
    family = NavigationFamily(setting.varying, bound, test_bound, len(environment.costs))
    cmdp = CMDP(
        observation_size=environment.observation_size,
        action_size=2,
        horizon=setting.horizon if horizon is None else horizon,
        cost_names=environment.costs,
        limits=(bound,) * len(environment.costs),
        discount=setting.discount,
        limit_on=limit_on,
        **_clearance(setting.scene),
    )
    if isinstance(environment, PointScene):
        return FunctionalWorld(cmdp, environment, family)
    return BatchedWorld(cmdp, MujocoSimulator(environment), family)


def _clearance(scene: Scene) -> dict[str, Any]:
    """What the CMDP says of obstacles, where a scene measures how far away they are."""
    if not isinstance(scene, Goal):
        return {}
    return {"signals": (("clearance", (scene.obstacles, 2)),), "safe_distance": scene.safe_distance}


def crowding(setting: Setting, split: str, rows: int = 100) -> float:
    """The share of layouts of a split that cannot be found within `LAYOUTS` attempts."""
    family = NavigationFamily(setting.varying, setting.limit, setting.limit)
    tasks = family.sample(jax.random.key(0), rows, split)
    found = jax.vmap(setting.scene.reset)(tasks.parameters, jax.random.split(jax.random.key(1), rows))[2]
    return float(1 - found.mean())


__all__ = ["LAYOUTS", "SETTINGS", "NavigationFamily", "Setting", "Varying", "crowding", "world"]
