"""A projected update that keeps the constraints themselves, not only their linearisation, at a finite step size.

FISAR (Sun, Kim, How) moves along theta' with `grad C . theta' <= -alpha(C)` (eq. 3): in continuous time a violation
decays and the feasible set is never left. One Euler step of size beta ends, for linear alpha, at

    C(theta + beta theta') = (1 - alpha beta) C(theta) + beta^2 / 2  theta' . (Hessian of C) theta',

and where C is convex the last term is on the wrong side, however small beta is. So shrinking beta alone stalls at the
boundary. Here a failed trial is repeated with the bounds moved inwards by what it missed them by (a second-order
correction, as in sequential quadratic programming), and beta shrinks only if two corrections do not suffice.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from safemeta.solvers.projection import Projection, ProjectionMetric, project_update

_PER_FRACTION = 3  # trials of one step size: as it is, and corrected twice
_MORE = 1.2  # a convex constraint is approached from its far side: aim a little further


class InvariantStep(NamedTuple):
    """`update` is what to add to the parameters: zero where no trial was accepted."""

    update: Float[Array, " n"]
    projection: Projection  # of the last trial, at full step
    fraction: Float[Array, ""]  # of the step size; 0 where nothing was accepted
    accepted: Bool[Array, ""]
    tried: Int[Array, ""]


class _Trial(NamedTuple):
    tried: Array
    fraction: Array
    moved: Float[Array, " m"]  # how far the bounds lie inside
    accepted: Array


def invariant_step(
    constraints: Callable[[Float[Array, " n"]], Float[Array, " m"]],
    parameters: Float[Array, " n"],
    raw: Float[Array, " n"],
    decrease: Float[Array, " m"],
    *,
    metric: ProjectionMetric = "euclidean",
    shrink: float = 0.5,
    trials: int = 30,
) -> InvariantStep:
    """A projection u of `raw`, and the fraction s of it that every constraint itself bears.

        C(parameters + s u) <= C(parameters) - s decrease,

    the discrete form of eq. 3 with `decrease = beta alpha(C)`. Outside (C > 0, decrease > 0) the violation falls in
    every accepted step; inside, as long as `decrease >= C` (for linear alpha: alpha beta <= 1), no accepted step
    leaves. `raw` and u are updates at full step size, beta included.

    Deterministic, continuously differentiable constraints only. The last trial is differentiable in `raw`,
    `parameters` and `decrease`; its fraction and moved bounds count as constants. Works under `jit` and `vmap`.
    Raises ValueError unless `0 < shrink < 1` and `trials >= 1`.
    """
    if not 0 < shrink < 1 or trials < 1:
        raise ValueError(f"invariant_step needs 0 < shrink < 1 and trials >= 1, got shrink={shrink}, trials={trials}")
    values, gradients = constraints(parameters), jax.jacrev(constraints)(parameters)
    fixed = jax.lax.stop_gradient((parameters, raw, values, gradients, decrease))

    def proceed(trial: _Trial) -> Array:
        return ~trial.accepted & (trial.tried < trials)

    def attempt(trial: _Trial) -> _Trial:
        origin, raw, values, gradients, decrease = fixed
        shorter = (trial.tried > 0) & (trial.tried % _PER_FRACTION == 0)
        fraction = jnp.where(shorter, trial.fraction * shrink, trial.fraction)
        moved = jnp.where(shorter, 0, trial.moved)  # the correction of a longer step would be too much
        update = project_update(raw, gradients, -decrease - moved, metric=metric).update
        reached = constraints(origin + fraction * update)
        excess = reached - (values - fraction * decrease)
        # A bound that is met exactly must not be missed by rounding.
        noise = 4 * jnp.finfo(excess.dtype).eps * (jnp.abs(reached) + jnp.abs(values) + jnp.abs(decrease))
        accepted = jnp.all(excess <= noise)  # false for anything that is not a number
        more = jnp.where(accepted | ~(excess > noise), 0, _MORE * excess / fraction)
        return _Trial(trial.tried + 1, fraction, moved + more, accepted)

    one = jnp.ones((), raw.dtype)
    start = _Trial(jnp.zeros((), jnp.int32), one, jnp.zeros_like(values), jnp.zeros((), bool))
    final = jax.lax.while_loop(proceed, attempt, start)
    found = project_update(raw, gradients, -decrease - final.moved, metric=metric)
    fraction = jnp.where(final.accepted, final.fraction, 0)
    update = jnp.where(final.accepted, fraction * found.update, 0)
    return InvariantStep(update, found, fraction, final.accepted, final.tried)
