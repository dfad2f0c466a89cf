"""Projection of an update onto the half-spaces that keep linearised constraints (FISAR; Sun, Kim and How).

    A x <= b,   A = gradients of the constraints [m, n],   b = bounds, for FISAR -alpha C(theta)

Two metrics. `euclidean` gives the nearest point of the polytope. `closed_form` is the paper's: with its matrix Q,
`x = raw - A' (A A')^-1 max(0, A raw - b)`. Each violated row ends on its bound, and the value of a satisfied row does
not change (the paper's delta cancels, and the n x n matrix is never needed). For one constraint they agree. For more,
`closed_form` moves further, and a flow that uses it can stop at points that are not optimal: its multipliers may be
negative. See docs/constrained-updates.md.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from safemeta.solvers._dense import eliminate, solve_positive
from safemeta.solvers._polytope import NearestPoint, nearest_point
from safemeta.solvers.linear import combination, orthonormal_rows, products, rounding, with_derivative_of
from safemeta.solvers.outcome import Outcome

ProjectionMetric = Literal["euclidean", "closed_form"]


class Projection(NamedTuple):
    """The projected update, `update = raw - A' multipliers`, and what became of it."""

    update: Float[Array, " n"]
    multipliers: Float[Array, " m"]
    feasible: Bool[Array, ""]  # whether the polytope has a point
    active: Bool[Array, " m"]  # the constraints that moved the update
    outcome: Int[Array, ""]  # an `Outcome`
    fell_back: Bool[Array, ""]  # `closed_form` was ill-posed here, and the Euclidean answer was given


class _Unit(NamedTuple):
    """Constraints with rows of length one; dropped rows are zero."""

    rows: Float[Array, "m n"]
    length: Float[Array, " m"]
    violation: Float[Array, " m"]  # of the raw update, per unit of length; -1 for dropped rows
    noise: Float[Array, " m"]  # the rounding error of that


class _Found(NamedTuple):
    """The outcome of the search: not differentiated."""

    point: Float[Array, " n"]
    multipliers: Float[Array, " m"]
    active: Bool[Array, " m"]
    softness: Float[Array, ""]  # 0, or 1 / weight of the violation where the polytope is empty
    converged: Bool[Array, ""]


def project_update(
    raw: Float[Array, " n"],
    gradients: Float[Array, "m n"],
    bounds: Float[Array, " m"],
    *,
    metric: ProjectionMetric = "euclidean",
    smallest_gradient: float = 1e-8,
) -> Projection:
    """The update nearest to `raw` with `gradients @ update <= bounds`.

    Any m and n, m > n included; rows may repeat each other. The cost is that of an orthonormal basis of the rows,
    O(n m^2) time and O(n m) memory; the rest happens in min(m, n) dimensions.

    - SOLVED: feasible to rounding; with `euclidean` also optimal. Where m > n, or rows are (nearly) dependent, the
      formula of `closed_form` is undefined, and neither pseudo-inverse nor ridge would keep the constraints: then it
      gives the Euclidean answer, and says so in `fell_back`.
    - INFEASIBLE: no point satisfies all rows. The update is a compromise: `eps**-0.5` times the squared violation (of
      rows of length one) plus the squared distance to `raw` is least.
    - NO_COST_GRADIENT: a row no longer than `smallest_gradient` has a negative bound; it was left out.
    - NOT_CONVERGED: not finite (the update is then zero), or out of iterations.

    Works under `jit` and `vmap`; differentiable to any order in all arrays, on the final set of active rows. Raises
    ValueError for shapes that do not fit and for an unknown metric.
    """
    raw, gradients, bounds = jnp.asarray(raw), jnp.asarray(gradients), jnp.asarray(bounds)
    if raw.ndim != 1 or gradients.shape != (bounds.size, raw.size) or bounds.ndim != 1:
        raise ValueError(
            "project_update takes raw[n], gradients[m, n] and bounds[m]; got shapes "
            f"{raw.shape}, {gradients.shape}, {bounds.shape}. Use jax.vmap for a batch."
        )
    if metric not in ("euclidean", "closed_form"):
        raise ValueError(f"metric must be 'euclidean' or 'closed_form', got {metric!r}")

    unit, hopeless = _unit_rows(raw, gradients, bounds, smallest_gradient)
    gram = products(unit.rows, unit.rows)
    trusted = jax.lax.stop_gradient(_well_posed(gram, unit)) if metric == "closed_form" else jnp.zeros((), bool)
    found = _search(*jax.lax.stop_gradient((raw, unit)), ~trusted, skippable=metric == "closed_form")

    exact = _euclidean_formula(gram, unit, found)
    closed = _closed_formula(gram, unit, trusted)
    nearest = with_derivative_of(found.multipliers, exact)
    multipliers = jnp.where(trusted, closed, nearest)
    update = jnp.where(
        trusted,
        raw - combination(closed, unit.rows),
        with_derivative_of(found.point, raw - combination(exact, unit.rows)),
    )
    finite = jnp.all(jnp.isfinite(update))
    feasible = trusted | (found.softness == 0)
    outcome = jnp.where(feasible, Outcome.SOLVED, Outcome.INFEASIBLE)
    outcome = jnp.where(jnp.any(hopeless), Outcome.NO_COST_GRADIENT, outcome)
    outcome = jnp.where(finite & (trusted | found.converged), outcome, Outcome.NOT_CONVERGED)
    return Projection(
        update=jnp.where(finite, update, 0),
        multipliers=multipliers / unit.length,
        feasible=feasible & ~jnp.any(hopeless) & finite,
        active=jnp.where(trusted, unit.violation > 0, found.active),
        outcome=outcome.astype(jnp.int32),
        fell_back=~trusted & (metric == "closed_form"),
    )


def _unit_rows(raw: Array, gradients: Array, bounds: Array, smallest: float) -> tuple[_Unit, Bool[Array, " m"]]:
    gradients, bounds = gradients.astype(raw.dtype), bounds.astype(raw.dtype)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(gradients), axis=1, initial=0))
    safe = jnp.where(largest > 0, largest, 1)  # squares of very large or small entries stay in range
    length = safe * jnp.linalg.norm(jax.lax.stop_gradient(gradients) / safe[:, None], axis=1)
    kept = length > smallest
    length = jnp.where(kept, length, 1)
    rows = jnp.where(kept[:, None], gradients / length[:, None], 0)
    violation = jnp.where(kept, rows @ raw - bounds / length, -1)
    noise = 4 * rounding(raw.dtype) * (jnp.linalg.norm(raw) + jnp.abs(bounds) / length)
    return _Unit(rows, length, violation, jax.lax.stop_gradient(noise)), ~kept & (bounds < 0)


def _search(raw: Array, unit: _Unit, needed: Bool[Array, ""], *, skippable: bool) -> _Found:
    """`_nearest` where it is needed, else the raw update (within `vmap` the basis is computed all the same)."""
    count = unit.length.size
    yes = jnp.ones((), bool)
    nothing = _Found(raw, jnp.zeros(count, raw.dtype), jnp.zeros(count, bool), jnp.zeros((), raw.dtype), yes)
    if count == 0:
        return nothing
    if not skippable:
        return _nearest(raw, unit, needed)
    return jax.lax.cond(needed, lambda: _nearest(raw, unit, needed), lambda: nothing)


def _nearest(raw: Array, unit: _Unit, needed: Bool[Array, ""]) -> _Found:
    """The active rows, found in coordinates y of the rows' span: `x = raw + basis' y`."""
    count, size = unit.rows.shape
    basis = orthonormal_rows(unit.rows) if count < size else None
    rows = unit.rows if basis is None else products(basis, unit.rows)
    largest = jnp.max(unit.violation)  # not its absolute value: a row that is far from binding sets no scale
    distance = jnp.where(largest > 0, largest, 1)
    bounds, noise = -unit.violation / distance, unit.noise / distance
    hard = nearest_point(rows, bounds, noise, needed)
    soft, softness = _compromise(rows, bounds, noise, needed & ~hard.feasible)
    found = jax.tree.map(lambda ours, theirs: jnp.where(hard.feasible, ours, theirs), hard, soft)
    move = distance * found.point
    return _Found(
        point=raw + (move if basis is None else combination(move, basis)),
        multipliers=distance * found.multipliers,
        active=found.active,
        softness=jnp.where(hard.feasible, 0, softness),
        converged=found.converged,
    )


def _compromise(rows: Array, bounds: Array, noise: Array, needed: Bool[Array, ""]) -> tuple[NearestPoint, float]:
    """`argmin |y|^2 + |v|^2 / softness` with `B y - v <= c`: a nearest point again, with one more dimension per row."""
    size = rows.shape[1]
    softness = rounding(rows.dtype, 0.5)
    kept = jnp.any(rows != 0, axis=1)
    shrink = (1 + softness) ** -0.5
    extended = jnp.concatenate([rows, -(softness**0.5) * jnp.diag(kept.astype(rows.dtype))], axis=1)
    found = nearest_point(shrink * extended, shrink * bounds, shrink * noise, needed)
    return found._replace(point=found.point[:size], multipliers=shrink * found.multipliers), softness


def _euclidean_formula(gram: Array, unit: _Unit, found: _Found) -> Float[Array, " m"]:
    """Multipliers of the active rows a: `(G_aa + softness I)^-1 violation_a`."""
    active = found.active.astype(gram.dtype)
    block = gram * active * active[:, None] + jnp.diag(1 - active + found.softness * active)
    return solve_positive(block, (active * unit.violation)[:, None])[:, 0]


def _closed_formula(gram: Array, unit: _Unit, trusted: Bool[Array, ""]) -> Float[Array, " m"]:
    """The paper's multipliers `G^-1 max(0, violation)`: all rows take part, and signs are free."""
    dropped = jnp.diag((unit.rows == 0).all(axis=1).astype(gram.dtype))
    block = jnp.where(trusted, gram + dropped, jnp.eye(gram.shape[0], dtype=gram.dtype))
    excess = jnp.where(trusted & (unit.violation > 0), unit.violation, 0)  # where, not maximum: no half slope at a tie
    return solve_positive(block, excess[:, None])[:, 0]


def _well_posed(gram: Array, unit: _Unit) -> Bool[Array, ""]:
    """Whether the closed form may be used: m <= n, and no row (nearly) in the span of the ones before it.

    The pivots of elimination are the squared distances of the rows, of length one, from that span.
    """
    count, size = unit.rows.shape
    if count > size:
        return jnp.zeros((), bool)
    dropped = jnp.diag((unit.rows == 0).all(axis=1).astype(gram.dtype))
    upper, _ = eliminate(gram + dropped, gram[:, :0])
    return jnp.min(jnp.diagonal(upper), initial=1) > rounding(gram.dtype, 0.4)  # 5e-7 in float64, 2e-3 in float32
