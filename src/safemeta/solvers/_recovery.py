"""The least violation inside a ball, when no point of the ball keeps every constraint.

    minimise  1/2 |max(0, c + B y)|^2   subject to  |y| <= 1

A convex problem with a piecewise quadratic objective, in a handful of dimensions. Newton's method: minimise the
quadratic of the rows that are violated now over the ball (one scalar equation), go there as far as an exact line
search allows, repeat until the set of violated rows settles.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from safemeta.solvers._dense import positive_inverse
from safemeta.solvers.linear import orthonormal_rows, rounding

_SECULAR_STEPS = 100  # Newton on a nearly linear function: 4 to 8 are needed, more where rows differ by many orders


class LeastViolation(NamedTuple):
    """The minimiser, with `B' residual + radius_multiplier y = 0`."""

    point: Float[Array, " k"]
    violated: Bool[Array, " m"]
    radius_multiplier: Float[Array, ""]  # 0: the ball does not bind
    converged: Bool[Array, ""]


class _State(NamedTuple):
    iteration: Array
    point: Array
    radius_multiplier: Array
    done: Array


def least_violation(
    rows: Float[Array, "m k"], offsets: Float[Array, " m"], needed: Bool[Array, ""], *, iterations: int = 60
) -> LeastViolation:
    """Solve the problem above, from y = 0; when not `needed`, return y = 0 at once (also inside `vmap`)."""
    eps = rounding(rows.dtype)

    def proceed(state: _State) -> Array:
        return ~state.done & (state.iteration < iterations)

    def advance(state: _State) -> _State:
        residual = offsets + rows @ state.point
        violated = (residual > 0).astype(rows.dtype)
        target, multiplier = _ball_least_squares(rows * violated[:, None], offsets * violated)
        direction = target - state.point
        fraction = _exact_line_search(residual, rows @ direction)
        point = state.point + fraction * direction
        settled = jnp.all((offsets + rows @ point > 0) == (residual > 0)) & (fraction == 1)
        short = jnp.linalg.norm(fraction * direction) <= 4 * eps
        return _State(state.iteration + 1, point, multiplier, settled | short)

    zero = jnp.zeros(rows.shape[1], rows.dtype)
    start = _State(jnp.zeros((), jnp.int32), zero, jnp.zeros((), rows.dtype), ~needed)
    final = jax.lax.while_loop(proceed, advance, start)
    return LeastViolation(final.point, offsets + rows @ final.point > 0, final.radius_multiplier, final.done)


def _ball_least_squares(rows: Array, offsets: Array) -> tuple[Array, Array]:
    """`argmin 1/2 |offsets + rows y|^2` over |y| <= 1 (of least norm), and the ball's multiplier.

    In an orthonormal basis of the rows, `y = basis' t` and `t = -(N + mu I)^-1 L' offsets` with `L = rows basis'` and
    `N = L'L`. mu is zero if that fits, else the root of 1/|t(mu)| = 1, which Newton's method approaches from below
    without overshooting (More and Sorensen 1983).

    The longest rows come first, and L is lower triangular to the last bit: then N is graded, and eliminating in that
    order is accurate even where rows differ by so many orders that N is singular to rounding.
    """
    order = jnp.argsort(-jnp.linalg.norm(rows, axis=1))
    rows, offsets = rows[order], offsets[order]
    basis = orthonormal_rows(rows, dependent=rounding(rows.dtype, 0.4))
    coordinates = jnp.tril(rows @ basis.T)
    idle = jnp.diag(jnp.all(basis == 0, axis=1).astype(rows.dtype))
    normal = coordinates.T @ coordinates + idle
    target = coordinates.T @ offsets
    identity = jnp.eye(normal.shape[0], dtype=rows.dtype)

    def newton(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, multiplier, _ = state
        inverse = positive_inverse(normal + multiplier * identity)
        point = -inverse @ target
        norm = jnp.linalg.norm(point)
        slope = point @ inverse @ point
        outside = norm > 1 + 4 * rounding(rows.dtype)
        step = jnp.where(outside, norm**2 / jnp.where(slope > 0, slope, 1) * (norm - 1), 0)
        return count + 1, multiplier + step, point

    def proceed(state: tuple[Array, Array, Array]) -> Array:
        count, _, point = state
        return (count < _SECULAR_STEPS) & ((count == 0) | (jnp.linalg.norm(point) > 1 + 4 * rounding(rows.dtype)))

    start = (jnp.zeros((), jnp.int32), jnp.zeros((), rows.dtype), jnp.zeros_like(target))
    _, multiplier, point = jax.lax.while_loop(proceed, newton, start)
    return (point / jnp.maximum(jnp.linalg.norm(point), 1)) @ basis, multiplier


def _exact_line_search(residual: Array, slope: Array) -> Array:
    """The minimiser over [0, 1] of `1/2 |max(0, residual + t slope)|^2`, whose derivative is piecewise linear in t."""
    moving = slope != 0
    kinks = jnp.where(moving, -residual / jnp.where(moving, slope, 1), 0)
    ends = jnp.array([0, 1], residual.dtype)
    times = jnp.sort(jnp.concatenate([jnp.clip(kinks, 0, 1), ends]))
    derivative = jnp.maximum(residual + times[:, None] * slope, 0) @ slope
    last = jnp.clip(jnp.sum(derivative <= 0) - 1, 0, times.shape[0] - 2)
    rise = derivative[last + 1] - derivative[last]
    share = jnp.where(rise > 0, -derivative[last] / jnp.where(rise > 0, rise, 1), 1)
    inner = times[last] + jnp.clip(share, 0, 1) * (times[last + 1] - times[last])
    return jnp.where(derivative[-1] <= 0, jnp.ones_like(inner), jnp.clip(inner, 0, 1))
