"""Task families by name. Importing this module does not import JAX: names must be cheap to list."""

import difflib
import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safemeta.tasks import realworld_options
from safemeta.tasks.options import Option, read

if TYPE_CHECKING:
    from safemeta.core import InteractiveWorld, LimitOn

WHERE = {"dm_control": "is installed up to Python 3.12 (its labmaze has no wheel for 3.13)"}
LIMIT_UNITS = ("discounted", "undiscounted", "per_step")  # safemeta.core.LimitOn, which would import JAX


@dataclass(frozen=True)
class Family:
    """An entry of the registry; `limit_on` is the unit of the family's own limits.

    `build` gets the limit, its unit and the horizon, and every one of `options` by its name. `needs` is a package that
    is not installed everywhere.
    """

    name: str
    description: str
    limit_on: "LimitOn"
    build: Callable[..., "InteractiveWorld"]
    options: tuple[Option, ...] = ()
    needs: str | None = None

    @property
    def missing(self) -> str:
        """Why the family cannot be made here, in one sentence; empty where it can."""
        if self.needs is None or importlib.util.find_spec(self.needs) is not None:
            return ""
        return f"The task {self.name} is left out: it needs the models of {self.needs}, which {WHERE[self.needs]}."


def _made_by(module: str, function: str = "world", **fixed: Any) -> Callable[..., "InteractiveWorld"]:
    """What imports `safemeta.tasks.MODULE`, and JAX with it, only when a world is made by a function there."""

    def build(limit: float | None, limit_on: "LimitOn", horizon: int | None, **options: Any) -> "InteractiveWorld":
        make = getattr(importlib.import_module(f"safemeta.tasks.{module}"), function)
        return make(limit=limit, limit_on=limit_on, horizon=horizon, **fixed, **options)

    return build


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "point-circle",
            "Point robot on a circle between two walls, as in the dual-method paper (limit 10, discounted)",
            "discounted",
            _made_by("circle", name="point-circle"),
        ),
        Family(
            "point-circle-meta-cpo",
            "the same with Meta-CPO's ranges: larger circles and a limit of 5 at test time",
            "discounted",
            _made_by("circle", name="point-circle-meta-cpo"),
        ),
        Family(
            "point-circle-1",
            "Safety-Gymnasium's SafetyPointCircle1: one task (limit 25, undiscounted)",
            "undiscounted",
            _made_by("circle", name="point-circle-1"),
        ),
        Family(
            "car-circle-hazard",
            "a car on a circle between walls, past 3 to 7 hazards, as in the dual-method paper (limit 10, discounted)",
            "discounted",
            _made_by("navigation", name="car-circle-hazard"),
        ),
        Family(
            "car-circle-hazard-meta-cpo",
            "the same with Meta-CPO's ranges: larger circles, 7 to 12 hazards and a limit of 5 at test time",
            "discounted",
            _made_by("navigation", name="car-circle-hazard-meta-cpo"),
        ),
        Family(
            "point-button",
            "Point robot presses the lit button among others, as in the dual-method paper (limit 10, discounted)",
            "discounted",
            _made_by("navigation", name="point-button"),
        ),
        Family(
            "point-button-meta-cpo",
            "the same with Meta-CPO's ranges: 3 to 6 of each in training, 6 to 10 in tests",
            "discounted",
            _made_by("navigation", name="point-button-meta-cpo"),
        ),
        Family(
            "hazards-0.15-goal",
            "FAC-SIS's Point robot to goals past 4 hazards of 0.15 m (limit 0, undiscounted)",
            "undiscounted",
            _made_by("navigation", name="hazards-0.15-goal"),
        ),
        Family(
            "hazards-0.30-goal",
            "the same with hazards of 0.30 m",
            "undiscounted",
            _made_by("navigation", name="hazards-0.30-goal"),
        ),
        Family(
            "pillars-0.15-goal",
            "the same with 4 pillars of 0.15 m that it runs into",
            "undiscounted",
            _made_by("navigation", name="pillars-0.15-goal"),
        ),
        Family(
            "pillars-0.30-goal",
            "the same with pillars of 0.30 m",
            "undiscounted",
            _made_by("navigation", name="pillars-0.30-goal"),
        ),
        Family(
            "hazards-0.15-push",
            "FAC-SIS's Point robot pushes a box to goals past a hazard of 0.15 m (limit 0, undiscounted)",
            "undiscounted",
            _made_by("navigation", name="hazards-0.15-push"),
        ),
        Family(
            "hazards-0.30-push",
            "the same with a hazard of 0.30 m",
            "undiscounted",
            _made_by("navigation", name="hazards-0.30-push"),
        ),
        Family(
            "point-goal-1",
            "Safety-Gymnasium's SafetyPointGoal1 without its vase: one task (limit 25, undiscounted)",
            "undiscounted",
            _made_by("navigation", name="point-goal-1"),
        ),
        Family(
            "point-button-1",
            "Safety-Gymnasium's SafetyPointButton1 without gremlins: one task (limit 25, undiscounted)",
            "undiscounted",
            _made_by("navigation", name="point-button-1"),
        ),
        Family(
            "point-push-1",
            "Safety-Gymnasium's SafetyPointPush1: one task (limit 25, undiscounted)",
            "undiscounted",
            _made_by("navigation", name="point-push-1"),
        ),
        Family(
            "car-goal-1",
            "Safety-Gymnasium's SafetyCarGoal1 without its vase: one task (limit 25, undiscounted)",
            "undiscounted",
            _made_by("navigation", name="car-goal-1"),
        ),
        Family(
            "car-circle-1",
            "Safety-Gymnasium's SafetyCarCircle1: one task (limit 25, undiscounted)",
            "undiscounted",
            _made_by("navigation", name="car-circle-1"),
        ),
        Family(
            "half-cheetah",
            "runs at a goal velocity with its head low, as in the dual-method paper (limit 10, discounted)",
            "discounted",
            _made_by("locomotion", name="half-cheetah"),
        ),
        Family(
            "humanoid",
            "runs in a direction with little control, as in the dual-method paper (limit 20, discounted)",
            "discounted",
            _made_by("locomotion", name="humanoid"),
        ),
        Family(
            "hopper",
            "hops at a goal velocity with little control, as in the dual-method paper (limit 5, discounted)",
            "discounted",
            _made_by("locomotion", name="hopper"),
        ),
        Family(
            "swimmer",
            "swims at a goal velocity with little control in restless water, as in that paper (limit 5, discounted)",
            "discounted",
            _made_by("locomotion", name="swimmer"),
        ),
        Family(
            "point-mass",
            "FISAR's point mass: to a goal past a round obstacle, inside a square (limits 1 and 2, discounted)",
            "discounted",
            _made_by("point_mass"),
        ),
        Family(
            "collision-avoidance",
            "FAC-SIS's unicycle: to a goal around a hazard, first start distribution (limit 0, undiscounted)",
            "undiscounted",
            _made_by("collision_avoidance"),
        ),
        Family(
            "collision-avoidance-2",
            "the same with the second start distribution: the hazard may be farther",
            "undiscounted",
            _made_by("collision_avoidance", start="2"),
        ),
        Family(
            "collision-avoidance-3",
            "the same with the third: starts also beside the axis of hazard and goal",
            "undiscounted",
            _made_by("collision_avoidance", start="3"),
        ),
        Family(
            "realworld-cartpole",
            "cartpole swing-up on a short stretch of the rail, as MetaL trains it (limit 0.115, per step)",
            "per_step",
            _made_by("realworld_choices", "cartpole_world"),
            realworld_options.CARTPOLE,
        ),
        Family(
            "realworld-walker",
            "a planar walker whose joints must stay slow, for MetaL (limit 0.1, per step)",
            "per_step",
            _made_by("realworld_choices", "robot_world", name="realworld-walker"),
            realworld_options.WALKER,
            needs="dm_control",
        ),
        Family(
            "realworld-quadruped",
            "a quadruped whose joints must stay near their middle, for MetaL (limit 0.745, per step)",
            "per_step",
            _made_by("realworld_choices", "robot_world", name="realworld-quadruped"),
            realworld_options.QUADRUPED,
            needs="dm_control",
        ),
        Family(
            "realworld-humanoid",
            "a humanoid whose joints must stay near their middle, for MetaL (limit 0.478, per step)",
            "per_step",
            _made_by("realworld_choices", "robot_world", name="realworld-humanoid"),
            realworld_options.HUMANOID,
            needs="dm_control",
        ),
        Family(
            "tabular-random",
            "random finite CMDPs with two costs, solved exactly (limit 8 each, discounted)",
            "discounted",
            _made_by("tabular_families", "random_world"),
        ),
        Family(
            "tabular-gridworld",
            "a slippery grid with random hazards between start and goal, solved exactly (limit 0.5, discounted)",
            "discounted",
            _made_by("tabular_families", "gridworld_world"),
        ),
    )
}


