"""The safety index that a run is judged or shielded by, and what a grid of actions would lead to by it."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from safemeta.certificates import Candidates, SafetyIndex, SigmaForm, action_grid, judge
from safemeta.core import CLEARANCE, Moment
from safemeta.experiment.errors import UserError, from_value_error

POINTS, POINTS_ON_HOST = 17, 5  # of the action grid along each axis: the paper's, and where a choice costs a step
MOST_ACTIONS = 100_000
SEEN_AT_ONCE = 2**17  # states that the simulator is asked for in one go: bounds memory


@dataclass(frozen=True)
class RunCertificate:
    """An index as plain numbers (hashable, and JSON as they stand), with its slack and where it comes from."""

    source: str  # "learned", "fixed" (of the run), or "named"
    name: str | None  # of Table 2, where it is fixed or named
    sigma: float
    k: tuple[float, ...]
    n: float
    safe_distance: float  # m, d_min
    sigma_form: SigmaForm
    slack: float

    @property
    def index(self) -> SafetyIndex:
        """The index itself; its parameters were clipped to their box already."""
        return SafetyIndex(
            self.sigma, list(self.k), self.n, self.safe_distance, self.sigma_form, None  # type: ignore[arg-type]
        )  # fmt: skip


def certificate_of(run: Any, name: str | None) -> RunCertificate:
    """The run's own index, or that of Table 2 called `name` at the task's safe distance.

    Raises `UserError` on an unknown name, on a run without an index, and on a task that measures no clearance.
    """
    cmdp, options = run.world.cmdp, run.config.options
    if CLEARANCE not in dict(cmdp.signals):
        raise UserError(
            f"The task '{run.config.task.name}' measures no distance to obstacles, so that no safety index can judge"
            f" '{run.folder}'; collision-avoidance and the Goal and Push tasks do."
        )
    if name is None:
        index = getattr(getattr(run.state, "learner", None), "index", None)
        if not isinstance(index, SafetyIndex):
            raise UserError(
                f"The run '{run.folder}' of {run.config.algorithm} has no certificate of its own; name an index to"
                " judge it by, such as --index handcrafted."
            )
        learned = run.config.algorithm == "fac-sis" and options.learn_index
        source, shown = ("learned", None) if learned else ("fixed", options.index)
        return _numbers(source, shown, index, float(options.slack))
    if cmdp.safe_distance is None:
        raise UserError(f"The task of '{run.folder}', {run.config.task.name}, names no safe distance for an index.")
    try:
        return _numbers("named", name, SafetyIndex.named(name, cmdp.safe_distance), 0.0)
    except ValueError as problem:
        raise from_value_error(problem) from problem


def _numbers(source: str, name: str | None, index: SafetyIndex, slack: float) -> RunCertificate:
    sigma, k, n = index.clipped()
    rates = tuple(float(each) for each in k)
    return RunCertificate(source, name, float(sigma), rates, float(n), index.d_min, index.sigma_form, slack)


def grid_points(world: Any, points: int | None, looks: bool = True) -> int:
    """Points of the action grid along each axis: the given number, or 17, or 5 if a simulator on the host is asked.

    Raises `UserError` where there would be fewer than 2 or the grid would be huge.
    """
    if points is None:
        points = POINTS_ON_HOST if looks and getattr(world, "on_host", False) else POINTS
    size = world.cmdp.action_size
    if points < 2:
        raise UserError(f"The number of actions along each axis must be a whole number of at least 2, not {points}.")
    if points**size > MOST_ACTIONS:
        raise UserError(
            f"A grid of {points} actions along each of {size} axes has {points**size} actions; {MOST_ACTIONS} are the"
            " most that are tried."
        )
    return points


def look_ahead(
    index: SafetyIndex, slack: float, moment: Moment, candidates: Float[Array, "rows candidates action"]
) -> Candidates:
    """Each row's candidate actions, judged by what the simulator says that they would lead to.

    The simulator is asked for so many at a time that memory stays bounded; only Delta of each is kept.
    """
    rows, count, _ = candidates.shape
    chunk = max(1, SEEN_AT_ONCE // rows)
    violations = [
        judge(index, moment.signals[CLEARANCE], moment.look(part)[CLEARANCE], slack).violation
        for part in (candidates[:, start : start + chunk] for start in range(0, count, chunk))
    ]
    return Candidates(jnp.concatenate(violations, axis=1))


def grid_of(action: Float[Array, "rows action"], points: int) -> Float[Array, "rows candidates action"]:
    """The action grid, for each row of `action`, whose values do not matter."""
    rows, size = action.shape
    grid = action_grid(size, points)
    return jnp.broadcast_to(grid, (rows, *grid.shape))
