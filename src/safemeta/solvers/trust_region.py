"""The step of constrained policy optimisation: the best step in a trust region that keeps linearised constraints.

    maximise  g.x   subject to  1/2 x.Hx <= radius,  b + A x <= 0

(Achiam et al. 2017, eq. 10; Schulman et al. 2015 when there is no constraint.) The solution lies in the span of
`H^-1 [g, A']`. So m + 1 solves with H, done together, leave a problem in m + 1 dimensions; that one is solved exactly,
by trying every set of active constraints (`_ball.py`). The step is optimal in the *computed* span and keeps radius and
constraints there to rounding, even where few conjugate-gradient iterations leave the solves inexact.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from safemeta.solvers._ball import MAX_CONSTRAINTS, solve_in_ball
from safemeta.solvers._dense import solve_positive
from safemeta.solvers._recovery import least_violation
from safemeta.solvers.linear import (
    Metric,
    combination,
    orthonormal_rows,
    products,
    rounding,
    solve_rows,
    with_derivative_of,
)
from safemeta.solvers.outcome import Outcome


class TrustRegionStep(NamedTuple):
    """A constrained step and the evidence for it.

    Where the problem is feasible, `g = radius_multiplier H step + A' multipliers` with multipliers >= 0. In a recovery
    step `multipliers` is the violation that remains, and `radius_multiplier H step + A' multipliers = 0`.
    """

    step: Float[Array, " n"]
    multipliers: Float[Array, " m"]
    radius_multiplier: Float[Array, ""]
    outcome: Int[Array, ""]  # an `Outcome`
    feasible: Bool[Array, ""]  # whether some step within the radius keeps all linearised constraints
    active: Bool[Array, " m"]  # constraints that hold the step (in a recovery step: that stay violated)
    objective_change: Float[Array, ""]  # g.step
    predicted_violations: Float[Array, " m"]  # b + A step
    divergence: Float[Array, ""]  # 1/2 step.H step
    residual: Float[Array, ""]  # largest relative residual of the solves with H


class _Scaled(NamedTuple):
    """The problem with every gradient divided by its largest entry, so that no scale over- or underflows."""

    rows: Float[Array, "k n"]
    violations: Float[Array, " m"]
    scale: Float[Array, " k"]


class _Small(NamedTuple):
    """The solution of the problem in the coordinates of its span, and which formula it obeys."""

    point: Float[Array, " k"]
    multipliers: Float[Array, " m"]
    radius_multiplier: Float[Array, ""]
    feasible: Bool[Array, ""]
    active: Bool[Array, " m"]
    binding: Bool[Array, ""]  # whether the radius binds
    weights: Float[Array, " m"]  # recovery: units of the gradients, zero for those left out
    outcome: Int[Array, ""]
    settled: Bool[Array, ""]


class _Formula(NamedTuple):
    """What is differentiated: coefficients in the span of the solves, and multipliers."""

    coefficients: Float[Array, " k"]
    multipliers: Float[Array, " m"]
    radius_multiplier: Float[Array, ""]


def trust_region_step(
    objective: Float[Array, " n"],
    constraints: Float[Array, "m n"],
    violations: Float[Array, " m"],
    metric: Metric | None,
    radius: float | Float[Array, ""],
    *,
    iterations: int = 100,
    tolerance: float | None = None,
    damping: float | Float[Array, ""] = 0.0,
) -> TrustRegionStep:
    """Maximise `objective.x` subject to `1/2 x.Hx <= radius` and `violations + constraints x <= 0`, with m = 0..8.

    `metric` is `v -> Hv`, or None for the identity; `violations` is `J_c - limit`, positive when violated now.
    `iterations`, `tolerance` and `damping` are those of `solve_rows`: `tolerance=0` means a fixed number of
    iterations without complaint (as is usual in reinforcement learning); None means `eps**0.7`.

    - m = 0 gives the step of TRPO; m = 1 that of CPO with both its cases.
    - Where the trust region does not bind (the objective's gradient is a cone of the constraints'), the optimal step
      of least norm.
    - Infeasible: the recovery step, `argmin 1/2 |max(0, violations + constraints x)|^2` within the radius. All
      constraints count, in the units in which they are given; for one constraint it is CPO's recovery. The outcome is
      RECOVERED if the radius binds, and INFEASIBLE if no radius would help.
    - A violated constraint that the radius cannot lower by any visible part (its gradient is zero or next to it) is
      left out, and the outcome is NO_COST_GRADIENT; what remains is a recovery step for the others.
    - Inputs that are not finite: the zero step and NOT_CONVERGED; also NOT_CONVERGED when the solves miss `tolerance`.

    Works under `jit` and `vmap`. Derivatives of any order, forward and reverse, with respect to all arrays and all
    that `metric` closes over: the solves are differentiated implicitly, and the solution of the small problem by its
    closed form on the active set (so at a kink, where an active constraint has multiplier zero, they are one-sided).

    Raises ValueError for more than 8 constraints or for shapes that do not fit.
    """
    _check_shapes(objective, constraints, violations)
    objective, constraints, violations = jnp.asarray(objective), jnp.asarray(constraints), jnp.asarray(violations)
    dtype = objective.dtype
    radius = jnp.maximum(jnp.asarray(radius, dtype), jnp.finfo(dtype).tiny)
    tolerance = rounding(dtype, 0.7) if tolerance is None else tolerance

    problem = _scaled(objective, constraints, violations)
    solves = solve_rows(metric, problem.rows, iterations=iterations, tolerance=tolerance, damping=damping)
    frozen, fixed = jax.lax.stop_gradient((problem, solves))
    length = jnp.sqrt(2 * jax.lax.stop_gradient(radius))

    # The images are exact to rounding only, so that what is left of a nearly dependent row has no reliable length.
    basis = orthonormal_rows(fixed.solution, fixed.image, dependent=None if metric is None else rounding(dtype, 0.5))
    small = _search(frozen, basis, length)
    formula = _formula(problem, solves.solution, radius, small)
    gram = _gram(problem.rows, solves.solution)

    step = with_derivative_of(
        length * combination(small.point, basis), combination(formula.coefficients, solves.solution)
    )
    half = with_derivative_of(
        length**2 * (small.point @ small.point) / 2, formula.coefficients @ gram @ formula.coefficients / 2
    )
    multipliers = with_derivative_of(small.multipliers, formula.multipliers)
    radius_multiplier = with_derivative_of(small.radius_multiplier, formula.radius_multiplier)

    residual = jnp.max(fixed.residual)
    finite = jnp.all(jnp.isfinite(step)) & jnp.isfinite(residual) & jnp.all(jnp.isfinite(violations))
    settled = finite & small.settled
    if tolerance > 0:
        settled &= residual <= max(
            2 * tolerance, 1e3 * rounding(dtype)
        )  # the iteration's own residual drifts from the true one
    step = jnp.where(finite, step, 0)
    return TrustRegionStep(
        step=step,
        multipliers=multipliers,
        radius_multiplier=radius_multiplier,
        outcome=jnp.where(settled, small.outcome, Outcome.NOT_CONVERGED),
        feasible=small.feasible & finite,
        active=small.active,
        objective_change=objective @ step,
        predicted_violations=violations + constraints @ step,
        divergence=half,
        residual=residual,
    )


def _check_shapes(objective: Array, constraints: Array, violations: Array) -> None:
    if jnp.ndim(objective) != 1 or jnp.ndim(constraints) != 2 or jnp.ndim(violations) != 1:
        raise ValueError(
            "trust_region_step takes objective[n], constraints[m, n] and violations[m]; got shapes "
            f"{jnp.shape(objective)}, {jnp.shape(constraints)}, {jnp.shape(violations)}. Use jax.vmap for a batch."
        )
    count, size = jnp.shape(constraints)
    if size != jnp.shape(objective)[0] or count != jnp.shape(violations)[0]:
        raise ValueError(
            f"shapes do not fit: objective {jnp.shape(objective)}, constraints {jnp.shape(constraints)}, "
            f"violations {jnp.shape(violations)}"
        )
    if count > MAX_CONSTRAINTS:
        raise ValueError(f"trust_region_step takes at most {MAX_CONSTRAINTS} constraints, got {count}")


def _scaled(objective: Array, constraints: Array, violations: Array) -> _Scaled:
    rows = jnp.concatenate([objective[None], constraints.astype(objective.dtype)])
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(rows), axis=1))
    scale = jnp.where(largest > 0, largest, 1)
    return _Scaled(rows / scale[:, None], violations.astype(objective.dtype) / scale[1:], scale)


def _unit(problem: _Scaled) -> Float[Array, ""]:
    """The largest entry of any constraint gradient: the recovery problem is solved in units of it."""
    return jnp.max(problem.scale[1:], initial=jnp.finfo(problem.scale.dtype).tiny)


def _search(problem: _Scaled, basis: Array, length: Array) -> _Small:
    """Solve the problem in coordinates y of its span, `x = length basis' y`, |y| <= 1. Not differentiated."""
    dtype = basis.dtype
    coordinates = products(basis, problem.rows)
    norms = jnp.linalg.norm(coordinates, axis=1)
    units = coordinates / jnp.where(norms > 0, norms, 1)[:, None]
    reach = length * norms[1:]  # how far the radius can move each constraint
    hopeless = problem.violations * rounding(dtype, 0.75) > reach
    # Beyond +-1 a constraint cannot be met, or cannot bind; clipping keeps squares from overflowing.
    sign = jnp.where(problem.violations > 0, 4.0, jnp.where(problem.violations < 0, -4.0, 0.0))
    offsets = jnp.clip(jnp.where(reach > 0, problem.violations / jnp.where(reach > 0, reach, 1), sign), -4, 4)
    ball = solve_in_ball(units[0], units[1:], offsets)

    unit = _unit(problem)
    weights = jnp.where(hopeless, 0, problem.scale[1:] / unit)
    least = least_violation(weights[:, None] * coordinates[1:], weights * problem.violations / length, ~ball.feasible)

    gain = problem.scale * norms
    multipliers = ball.multipliers * gain[0] / jnp.where(gain[1:] > 0, gain[1:], 1)
    remaining = jnp.maximum(weights * (problem.violations + length * coordinates[1:] @ least.point), 0)
    failed = jnp.where(least.radius_multiplier > 0, Outcome.RECOVERED, Outcome.INFEASIBLE)
    failed = jnp.where(jnp.any(hopeless), Outcome.NO_COST_GRADIENT, failed)
    return _Small(
        point=jnp.where(ball.feasible, ball.point, least.point),
        multipliers=jnp.where(ball.feasible, multipliers, unit * remaining),
        radius_multiplier=jnp.where(
            ball.feasible, ball.radius_multiplier * gain[0] / length, unit**2 * least.radius_multiplier
        ),
        feasible=ball.feasible,
        active=jnp.where(ball.feasible, ball.active, least.violated & ~hopeless),
        binding=jnp.where(ball.feasible, ball.on_sphere, least.radius_multiplier > 0),
        weights=weights,
        outcome=jnp.where(ball.feasible, Outcome.SOLVED, failed).astype(jnp.int32),
        settled=ball.feasible | least.converged,
    )


def _gram(rows: Array, solution: Array) -> Float[Array, "k k"]:
    product = products(solution, rows)
    return (product + product.T) / 2


def _formula(problem: _Scaled, solution: Array, radius: Array, small: _Small) -> _Formula:
    gram = _gram(problem.rows, solution)
    solved = _solved_formula(gram, problem, radius, small)
    if problem.violations.shape[0] == 0:
        return solved
    recovered = _recovered_formula(gram, problem, radius, small)
    return jax.tree.map(lambda ours, theirs: jnp.where(small.feasible, ours, theirs), solved, recovered)


def _solved_formula(gram: Array, problem: _Scaled, radius: Array, small: _Small) -> _Formula:
    """The solution in terms of the Gram matrix `S = [g, A] H^-1 [g, A]'`, given the active rows a.

    With `z = S_aa^-1 b_a` and `w = S_aa^-1 S_ag`: `x = -H^-1 A' z + (H^-1 g - H^-1 A' w) / lambda`, where
    `lambda^2 = (S_gg - S_ga w) / (2 radius - b_a z)`, and the multipliers are `w + lambda z`.
    """
    active = (small.active & small.feasible).astype(gram.dtype)
    binding = small.binding & small.feasible
    block = gram[1:, 1:] * active * active[:, None] + jnp.diag(1 - active)
    right = jnp.stack([active * problem.violations, active * gram[1:, 0]], axis=1)
    least, along = solve_positive(block, right).T
    free = gram[0, 0] - (active * gram[1:, 0]) @ along
    left = 2 * radius - (active * problem.violations) @ least
    usable = binding & (free > 0) & (left > 0)
    multiplier = jnp.where(usable, jnp.sqrt(jnp.where(usable, free, 1) / jnp.where(usable, left, 1)), 0)
    inverse = jnp.where(usable, 1 / jnp.where(usable, multiplier, 1), 0)
    coefficients = jnp.concatenate([inverse[None], -(least + inverse * along)])
    return _Formula(
        coefficients,
        (along + multiplier * least) * problem.scale[0] / problem.scale[1:],
        multiplier * problem.scale[0],
    )


def _recovered_formula(gram: Array, problem: _Scaled, radius: Array, small: _Small) -> _Formula:
    """The recovery step in terms of the violated rows v: `x = -H^-1 A' (S_vv + mu I)^-1 b_v` (rows weighted).

    `mu` solves `x.Hx = 2 radius`. It is known; two Newton steps from it, differentiated, carry its first and second
    derivatives.
    """
    violated = jnp.where(small.active & ~small.feasible, small.weights, 0)
    binding = small.binding & ~small.feasible
    block = gram[1:, 1:] * violated * violated[:, None]
    offsets = violated * problem.violations
    identity = jnp.eye(block.shape[0], dtype=gram.dtype)
    ridge = 1e2 * jnp.finfo(gram.dtype).eps * (jnp.trace(jax.lax.stop_gradient(block)) + jnp.finfo(gram.dtype).tiny)
    idle = jnp.diag((violated == 0).astype(gram.dtype))

    unit = _unit(problem)
    multiplier = jnp.where(binding, small.radius_multiplier / unit**2, 0)
    for _ in range(2):
        shifted = block + jnp.where(binding, multiplier, ridge) * identity + idle
        duals = solve_positive(shifted, offsets[:, None])[:, 0]
        excess = duals @ block @ duals - 2 * radius
        slope = -2 * (block @ duals) @ solve_positive(shifted, duals[:, None])[:, 0]
        multiplier = multiplier - jnp.where(binding & (slope < 0), excess / jnp.where(slope < 0, slope, -1), 0)
    shifted = block + jnp.where(binding, multiplier, ridge) * identity + idle
    duals = violated * solve_positive(shifted, offsets[:, None])[:, 0]
    coefficients = jnp.concatenate([jnp.zeros(1, gram.dtype), -duals])
    remaining = violated * (problem.violations + gram[1:] @ coefficients)
    return _Formula(coefficients, unit * remaining, unit**2 * multiplier)
