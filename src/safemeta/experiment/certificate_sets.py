"""The set {phi <= 0} beside the states from which a collision can be avoided, where there is a model to say so.

That is the unicycle of collision avoidance, whose avoidable set Hamilton-Jacobi reachability gives in three states.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from safemeta.certificates import SafetyIndex
from safemeta.certificates.reachability import (
    AvoidableSet,
    inclusion,
    reduced_unicycle,
    unicycle_avoidable_set,
    unicycle_clearance,
)
from safemeta.tasks.collision_avoidance import ACCELERATION, HAZARD_RADIUS, TURN_RATE, CollisionAvoidance

SHAPE = (41, 61, 32)  # of the grid over distance, speed and direction
TOP_SPEEDS = (2.0, 4.0)  # m / s: the fastest start, and twice that
HEADINGS = (math.pi / 2, math.pi / 4, 0.0)  # of the plane's pictures: towards the goal, aslant, across
SLICE_SPEED = 2.0  # m / s
REACH = 2.25  # m to each side of the hazard


@dataclass(frozen=True)
class Sets:
    """Both sets; `inclusions` compares them over the hazard's outside, for speeds from 0 to each of `TOP_SPEEDS`."""

    index: SafetyIndex
    avoidable: AvoidableSet
    inclusions: list[dict[str, Any]]
    unsettled: float

    def to_json(self) -> dict[str, Any]:
        """As in `certificate.json`."""
        return {"grid": list(self.avoidable.values.shape), "unsettled": self.unsettled, "inclusion": self.inclusions}


@dataclass(frozen=True)
class Plane:
    """Positions about the hazard at one heading and `SLICE_SPEED`: phi and V (m), NaN where V is not known."""

    heading: float
    x: NDArray
    y: NDArray
    energy: NDArray
    value: NDArray


def compare(world: Any, index: SafetyIndex) -> Sets | None:
    """The two sets, or None of a task without such a model."""
    environment = getattr(world, "environment", None)
    if not isinstance(environment, CollisionAvoidance) or environment.flipped_rate:
        return None  # with the released code's rate phi is no function of the three states
    avoidable = unicycle_avoidable_set(
        radius=HAZARD_RADIUS, acceleration=ACCELERATION, turn_rate=TURN_RATE, shape=SHAPE
    )
    found = []
    for top in TOP_SPEEDS:
        ranges = {"distance": (HAZARD_RADIUS, math.inf), "speed": (0.0, top)}
        numbers = inclusion(index, avoidable, unicycle_clearance, ranges)
        shares = {
            name: getattr(numbers, name)
            for name in ("sublevel_share", "unsafe_share", "unsafe_inside_share", "unsafe_well_inside_share")
        }
        found.append({"top_speed": top, **numbers._asdict(), **shares})
    return Sets(index, avoidable, found, float(avoidable.unsettled))


def planes(sets: Sets, points: int = 181) -> list[Plane]:
    """The plane at each of `HEADINGS`."""
    along = np.linspace(-REACH, REACH, points)
    x, y = np.meshgrid(along, along)
    pictures = []
    for heading in HEADINGS:
        states = reduced_unicycle(jnp.stack([jnp.asarray(x), jnp.asarray(y)], axis=-1), SLICE_SPEED, heading)
        energy = sets.index.index(unicycle_clearance(states))
        pictures.append(Plane(heading, x, y, np.asarray(energy), np.asarray(sets.avoidable.value(states))))
    return pictures
