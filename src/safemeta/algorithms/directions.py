"""Directions of improvement: policy gradients of the reward and of every cost, seen through the Fisher metric.

A step `F^-1 (c_0 g + c_1 b_1 + ...)` is made of gradients that were estimated on the same samples on which its effect is
then predicted. The prediction `step . b` is therefore too good: noise in b counts as signal, and with thousands of
parameters and a few episodes most of `b' F^-1 b` is noise (measured on Point-Circle: 50 to 90 %). A learner that believes
it overestimates how much it lowers a cost, and drifts above its limit. So effects are predicted *across* two halves of the
episodes: with `b = (b' + b'') / 2`, the product `b' F^-1 b''` of independent halves has the true value as its mean, and
equals `b F^-1 b - e F^-1 e` with `e = (b' - b'') / 2`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from safemeta.solvers import Metric, TrustRegionStep, solve_rows, trust_region_step

Vector = Float[Array, " parameters"]


class Directions(NamedTuple):
    """Rows are signals: the reward (or objective) first, then each constrained cost."""

    solutions: Float[Array, "signals parameters"]  # F^-1 gradient
    gram: Float[Array, "signals signals"]  # gradient . F^-1 gradient: twice the KL of a step along the solutions
    effect: Float[Array, "signals signals"]  # predicted change of signal i along solution j


def directions(
    halves: Callable[[Vector], Float[Array, "2 signals"]],
    at: Vector,
    metric: Metric,
    *,
    cross_fit: bool,
    iterations: int,
    damping: float,
) -> Directions:
    """`halves(x)` predicts every signal at parameters x from either half of the episodes.

    Without `cross_fit`, effects are the in-sample ones, `effect = gram` (plain TRPO and CPO).
    """
    value, pullback = jax.vjp(halves, at)
    signals = value.shape[1]
    if cross_fit:
        basis = jnp.eye(2 * signals, dtype=value.dtype).reshape(-1, 2, signals)
        first, second = jax.vmap(lambda row: pullback(row)[0])(basis).reshape(2, signals, -1)
        rows = jnp.concatenate([first + second, first - second]) / 2
    else:
        basis = jnp.repeat(jnp.eye(signals, dtype=value.dtype)[:, None], 2, axis=1) / 2
        rows = jax.vmap(lambda row: pullback(row)[0])(basis)
    solutions = solve_rows(metric, rows, iterations=iterations, damping=damping).solution
    gram = rows[:signals] @ solutions[:signals].T
    gram = (gram + gram.T) / 2
    if not cross_fit:
        return Directions(solutions, gram, gram)
    noise = rows[signals:] @ solutions[signals:].T
    return Directions(solutions[:signals], gram, gram - (noise + noise.T) / 2)


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
