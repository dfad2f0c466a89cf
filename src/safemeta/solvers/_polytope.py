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


class _Factors(NamedTuple):
    """The active rows, `rows[slots] = R' basis`, and what is needed to solve with them."""

    slots: Int[Array, " q"]  # q = min(m, k) active rows, in the order in which they came; -1 is an empty slot
    basis: Float[Array, "q k"]  # orthonormal rows; zero for an empty slot
    inverse: Float[Array, "q q"]  # R^-1, upper triangular


class _State(NamedTuple):
    """While no row is entering, the point and the multipliers are those of the factors."""

    iteration: Int[Array, ""]
    point: Float[Array, " k"]
    factors: _Factors
    duals: Float[Array, " q"]  # multipliers of the slots
    entering: Int[Array, ""]  # the row that is being taken in; -1: none
    before: Int[Array, " q"]  # the slots when that row was chosen
    passed: Bool[Array, " m"]  # rows whose excess is rounding of the active rows; forgotten when a row comes in
    feasible: Bool[Array, ""]
    done: Bool[Array, ""]


def nearest_point(
    rows: Float[Array, "m k"], bounds: Float[Array, " m"], noise: Float[Array, " m"], needed: Bool[Array, ""]
) -> NearestPoint:
    """Solve the problem above for rows of length one (or zero: such a row is ignored).

    The largest violation of y = 0 should be of order one. `noise` is the rounding error that the bounds bring along.
    An excess no larger than what noise and rounding explain counts as none: nearly parallel rows would turn it into a
    visible move, or into a contradiction. When not `needed`, return y = 0 at once (also inside `vmap`).
    """
    count, size = rows.shape
    limit = 50 + 5 * (count + size)
    used = jnp.any(rows != 0, axis=1)

    def error(iteration: Array, point: Array) -> Array:
        """Of each row's excess. Coarser for a run that is long, lest it turn in circles of rounding."""
        slack = jnp.where(iteration < limit // 2, 32 * rounding(rows.dtype), rounding(rows.dtype, 0.75))
        return noise + slack * (1 + jnp.linalg.norm(point))

    def proceed(state: _State) -> Array:
        return ~state.done & (state.iteration < limit)

    def advance(state: _State) -> _State:
        errors = error(state.iteration, state.point)
        excess = jnp.where(used & ~state.passed, rows @ state.point - bounds, -jnp.inf)
        held = state.factors.slots
        excess = excess.at[jnp.where(held >= 0, held, count)].set(-jnp.inf, mode="drop")
        worst = jnp.argmax(excess - errors)
        finished = (state.entering < 0) & (excess[worst] <= errors[worst])
        row = jnp.where(state.entering < 0, worst, state.entering).astype(jnp.int32)
        moved = _step(state, rows, bounds, row, errors)
        kept = state._replace(iteration=state.iteration + 1, done=finished)
        return jax.tree.map(lambda old, new: jnp.where(finished, old, new), kept, moved)

    integer = jnp.zeros((), jnp.int32)
    nothing = _nothing(rows)
    start = _State(
        iteration=integer,
        point=jnp.zeros(size, rows.dtype),
        factors=nothing,
        duals=jnp.zeros(min(count, size), rows.dtype),
        entering=integer - 1,
        before=nothing.slots,
        passed=jnp.zeros(count, bool),
        feasible=jnp.ones((), bool),
        done=~needed,
    )
    final = jax.lax.while_loop(proceed, advance, start)
    point, duals = _held(rows, bounds, final.factors)
    slots = final.factors.slots
    taken = jnp.where(slots >= 0, slots, count)
    multipliers = jnp.zeros(count, rows.dtype).at[taken].set(duals, mode="drop")
    active = jnp.zeros(count, bool).at[taken].set(True, mode="drop")
    return NearestPoint(point, multipliers, active, final.feasible, final.done)


def _nothing(rows: Array) -> _Factors:
    count, size = rows.shape
    slots = min(count, size)
    return _Factors(
        jnp.full(slots, -1, jnp.int32), jnp.zeros((slots, size), rows.dtype), jnp.zeros((slots, slots), rows.dtype)
    )


def _split(factors: _Factors, normal: Array) -> tuple[Array, Array]:
    """A row's coordinates in the basis, and what is left of it across the basis."""
    along = factors.basis @ normal
    across = normal - along @ factors.basis
    missed = factors.basis @ across  # once more: removes what rounding left
    return along + missed, across - missed @ factors.basis


def _append(factors: _Factors, row: Array, along: Array, across: Array) -> _Factors:
    """Take a row into the first empty slot."""
    free = jnp.sum(factors.slots >= 0)
    length = jnp.linalg.norm(across)
    scale = 1 / jnp.where(length > 0, length, 1)
    column = (-(factors.inverse @ along) * scale).at[free].set(scale, mode="drop")
    return _Factors(
        factors.slots.at[free].set(row.astype(jnp.int32), mode="drop"),
        factors.basis.at[free].set(across * scale, mode="drop"),
        factors.inverse.at[:, free].set(column, mode="drop"),
    )


def _rebuilt(rows: Array, slots: Array) -> _Factors:
    """The factors of the given slots, from nothing."""

    def take(index: int | Array, factors: _Factors) -> _Factors:
        row = slots[index]
        fuller = _append(factors, row, *_split(factors, rows[row]))
        return jax.tree.map(lambda new, old: jnp.where(row >= 0, new, old), fuller, factors)

    return jax.lax.fori_loop(0, slots.shape[0], take, _nothing(rows))


def _step(state: _State, rows: Array, bounds: Array, row: Array, errors: Array) -> _State:
    """Move until the entering row holds, or until a multiplier reaches zero, whichever comes first."""
    factors = state.factors
    filled = factors.slots >= 0
    along, across = _split(factors, rows[row])
    rates = factors.inverse @ along
    square = across @ across
    independent = jnp.sqrt(square) > 1e3 * rounding(rows.dtype)
    excess = rows[row] @ state.point - bounds[row]
    # The row's value at this point is `rates` times the bounds of the active rows, so it has their errors too.
    explained = excess <= errors[row] + jnp.abs(rates) @ jnp.where(filled, errors[factors.slots], 0)

    full = jnp.where(independent, excess / jnp.where(independent, square, 1), jnp.inf)
    falling = filled & (rates > rounding(rows.dtype))
    ratios = jnp.where(falling, state.duals / jnp.where(falling, rates, 1), jnp.inf)
    blocking = jnp.argmin(ratios)
    partial = ratios[blocking]
    length = jnp.minimum(full, partial)
    stuck = ~jnp.isfinite(length)
    passes = explained & (stuck | (state.entering < 0))
    before = jnp.where(state.entering < 0, factors.slots, state.before)
    length = jnp.where(stuck, 0, length)
    enters = ~stuck & (full <= partial)

    # Entering: the first empty slot is filled. Blocked: the slot that blocks is emptied and the gap closed. Passed:
    # everything is as it was before the row was chosen.
    position = jnp.arange(factors.slots.shape[0])
    shift = jnp.where(position >= blocking, position + 1, position)
    rest = factors.slots.at[shift].get(mode="fill", fill_value=-1)
    unchanged = stuck & ~passes
    rest = jnp.where(passes, before, jnp.where(unchanged, factors.slots, rest))
    changed = jax.lax.cond(enters & ~passes, lambda: _append(factors, row, along, across), lambda: _rebuilt(rows, rest))
    settled = enters | passes
    held_point, held_duals = _held(rows, bounds, changed)
    duals = jnp.maximum(state.duals - length * rates, 0) * filled
    return state._replace(
        iteration=state.iteration + 1,
        point=jnp.where(settled, held_point, state.point - jnp.where(independent, length, 0) * across),
        factors=changed,
        duals=jnp.where(settled, jnp.maximum(held_duals, 0), duals.at[shift].get(mode="fill", fill_value=0)),
        entering=jnp.where(settled, -1, row),
        before=before,
        passed=jnp.where(passes, state.passed.at[row].set(True), state.passed & ~enters),
        feasible=~unchanged,
        done=unchanged,
    )


def _held(rows: Array, bounds: Array, factors: _Factors) -> tuple[Array, Array]:
    """The point nearest to 0 on which the active rows are equalities, and its multipliers, by slot."""
    slots, basis, inverse = factors
    filled = slots >= 0
    targets = jnp.where(filled, bounds[slots], 0)
    coordinates = targets @ inverse
    for _ in range(2):
        missed = jnp.where(filled, targets - rows[slots] @ (coordinates @ basis), 0)
        coordinates = coordinates + missed @ inverse
    return coordinates @ basis, -inverse @ coordinates
