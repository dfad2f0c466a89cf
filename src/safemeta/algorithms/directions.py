"""Directions of improvement: policy gradients of the reward and of every cost, seen through the Fisher metric.

A step `F^-1 (c_0 g + c_1 b_1 + ...)` is made of gradients that were estimated on the same samples on which its
effect is then predicted. The prediction `step . b` is therefore too good: noise in b counts as signal, and with
thousands of parameters and a few episodes most of `b' F^-1 b` is noise (measured on Point-Circle: 50 to 90 %). A
learner that believes it overestimates how much it lowers a cost, and drifts above its limit. So effects are
predicted *across* two halves of the episodes: with `b = (b' + b'') / 2`, the product `b' F^-1 b''` of independent
halves has the true value as its mean, and equals `b F^-1 b - e F^-1 e` with `e = (b' - b'') / 2`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from safemeta.core import solve_without_pivots
from safemeta.solvers import (
    DualSolution,
    Metric,
    TrustRegionStep,
    dual_quadratic,
    quadratic_step,
    solve_rows,
    trust_region_step,
)

Vector = Float[Array, " parameters"]
Predictions = Callable[[Vector], Float[Array, "2 signals"]]


class Directions(NamedTuple):
    """Rows are signals: the reward (or objective) first, then each constrained cost."""

    solutions: Float[Array, "signals parameters"]  # F^-1 gradient
    gram: Float[Array, "signals signals"]  # gradient . F^-1 gradient: twice the KL of a step along the solutions
    effect: Float[Array, "signals signals"]  # predicted change of signal i along solution j


def directions(
    predictions: Sequence[Predictions],
    at: Vector,
    metric: Metric,
    *,
    cross_fit: bool,
    iterations: int,
    damping: float,
) -> Directions:
    """Gradients of all signals, through the metric.

    Each of `predictions` gives one or more signals at parameters x, from either half of the episodes: `[2, signals]`.

    Signals that read the same samples belong in one function, others in several, so that no sample is
    differentiated for a signal that does not depend on it. Without `cross_fit`, effects are the in-sample ones,
    `effect = gram` (plain TRPO and CPO).
    """
    rows = [jnp.concatenate(part) for part in zip(*(_gradients(f, at, cross_fit) for f in predictions), strict=True)]
    return through_metric(rows[0], rows[1] if cross_fit else None, metric, iterations=iterations, damping=damping)


def through_metric(
    gradients: Float[Array, "signals parameters"],
    noise: Float[Array, "signals parameters"] | None,
    metric: Metric | None,
    *,
    iterations: int,
    damping: float,
) -> Directions:
    """What is made of `gradients`, whose noise has the variance of `noise` (None: effects are the in-sample ones)."""
    signals = gradients.shape[0]
    rows = gradients if noise is None else jnp.concatenate([gradients, noise])
    solutions = solve_rows(metric, rows, iterations=iterations, damping=damping).solution
    gram = rows[:signals] @ solutions[:signals].T
    gram = (gram + gram.T) / 2
    if noise is None:
        return Directions(solutions, gram, gram)
    of_noise = rows[signals:] @ solutions[signals:].T
    return Directions(solutions[:signals], gram, gram - (of_noise + of_noise.T) / 2)


def _gradients(predictions: Predictions, at: Vector, cross_fit: bool) -> list[Float[Array, "signals parameters"]]:
    """Mean gradient of both halves; with `cross_fit` also half of their difference."""
    if not cross_fit:
        return [jax.jacrev(lambda x: predictions(x).mean(0))(at)]
    first, second = jax.jacrev(predictions)(at)
    return [(first + second) / 2, (first - second) / 2]


def constrained_step(
    found: Directions, violations: Float[Array, " costs"], radius: float | Array
) -> tuple[Vector, TrustRegionStep]:
    """The best step within KL `radius` that keeps the linearised costs, by their predicted effects.

    With coefficients c: maximise `effect[0] . c` subject to `c . gram c / 2 <= radius` and
    `violations + effect[1:] c <= 0`. Where `effect = gram` this is the step of CPO (no costs: of TRPO).
    """
    scale = jnp.sqrt(jnp.diagonal(found.gram))
    scale = jnp.where(scale > 0, scale, 1)
    gram = found.gram / scale / scale[:, None]
    # A little ridge: directions that are all but parallel must not be told apart by rounding.
    gram = gram + 1e-5 * jnp.eye(gram.shape[0], dtype=gram.dtype)
    effect = found.effect / scale
    small = trust_region_step(effect[0], effect[1:], violations, lambda c: gram @ c, radius, tolerance=0.0)
    return (small.step / scale) @ found.solutions, small


def without_objective(found: Directions) -> Directions:
    """The same costs with an objective that nothing changes: what is left to do is to lower the costs."""
    return found._replace(effect=found.effect.at[0].set(0.0))


def dual_step(
    found: Directions,
    allowance: Float[Array, " costs"],
    discount: float | Array,
    *,
    kl_weight: float,
    cost_kl_weight: float,
    kl_limit: float,
) -> tuple[DualSolution, Vector]:
    """Multipliers and step of the dual method's problem (1) in second order, with `effect` for the gradient products.

    `allowance` is what each cost may rise by. With coefficients c on the solutions, KL is `c S c / 2` and signal i
    changes by `K_i c`: the maximum is at `c = S^-1 K v / eta`, `v = (1, -u)`; so `K S^-1 K` takes the place of the Gram
    matrix (and is it where K = S).
    """
    units = jnp.concatenate([jnp.ones(1), jnp.full(allowance.shape, 1 - discount)])  # to the paper's E[A_c]
    effect = found.effect * units[:, None]
    size = jnp.diagonal(found.gram)  # zero where no sample had a cost
    shrunk = solve_without_pivots(found.gram + jnp.diag(jnp.where(size > 0, 1e-5 * size, 1)), effect.T).T
    solution = dual_quadratic(
        shrunk @ effect.T,
        (1 - discount) * allowance,
        kl_weight,
        jnp.full(allowance.shape, cost_kl_weight),
        discount,
        kl_limit=kl_limit,
    )
    return solution, quadratic_step(shrunk @ found.solutions, solution.multipliers, solution.eta)


def corrected(
    correction: Float[Array, " costs"], excess: Float[Array, " costs"], feasible: Bool[Array, ""], gain: float
) -> Float[Array, " costs"]:
    """What later steps are asked to take back beside a measured excess of costs: the integral part of a controller.

    In-sample effects are believed too good (see above), so that CPO asks for too small a step back and settles above
    its limit. The excess is accumulated, and rests while a step does all it can anyway (where none is `feasible`, it
    only lowers the costs).
    """
    grown = jnp.maximum(correction + gain * excess, 0)
    return jnp.where(feasible | (excess < 0), grown, correction)
