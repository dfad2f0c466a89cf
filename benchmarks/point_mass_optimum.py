"""The optimum of the task `point-mass`, by convex optimisation: nothing here is learned, sampled, or JAX.

    python benchmarks/point_mass_optimum.py

From a given start the mass is a linear system with convex bounds, `p' = p + h v'`, `|v' - v| <= h` along each axis and
`|v'| <= 1`, and minus the return is the convex `sum_t |p_t - g|`. Without the obstacle that is one second-order cone
programme. Staying out of the obstacle is not convex, but staying beyond a tangent of it is: tangents are laid where the
last solution passes, until nothing changes (an inner approximation: every iterate is feasible, none is worse than the
one before).

- `free`: the best return without limits; from above by letting the velocity change by `h sqrt(2)` in any direction,
  which holds all that the task's speed cap can do; from below by the trajectory itself, which the task can follow.
- `safe`: what a policy that keeps the limit of the obstacle's cost attains. It is stochastic: in some episodes it goes
  straight, which costs `c`, in the others it never touches the obstacle; the share of the former spends the limit.
  Passing the obstacle's edge for a few steps would gain less per unit of cost.

Both are means over the uniform start, by a two-point Gauss-Legendre rule along each axis.
"""

from dataclasses import dataclass
from itertools import product

import cvxpy as cp
import numpy as np
from jaxtyping import Float

from safemeta.tasks.point_mass import HORIZON, LIMITS, SPEED_CAP, START, START_SPREAD, TIMESTEP, PointMassRange

GOAL = np.array([PointMassRange().goal_x[0], PointMassRange().goal_y[0]])
RADIUS = PointMassRange().radius[0]
DISCOUNT = 0.99
BEYOND = 1e-6  # m that a safe trajectory stays outside of the obstacle, on which the task counts as inside


@dataclass(frozen=True)
class Path:
    """One trajectory: return, discounted cost of the obstacle, and its positions."""

    value: float
    cost: float
    positions: Float[np.ndarray, "time 2"]


@dataclass(frozen=True)
class Optimum:
    """See the module's docstring. `share` is how often the safe policy goes straight."""

    free: float
    free_above: float
    free_cost: float
    safe: float
    careful: float  # never in the obstacle
    share: float


def best_path(start: Float[np.ndarray, " 2"], *, avoid: bool, relaxed: bool = False, rounds: int = 30) -> Path:
    """The best trajectory from `start` (past the obstacle on one side of it, if `avoid`)."""
    position, velocity = cp.Variable((HORIZON + 1, 2)), cp.Variable((HORIZON + 1, 2))
    change = velocity[1:] - velocity[:-1]
    constraints = [
        position[0] == start,
        velocity[0] == 0,
        position[1:] == position[:-1] + TIMESTEP * velocity[1:],
        cp.norm(velocity[1:], axis=1) <= SPEED_CAP,
        cp.norm(change, axis=1) <= TIMESTEP * np.sqrt(2) if relaxed else cp.abs(change) <= TIMESTEP,
    ]
    distance = cp.sum(cp.norm(position[1:] - GOAL, axis=1))
    normal = cp.Parameter((HORIZON, 2))
    if avoid:
        constraints.append(cp.sum(cp.multiply(normal, position[1:]), axis=1) >= RADIUS + BEYOND)
    problem = cp.Problem(cp.Minimize(distance), constraints)
    # Where the first tangents are laid: the straight line, bent to one side.
    along = np.minimum(2 * np.linspace(0, 1, HORIZON), 1)[:, None]
    guess = start + (GOAL - start) * along
    guess = guess + 1.4 * RADIUS * np.exp(-np.sum(guess**2, axis=1, keepdims=True)) * np.array([1, -1]) / np.sqrt(2)
    last = np.inf
    for _ in range(rounds if avoid else 1):
        normal.value = guess / np.linalg.norm(guess, axis=1, keepdims=True)
        problem.solve(solver=cp.CLARABEL, canon_backend=cp.SCIPY_CANON_BACKEND)
        if problem.status != cp.OPTIMAL or position.value is None:
            raise RuntimeError(f"the cone programme was not solved: {problem.status}")
        guess = position.value[1:]
        now = np.asarray(problem.value, float).item()
        if last - now < 1e-7:
            break
        last = now
    inside = np.sum(guess**2, axis=1) <= RADIUS**2
    value = -float(np.sum(np.linalg.norm(guess - GOAL, axis=1)))
    return Path(value, float(np.sum(DISCOUNT ** np.arange(HORIZON) * inside)), guess)


def optimum(limit: float = LIMITS[1]) -> Optimum:
    """The optima of the task with this limit on the obstacle's discounted cost."""
    offset = START_SPREAD / np.sqrt(3)
    starts = [np.asarray(START) + offset * np.array(signs) for signs in product((-1, 1), repeat=2)]
    free = [best_path(start, avoid=False) for start in starts]
    above = [best_path(start, avoid=False, relaxed=True) for start in starts]
    careful = [best_path(start, avoid=True) for start in starts]
    free_value, free_cost, careful_value = (
        float(np.mean(values))
        for values in ([p.value for p in free], [p.cost for p in free], [p.value for p in careful])
    )
    share = min(1.0, limit / free_cost)
    return Optimum(
        free=free_value,
        free_above=float(np.mean([path.value for path in above])),
        free_cost=free_cost,
        safe=share * free_value + (1 - share) * careful_value,
        careful=careful_value,
        share=share,
    )


if __name__ == "__main__":
    for name, value in vars(optimum()).items():
        print(f"{name:<12} {value:10.4f}")
