"""Backtracking along a step until the *evaluated* policy is acceptable.

A trust-region step keeps its promises for the linearised problem only. Before it is taken, the candidate is evaluated
and shortened until it passes. What the field accepts, in terms of the change against the current policy:

- TRPO (Schulman et al. 2015, appendix C): mean KL at most the radius, and a better surrogate objective.
- CPO (Achiam et al. 2017, section 6): mean KL at most the radius, and each surrogate cost within what it was allowed,
  `J_c + surrogate change <= max(limit, J_c)`. The objective has to improve only from a policy that keeps its limits: on
  the way back to them it may have to fall, and a search that insists would stall outside.
- recovery: mean KL at most the radius, and a lower violation.

`accept_trpo` and `accept_cpo` state these rules on evaluated numbers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class LineSearch(NamedTuple):
    """Where the search ended. When nothing was accepted, `parameters` are the old ones and `fraction` is 0."""

    parameters: Float[Array, " n"]
    fraction: Float[Array, ""]
    accepted: Bool[Array, ""]
    values: Any  # what `evaluate` gave for the last candidate that was tried
    tried: Int[Array, ""]


class _State(NamedTuple):
    tried: Array
    fraction: Array
    accepted: Array
    values: Any


def backtrack(
    evaluate: Callable[[Float[Array, " n"]], Any],
    parameters: Float[Array, " n"],
    step: Float[Array, " n"],
    accept: Callable[[Any, Float[Array, ""]], Bool[Array, ""]],
    *,
    shrink: float = 0.8,
    steps: int = 10,
) -> LineSearch:
    """Take the first accepted of `parameters + fraction step`, fraction = 1, shrink, shrink^2, ... (`steps` of them).

    `evaluate(candidate)` gives a pytree of arrays (surrogates, KL, costs), `accept(values, fraction)` judges it.
    Runs inside `jit` and `vmap`; stops evaluating once all rows of a batch are done. Differentiable in `parameters`
    and `step`; the fraction counts as a constant, since it is piecewise constant.
    """
    if not 0 < shrink < 1 or steps < 1:
        raise ValueError(f"backtrack needs 0 < shrink < 1 and steps >= 1, got shrink={shrink}, steps={steps}")
    origin, move = jax.lax.stop_gradient((parameters, step))

    def judge(fraction: Array) -> tuple[Array, Any]:
        values = jax.lax.stop_gradient(evaluate(origin + fraction * move))
        return jnp.asarray(accept(values, fraction), bool), values

    def proceed(state: _State) -> Array:
        return ~state.accepted & (state.tried < steps)

    def advance(state: _State) -> _State:
        fraction = jnp.where(state.tried == 0, state.fraction, state.fraction * shrink)
        return _State(state.tried + 1, fraction, *judge(fraction))

    one = jnp.ones((), parameters.dtype)
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(judge, one)[1])
    start = _State(jnp.zeros((), jnp.int32), one, jnp.zeros((), bool), empty)
    final = jax.lax.while_loop(proceed, advance, start)
    fraction = jnp.where(final.accepted, final.fraction, 0)
    # Not `parameters + 0 * step`: a step that is not finite must leave the parameters alone.
    moved = jnp.where(final.accepted, parameters + fraction * step, parameters)
    return LineSearch(moved, fraction, final.accepted, final.values, final.tried)


def accept_trpo(
    improvement: Float[Array, ""],
    kl: Float[Array, ""],
    radius: float | Array,
    *,
    least_improvement: float | Array = 0.0,
    slack: float = 1.0,
) -> Bool[Array, ""]:
    """`improvement > least_improvement` and `kl <= slack radius`; false for anything that is not finite."""
    finite = jnp.isfinite(improvement) & jnp.isfinite(kl)
    return finite & (improvement > least_improvement) & (kl <= slack * radius)


def accept_cpo(
    improvement: Float[Array, ""],
    kl: Float[Array, ""],
    violations: Float[Array, " m"],
    old_violations: Float[Array, " m"],
    radius: float | Array,
    *,
    feasible: Bool[Array, ""],
    slack: float = 1.0,
) -> Bool[Array, ""]:
    """CPO's rule on evaluated numbers; false for anything that is not finite.

    `violations` are those predicted from the candidate's importance-weighted costs, `J_c + surrogate change - limit`;
    `old_violations` those of the current policy; `feasible` is `TrustRegionStep.feasible`. Always demanded:
    `kl <= slack radius`. Besides,

    - from a policy without violation: a better objective, and no violation;
    - from a policy with violation, feasible step: no `violations` above `max(old_violations, 0)`, and less in total;
    - in a recovery step: less in total (in squares, as the recovery step measures it).
    """
    finite = jnp.isfinite(improvement) & jnp.isfinite(kl) & jnp.all(jnp.isfinite(violations))
    kept = jnp.all(violations <= jnp.maximum(old_violations, 0))
    lower = jnp.sum(jnp.maximum(violations, 0) ** 2) < jnp.sum(jnp.maximum(old_violations, 0) ** 2)
    better = jnp.where(jnp.all(old_violations <= 0), improvement > 0, lower)
    return finite & (kl <= slack * radius) & jnp.where(feasible, kept & better, lower)
