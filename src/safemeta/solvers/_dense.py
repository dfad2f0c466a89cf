"""Dense linear algebra on a handful of rows, in plain array operations.

Not LAPACK, for two reasons. Calls to it inside a vmapped loop made XLA's CPU runtime of jax 0.10.2 wait for ever on two
cores (QR and triangular solves of 560 matrices of size 24; jax 0.12 does not). And on accelerators, one call each for
many tiny matrices is slow, while these vectorise like anything else.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def eliminate(matrix: Float[Array, "k k"], right: Float[Array, "k r"]) -> tuple[Array, Array]:
    """Gaussian elimination of a symmetric positive definite system, without pivoting: (U [k, k], right [k, r])."""
    size = matrix.shape[0]
    if size == 0:
        return matrix, right
    position = jnp.arange(size)

    def column(index: int | Array, both: Array) -> Array:
        pivot = both[index, index]
        share = jnp.where(position > index, both[:, index], 0) / jnp.where(pivot > 0, pivot, 1)
        return both - share[:, None] * both[index]

    both = jax.lax.fori_loop(0, size, column, jnp.concatenate([matrix, right], axis=1))
    return both[:, :size], both[:, size:]


def back_substitute(upper: Float[Array, "k k"], right: Float[Array, "k r"]) -> Float[Array, "k r"]:
    """`U^-1 right`; a row whose pivot is not positive gives zero."""
    size = upper.shape[0]
    if size == 0:
        return right

    def row(index: int | Array, found: Array) -> Array:
        place = size - 1 - index
        pivot = upper[place, place]
        value = (right[place] - upper[place] @ found) / jnp.where(pivot > 0, pivot, 1)
        return found.at[place].set(jnp.where(pivot > 0, value, 0))

    return jax.lax.fori_loop(0, size, row, jnp.zeros_like(right))


def solve_positive(matrix: Float[Array, "k k"], right: Float[Array, "k r"]) -> Float[Array, "k r"]:
    """`matrix^-1 right` for a symmetric positive definite matrix; derivatives of any order are implicit."""
    frozen = jax.lax.stop_gradient(matrix)
    return jax.lax.custom_linear_solve(
        lambda vector: matrix @ vector,
        right,
        lambda _, vector: back_substitute(*eliminate(frozen, vector)),
        symmetric=True,
    )


def positive_inverse(matrix: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """The inverse of a symmetric positive definite matrix. Not for differentiation in reverse."""
    return back_substitute(*eliminate(matrix, jnp.eye(matrix.shape[0], dtype=matrix.dtype)))
