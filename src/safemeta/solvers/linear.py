"""Linear algebra with a metric that is only known by what it does to a vector.

A metric is a function `v -> H v` with `H` symmetric and positive definite. The curvature of a policy's KL divergence
(its Fisher information) is one; nothing here ever forms the n x n matrix.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Vector = Float[Array, " n"]
Metric = Callable[[Vector], Vector]


def rounding(dtype: Any, power: float = 1.0) -> float:
    """The relative rounding error of a floating-point type, to a power: the scale of every tolerance in here."""
    return float(jnp.finfo(dtype).eps) ** power


_FEW = 9  # up to so many rows (one objective and eight constraints), products are written out


class Solves(NamedTuple):
    """`solution = H^-1 rows` and what is known of it. Only `solution` carries derivatives."""

    solution: Float[Array, "k n"]
    image: Float[Array, "k n"]  # H applied to `solution`; equals the rows where the solver has converged
    residual: Float[Array, " k"]  # |rows - image| / |rows|, zero for a zero row


class _State(NamedTuple):
    iteration: Array
    solution: Float[Array, "k n"]
    residual: Float[Array, "k n"]
    direction: Float[Array, "k n"]
    squared: Float[Array, " k"]  # |residual|^2
    active: Array  # bool [k]


def _block_conjugate_gradient(
    matvec: Callable[[Array], Array], rows: Float[Array, "k n"], iterations: int, tolerance: float
) -> Float[Array, "k n"]:
    """Conjugate gradients for k right-hand sides in step: one batched product per iteration.

    A row rests once its residual is below `tolerance` times its length (never less than rounding), or when the
    curvature along its direction is not positive.
    """
    tolerance = max(tolerance, rounding(rows.dtype))
    squared = jnp.sum(rows * rows, axis=1)
    threshold = tolerance**2 * squared

    def proceed(state: _State) -> Array:
        return (state.iteration < iterations) & jnp.any(state.active)

    def advance(state: _State) -> _State:
        image = matvec(state.direction)
        curvature = jnp.sum(state.direction * image, axis=1)
        active = state.active & (curvature > 0)
        length = jnp.where(active, state.squared / jnp.where(active, curvature, 1), 0)[:, None]
        solution = state.solution + length * state.direction
        residual = state.residual - length * image
        squared = jnp.where(active, jnp.sum(residual * residual, axis=1), state.squared)
        ratio = jnp.where(active, squared / jnp.where(active, state.squared, 1), 0)[:, None]
        direction = residual + ratio * state.direction
        return _State(state.iteration + 1, solution, residual, direction, squared, active & (squared > threshold))

    start = _State(jnp.zeros((), jnp.int32), jnp.zeros_like(rows), rows, rows, squared, squared > 0)
    return jax.lax.while_loop(proceed, advance, start).solution


def solve_rows(
    metric: Metric | None,
    rows: Float[Array, "k n"],
    *,
    iterations: int = 100,
    tolerance: float = 0.0,
    damping: float | Array = 0.0,
) -> Solves:
    """`(H + damping I)^-1` applied to each of k rows, by conjugate gradients in one batch.

    `metric=None` is the identity (then nothing is iterated). Stops after `iterations`, or when every relative
    residual is below `tolerance`; with `tolerance=0` it stops early only at rounding level.

    Derivatives of every order, forward and reverse, are implicit (`H dx = db - dH x`, solved by the same conjugate
    gradients), with respect to the rows, the damping and all that `metric` closes over; they are as exact as the solve.
    """
    rows = jnp.asarray(rows)
    if metric is None:
        solution = rows / (1 + damping)
        return Solves(solution, rows, jnp.zeros(rows.shape[0], rows.dtype))

    def block(vectors: Array) -> Array:
        return jax.vmap(metric)(vectors) + damping * vectors

    def solve(matvec: Callable[[Array], Array], right: Array) -> Array:
        return _block_conjugate_gradient(matvec, right, iterations, tolerance)

    solution = jax.lax.custom_linear_solve(block, rows, solve, symmetric=True)
    # One more product, for the true residual. (The one that the iteration carries drifts in float32, and as an
    # auxiliary output it breaks jacfwd of jacfwd in jax 0.10.)
    image = jax.lax.stop_gradient(block(jax.lax.stop_gradient(solution)))
    length = jnp.linalg.norm(jax.lax.stop_gradient(rows), axis=1)
    relative = jnp.linalg.norm(jax.lax.stop_gradient(rows) - image, axis=1) / jnp.where(length > 0, length, 1)
    return Solves(solution, image, relative)


def conjugate_gradient(
    metric: Metric,
    rhs: Float[Array, " n"],
    *,
    iterations: int = 10,
    tolerance: float = 0.0,
    damping: float | Array = 0.0,
) -> Float[Array, " n"]:
    """`x = (H + damping I)^-1 rhs` by at most `iterations` conjugate-gradient steps (Hestenes and Stiefel 1952).

    See `solve_rows` for stopping and derivatives.
    """
    return solve_rows(metric, rhs[None], iterations=iterations, tolerance=tolerance, damping=damping).solution[0]


def fisher_vector_product(
    distribution: Callable[[Vector], Any],
    kl: Callable[[Any, Any], Float[Array, ""]],
    parameters: Float[Array, " n"],
    damping: float | Array = 0.0,
) -> Metric:
    """The Fisher information of a policy as a metric, `v -> J^T M J v + damping v`.

    `distribution(parameters)` gives the distributions' parameters in all observed states (any pytree, for instance
    `(mean, log_std)`), `kl(old, new)` the mean divergence between two such pytrees. `J` is the Jacobian of
    `distribution` and `M` the Hessian of `kl` in `new` at `new = old`. At the current policy this equals the Hessian of
    the mean KL, because the gradient of KL vanishes there. It needs no second derivative of the network (1.5 to 2
    times faster than `hessian_vector_product`), is positive semi-definite by construction, and its derivative with
    respect to `parameters` is that of the Fisher information itself, as a meta-gradient needs.

    The parameters of the distribution must be free ones: (mean, log_std), or logits with the normalisation inside
    `kl`. In normalised log-probabilities KL is linear, and M would be zero.

    The network is linearised once, when this is called, not once per product.
    """
    outputs, push = jax.linearize(distribution, parameters)
    pull = jax.linear_transpose(push, parameters)
    _, curvature = jax.linearize(jax.grad(lambda new: kl(outputs, new)), outputs)

    def metric(vector: Vector) -> Vector:
        return pull(curvature(push(vector)))[0] + damping * vector

    return metric


def hessian_vector_product(
    kl: Callable[[Vector], Float[Array, ""]], parameters: Float[Array, " n"], damping: float | Array = 0.0
) -> Metric:
    """`v -> (Hessian of kl at parameters) v + damping v`, forward over reverse.

    `kl(parameters)` is the mean divergence from the fixed current policy. For functions of which only the value is
    known; prefer `fisher_vector_product` where the distribution's parameters are at hand.
    """
    _, product = jax.linearize(jax.grad(kl), parameters)

    def metric(vector: Vector) -> Vector:
        return product(vector) + damping * vector

    return metric


def values_and_gradients(
    function: Callable[[Vector], Float[Array, " k"]], at: Vector
) -> tuple[Float[Array, " k"], Float[Array, "k n"]]:
    """The k values of `function`, few of them, and their gradients as rows.

    Each row is pulled back by itself. `jax.jacrev` pulls all of them in one batch, whose products of small matrices
    take XLA 2.5 times as long on a CPU where the function is itself a chain of derivatives.
    """
    values, pull = jax.vjp(function, at)
    return values, jnp.stack([pull(row)[0] for row in jnp.eye(values.shape[0], dtype=values.dtype)])


def combination(weights: Float[Array, " k"], rows: Float[Array, "k n"]) -> Float[Array, " n"]:
    """`weights @ rows`. For a few rows as a fused sum: XLA's batched product of such shapes is 10 times slower."""
    if rows.shape[0] > _FEW:
        return weights @ rows
    total = jnp.zeros_like(rows, shape=rows.shape[1:])
    for weight, row in zip(weights, rows, strict=True):
        total = total + weight * row
    return total


