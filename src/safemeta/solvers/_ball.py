"""A linear objective over a ball cut by half-spaces, in a handful of dimensions, exactly.

    maximise  o.y   subject to  |y| <= 1,  c_i + B_i y <= 0  (i = 1..m)

with |o| = 1 (or 0) and |B_i| = 1: the trust-region problem in coordinates of its own span. Of some linearly
independent set of its active rows the optimum is the best point of the ball that keeps those rows *equal*. So each of
the 2^m sets gives one candidate, in closed form, and the best candidate that keeps all rows is the solution: nothing
iterates, and nothing depends on signs of multipliers that rounding may flip.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from safemeta.solvers.linear import rounding

MAX_CONSTRAINTS = 8  # 2^8 candidates; beyond that an iterative active-set method would be the better choice


class BallSolution(NamedTuple):
    """The solution and its optimality evidence, `o = radius_multiplier y + B' multipliers`."""

    point: Float[Array, " k"]
    multipliers: Float[Array, " m"]
    radius_multiplier: Float[Array, ""]
    active: Bool[Array, " m"]  # the independent rows that define the point
    on_sphere: Bool[Array, ""]  # False: the ball does not bind, and the point is the one of least norm
    feasible: Bool[Array, ""]


class _Candidates(NamedTuple):
    """One row per set of constraints taken as equalities."""

    nearest: Float[Array, "sets k"]  # the point nearest to 0 that keeps them equal
    free: Float[Array, "sets k"]  # the objective, without its part along them
    independent: Bool[Array, " sets"]
    basis: Float[Array, "m sets k"]  # orthonormal directions of the rows, in order; zero where left out


def tolerances(dtype: jnp.dtype) -> tuple[float, float, float]:
    """(constraint violation, dependence of rows, equality of objectives), all for quantities of order one."""
    eps = rounding(dtype)
    return eps**0.7, 50 * eps, 20 * eps


def solve_in_ball(
    objective: Float[Array, " k"], rows: Float[Array, "m k"], offsets: Float[Array, " m"]
) -> BallSolution:
    """Solve the problem above. Among equally good points the one of least norm is taken, then the fewest rows."""
    count = rows.shape[0]
    slack, _, tie = tolerances(rows.dtype)
    members = np.array(list(itertools.product([False, True], repeat=count)), dtype=bool).reshape(2**count, count)
    found = _candidates(objective, rows, offsets, jnp.asarray(members.T))

    norm = jnp.sum(found.nearest**2, axis=1)
    free = jnp.linalg.norm(found.free, axis=1)
    on_sphere = free > slack
    reach = jnp.where(on_sphere, jnp.sqrt(jnp.maximum(1 - norm, 0)), 0)
    points = found.nearest + (reach / jnp.where(on_sphere, free, 1))[:, None] * found.free

    worst = jnp.max(points @ rows.T + offsets, axis=1, initial=-jnp.inf)
    feasible = found.independent & (norm <= 1 + slack) & (worst <= slack)
    value = jnp.where(feasible, points @ objective, -jnp.inf)
    best = value >= jnp.max(value) - tie
    size = jnp.asarray(members.sum(axis=1), rows.dtype)
    chosen = jnp.argmin(jnp.where(best & feasible, jnp.sum(points**2, axis=1) + 1e2 * slack * size, jnp.inf))

    point = points[chosen]
    radius_multiplier = jnp.where(
        on_sphere[chosen], free[chosen] / jnp.maximum(reach[chosen], jnp.finfo(rows.dtype).eps), 0
    )
    multipliers = _multipliers(objective - radius_multiplier * point, rows, found.basis[:, chosen])
    return BallSolution(
        point, multipliers, radius_multiplier, jnp.asarray(members)[chosen], on_sphere[chosen], jnp.any(feasible)
    )


def _candidates(objective: Array, rows: Array, offsets: Array, members: Bool[Array, "m sets"]) -> _Candidates:
    """All sets at once, one row after the other: Gram-Schmidt, and a step along each new direction."""
    count, size = rows.shape
    dependent = tolerances(rows.dtype)[1]
    sets = members.shape[1]

    def take(index: int | Array, found: _Candidates) -> _Candidates:
        row, offset, taken = rows[index], offsets[index], members[index]
        fresh = jnp.broadcast_to(row, (sets, size))
        for _ in range(2):  # the second pass removes what rounding left of the first
            fresh = fresh - jnp.einsum("jsk,jsl,sl->sk", found.basis, found.basis, fresh)
        length = jnp.linalg.norm(fresh, axis=1)
        usable = taken & (length > dependent)
        inverse = jnp.where(usable, 1 / jnp.where(usable, length, 1), 0)
        fresh = fresh * inverse[:, None]
        step = -(offset + found.nearest @ row) * inverse
        return _Candidates(
            found.nearest + step[:, None] * fresh,
            found.free - fresh * jnp.sum(fresh * found.free, axis=1, keepdims=True),
            found.independent & (usable | ~taken),
            found.basis.at[index].set(fresh),
        )

    start = _Candidates(
        jnp.zeros((sets, size), rows.dtype),
        jnp.broadcast_to(objective, (sets, size)),
        jnp.ones(sets, bool),
        jnp.zeros((count, sets, size), rows.dtype),
    )
    return jax.lax.fori_loop(0, count, take, start) if count else start


def _multipliers(gradient: Array, rows: Array, basis: Float[Array, "m k"]) -> Float[Array, " m"]:
    """`multipliers` with `gradient = B' multipliers`, by back substitution; zero for rows that were left out."""

    def back(rest: Array, pair: tuple[Array, Array]) -> tuple[Array, Array]:
        row, direction = pair
        pivot = direction @ row
        multiplier = jnp.where(pivot > 0, (direction @ rest) / jnp.where(pivot > 0, pivot, 1), 0)
        return rest - multiplier * row, multiplier

    return jax.lax.scan(back, gradient, (rows, basis), reverse=True)[1]
