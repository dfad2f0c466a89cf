"""The Real-World RL suite's tasks as their options ask for them (`realworld_options.py`)."""

from dataclasses import replace
from typing import Any

from safemeta.core import LimitOn
from safemeta.sim import FunctionalWorld
from safemeta.sim.batched import BatchedWorld
from safemeta.sim.challenges import Challenges
from safemeta.tasks import cartpole, realworld
from safemeta.tasks.options import several, span
from safemeta.tasks.realworld_options import CHALLENGES

# Options of the suite's perturbed dynamics -> what they are called here.
_CARTPOLE_RANGES = {
    "safety_coeff": "safety_coeff",
    "pole_length": "pole_length",
    "pole_mass": "pole_density",  # the mass of 1 m
    "joint_damping": "hinge_damping",
    "slider_damping": "slider_damping",
}


def cartpole_world(limit: float | None, limit_on: LimitOn, horizon: int | None, **options: Any) -> FunctionalWorld:
    """Cartpole with all of its options given."""
    constraints, challenges = _taken(options)
    ranges = {ours: span(options.pop(name)) for name, ours in _CARTPOLE_RANGES.items()}
    environment, train = cartpole.Cartpole(constraints, **options), cartpole.CartpoleRange(**ranges)
    return cartpole.world(limit, limit_on, horizon, environment=environment, train=train, challenges=challenges)


def robot_world(name: str, limit: float | None, limit_on: LimitOn, horizon: int | None, **options: Any) -> BatchedWorld:
    """Walker, quadruped or humanoid with all of its options given."""
    constraints, challenges = _taken(options)
    safety = span(options.pop("safety_coeff"))
    robot = replace(realworld.LIMITS[name][0], constraints=constraints, **options)
    return realworld.world(
        name, limit, limit_on, horizon, environment=robot, safety_coeff=safety, challenges=challenges
    )


def _taken(options: dict[str, Any]) -> tuple[tuple[str, ...], Challenges]:
    """Constraints and challenges, taken out of the options."""
    constraints = several(options.pop("constraint"))
    exact = len(constraints) if options["observe_constraints"] else 0  # as in the suite, these get no noise
    return constraints, Challenges(**{each.name: options.pop(each.name) for each in CHALLENGES}, exact=exact)
