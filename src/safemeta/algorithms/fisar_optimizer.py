"""FISAR's learned optimizer as an `optax` transformation: an LSTM's direction, then the safety projection (eq. 7)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from safemeta.algorithms.class_k import ClassK
from safemeta.nets import LearnedOptimizer, Memory
from safemeta.solvers import Projection, project_update, safe_projection
from safemeta.solvers.projection import ProjectionMetric

Parameters = Any


def direction(
    network: LearnedOptimizer,
    class_k: ClassK,
    metric: ProjectionMetric,
    gradient: Float[Array, " n"],
    rows: Float[Array, "m n"],
    values: Float[Array, " m"],
    memory: Memory,
) -> tuple[Projection, Memory]:
    """Theta' of eq. 7: the network's direction, projected onto `rows . theta' <= -alpha(values)`."""
    raw, memory = network(gradient, memory)
    return project_update(raw, rows, -class_k(values), metric=metric), memory


class LearnedState(NamedTuple):
    """The LSTM's memory of every coordinate, in the order of `ravel_pytree`."""

    memory: Memory


def learned(network: LearnedOptimizer, step: float = 0.1) -> optax.GradientTransformation:
    """`gradient -> step * m_phi(gradient, h)`, without any projection.

    The sign is part of what is learned: the network is trained on gradients of an objective to be *minimised*, so a
    return is to be fed as the gradient of its negative.
    """

    def init(params: Parameters) -> Any:
        return LearnedState(network.fresh(ravel_pytree(params)[0]))

    def update(updates: Parameters, state: Any, params: Parameters | None = None) -> tuple[Parameters, Any]:
        del params
        gradient, restore = ravel_pytree(updates)
        raw, memory = network(gradient, state.memory)
        return restore(step * raw.astype(gradient.dtype)), LearnedState(memory)

    return optax.GradientTransformation(init, update)


def optimizer(
    network: LearnedOptimizer,
    constraints: Callable[[Parameters], Float[Array, " m"]] | None = None,
    *,
    step: float = 0.1,
    class_k: ClassK | None = None,
    metric: ProjectionMetric = "euclidean",
    trials: int = 0,
    count: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """FISAR for any constrained problem: minimise an objective subject to `constraints(parameters) <= 0`.

    `theta_{k+1} = theta_k + beta theta'_k`, theta' being the network's direction projected onto `grad C . theta' <=
    -alpha(C)` (eq. 3 to 7); beta is `step`, alpha is `class_k` (by default linear with rate 1). Parameters may be any
    pytree. `metric="closed_form"` is the paper's projection. `trials > 0` corrects and shortens each step until the
    true constraints satisfy the condition, so that a feasible start stays feasible (`solvers.invariant_step`).

    Where constraints are estimated, leave the function out and pass `constraint_values` and `constraint_gradients`
    to `update`, as for `solvers.safe_projection`.
    """
    alpha = class_k or ClassK()
    projection = safe_projection(
        constraints, decrease=lambda values: step * alpha(values), metric=metric, trials=trials, count=count
    )
    return optax.with_extra_args_support(optax.chain(learned(network, step), projection))