def products(rows: Float[Array, "k n"], others: Float[Array, "l n"]) -> Float[Array, "l k"]:
    """`others @ rows.T`, for a few rows one by one, for the same reason."""
    if others.shape[0] > _FEW or others.shape[0] == 0:
        return others @ rows.T
    return jnp.stack([rows @ other for other in others])


def orthonormal_rows(
    rows: Float[Array, "k n"], images: Float[Array, "k n"] | None = None, *, dependent: float | None = None
) -> Float[Array, "k n"]:
    """An H-orthonormal basis of the rows' span, by Gram-Schmidt with each row cleaned twice.

    `images` is H applied to the rows (the rows themselves when omitted: the Euclidean basis). A row that depends on
    the ones before it, to within `dependent` times its length, gives a zero row.
    """
    images = rows if images is None else images
    if dependent is None:
        dependent = 20 * rounding(rows.dtype)
    basis, basis_images = jnp.zeros_like(rows[:0]), jnp.zeros_like(rows[:0])
    for row, image in zip(rows, images, strict=True):
        length = jnp.sqrt(jnp.maximum(row @ image, 0))
        for _ in range(2):
            weights = basis_images @ row
            row = row - combination(weights, basis)
            image = image - combination(weights, basis_images)
        remaining = jnp.sqrt(jnp.maximum(row @ image, 0))
        inverse = jnp.where(remaining > dependent * length, 1 / jnp.where(remaining > 0, remaining, 1), 0)
        basis = jnp.concatenate([basis, (row * inverse)[None]])
        basis_images = jnp.concatenate([basis_images, (image * inverse)[None]])
    return basis


@jax.custom_jvp
def with_derivative_of(value: Array, formula: Array) -> Array:
    """`value[...]`, with the derivatives (of any order) of `formula[...]`, which has its shape.

    For a solution found by a search that cannot be differentiated, while a closed formula is known that holds in its
    neighbourhood. Without differentiation `formula` is never computed.
    """
    del formula
    return value


@with_derivative_of.defjvp
def _with_derivative_of_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return with_derivative_of(*primals), tangents[1]
