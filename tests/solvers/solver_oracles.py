"""Independent answers: cvxpy with Clarabel, and random problems to put to both sides."""

import warnings
from typing import NamedTuple

import clarabel
import cvxpy as cp
import numpy as np
from scipy import sparse

TRUST_REGION_KINDS = (
    "plain",
    "infeasible",
    "parallel",
    "duplicate",
    "zero",
    "active",
    "cone",
    "tiny and huge",
)


class Problem(NamedTuple):
    """A trust-region problem."""

    objective: np.ndarray
    constraints: np.ndarray
    violations: np.ndarray
    matrix: np.ndarray
    radius: float


def random_problem(rng: np.random.Generator, n: int, m: int, kind: str, condition: float = 100.0) -> Problem:
    """A trust-region problem of one kind; most kinds come out feasible or infeasible by chance."""
    rotation = np.linalg.qr(rng.normal(size=(n, n)))[0]
    spectrum = condition ** rng.uniform(-0.5, 0.5, size=n)
    matrix = (rotation * spectrum) @ rotation.T
    matrix = (matrix + matrix.T) / 2
    radius = 10 ** rng.uniform(-3, 0)
    objective, constraints = rng.normal(size=n), rng.normal(size=(m, n))
    reach = np.sqrt(2 * radius * np.einsum("mi,ij,mj->m", constraints, np.linalg.inv(matrix), constraints))
    violations = rng.uniform(-1, 0.4, size=m) * reach
    if m == 0:
        return Problem(objective, constraints, violations, matrix, radius)
    if kind == "infeasible":
        violations[rng.integers(m)] = reach.max() * rng.uniform(1.01, 3)
        violations = np.where(rng.random(m) < 0.3, rng.uniform(1.01, 2, size=m) * reach, violations)
    if kind in ("parallel", "duplicate") and m > 1:
        copies = rng.integers(1, m)
        factor = rng.choice([-1.0, 1.0]) * rng.uniform(0.3, 3) if kind == "parallel" else 1.0
        constraints[copies] = factor * constraints[0]
        violations[copies] = violations[0] if kind == "duplicate" else rng.uniform(-1, 0.2) * reach[0] * abs(factor)
    if kind == "zero":
        constraints[0], violations[0] = 0, rng.choice([-1.0, 0.0, 1.0])
    if kind == "active":
        violations = np.where(rng.random(m) < 0.6, 0.0, -np.abs(violations))
    if kind == "cone":
        objective = rng.uniform(0.1, 1, size=m) @ constraints
    if kind == "tiny and huge":
        scale = 10 ** rng.uniform(-7, 7, size=m)
        constraints, violations = constraints * scale[:, None], violations * scale
        objective = objective * 10 ** rng.uniform(-9, 9)
        size = 10 ** rng.uniform(-6, 6)
        matrix, radius = matrix * size, radius * size
    return Problem(objective, constraints, violations, matrix, radius)


class Reference(NamedTuple):
    """Clarabel's answer: `status` is "optimal" or "infeasible"; for the latter `value` is the least |violation|."""

    status: str
    value: float


def reference_step(problem: Problem) -> Reference:
    """Solve with cvxpy and Clarabel, in variables and rows of length one (equivalent, and kinder to Clarabel)."""
    factor = np.linalg.cholesky(problem.matrix)
    length = np.sqrt(2 * problem.radius)
    objective = np.linalg.solve(factor, problem.objective) * length
    rows = np.linalg.solve(factor, problem.constraints.T).T * length
    norms = np.linalg.norm(rows, axis=1)
    kept = norms > 0
    scale = np.where(kept, norms, 1)
    size = np.linalg.norm(objective)
    point = cp.Variable(len(objective))
    inside = [cp.norm(point) <= 1]
    limits = [rows[kept] / scale[kept, None] @ point <= -(problem.violations / scale)[kept]] if kept.any() else []
    status = "infeasible" if np.any(problem.violations[~kept] > 0) else None
    if status is None:
        goal = cp.Problem(cp.Maximize(objective / size @ point), inside + limits)
        status = solve_conic(goal)
        if status == "optimal":
            return Reference("optimal", float(goal.value) * size)
    if not kept.any():
        return Reference("infeasible", 0.0)
    unit = scale[kept].max()
    left = cp.pos(rows[kept] / unit @ point + problem.violations[kept] / unit)
    least = cp.Problem(cp.Minimize(cp.norm(left)), inside)
    assert solve_conic(least) == "optimal"
    return Reference("infeasible", float(least.value) * unit)


def solve_conic(problem: cp.Problem) -> str:
    """Solve, and give the status. Tight tolerances first; where Clarabel cannot reach them, its defaults.

    An answer that is only nearly optimal has neither status "optimal" nor "infeasible".
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for tolerance in (1e-10, 1e-8):
            try:
                problem.solve(
                    solver=cp.CLARABEL, tol_gap_abs=tolerance, tol_gap_rel=tolerance, tol_feas=tolerance, max_iter=200
                )
            except cp.SolverError:
                continue
            if problem.status in ("optimal", "infeasible"):
                return problem.status
    return str(problem.status)


def quadratic_program(
    raw: np.ndarray, gradients: np.ndarray, bounds: np.ndarray, tolerance: float = 1e-11
) -> tuple[np.ndarray, str]:
    """`argmin 1/2 |x - raw|^2` with `gradients x <= bounds`, from Clarabel, and its status."""
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tolerance
    size, count = len(raw), len(bounds)
    solver = clarabel.DefaultSolver(
        sparse.identity(size, format="csc"),
        -raw,
        sparse.csc_matrix(gradients),
        bounds,
        [clarabel.NonnegativeConeT(count)],
        settings,
    )
    solution = solver.solve()
    return np.array(solution.x), str(solution.status)


def finite_differences(function, point: np.ndarray, step: float = 1e-4) -> np.ndarray:
    """The Jacobian of `function` at `point`, by central differences of fourth order.

    The last axis of `point` is what is varied, and becomes the last axis of the answer; others are batch axes.
    """
    columns = []
    for index in range(point.shape[-1]):
        shift = np.zeros(point.shape[-1])
        shift[index] = step
        near = np.asarray(function(point + shift)) - np.asarray(function(point - shift))
        far = np.asarray(function(point + 2 * shift)) - np.asarray(function(point - 2 * shift))
        columns.append((8 * near - far) / (12 * step))
    return np.stack(columns, axis=-1)


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference over the largest entry."""
    ours, reference = np.asarray(ours), np.asarray(reference)
    return float(np.abs(ours - reference).max() / max(np.abs(reference).max(), 1e-12))
