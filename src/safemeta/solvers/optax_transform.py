"""FISAR's projection as an `optax` transformation: any optimizer, kept to linearised constraints."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from safemeta.solvers.invariant_step import invariant_step
from safemeta.solvers.projection import Projection, ProjectionMetric, project_update

Parameters = Any


class SafeProjectionState(NamedTuple):
    """What the last projection found: read it from the optimizer's state."""

    multipliers: Float[Array, " m"]
    outcome: Int[Array, ""]  # an `Outcome`
    feasible: Bool[Array, ""]


def safe_projection(
    constraints: Callable[[Parameters], Float[Array, " m"]] | None = None,
    *,
    rate: float = 0.1,
    decrease: Callable[[Float[Array, " m"]], Float[Array, " m"]] | None = None,
    metric: ProjectionMetric = "euclidean",
    trials: int = 0,
    count: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Project each update u such that `grad C_i . u <= -rate C_i` for every constraint `C_i(parameters) <= 0`.

    Put it last in `optax.chain`, where updates are what is added to the parameters. `rate` is the product of FISAR's
    alpha (how fast a violation must fall, how fast a margin may be used up) and beta (its step size): with 1, one step
    aims at the boundary itself; to first order a violation shrinks by `1 - rate` per step. It must lie in (0, 1].
    `decrease` takes its place where another class-K function than a linear one is wanted: `C -> beta alpha(C)`.

    The condition is about linearised constraints. With `trials > 0` the update is corrected and shortened, up to so
    many times, until the constraints themselves satisfy `C(new) <= C - s beta alpha(C)` for the fraction s that is
    left of the step (see `invariant_step`): a feasible start then stays feasible. That needs `constraints`.

    The projection is Euclidean, so an optimizer that follows the gradient (momentum included) rests at the constrained
    optimum, while one that rescales it entry by entry (Adam) rests where its own direction is normal to the
    constraints: feasible, but in general not quite optimal.

    `constraints(parameters)` gives the values C[m] and is differentiated here. Where they come from samples instead,
    leave it out, set `count` to m, and pass `constraint_values` [m] and `constraint_gradients` (a pytree as the
    parameters, each leaf with a leading axis m) to `update`.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"safe_projection needs 0 < rate <= 1, got {rate}")
    if trials < 0 or (trials and constraints is None):
        raise ValueError("safe_projection can only try steps (trials > 0) where it has a function of the constraints")
    falls = (lambda values: rate * values) if decrease is None else decrease

    def init(params: Parameters) -> SafeProjectionState:
        size = count if constraints is None else jax.eval_shape(constraints, params).shape[0]
        dtype = ravel_pytree(params)[0].dtype
        return SafeProjectionState(jnp.zeros(size, dtype), jnp.zeros((), jnp.int32), jnp.ones((), bool))

    def update(
        updates: Parameters,
        state: Any,
        params: Parameters | None = None,
        *,
        constraint_values: Float[Array, " m"] | None = None,
        constraint_gradients: Parameters | None = None,
        **extra: Any,
    ) -> tuple[Parameters, SafeProjectionState]:
        del state, extra
        raw, restore = ravel_pytree(updates)
        if constraints is not None:
            if params is None:
                raise ValueError("safe_projection differentiates its constraints: pass the parameters to `update`")
            if trials:
                flat, rebuild = ravel_pytree(params)
                at = constraints  # known to be a function here, but inside the lambda no longer
                taken = invariant_step(
                    lambda x: at(rebuild(x)), flat, raw, falls(at(params)), metric=metric, trials=trials
                )
                return restore(taken.update), _state(taken.projection)
            constraint_values, constraint_gradients = constraints(params), jax.jacrev(constraints)(params)
        elif constraint_values is None or constraint_gradients is None:
            raise ValueError(
                "safe_projection() without a function needs constraint_values and constraint_gradients in `update`"
            )
        gradients = jax.vmap(lambda tree: ravel_pytree(tree)[0])(constraint_gradients)
        found = project_update(raw, gradients, -falls(jnp.asarray(constraint_values)), metric=metric)
        return restore(found.update), _state(found)

    return optax.GradientTransformationExtraArgs(init, update)


def _state(found: Projection) -> SafeProjectionState:
    return SafeProjectionState(found.multipliers, found.outcome, found.feasible)
