"""Minimising a smooth convex function of a few multipliers u >= 0, by Newton's method or by projected gradient."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from safemeta.solvers._dense import solve_positive

Method = Literal["newton", "projected_gradient"]


class DualModel(NamedTuple):
    """A dual function at one u. `scale` is the size of the terms that the gradient is a difference of."""

    value: Float[Array, ""]
    gradient: Float[Array, " p"]
    hessian: Float[Array, "p p"]
    scale: Float[Array, " p"]


class Minimum(NamedTuple):
    multipliers: Float[Array, " p"]
    free: Bool[Array, " p"]  # multipliers strictly between their bounds
    converged: Bool[Array, ""]
    iterations: Int[Array, ""]


class _State(NamedTuple):
    iteration: Array
    point: Float[Array, " p"]
    done: Array


def minimise(
    model: Callable[[Float[Array, " p"]], DualModel],
    start: Float[Array, " p"],
    *,
    method: Method,
    iterations: int,
    tolerance: float,
    limit: float,
    learning_rate: float,
) -> Minimum:
    """`argmin model(u).value` over 0 <= u <= limit. Not differentiated: see `implicit`."""

    def optimal(point: Array) -> tuple[Array, DualModel]:
        here = model(point)
        return jnp.all(jnp.abs(_projected(point, here.gradient, limit)) <= tolerance * here.scale), here

    def proceed(state: _State) -> Array:
        return ~state.done & (state.iteration < iterations)

    def advance(state: _State) -> _State:
        done, here = optimal(state.point)
        if method == "newton":
            moved = _newton_step(model, state.point, here, limit)
        else:
            moved = jnp.clip(state.point - learning_rate * here.gradient, 0, limit)
        point = jnp.where(done, state.point, moved)
        return _State(state.iteration + 1, point, done | jnp.any(jnp.isnan(moved)))

    final = jax.lax.while_loop(proceed, advance, _State(jnp.zeros((), jnp.int32), start, jnp.zeros((), bool)))
    converged, _ = optimal(final.point)
    return Minimum(final.point, (final.point > 0) & (final.point < limit), converged, final.iteration)


def implicit(model: Callable[[Float[Array, " p"]], DualModel], minimum: Minimum) -> Float[Array, " p"]:
    """The multipliers as a differentiable function of all that `model` closes over.

    Two Newton steps on the free multipliers, starting from the solution: they do not move it, but their first and
    second derivatives are those of the solution (implicit function theorem). Multipliers at a bound do not move.
    """
    free = (minimum.free & minimum.converged).astype(minimum.multipliers.dtype)
    fixed = jnp.diag(1 - free)
    point = minimum.multipliers
    for _ in range(2):
        here = model(point)
        block = here.hessian * free * free[:, None] + fixed + _ridge(here.hessian)
        point = point - free * solve_positive(block, (free * here.gradient)[:, None])[:, 0]
    return point


def _projected(point: Array, gradient: Array, limit: float) -> Array:
    """The part of the gradient along which the box lets the value fall."""
    blocked = ((point <= 0) & (gradient > 0)) | ((point >= limit) & (gradient < 0))
    return jnp.where(blocked, 0, gradient)


def _ridge(hessian: Array) -> Array:
    """Keeps the system solvable where constraints repeat each other, without a visible effect elsewhere."""
    eps = jnp.finfo(hessian.dtype).eps
    trace = jax.lax.stop_gradient(jnp.trace(hessian))
    return (4 * eps * trace + jnp.finfo(hessian.dtype).tiny) * jnp.eye(hessian.shape[0], dtype=hessian.dtype)


def _newton_step(
    model: Callable[[Array], DualModel], point: Array, here: DualModel, limit: float, halvings: int = 30
) -> Array:
    """One projected Newton step (Bertsekas 1982): rows held at a bound are left out of the Hessian.

    The step is halved until the value falls, or, where rounding hides the fall, until the gradient does not grow.
    """
    held = _projected(point, here.gradient, limit) == 0
    free = (~held).astype(point.dtype)
    block = here.hessian * free * free[:, None] + jnp.diag(1 - free) + _ridge(here.hessian)
    direction = -free * solve_positive(block, (free * here.gradient)[:, None])[:, 0]
    noise = 10 * jnp.finfo(point.dtype).eps * (jnp.abs(here.value) + point @ here.scale)
    size = jnp.linalg.norm(_projected(point, here.gradient, limit) / here.scale)

    def candidate(fraction: Array) -> Array:
        return jnp.clip(point + fraction * direction, 0, limit)

    def proceed(state: tuple[Array, Array, Array]) -> Array:
        return ~state[2] & (state[0] < halvings)

    def advance(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, fraction, _ = state
        trial = candidate(fraction)
        there = model(trial)
        decrease = here.gradient @ (trial - point)
        falls = there.value <= here.value + 1e-4 * decrease
        flat = jnp.abs(decrease) <= noise
        smaller = jnp.linalg.norm(_projected(trial, there.gradient, limit) / here.scale) <= size
        good = falls | (flat & smaller)
        return count + 1, jnp.where(good, fraction, fraction / 2), good

    zero = jnp.zeros((), jnp.int32)
    _, fraction, good = jax.lax.while_loop(proceed, advance, (zero, jnp.ones((), point.dtype), jnp.zeros((), bool)))
    return jnp.where(good, candidate(fraction), point)