def names() -> tuple[str, ...]:
    """The names of all task families."""
    return tuple(FAMILIES)


def family_of(name: str) -> Family:
    """The family of a name; `ValueError` (with the nearest match) if there is none."""
    family = FAMILIES.get(name)
    if family is None:
        near = difflib.get_close_matches(name, FAMILIES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(FAMILIES)}"
        raise ValueError(f"unknown task {name!r}; {hint}")
    return family


def read_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a task, given as values or text, as JSON values; `ValueError` on what is not allowed."""
    return read(name, family_of(name).options, given)


def all_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the defaults of those that are not given."""
    return {option.name: option.default for option in family_of(name).options} | read_options(name, given)


def describe_options(name: str) -> list[dict[str, Any]]:
    """Each option of a task: its name, default, what is allowed and what it is."""
    shown = ("name", "default", "allowed", "description")
    return [{part: getattr(option, part) for part in shown} for option in family_of(name).options]


def make(
    name: str,
    *,
    limit: float | int | None = None,
    limit_on: "LimitOn | None" = None,
    horizon: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> "InteractiveWorld":
    """The world of a task family.

    `limit` replaces the family's limits on every split and `limit_on` their unit; a limit's number means nothing in
    another unit, so that `limit_on` alone is accepted only where it changes nothing. `horizon` is in control steps.
    `options` are the family's own (`FAMILIES[name].options`), such as `{"safety_coeff": 0.1}` of a Real-World RL task.

    Raises `ValueError` on an unknown name (with the nearest match), a negative or NaN limit, an unknown unit, a unit
    without its limit, a horizon below 1, options that the family does not have or allow, and where a package is missing
    that it needs.
    """
    family = family_of(name)
    if limit is not None and (math.isnan(limit) or limit < 0):
        raise ValueError(f"limit must be a number that is zero or more, not {limit}")
    if limit_on is not None and limit_on not in LIMIT_UNITS:
        raise ValueError(f"limit_on must be one of {', '.join(LIMIT_UNITS)}, not {limit_on!r}")
    if limit is None and limit_on is not None and limit_on != family.limit_on:
        raise ValueError(f"{name} states its limit as {family.limit_on}; give a limit together with {limit_on!r}")
    if horizon is not None and horizon < 1:
        raise ValueError(f"horizon must be at least 1 control step, not {horizon}")
    if family.missing:
        raise ValueError(family.missing)
    chosen = all_options(name, options or {})
    return family.build(None if limit is None else float(limit), limit_on or family.limit_on, horizon, **chosen)
