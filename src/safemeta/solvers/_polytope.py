"""The point of a polytope that is nearest to the origin, by a dual active-set method.

    minimise  1/2 |y|^2   subject to  B y <= c

Goldfarb and Idnani (1983): start at y = 0, take in the most violated row, drop rows whose multiplier would turn
negative, repeat. Each step is exact linear algebra in the k dimensions of y, so the number of steps is about the
number of rows that end up active, however nearly parallel they are. (Coordinate ascent on the multipliers, the usual
alternative, needs a number of sweeps that grows with the inverse square of the angle between rows.) Orthogonal
factors of the active rows are used, never their Gram matrix, whose condition is the square.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from safemeta.solvers.linear import rounding


class NearestPoint(NamedTuple):
    """The solution, with `y = -B' multipliers`."""

    point: Float[Array, " k"]
    multipliers: Float[Array, " m"]
    active: Bool[Array, " m"]  # linearly independent
    feasible: Bool[Array, ""]  # False: the polytope is empty, and the point is where that was noticed
    converged: Bool[Array, ""]


class _State(NamedTuple):
    iteration: Int[Array, ""]
    point: Float[Array, " k"]
    slots: Int[Array, " k"]  # active rows, in the order in which they came; -1 is an empty slot
    duals: Float[Array, " k"]  # their multipliers
    entering: Int[Array, ""]  # the row that is being taken in; -1: none
    entering_dual: Float[Array, ""]
    feasible: Bool[Array, ""]
    done: Bool[Array, ""]


def nearest_point(rows: Float[Array, "m k"], bounds: Float[Array, " m"], needed: Bool[Array, ""]) -> NearestPoint:
    """Solve the problem above for rows of length one (or zero: such a row is ignored) and bounds of order one.

    When not `needed`, return y = 0 at once (also inside `vmap`).
    """
    count, size = rows.shape
    slack = rounding(rows.dtype, 0.75)
    limit = 50 + 5 * (count + size)
    used = jnp.any(rows != 0, axis=1)

    def proceed(state: _State) -> Array:
        return ~state.done & (state.iteration < limit)

    def advance(state: _State) -> _State:
        excess = jnp.where(used, rows @ state.point - bounds, -jnp.inf)
        excess = excess.at[state.slots].set(-jnp.inf, mode="drop", wrap_negative_indices=False)
        worst = jnp.argmax(excess)
        finished = (state.entering < 0) & (excess[worst] <= slack * (1 + jnp.linalg.norm(state.point)))
        row = jnp.where(state.entering < 0, worst, state.entering)
        moved = _step(state, rows, row, rows[row] @ state.point - bounds[row])
        done = finished | ~moved.feasible
        kept = state._replace(iteration=state.iteration + 1, done=done)
        return jax.tree.map(lambda old, new: jnp.where(finished, old, new), kept, moved._replace(done=done))

    integer = jnp.zeros((), jnp.int32)
    start = _State(
        iteration=integer,
        point=jnp.zeros(size, rows.dtype),
        slots=jnp.full(size, -1, jnp.int32),
        duals=jnp.zeros(size, rows.dtype),
        entering=integer - 1,
        entering_dual=jnp.zeros((), rows.dtype),
        feasible=jnp.ones((), bool),
        done=~needed,
    )
    final = jax.lax.while_loop(proceed, advance, start)
    point, duals = _polished(rows, bounds, final)
    taken = jnp.where(final.slots >= 0, final.slots, count)
    multipliers = jnp.zeros(count, rows.dtype).at[taken].set(duals, mode="drop")
    active = jnp.zeros(count, bool).at[taken].set(True, mode="drop")
    return NearestPoint(point, multipliers, active, final.feasible, final.done)


def _factors(rows: Array, slots: Array) -> tuple[Array, Array]:
    """Q [k, k] with zero columns for empty slots, and R [k, k] with ones on their diagonal."""
    filled = slots >= 0
    chosen = jnp.where(filled[:, None], rows[slots], 0)
    orthogonal, triangle = jnp.linalg.qr(chosen.T)
    return orthogonal * filled, triangle * filled + jnp.diag((~filled).astype(rows.dtype))


def _step(state: _State, rows: Array, row: Array, excess: Array) -> _State:
    """Move until the entering row holds, or until a multiplier reaches zero, whichever comes first."""
    normal = rows[row]
    orthogonal, triangle = _factors(rows, state.slots)
    along = orthogonal.T @ normal
    across = normal - orthogonal @ along
    across = across - orthogonal @ (orthogonal.T @ across)
    rates = jax.scipy.linalg.solve_triangular(triangle, along)
    square = across @ across
    independent = jnp.sqrt(square) > 1e3 * rounding(rows.dtype)

    full = jnp.where(independent, excess / jnp.where(independent, square, 1), jnp.inf)
    falling = (state.slots >= 0) & (rates > rounding(rows.dtype))
    ratios = jnp.where(falling, state.duals / jnp.where(falling, rates, 1), jnp.inf)
    blocking = jnp.argmin(ratios)
    partial = ratios[blocking]
    length = jnp.minimum(full, partial)
    feasible = jnp.isfinite(length)
    length = jnp.where(feasible, length, 0)

    point = state.point - jnp.where(independent, length, 0) * across
    duals = jnp.maximum(state.duals - length * rates, 0) * (state.slots >= 0)
    dual = state.entering_dual + length
    enters = feasible & (full <= partial)
    # Entering: fill the first empty slot. Blocked: empty the slot that blocks, closing the gap, and go on entering.
    free = jnp.sum(state.slots >= 0)
    position = jnp.arange(state.slots.shape[0])
    shift = jnp.where(position >= blocking, position + 1, position)
    added = (state.slots.at[free].set(row.astype(jnp.int32), mode="drop"), duals.at[free].set(dual, mode="drop"))
    removed = (
        state.slots.at[shift].get(mode="fill", fill_value=-1),
        duals.at[shift].get(mode="fill", fill_value=0),
    )
    slots, duals = jax.tree.map(lambda new, old: jnp.where(enters, new, old), added, removed)
    return state._replace(
        iteration=state.iteration + 1,
        point=point,
        slots=jnp.where(feasible, slots, state.slots),
        duals=jnp.where(feasible, duals, state.duals),
        entering=jnp.where(enters, -1, row.astype(jnp.int32)),
        entering_dual=jnp.where(enters, 0, dual),
        feasible=feasible,
    )


def _polished(rows: Array, bounds: Array, state: _State) -> tuple[Array, Array]:
    """The point and the multipliers computed afresh from the active rows, free of what the steps accumulated."""
    orthogonal, triangle = _factors(rows, state.slots)
    filled = state.slots >= 0
    targets = jnp.where(filled, bounds[state.slots], 0)
    coordinates = jax.scipy.linalg.solve_triangular(triangle, targets, trans=1)
    point = orthogonal @ coordinates
    missed = jnp.where(filled, targets - rows[state.slots] @ point, 0)
    coordinates = coordinates + jax.scipy.linalg.solve_triangular(triangle, missed, trans=1)
    return orthogonal @ coordinates, -jax.scipy.linalg.solve_triangular(triangle, coordinates)
